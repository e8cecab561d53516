"""Orders to a running cluster from other terminals: one JSON line there, one back."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from peer.cluster.events import PeerStatus
from peer.cluster.layout import HOST, START_TIMEOUT_S, STOP_TIMEOUT_S, ClusterError, write_private
from peer.cluster.processes import lock_file

if TYPE_CHECKING:
    from peer.cluster.local import LocalCluster

ORDER_READ_TIMEOUT_S = 5.0
ORDER_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = START_TIMEOUT_S + STOP_TIMEOUT_S


@contextmanager
def claimed(data: Path) -> Iterator[None]:
    """Hold the cluster's folder; the system lets go of it however this process ends."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "cluster.lock").open("ab")
    except OSError as error:
        raise ClusterError(f"cannot use {data} as the cluster's folder: {error.strerror}") from error
    with lock:
        if not lock_file(lock):
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What the supervisor says to an order: a sentence, and for `status` every peer."""

    message: str
    peers: tuple[PeerStatus, ...] = ()


async def take_orders(cluster: LocalCluster) -> ControlFile:
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
        write_private(self._path, asdict(self._control))

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
    control = read_control(data)
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


def read_control(data: Path) -> Control | None:
    try:
        stored = json.loads((data / "control.json").read_bytes())
        return Control(int(stored["port"]), str(stored["token"]), int(stored["pid"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
