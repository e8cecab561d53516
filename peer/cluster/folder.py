"""The cluster's folder: who holds it, and what a supervisor leaves in it for others to read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from peer.cluster.layout import ClusterError
from peer.locks import try_lock


@contextmanager
def claimed(data: Path) -> Iterator[None]:
    """Hold the cluster's folder; the system lets go of it however this process ends."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "cluster.lock").open("ab")
    except OSError as error:
        raise ClusterError(f"cannot use {data} as the cluster's folder: {error.strerror}") from error
    with lock:
        if not try_lock(lock.fileno()):
            control = read_control(data)
            who = f" (process {control.pid})" if control else ""
            raise ClusterError(f"a cluster is already running from {data}{who}; stop it or use another --data")
        yield


@dataclass(frozen=True, slots=True)
class Control:
    """Where a supervisor takes orders; the token keeps other users of the machine from giving them."""

    port: int
    token: str
    pid: int


class ControlFile:
    """control.json, there as long as orders are taken."""

    def __init__(self, data: Path, control: Control) -> None:
        self._path = data / "control.json"
        self._control = control

    def __enter__(self) -> None:
        write_private(self._path, asdict(self._control))

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def read_control(data: Path) -> Control | None:
    try:
        stored = json.loads((data / "control.json").read_bytes())
        return Control(int(stored["port"]), str(stored["token"]), int(stored["pid"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_private(path: Path, content: object) -> None:
    """Replace a file whole, readable by its owner only: a reader sees the old one or the new one."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    aside.replace(path)
