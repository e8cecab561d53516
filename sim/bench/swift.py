"""OpenStack Swift, started on loopback ports: what `sim bench` measures beside peers of ours, where it is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from sim.bench.loads import Place
from sim.bench.systems import HOST, START_S, System, SystemMissing, free_ports, program

KINDS = ("account", "container", "object")
"""Of the servers that keep something; there is one of each for a disk."""
PARTITION_POWER = 10
"""Of the rings: enough for some disks."""
CONTAINER = "/v1/AUTH_bench/bench"


class Swift(System):
    """A proxy, and for each disk an account, a container and an object server, without memcached and replicators."""

    name = "Swift"
    promise = "3 copies, 2 of them synced before the answer"
    cannot = frozenset({"heal", "mixed"})
    """Its replicators need an rsync server; and what it knows of a file it tells in the head of an answer only."""
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, nodes: int) -> None:
        super().__init__(folder)
        self._nodes = nodes
        if nodes < 3:
            self.promise = f"{nodes} copies, synced before the answer"

    def start(self) -> Place:
        for name in ("swift-ring-builder", *(f"swift-{kind}-server" for kind in (*KINDS, "proxy"))):
            _program(name)
        proxy, *ports = free_ports(1 + self._nodes * len(KINDS))
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = bench\n", encoding="ascii")
        # A disk's servers behind each other: the last three are those of the last disk.
        port_of = {(number, kind): ports.pop(0) for number in range(self._nodes) for kind in KINDS}
        for kind in KINDS:
            self._make_ring(kind, [port_of[number, kind] for number in range(self._nodes)])
        self._start_server("proxy", "proxy", proxy, _PROXY)
        for (number, kind), port in port_of.items():
            (self.folder / "disks" / _disk(number)).mkdir(parents=True, exist_ok=True)
            # In one process: one that is killed leaves none behind that goes on.
            self._start_server(f"{kind}-{number}", kind, port, _SERVER.format(kind=kind))
        self._make_container(proxy)
        return Place(
            url=f"http://{HOST}:{proxy}",
            put_path=f"{CONTAINER}/{{name}}",
            raw_path=f"{CONTAINER}/{{name}}",
            list_path=f"{CONTAINER}?limit=1000&format=json",
            next_path=f"{CONTAINER}?limit=1000&format=json&marker={{last}}",
            last_field="-1.name",
            stat_suffix="",
            takes_forms=False,
        )

    def lose_one(self) -> None:
        for _ in KINDS:
            server = self._processes.pop()
            server.kill()
            server.wait()

    def version(self) -> str:
        asked = [_python(), "-c", "from importlib.metadata import version; print(version('swift'))"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        return "unknown"

    def _make_ring(self, kind: str, ports: list[int]) -> None:
        """Which disks have which part of all names; three copies, or as many as there are disks."""
        builder = [_program("swift-ring-builder"), f"{kind}.builder"]
        self._run([*builder, "create", str(PARTITION_POWER), str(min(3, self._nodes)), "1"])
        for number, port in enumerate(ports):
            where = ["--region", "1", "--zone", str(number), "--ip", HOST, "--port", str(port)]
            self._run([*builder, "add", *where, "--device", _disk(number), "--weight", "1"])
        self._run([*builder, "rebalance"])

    def _run(self, command: list[str]) -> None:
        # Status 1 is a warning.
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode > 1:
            raise SystemMissing(f"Swift is not measured: {' '.join(command)} failed: {done.stdout or done.stderr}")

    def _start_server(self, name: str, kind: str, port: int, app: str) -> None:
        settings = self.folder / f"{name}.conf"
        common = _COMMON.format(host=HOST, port=port, folder=self.folder, user=_user())
        settings.write_text(common + app, encoding="utf-8")
        self._launch([_program(f"swift-{kind}-server"), str(settings)], f"{name}.log")
        self._wait(f"http://{HOST}:{port}/healthcheck", f"{name}.log")

    def _make_container(self, port: int) -> None:
        deadline = time.monotonic() + START_S
        asked = urllib.request.Request(f"http://{HOST}:{port}{CONTAINER}", method="PUT")
        while True:
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(asked, timeout=10):  # noqa: S310
                return
            if time.monotonic() > deadline:
                raise SystemMissing("Swift is not measured, for it makes no container; do its disks have xattrs?")
            time.sleep(0.2)


_COMMON = """[DEFAULT]
bind_ip = {host}
bind_port = {port}
swift_dir = {folder}
devices = {folder}/disks
mount_check = false
user = {user}
log_level = WARNING
"""

_PROXY = """workers = auto
[pipeline:main]
pipeline = catch_errors healthcheck proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""

_SERVER = """workers = 0
[pipeline:main]
pipeline = healthcheck {kind}-server
[filter:healthcheck]
use = egg:swift#healthcheck
[app:{kind}-server]
use = egg:swift#{kind}
"""


def _disk(number: int) -> str:
    return f"disk{number}"


def _user() -> str:
    """Servers ask for one, and become it when root starts them."""
    return os.environ.get("USER") or "root"


def _program(name: str) -> str:
    return program(name, "Swift", "swift")


def _python() -> str:
    """The interpreter Swift is installed for."""
    first, *_ = Path(_program("swift-proxy-server")).read_text(encoding="utf-8").splitlines()
    return first.removeprefix("#!").strip()
