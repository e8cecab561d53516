"""Runs pytest again and again, each time in a fork of one process that has third parties' modules loaded already.

Run as a script: a line of JSON comes in for each run (`folder`, `arguments`, `variables`, `paths`, `output`), a line
with pytest's exit code goes out. It must not import the project: each run imports that from the copy it is for.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, NoReturn

PRELOADED = (
    "pytest",
    "hypothesis.strategies",
    "trio.testing",
    "httpx",
    "starlette.applications",
    "sqlite_utils",
    "msgpack",
    "multipart",
    "blake3",
    "httptools",
    "prometheus_client",
)


def serve() -> None:
    """Answer one line after the other until there are no more."""
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(job: dict[str, Any]) -> NoReturn:
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["variables"])
    sys.dont_write_bytecode = True
    sys.path[:0] = job["paths"]
    code = 1
    try:
        code = int(importlib.import_module("pytest").main(job["arguments"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # The folder of this script is one of the project.
    sys.path.pop(0)
    serve()
