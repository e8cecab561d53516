"""Carries the membership's effects out: datagrams, the probe timer, members on disk, and meetings."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from peer.complaints import Complaints
from peer.config import Address, ConfigError, is_numeric
from peer.gossip.peers import Peers
from peer.gossip.placement import requeue
from peer.store.holding import Holding
from peer.store.members import save_members
from peer.world.env import Datagrams, Env, NoSpace, StoreError
from protocol.errors import ProtocolError, WrongCluster, WrongVersion
from protocol.identity import Member, NodeId
from protocol.membership import (
    Doubled,
    Effect,
    Learned,
    MemberChanged,
    Met,
    Received,
    Send,
    SetTimer,
    StatusChanged,
    Tick,
)
from protocol.messages import decode_datagram, encode_datagram

log = logging.getLogger("minidfs.gossip")

FULL_PAUSE_S = 5.0
"""Between looks whether there is room on the disk again."""


class Gossip:
    """Keeps a peer's membership running. `on_met` is started for each peer that answers after an absence.

    `on_doubled` is called with the address of an older process that goes by this peer's id.
    """

    def __init__(
        self,
        env: Env,
        here: Holding,
        others: Peers,
        datagrams: Datagrams,
        on_met: Callable[[NodeId], Awaitable[None]],
        on_doubled: Callable[[str], None],
    ) -> None:
        self._env = env
        self._here = here
        self._others = others
        self._datagrams = datagrams
        self._on_met = on_met
        self._on_doubled = on_doubled
        self._complaints = Complaints(log, env.clock.now)
        self._keeping = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self.datagrams_sent = 0
        self.datagrams_received = 0
        self.datagrams_dropped = 0

    async def run(self) -> None:
        """Probe and answer probes, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._carry_out(self._others.membership.handle(Tick(), self._env.clock.now()))
                while True:
                    self._hear(*await self._datagrams.receive())
        finally:
            self._nursery = None

    def _hear(self, raw: bytes, sender: Address) -> None:
        self.datagrams_received += 1
        try:
            message = decode_datagram(self._others.cluster_id, raw)
        except (WrongCluster, WrongVersion) as error:
            # Somebody means to talk to us, and nothing else would say why nothing comes of it.
            self.datagrams_dropped += 1
            self._complaints.say(sender, f"{sender} is not understood: {error}")
            return
        except ProtocolError as error:
            self.datagrams_dropped += 1
            log.debug("dropped a datagram: %s", error)
            return
        try:
            self._carry_out(self._others.membership.handle(Received(message), self._env.clock.now()))
        except Exception:
            # Else who sends it again and again would keep this peer deaf.
            self.datagrams_dropped += 1
            log.exception("a datagram of %s cannot be taken in", message.sender.node_id)

    def learn(self, members: tuple[Member, ...]) -> None:
        """Hear of members over HTTP."""
        self._carry_out(self._others.membership.handle(Learned(members), self._env.clock.now()))

    async def keep_members(self) -> None:
        """Keep the members on disk, and what follows from them."""
        members = self._others.membership.members()
        self._others.placement.follow(members)
        database = self._here.database
        try:
            await database.write(lambda: save_members(database.store, members))
            async with self._keeping:
                # Not `members`: others may have come while this waited for its turn.
                while True:
                    if await self._requeue():
                        break
                    await trio.sleep(FULL_PAUSE_S)
        except StoreError as error:
            log.error("cannot keep the members: %s", error)
        self._here.news.tell()

    async def _requeue(self) -> bool:
        """Bring the queue of missing copies in line with the members; False when there is no room for that."""
        members = self._others.membership.members()
        try:
            await requeue(self._env, self._here.database, self._others.placement, members, self._others.rest)
        except NoSpace:
            # What room there is others need, to delete files.
            return False
        return True

    def _carry_out(self, effects: list[Effect]) -> None:
        nursery = self._nursery
        if nursery is None:
            # It failed and starts again in a moment; then everybody is probed anew.
            return
        if any(isinstance(effect, MemberChanged) for effect in effects):
            nursery.start_soon(self.keep_members)
        self._send_all([effect for effect in effects if isinstance(effect, Send)], nursery)
        for effect in effects:
            match effect:
                case SetTimer(after_s):
                    nursery.start_soon(self._tick_later, after_s)
                case StatusChanged(node_id, status):
                    log.info("%s is %s", node_id, status.value)
                case Doubled(address, must_stop):
                    log.error("another process answers as %s at %s", self._others.me, address)
                    if must_stop:
                        self._on_doubled(address)
                case Met(node_id):
                    nursery.start_soon(self._on_met, node_id)

    def _send_all(self, sends: list[Send], nursery: trio.Nursery) -> None:
        # An address without a name costs no look-up, for which others would have to wait.
        direct = [send for send in sends if is_numeric(send.to)]
        if direct:
            nursery.start_soon(self._send_each, direct)
        for send in sends:
            if not is_numeric(send.to):
                nursery.start_soon(self._send, send)

    async def _send_each(self, sends: list[Send]) -> None:
        for send in sends:
            await self._send(send)

    async def _send(self, send: Send) -> None:
        try:
            address = Address.parse(send.to)
        except ConfigError:
            return
        self.datagrams_sent += 1
        await self._datagrams.send(encode_datagram(self._others.cluster_id, send.message), address)

    async def _tick_later(self, after_s: float) -> None:
        await trio.sleep(after_s)
        self._carry_out(self._others.membership.handle(Tick(), self._env.clock.now()))
