"""Carries the membership's effects out: datagrams, the probe timer, members on disk, and meetings."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from peer.config import Address, ConfigError
from peer.gossip.peers import PeerState
from peer.world.env import Datagrams
from protocol.errors import ProtocolError
from protocol.identity import NodeId
from protocol.membership import Effect, Learned, MemberChanged, Met, Received, Send, SetTimer, StatusChanged, Tick
from protocol.messages import Member, decode_datagram, encode_datagram

log = logging.getLogger("minidfs.gossip")


class Gossip:
    """Keeps a peer's membership running. `on_met` is started for each peer that answers after an absence."""

    def __init__(
        self,
        state: PeerState,
        datagrams: Datagrams,
        on_members: Callable[[], Awaitable[None]],
        on_met: Callable[[NodeId], Awaitable[None]],
    ) -> None:
        self._state = state
        self._datagrams = datagrams
        self._on_members = on_members
        self._on_met = on_met
        self._nursery: trio.Nursery | None = None
        self.datagrams_dropped = 0

    async def run(self) -> None:
        """Probe and answer probes, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self._carry_out(self._state.membership.handle(Tick(), self._state.env.clock.now()))
            while True:
                raw, _ = await self._datagrams.receive()
                try:
                    message = decode_datagram(self._state.cluster_id, raw)
                except ProtocolError as error:
                    self.datagrams_dropped += 1
                    log.debug("dropped a datagram: %s", error)
                    continue
                self._carry_out(self._state.membership.handle(Received(message), self._state.env.clock.now()))

    def learn(self, members: tuple[Member, ...]) -> None:
        """Hear of members over HTTP."""
        self._carry_out(self._state.membership.handle(Learned(members), self._state.env.clock.now()))

    def _carry_out(self, effects: list[Effect]) -> None:
        nursery = self._nursery
        assert nursery is not None, "effects need a running gossip"
        changed = False
        for effect in effects:
            match effect:
                case Send(to, message):
                    nursery.start_soon(self._send, to, encode_datagram(self._state.cluster_id, message))
                case SetTimer(after_s):
                    nursery.start_soon(self._tick_later, after_s)
                case MemberChanged():
                    changed = True
                case StatusChanged(node_id, status):
                    log.info("%s is %s", node_id, status.value)
                case Met(node_id):
                    nursery.start_soon(self._on_met, node_id)
        if changed:
            nursery.start_soon(self._on_members)

    async def _send(self, to: str, payload: bytes) -> None:
        try:
            address = Address.parse(to)
        except ConfigError:
            return
        await self._datagrams.send(payload, address)

    async def _tick_later(self, after_s: float) -> None:
        await trio.sleep(after_s)
        self._carry_out(self._state.membership.handle(Tick(), self._state.env.clock.now()))
