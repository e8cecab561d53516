"""A local cluster: one real process a peer, owned by one supervisor.

The supervisor starts the peers, waits until they answer, follows their logs, and takes orders (stop, start, kill,
status) from other terminals. Only it starts and ends the processes, so there is one place that knows what runs. What it
needs again after a restart is in the folder of the cluster:

    cluster.json     cluster id, number of peers, ports: a restart continues the same cluster
    cluster.lock     held while a supervisor runs
    control.json     where the running supervisor takes orders, and the token it wants; gone when it has ended
    NODE/            a peer's own data folder, with peer.log and, while it runs, peer.pid

Nothing here prints: what happens is told to a function (`Tell`), what goes wrong is a ClusterError.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import httpx
import trio

from peer.config import Address, ConfigError

HOST = "127.0.0.1"
NODES_DEFAULT = 3
NODES_MAX = 200
BASE_PORT_DEFAULT = 8001
FACADE_PORT_DEFAULT = 8080

START_TIMEOUT_S = 30.0
"""A peer that has not answered by then is taken for stuck."""
STOP_TIMEOUT_S = 15.0
"""Longer than a peer lets its running requests finish; one that still runs then is killed."""
HEALTH_TIMEOUT_S = 2.0
HEALTH_POLL_S = 0.05
LOG_POLL_S = 0.1
ORDER_READ_TIMEOUT_S = 5.0
ORDER_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = START_TIMEOUT_S + STOP_TIMEOUT_S
LAST_LINES = 10
LAST_BYTES_MAX = 64 * 1024

# Below the ports that Linux, macOS and Windows hand out to outgoing connections, so that no such connection takes one
# between our look and the peer's bind.
FREE_PORTS = range(10_000, 32_000)


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what to do."""


# What a cluster is made of.


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a cluster is made of; kept in its folder. Peers are node-1, node-2, … on ports in a row."""

    cluster_id: str
    nodes: int
    base_port: int
    facade_port: int

    def __post_init__(self) -> None:
        last = self.base_port + self.nodes - 1
        if not 1 <= self.nodes <= NODES_MAX:
            raise ConfigError(f"a local cluster has 1 to {NODES_MAX} nodes, not {self.nodes}")
        if not (1 <= self.base_port <= last <= 65535 and 1 <= self.facade_port <= 65535):
            raise ConfigError(f"ports {self.base_port} to {last} and {self.facade_port} must lie within 1 to 65535")
        if self.base_port <= self.facade_port <= last:
            raise ConfigError(
                f"facade port {self.facade_port} lies among the peers' own ports {self.base_port} to {last}; "
                "choose another with --facade-port or --base-port"
            )

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))

    @property
    def facade(self) -> Address:
        return Address(HOST, self.facade_port)

    def address_of(self, node_id: str) -> Address:
        return Address(HOST, self.base_port + self.node_ids.index(node_id))


PeerCommand = Callable[[Layout, str, Path], Sequence[str]]
"""Gives the command line of a peer, from the layout, its node id and its data folder."""


def serve_command(layout: Layout, node_id: str, folder: Path) -> list[str]:
    """The command line of a real peer."""
    # -P: a file named like a module in the folder the user happens to be in must not be imported by the peers.
    command = [sys.executable, "-P", "-m", "peer", "serve", "--id", node_id]
    command += ["--listen", str(layout.address_of(node_id)), "--facade", str(layout.facade)]
    for other in layout.node_ids:
        if other != node_id:
            command += ["--join", str(layout.address_of(other))]
    return [*command, "--cluster-id", layout.cluster_id, "--data", str(folder)]


def settle_layout(data: Path, nodes: int | None, base_port: int | None, facade_port: int | None) -> Layout:
    """Find what the cluster in `data` is to be: as it was, with nodes added if asked for, else a new one.

    Raises ClusterError when the folder holds a cluster on other ports or of more nodes, and ConfigError for ports that
    cannot be.
    """
    known = _read_layout(data)
    if known is None:
        return Layout(
            cluster_id=secrets.token_hex(16),
            nodes=NODES_DEFAULT if nodes is None else nodes,
            base_port=BASE_PORT_DEFAULT if base_port is None else base_port,
            facade_port=FACADE_PORT_DEFAULT if facade_port is None else facade_port,
        )
    if nodes is not None and nodes < known.nodes:
        raise ClusterError(
            f"{data} holds a cluster of {known.nodes} nodes; fewer could leave out files that only the others have: "
            f"use --nodes {known.nodes} or more, or another --data"
        )
    if base_port not in (None, known.base_port) or facade_port not in (None, known.facade_port):
        raise ClusterError(
            f"{data} holds a cluster on --base-port {known.base_port} --facade-port {known.facade_port}; "
            "use these, or another --data"
        )
    return Layout(
        cluster_id=known.cluster_id,
        nodes=nodes or known.nodes,
        base_port=known.base_port,
        facade_port=known.facade_port,
    )


def _read_layout(data: Path) -> Layout | None:
    try:
        stored = json.loads((data / "cluster.json").read_bytes())
        return Layout(
            cluster_id=str(stored["cluster_id"]),
            nodes=int(stored["nodes"]),
            base_port=int(stored["base_port"]),
            facade_port=int(stored["facade_port"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{data / 'cluster.json'} cannot be read ({error}); repair it or use another --data"
        ) from error


def _write_private(path: Path, content: object) -> None:
    """Replace a file whole, readable by its owner only: a reader sees the old one or the new one."""
    aside = path.with_name(path.name + ".new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    aside.replace(path)


# One supervisor a folder.


@contextmanager
def _claimed(data: Path) -> Iterator[None]:
    """Hold the cluster's folder; the system lets go of it however this process ends."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "cluster.lock").open("ab")
    except OSError as error:
        raise ClusterError(f"cannot use {data} as the cluster's folder: {error.strerror}") from error
    with lock:
        if not _lock(lock):
            control = _read_control(data)
            who = f" (process {control.pid})" if control else ""
            raise ClusterError(f"a cluster is already running from {data}{who}; stop it or use another --data")
        yield


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    async def _open_process(command: Sequence[str], log: IO[bytes]) -> trio.Process:
        # A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the peers orderly.
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_peer_environment(),
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
        )

    def _ask_to_stop(process: trio.Process) -> None:
        process.send_signal(signal.CTRL_BREAK_EVENT)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _open_process(command: Sequence[str], log: IO[bytes]) -> trio.Process:
        # A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the peers orderly.
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_peer_environment(),
            process_group=0,
        )

    def _ask_to_stop(process: trio.Process) -> None:
        process.send_signal(signal.SIGTERM)


def _peer_environment() -> dict[str, str]:
    # The peers run the code that this supervisor was loaded from, also when that is no installed copy.
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


# Ports.


def free_base_port(count: int) -> int:
    """Find `count` ports in a row that nothing uses; gives the first. For tests and experiments."""
    for _ in range(1000):
        base = FREE_PORTS.start + secrets.randbelow(len(FREE_PORTS) - count)
        if all(_is_free(port, with_datagrams=True) for port in range(base, base + count)):
            return base
    raise ClusterError(f"found no {count} free ports in a row")


def _is_free(port: int, *, with_datagrams: bool) -> bool:
    return (
        _can_bind(port, socket.SOCK_STREAM)
        and not _is_listening(port)
        and not (with_datagrams and not _can_bind(port, socket.SOCK_DGRAM))
    )


def _can_bind(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        # Connections of a cluster that ended a moment ago must not count. On Windows the option would steal the port,
        # and with datagrams it would share it.
        if os.name == "posix" and kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _is_listening(port: int) -> bool:
    # On macOS the bind succeeds beside a listener on all addresses.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(HEALTH_TIMEOUT_S)
        return probe.connect_ex((HOST, port)) == 0


async def _check_ports(data: Path, layout: Layout, client: httpx.AsyncClient) -> None:
    """Raise a ClusterError that names the first taken port and, for peers left over from this cluster, who to stop."""
    wanted = [(layout.address_of(node_id), node_id, "--base-port") for node_id in layout.node_ids]
    wanted.append((layout.facade, "the shared facade", "--facade-port"))
    for address, needed_by, option in wanted:
        if _is_free(address.port, with_datagrams=needed_by in layout.node_ids):
            continue
        left_over = await _left_over_peers(data, layout, client)
        if left_over:
            raise ClusterError(_describe_left_over(address.port, left_over))
        raise ClusterError(
            f"port {address.port} is taken (needed by {needed_by}); stop what uses it or choose others with {option}"
        )


async def _left_over_peers(data: Path, layout: Layout, client: httpx.AsyncClient) -> dict[str, str]:
    """Peers of this cluster that outlived their supervisor: node id to process id, or '' where it is not known."""
    left_over = {}
    for node_id in layout.node_ids:
        health = await _ask_health(client, layout.address_of(node_id))
        if health is not None and health.get("cluster_id") == layout.cluster_id:
            left_over[node_id] = _read_pid(data / node_id)
    return left_over


def _read_pid(folder: Path) -> str:
    try:
        return (folder / "peer.pid").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _describe_left_over(port: int, left_over: dict[str, str]) -> str:
    peers = ", ".join(f"{node_id} (process {pid or 'unknown'})" for node_id, pid in left_over.items())
    sentence = f"port {port} is taken by what a killed supervisor of this cluster left running: {peers}"
    stop = ("taskkill /F" + " /PID {}" * len(left_over)) if os.name == "nt" else ("kill" + " {}" * len(left_over))
    return f"{sentence}; stop it with: {stop.format(*left_over.values())}" if all(left_over.values()) else sentence


async def _ask_health(client: httpx.AsyncClient, address: Address, path: str = "/health") -> dict[str, object] | None:
    try:
        answer = await client.get(f"http://{address}{path}")
        body = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return body if isinstance(body, dict) else None


# What happens, told to whoever shows it.


@dataclass(frozen=True, slots=True)
class PeerWrote:
    """A peer wrote a line."""

    node_id: str
    line: str


@dataclass(frozen=True, slots=True)
class PeerExited:
    """A peer's process ended; `ordered` when it was told to."""

    node_id: str
    how: str
    ordered: bool


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer as the supervisor sees it; `pid` is None while it is down."""

    node_id: str
    address: str
    pid: int | None


Tell = Callable[[PeerWrote | PeerExited], None]


def _tell_nobody(_event: PeerWrote | PeerExited) -> None:
    pass


# The peers' processes.


class _PeerLog:
    """A peer's log file: the peer appends to it itself, so neither our death nor a stalled terminal can block it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "peer.log"
        self.writer = self.path.open("ab")
        self._reader = self.path.open("rb")
        self._start = self._reader.seek(0, os.SEEK_END)
        self._partial = b""

    def new_lines(self, *, at_end: bool = False) -> list[str]:
        """The lines written since the last call; an unfinished one waits for its end."""
        *lines, self._partial = (self._partial + self._reader.read()).split(b"\n")
        if at_end and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def last_lines(self) -> list[str]:
        """The last lines of this run."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - LAST_BYTES_MAX))
            return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]

    def close(self) -> None:
        self._reader.close()


@dataclass(slots=True)
class _Run:
    """One process of a peer, from its start to its end."""

    process: trio.Process
    log: _PeerLog
    ended: trio.Event
    ordered_to_end: bool = False


class _Peer:
    def __init__(self, node_id: str, address: Address, folder: Path, command: Sequence[str]) -> None:
        self.node_id = node_id
        self.address = address
        self.folder = folder
        self.command = command
        self.run: _Run | None = None
        self._starting = trio.Lock()

    async def launch(self) -> _Run:
        # Two orders to start may come at once, and opening a process takes a moment.
        async with self._starting:
            if self.run is not None:
                raise ClusterError(f"{self.node_id} is already running (process {self.run.process.pid})")
            try:
                self.run = await self._open()
                self._pid_file.write_text(f"{self.run.process.pid}\n", encoding="ascii")
            except OSError as error:
                raise ClusterError(f"{self.node_id} cannot be started: {error}") from error
            return self.run

    async def _open(self) -> _Run:
        log = _PeerLog(self.folder)
        try:
            with log.writer:
                return _Run(await _open_process(self.command, log.writer), log, trio.Event())
        except OSError:
            log.close()
            raise

    def running(self) -> _Run:
        if self.run is None:
            raise ClusterError(f"{self.node_id} is already down")
        return self.run

    def forget(self, run: _Run) -> None:
        self.run = None
        self._pid_file.unlink(missing_ok=True)
        run.log.close()
        run.ended.set()

    @property
    def _pid_file(self) -> Path:
        return self.folder / "peer.pid"


class LocalCluster:
    """The peers of a cluster as processes of ours. Made by `open_cluster`; no peer runs before `start_all`."""

    def __init__(
        self,
        data: Path,
        layout: Layout,
        *,
        nursery: trio.Nursery,
        client: httpx.AsyncClient,
        command: PeerCommand = serve_command,
        tell: Tell = _tell_nobody,
    ) -> None:
        self.data = data
        self.layout = layout
        self.nursery = nursery
        self._client = client
        self._tell = tell
        self._peers = {
            node_id: _Peer(
                node_id, layout.address_of(node_id), data / node_id, command(layout, node_id, data / node_id)
            )
            for node_id in layout.node_ids
        }

    async def start_all(self) -> None:
        """Start every peer and return when all answer; a ClusterError with its last lines if one does not get there."""
        runs = [(peer, await self._launch(peer)) for peer in self._peers.values()]
        for peer, run in runs:
            await self._wait_until_it_answers(peer, run)
        for peer, run in runs:
            if run.ended.is_set():
                raise _died_while_starting(peer, run)

    async def start(self, node_id: str) -> None:
        """Start a peer that is down and return when it answers."""
        peer = self._find(node_id)
        await self._wait_until_it_answers(peer, await self._launch(peer))

    async def stop(self, node_id: str) -> None:
        """Let a peer finish and return when it has ended; one that takes too long is killed."""
        peer = self._find(node_id)
        await self._stop([peer.running()])

    async def kill(self, node_id: str) -> None:
        """End a peer as a crash would, and return when it has ended."""
        run = self._find(node_id).running()
        self._kill(run)
        await run.ended.wait()

    async def stop_all(self) -> None:
        """Let all peers finish at once; those that take too long are killed."""
        await self._stop(self._running())

    def kill_all(self) -> None:
        """Order the end of every peer without waiting for it."""
        for run in self._running():
            self._kill(run)

    def status(self) -> list[PeerStatus]:
        """Every peer, running or not."""
        return [
            PeerStatus(peer.node_id, str(peer.address), peer.run.process.pid if peer.run else None)
            for peer in self._peers.values()
        ]

    def url_of(self, node_id: str) -> str:
        """Where a peer answers over HTTP."""
        return f"http://{self._find(node_id).address}"

    def _find(self, node_id: str) -> _Peer:
        try:
            return self._peers[node_id]
        except KeyError:
            raise ClusterError(f"there is no {node_id} in this cluster; it has {', '.join(self._peers)}") from None

    def _running(self) -> list[_Run]:
        return [peer.run for peer in self._peers.values() if peer.run is not None]

    async def _launch(self, peer: _Peer) -> _Run:
        run = await peer.launch()
        self.nursery.start_soon(self._follow, peer, run)
        return run

    async def _follow(self, peer: _Peer, run: _Run) -> None:
        """Tell what the peer writes until its process ends, and that it ended. Cancelled: the process is killed."""
        try:
            while run.process.returncode is None:
                with trio.move_on_after(LOG_POLL_S):
                    await run.process.wait()
                self._tell_lines(peer, run.log.new_lines())
        finally:
            with trio.CancelScope(shield=True):
                run.process.kill()
                code = await run.process.wait()
            lines = run.log.new_lines(at_end=True)
            peer.forget(run)
        self._tell_lines(peer, lines)
        self._tell(PeerExited(peer.node_id, _describe_exit(code), run.ordered_to_end))

    def _tell_lines(self, peer: _Peer, lines: list[str]) -> None:
        for line in lines:
            self._tell(PeerWrote(peer.node_id, line))

    async def _wait_until_it_answers(self, peer: _Peer, run: _Run) -> None:
        with trio.move_on_after(START_TIMEOUT_S):
            while not run.ended.is_set():
                # Before it is ready a peer answers /health only, and everything else with 503.
                health = await _ask_health(self._client, peer.address, "/health/ready")
                # Somebody else may have taken the port in between; that one must not pass for the peer.
                if health is not None and health.get("node_id") == peer.node_id and not run.ended.is_set():
                    self._tell_lines(peer, run.log.new_lines())
                    return
                await trio.sleep(HEALTH_POLL_S)
            raise _died_while_starting(peer, run)
        raise ClusterError(
            f"{peer.node_id} runs but did not answer on {peer.address} for {START_TIMEOUT_S:.0f} s; see {run.log.path}"
        )

    async def _stop(self, runs: list[_Run]) -> None:
        for run in runs:
            run.ordered_to_end = True
            _ask_to_stop(run.process)
        with trio.move_on_after(STOP_TIMEOUT_S):
            for run in runs:
                await run.ended.wait()
        for run in runs:
            self._kill(run)
            await run.ended.wait()

    def _kill(self, run: _Run) -> None:
        run.ordered_to_end = True
        run.process.kill()


def _died_while_starting(peer: _Peer, run: _Run) -> ClusterError:
    how = _describe_exit(run.process.returncode)
    lines = run.log.last_lines()
    if not lines:
        return ClusterError(f"{peer.node_id} ended ({how}) while starting, without a word in {run.log.path}")
    return ClusterError("\n    ".join([f"{peer.node_id} ended ({how}) while starting; its last lines:", *lines]))


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"


@asynccontextmanager
async def open_cluster(
    data: Path,
    *,
    nodes: int | None = None,
    base_port: int | None = None,
    facade_port: int | None = None,
    command: PeerCommand = serve_command,
    tell: Tell = _tell_nobody,
) -> AsyncIterator[LocalCluster]:
    """Claim the folder and the ports and take orders, until the block ends; then the peers are stopped orderly.

    When the block is cancelled from outside, the peers are killed. Raises ClusterError, or ConfigError for impossible
    settings, before anything is started.
    """
    failure: Exception | None = None
    with _claimed(data):
        layout = settle_layout(data, nodes, base_port, facade_port)
        async with _health_client() as client:
            await _check_ports(data, layout, client)
            _write_private(data / "cluster.json", asdict(layout))
            async with trio.open_nursery() as nursery:
                cluster = LocalCluster(data, layout, nursery=nursery, client=client, command=command, tell=tell)
                with await _take_orders(cluster):
                    try:
                        yield cluster
                    except Exception as error:  # noqa: BLE001 - raised again below: a nursery would wrap it in a group
                        failure = error
                    await cluster.stop_all()
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _health_client() -> httpx.AsyncClient:
    # A kept connection may lead to a process that has ended since; a proxy from the environment leads elsewhere.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT_S, limits=limits)


# Orders from other terminals: one JSON line there, one back.


@dataclass(frozen=True, slots=True)
class Control:
    """Where a supervisor takes orders; the token keeps other users of the machine from giving them."""

    port: int
    token: str
    pid: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the supervisor says to an order: a sentence, and for `status` every peer."""

    message: str
    peers: tuple[PeerStatus, ...] = ()


async def _take_orders(cluster: LocalCluster) -> ControlFile:
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    port = listener.socket.getsockname()[1]
    desk = _OrderDesk(cluster, Control(port, secrets.token_hex(16), os.getpid()))
    cluster.nursery.start_soon(_serve, desk, listener, cluster.nursery)
    return ControlFile(cluster.data, desk.control)


async def _serve(desk: _OrderDesk, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
    await trio.serve_listeners(desk.serve, [listener], handler_nursery=nursery)


class ControlFile:
    """control.json, there as long as orders are taken."""

    def __init__(self, data: Path, control: Control) -> None:
        self._path = data / "control.json"
        self._control = control

    def __enter__(self) -> None:
        _write_private(self._path, asdict(self._control))

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


class _OrderDesk:
    def __init__(self, cluster: LocalCluster, control: Control) -> None:
        self._cluster = cluster
        self.control = control

    async def serve(self, stream: trio.SocketStream) -> None:
        """Read one order, obey it, answer. Whoever asked may have gone by then: the order stands."""
        async with stream:
            with suppress(trio.BrokenResourceError):
                with trio.move_on_after(ORDER_READ_TIMEOUT_S) as reading:
                    line = await _read_line(stream)
                if not reading.cancelled_caught:
                    await stream.send_all(json.dumps(await self._answer(line)).encode() + b"\n")

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            return {"ok": True, **asdict(await self._obey(line))}
        except ClusterError as error:
            return {"ok": False, "message": str(error)}

    async def _obey(self, line: bytes) -> Answer:
        command, node_id = self._read(line)
        match command:
            case "status":
                return Answer("", tuple(self._cluster.status()))
            case "start":
                await self._cluster.start(node_id)
                return Answer(f"{node_id} started")
            case "stop":
                await self._cluster.stop(node_id)
                return Answer(f"{node_id} stopped")
            case "kill":
                await self._cluster.kill(node_id)
                return Answer(f"{node_id} killed")
        raise ClusterError(f"the supervisor knows no order {command!r}; both commands must be of one version")

    def _read(self, line: bytes) -> tuple[str, str]:
        try:
            order = json.loads(line)
            token, command, node_id = str(order["token"]), str(order["command"]), str(order.get("node", ""))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ClusterError("the order is no JSON object with a token and a command") from None
        if not secrets.compare_digest(token.encode(), self.control.token.encode()):
            raise ClusterError("the order's token is not that of this supervisor")
        return command, node_id


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while b"\n" not in line and len(line) <= ORDER_BYTES_MAX:
        part = await stream.receive_some(ORDER_BYTES_MAX)
        if not part:
            break
        line += part
    return line


def send_order(data: Path, command: str, node_id: str = "") -> Answer:
    """Give an order to the supervisor of the cluster in `data` and wait for its answer.

    Raises ClusterError when none is running there or it refuses.
    """
    control = _read_control(data)
    if control is None:
        raise ClusterError(f"no cluster is running from {data}; start one with: {_start_command(data)}")
    order = {"token": control.token, "command": command, "node": node_id}
    try:
        connection = socket.create_connection((HOST, control.port), timeout=ANSWER_TIMEOUT_S)
    except OSError:
        raise _supervisor_is_gone(data, control) from None
    with connection:
        try:
            connection.sendall(json.dumps(order).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            raise ClusterError(f"the cluster in {data} did not answer: {error}; see its terminal") from error
    return _read_answer(data, control, line)


def _read_answer(data: Path, control: Control, line: bytes) -> Answer:
    if not line:
        raise ClusterError(f"the cluster in {data} ended before it answered")
    try:
        reply = json.loads(line)
        ok, message = bool(reply["ok"]), str(reply["message"])
        peers = tuple(PeerStatus(**peer) for peer in reply.get("peers", ()))
    except (ValueError, TypeError, KeyError, AttributeError):
        # Something else got the port of a supervisor that was killed.
        raise _supervisor_is_gone(data, control) from None
    if not ok:
        raise ClusterError(message)
    return Answer(message, peers)


def _supervisor_is_gone(data: Path, control: Control) -> ClusterError:
    return ClusterError(
        f"no cluster is running from {data}: its supervisor (process {control.pid}) was killed and could not clean up; "
        f"start the cluster again with: {_start_command(data)}"
    )


def _start_command(data: Path) -> str:
    return f"minidfs cluster --data {shlex.quote(str(data))}"


def _read_control(data: Path) -> Control | None:
    try:
        stored = json.loads((data / "control.json").read_bytes())
        return Control(int(stored["port"]), str(stored["token"]), int(stored["pid"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
