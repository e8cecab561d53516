"""What real peers send each other, through one place that can cut, slow and lose it, without privileges.

Each peer is told to others under a port of the relay, which hands on to the peer's own. Datagrams say by the port they
come from whose they are, connections by the User-Agent of their first request.
"""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import trio

HOST = "127.0.0.1"
PIECE_BYTES = 64 * 1024
HEAD_BYTES_MAX = 64 * 1024
DATAGRAM_BYTES_MAX = 65_507
WAITING_MAX = 1000
"""Datagrams that are late; more are lost."""

_AGENT = re.compile(rb"^user-agent: minidfs/\S* \(([^)]*)\)\r?$", re.IGNORECASE | re.MULTILINE)


@dataclass(slots=True)
class Rule:
    """What happens to what one peer sends another."""

    is_cut: bool = False
    """Nothing passes; connections stay, and what was sent comes when they are mended."""
    late_s: float = 0.0
    """Datagrams and pieces of connections come up to so much later."""
    lost: float = 0.0
    """Of datagrams, as a share."""
    mended: trio.Event = field(default_factory=trio.Event)


class Relay:
    """Ports that stand for those of the peers. Use `run` in a task, and `rule` and `mend` at any time."""

    def __init__(self, ports: Mapping[str, int], port_of: Mapping[str, int], chance: random.Random) -> None:
        """By the names of the peers, the ports they have and those they are told to others under."""
        self._ports = dict(ports)
        self._chance = chance
        self._names = {port: name for name, port in self._ports.items()}
        self._rules: dict[tuple[str, str], Rule] = {}
        self._mailboxes: dict[str, trio.socket.SocketType] = {}
        self._listeners: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._late = 0
        self.port_of = dict(port_of)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hand on until cancelled; started once all ports are there. Raises OSError if they cannot be had."""
        try:
            async with trio.open_nursery() as self._nursery:
                for name in self._ports:
                    mailbox = self._mailboxes[name] = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    await mailbox.bind((HOST, self.port_of[name]))
                    self._nursery.start_soon(self._carry_datagrams, name, mailbox)
                    await self.open(name)
                task_status.started()
        finally:
            for mailbox in self._mailboxes.values():
                mailbox.close()

    async def open(self, name: str) -> None:
        """Take connections for a peer."""
        if name not in self._listeners:
            assert self._nursery is not None
            self._listeners[name] = trio.CancelScope()
            await self._nursery.start(self._serve, name, self._listeners[name])

    def close(self, name: str) -> None:
        """Refuse connections for a peer, and break those there are, as when its process is gone."""
        scope = self._listeners.pop(name, None)
        if scope is not None:
            scope.cancel()

    # --- rules ---

    def rule(self, sender: str, receiver: str) -> Rule:
        """What holds for what one peer sends another; to be changed in place."""
        return self._rules.setdefault((sender, receiver), Rule())

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass from one peer to another."""
        self.rule(sender, receiver).is_cut = True

    def mend(self) -> None:
        """Let everything pass at once and whole again."""
        rules, self._rules = self._rules, {}
        for rule in rules.values():
            rule.is_cut, rule.late_s, rule.lost = False, 0.0, 0.0
            rule.mended.set()

    async def _pass(self, sender: str, receiver: str) -> None:
        """Return when what is sent now may arrive."""
        while (rule := self._rules.get((sender, receiver))) is not None and rule.is_cut:
            await rule.mended.wait()
        if rule is not None and rule.late_s:
            await trio.sleep(self._chance.uniform(0, rule.late_s))

    # --- datagrams ---

    async def _carry_datagrams(self, receiver: str, mailbox: trio.socket.SocketType) -> None:
        assert self._nursery is not None
        while True:
            try:
                payload, (_, port) = await mailbox.recvfrom(DATAGRAM_BYTES_MAX)
            except ConnectionError:
                # Windows and macOS tell of an earlier datagram that nobody took.
                continue
            sender = self._names.get(port)
            if sender is None:
                continue
            rule = self._rules.get((sender, receiver))
            if rule is None:
                await self._hand_on(sender, receiver, payload)
            elif not rule.is_cut and self._chance.random() >= rule.lost and self._late < WAITING_MAX:
                self._nursery.start_soon(self._hand_on_later, rule.late_s, sender, receiver, payload)

    async def _hand_on_later(self, late_s: float, sender: str, receiver: str, payload: bytes) -> None:
        self._late += 1
        try:
            await trio.sleep(self._chance.uniform(0, late_s))
            await self._hand_on(sender, receiver, payload)
        finally:
            self._late -= 1

    async def _hand_on(self, sender: str, receiver: str, payload: bytes) -> None:
        # It comes from where its sender can be found.
        with suppress(OSError):
            await self._mailboxes[sender].sendto(payload, (HOST, self._ports[receiver]))

    # --- connections ---

    async def _serve(
        self, receiver: str, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        listeners = await trio.open_tcp_listeners(self.port_of[receiver], host=HOST)
        with scope:
            async with trio.open_nursery() as nursery:
                task_status.started()

                async def serve(stream: trio.SocketStream) -> None:
                    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                        await self._connect(receiver, stream)

                await trio.serve_listeners(serve, listeners, handler_nursery=nursery)

    async def _connect(self, receiver: str, stream: trio.SocketStream) -> None:
        head = b""
        async with stream:
            while b"\r\n\r\n" not in head:
                piece = await stream.receive_some(PIECE_BYTES)
                if not piece or len(head) > HEAD_BYTES_MAX:
                    return
                head += piece
            found = _AGENT.search(head)
            sender = found[1].decode("ascii", "replace") if found else ""
            await self._pass(sender, receiver)
            async with await trio.open_tcp_stream(HOST, self._ports[receiver]) as peer, trio.open_nursery() as nursery:
                await peer.send_all(head)
                nursery.start_soon(self._pump, stream, peer, sender, receiver, nursery.cancel_scope)
                nursery.start_soon(self._pump, peer, stream, receiver, sender, nursery.cancel_scope)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        sender: str,
        receiver: str,
        both: trio.CancelScope,
    ) -> None:
        """Hand on what one end sends, until it says that no more comes; an end that breaks ends both."""
        try:
            while piece := await source.receive_some(PIECE_BYTES):
                await self._pass(sender, receiver)
                await sink.send_all(piece)
            await sink.send_eof()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()
