"""Loads: what is asked of a system, how many at once, and what came of it.

`wrk` and `curl` drive them where they are installed, for they cost the machine least; else `sim/bench/generator.py`
does, and the report says so.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BOUNDARY = "minidfs-bench"
PAGE = 1000
"""Files of a list."""
GRACE_S = 60.0
"""For a generator to end after its time."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of request, again and again."""

    name: str
    kind: str
    """`put`, `get`, `list` (a page of a thousand files), `walk` (a list of all files, a page behind the other), `mixed`
    (of a hundred requests 45 reads, 15 writes, 10 deletions and 30 questions about a file), or `heal` (a disk is lost,
    and all its copies come back)."""
    size: int
    """Bytes of each file."""
    connections: int
    is_elsewhere: bool = False
    """Of files with few copies, through a peer that has none of them."""
    is_degraded: bool = False
    """Measured after one of the system's processes that keep content was killed."""
    files: int | None = None
    """How many files there are to be read, walked through or healed; by their size, where it does not say."""

    @property
    def is_large(self) -> bool:
        """Whether it is measured in bytes, one file at a time."""
        return self.connections == 1 and self.kind != "walk"


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load came to; times of requests in milliseconds."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int

    @property
    def per_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system takes files, and where it gives them."""

    url: str
    """Of its host and port."""
    put_path: str
    """To which forms are posted, or contents put as they are; `{name}` stands for a name of the file."""
    raw_path: str
    """To which the content of a file of this name is put as it is, and from which it is deleted."""
    list_path: str
    """A page of a thousand files, the first one."""
    next_path: str
    """The page behind the file `{last}`."""
    last_field: str
    """Where a page says which its last file is: names of fields, and places in lists, with dots between them."""
    stat_suffix: str
    """Behind a file's path: what is known of it."""
    takes_forms: bool = True
    """Whether contents come in forms."""


def tool() -> str:
    """What drives the small loads here."""
    return "wrk" if shutil.which("wrk") else "the built-in generator"


def drive(place: Place, workload: Workload, seconds: float, paths: Sequence[str], folder: Path) -> Figures:
    """Load a system for so long; `paths` are those of files that can be read. Raises OSError, subprocess errors."""
    if workload.kind == "walk":
        # Each page says where the next one begins.
        return _with_generator(place, workload, seconds, ())
    if workload.is_large and shutil.which("curl"):
        return _with_curl(place, workload, seconds, paths, folder)
    if shutil.which("wrk") and not workload.is_large:
        return _with_wrk(place, workload, seconds, paths, folder)
    return _with_generator(place, workload, seconds, paths)


def fill(place: Place, size: int, count: int) -> list[str]:
    """Store so many files and return the paths under which they are read."""
    # Each connection has a whole file in memory.
    lanes = 4 if size <= 64 * 1024 * 1024 else 1
    answer = _generate(place, Workload("fill", "put", size, lanes), 600.0, (), count)
    return [str(path) for path in answer["paths"]]


# --- the built-in generator ---


def _with_generator(place: Place, workload: Workload, seconds: float, paths: Sequence[str]) -> Figures:
    answer = _generate(place, workload, seconds, paths, None)
    return Figures(answer["requests"], answer["seconds"], answer["p50_ms"], answer["p99_ms"], answer["errors"])


def _generate(
    place: Place, workload: Workload, seconds: float, paths: Sequence[str], count: int | None
) -> dict[str, Any]:
    job = {"place": asdict(place), "workload": asdict(workload), "seconds": seconds, "paths": paths, "count": count}
    done = subprocess.run(
        [sys.executable, "-m", "sim.bench.generator"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=seconds + GRACE_S,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# --- wrk ---

_PUT_SCRIPT = """
local letters, count = {}, 0
math.randomseed(tonumber(os.getenv("BENCH_SEED")))
for at = 1, tonumber(os.getenv("BENCH_SIZE")) do letters[at] = string.char(97 + math.random(0, 25)) end
local base, seed, path = table.concat(letters), os.getenv("BENCH_SEED"), os.getenv("BENCH_PATH")
local head = "--%(boundary)s\\r\\nContent-Disposition: form-data; name=\\"file\\"; filename=\\"a.bin\\"\\r\\n"
  .. "Content-Type: application/octet-stream\\r\\n\\r\\n"
local headers = {["content-type"] = "multipart/form-data; boundary=%(boundary)s"}
function request()
  count = count + 1
  local name = seed .. "-" .. count
  local content = (name .. ":" .. base):sub(1, #base)
  if os.getenv("BENCH_FORMS") == "" then
    return wrk.format("PUT", (path:gsub("{name}", name)), {["content-type"] = "application/octet-stream"}, content)
  end
  return wrk.format("POST", (path:gsub("{name}", name)), headers, head .. content .. "\\r\\n--%(boundary)s--\\r\\n")
end
"""

_GET_SCRIPT = """
local paths = {}
for path in io.lines(os.getenv("BENCH_PATHS")) do paths[#paths + 1] = path end
math.randomseed(tonumber(os.getenv("BENCH_SEED")))
function request() return wrk.format("GET", paths[math.random(#paths)]) end
"""

_DONE_SCRIPT = """
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
"""


_LIST_SCRIPT = """
wrk.headers["accept"] = "application/json"
function request() return wrk.format("GET", os.getenv("BENCH_LIST")) end
"""

# A file is deleted a thousand requests after it was written, and others are read: no request overtakes what it needs.
# The first request wrk asks for is one it looks at and never sends.
_MIXED_SCRIPT = """
local paths, written, first, count = {}, {}, 1, 0
for path in io.lines(os.getenv("BENCH_PATHS")) do paths[#paths + 1] = path end
math.randomseed(tonumber(os.getenv("BENCH_SEED")))
local content = string.rep("x", tonumber(os.getenv("BENCH_SIZE")))
local seed, raw, suffix = os.getenv("BENCH_SEED"), os.getenv("BENCH_RAW"), os.getenv("BENCH_STAT")
function request()
  count = count + 1
  local dice, path = math.random(100), paths[math.random(#paths)]
  if dice <= 15 and count > 1 then
    local name = seed .. "-" .. count
    written[#written + 1] = {(raw:gsub("{name}", name)), count}
    return wrk.format("PUT", written[#written][1], nil, (name .. content):sub(1, #content))
  end
  if dice <= 25 and written[first] and written[first][2] + 1000 < count then
    first = first + 1
    return wrk.format("DELETE", written[first - 1][1])
  end
  return wrk.format("GET", dice <= 55 and path .. suffix or path)
end
"""

_SCRIPTS = {
    "put": _PUT_SCRIPT % {"boundary": BOUNDARY},
    "get": _GET_SCRIPT,
    "list": _LIST_SCRIPT,
    "mixed": _MIXED_SCRIPT,
}


def _with_wrk(place: Place, workload: Workload, seconds: float, paths: Sequence[str], folder: Path) -> Figures:
    script, listed = folder / "load.lua", folder / "paths"
    script.write_text(_SCRIPTS[workload.kind] + _DONE_SCRIPT, encoding="ascii")
    listed.write_text("".join(f"{path}\n" for path in paths), encoding="ascii")
    told = {
        "BENCH_SIZE": str(workload.size),
        "BENCH_SEED": str(random.SystemRandom().getrandbits(30)),
        "BENCH_PATH": place.put_path,
        "BENCH_PATHS": str(listed),
        "BENCH_RAW": place.raw_path,
        "BENCH_FORMS": "1" if place.takes_forms else "",
        "BENCH_STAT": place.stat_suffix,
        "BENCH_LIST": place.list_path,
    }
    command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{max(1, round(seconds))}s", "-s", str(script), place.url]
    done = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, timeout=seconds + GRACE_S, check=True
    )
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return Figures(**json.loads(result.removeprefix("RESULT ")))


# --- curl ---

PIECE_BYTES = 1024 * 1024
"""No larger than the pieces into which a system cuts files."""


def _write_random(path: Path, size: int) -> None:
    """A file nothing can make smaller: no two pieces of it are alike."""
    with path.open("wb") as file:
        for start in range(0, size, PIECE_BYTES):
            file.write(os.urandom(min(PIECE_BYTES, size - start)))


def _make_different(path: Path) -> None:
    """Change every piece of a file: of content that is there already a system may have nothing to store."""
    size = path.stat().st_size
    with path.open("rb+") as file:
        for start in range(0, size, PIECE_BYTES):
            file.seek(start)
            file.write(os.urandom(min(16, size - start)))


def _with_curl(place: Place, workload: Workload, seconds: float, paths: Sequence[str], folder: Path) -> Figures:
    """One file at a time, each by a curl of its own, as a user would."""
    sent, errors = folder / "sent", 0
    if workload.kind == "put":
        _write_random(sent, workload.size)
    started = time.monotonic()
    took: list[float] = []
    while time.monotonic() - started < seconds or not took:
        if workload.kind == "put":
            _make_different(sent)
            path = place.put_path.replace("{name}", f"large-{os.urandom(6).hex()}")
            what = ["-F", f"file=@{sent}"] if place.takes_forms else ["-T", str(sent)]
        else:
            path, what = paths[len(took) % len(paths)], []
        command = ["curl", "-sS", "-o", os.devnull, "-w", "%{http_code} %{time_total}", *what, f"{place.url}{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GRACE_S + 600, check=True)
        status, total = done.stdout.split()
        errors += not status.startswith("2")
        took.append(float(total))
    sent.unlink(missing_ok=True)
    took_ms = sorted(1000 * one for one in took)
    return Figures(len(took), sum(took), took_ms[len(took_ms) // 2], took_ms[-1], errors)
