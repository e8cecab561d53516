"""Orders to a running cluster from other terminals: one JSON line there, one back."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from peer.cluster.events import PeerStatus
from peer.cluster.folder import Control, ControlFile, read_control
from peer.cluster.layout import HOST, START_TIMEOUT_S, STOP_TIMEOUT_S, ClusterError

ORDER_READ_TIMEOUT_S = 5.0
ORDER_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = START_TIMEOUT_S + STOP_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Answer:
    """What the supervisor says to an order: a sentence, and for `status` every peer."""

    message: str
    peers: tuple[PeerStatus, ...] = ()


Obey = Callable[[str, str], Awaitable[Answer]]
"""Carries out a command on a node; raises ClusterError for what cannot be."""


async def take_orders(data: Path, obey: Obey, nursery: trio.Nursery) -> ControlFile:
    """Take orders from now on, in this nursery; they find their way by the file that is returned."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    port = listener.socket.getsockname()[1]
    desk = _OrderDesk(obey, Control(port, secrets.token_hex(16), os.getpid()))
    nursery.start_soon(_serve, desk, listener, nursery)
    return ControlFile(data, desk.control)


async def _serve(desk: _OrderDesk, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
    await trio.serve_listeners(desk.serve, [listener], handler_nursery=nursery)


class _OrderDesk:
    def __init__(self, obey: Obey, control: Control) -> None:
        self._obey = obey
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
            return {"ok": True, **asdict(await self._obey(*self._read(line)))}
        except ClusterError as error:
            return {"ok": False, "message": str(error)}

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
