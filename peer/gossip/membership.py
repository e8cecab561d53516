"""Carries the membership's effects out: datagrams, the probe timer, members on disk, and meetings."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from peer.complaints import Complaints
from peer.config import Address, ConfigError, is_numeric
from peer.gossip.peers import Peers
from peer.gossip.placement import requeue
from peer.store.holding import Holding
from peer.store.members import save_members
from peer.world.env import Datagrams, Env, NoSpace, StoreError
from protocol.datagrams import decode_datagram, encode_datagram
from protocol.errors import NotAuthentic, ProtocolError, WrongCluster, WrongVersion
from protocol.identity import NodeId
from protocol.member_events import (
    Doubled,
    Doubted,
    Drain,
    Effect,
    Event,
    Evict,
    Evicted,
    Learned,
    MemberChanged,
    MemberLeft,
    Met,
    Received,
    Rejoin,
    Send,
    SetTimer,
    StatusChanged,
    Tick,
)
from protocol.membership import Membership
from protocol.messages import View
from protocol.placement import Place
from protocol.sessions import Again, Sessions, Stale

log = logging.getLogger("minidfs.gossip")

FULL_PAUSE_S = 5.0
"""Between looks whether there is room on the disk again."""


class Gossip:
    """Keeps a peer's membership running. `on_met` is started for each peer that answers after an absence.

    `on_doubled` is called with the address of an older process that goes by this peer's id, and `on_evicted` when it is
    removed from the cluster for good. If it was before this start, and `may_rejoin`, it joins again instead.
    """

    def __init__(
        self,
        env: Env,
        here: Holding,
        others: Peers,
        membership: Membership,
        sessions: Sessions,
        datagrams: Datagrams,
        on_met: Callable[[NodeId], Awaitable[None]],
        on_doubled: Callable[[str], None],
        on_evicted: Callable[[], None],
        *,
        may_rejoin: bool,
    ) -> None:
        self._env = env
        self._here = here
        self._others = others
        self._membership = membership
        self._sessions = sessions
        self._datagrams = datagrams
        self._on_met = on_met
        self._on_doubled = on_doubled
        self._on_evicted = on_evicted
        self._may_rejoin = may_rejoin
        self._complaints = Complaints(log, env.clock.now)
        self._changed = trio.Event()
        self._queued_for: tuple[Place, ...] | None = None
        """The places by which the queue of missing copies was made in this life."""
        self._nursery: trio.Nursery | None = None
        self._timer = trio.CancelScope()
        self._told = {member.node_id: others.membership.place_of(member) for member in others.membership.members()}
        """What who watches was told of each member's place in the cluster."""
        self.doubled_at: str | None = None
        """Where another process went by this peer's id in this life."""
        self.datagrams_sent = 0
        self.datagrams_received = 0
        self.datagrams_dropped = 0

    async def run(self) -> None:
        """Probe and answer probes, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._handle(Tick())
                while True:
                    raw, sender = await self._datagrams.receive()
                    for datagram, to in self._hear(raw, sender):
                        # Not here: a name would have to be looked up.
                        self._nursery.start_soon(self._datagrams.send, datagram, to)
        finally:
            self._nursery = None

    def _hear(self, raw: bytes, sender: Address) -> Sequence[tuple[bytes, Address]]:
        """Take in a datagram; what is to be sent at once, and where to."""
        self.datagrams_received += 1
        try:
            opened = self._sessions.open(raw)
            if isinstance(opened, Stale):
                return [(opened.answer, sender)]
            if isinstance(opened, Again):
                return [(opened.datagram, Address.parse(opened.to))]
            message = decode_datagram(self._others.cluster_id, opened.body)
        except NotAuthentic as error:
            self.datagrams_dropped += 1
            self._complaints.say_rarely("datagrams", f"a datagram from {sender} was refused: {error}")
            return ()
        except (WrongCluster, WrongVersion) as error:
            # Somebody means to talk to us, and nothing else would say why nothing comes of it.
            self.datagrams_dropped += 1
            self._complaints.say(sender, f"{sender} is not understood: {error}")
            return ()
        except ProtocolError as error:
            self.datagrams_dropped += 1
            log.debug("dropped a datagram: %s", error)
            return ()
        self._sessions.note(message.sender.address, opened.session)
        try:
            self._handle(Received(message))
        except Exception:
            # Else who sends it again and again would keep this peer deaf.
            self.datagrams_dropped += 1
            log.exception("a datagram of %s cannot be taken in", message.sender.node_id)
        return ()

    def learn(self, view: View, said_by: NodeId | None = None) -> None:
        """Hear of members over HTTP; `said_by` is whose list it is, if that one believes what it says of them."""
        self._handle(Learned(view, said_by))

    def doubt(self, node_id: NodeId) -> None:
        """Have it found out soon whether a peer still answers."""
        self._handle(Doubted(node_id))

    async def evict(self, node_id: NodeId) -> None:
        """Remove a member for good; this peer remembers it from then on. Raises StoreError."""
        self._handle(Evict(node_id))
        await self._save_members()

    @property
    def is_queued(self) -> bool:
        """Whether the queue of missing copies is in line with the members."""
        return self._queued_for == self._others.placement.places and not self._changed.is_set()

    async def drain(self, *, leaves: bool) -> None:
        """Have others hold what this peer holds, before it leaves; or stay after all. Raises StoreError."""
        self._handle(Drain(leaves))
        await self._save_members()

    async def keep_members(self) -> None:
        """Keep the members on disk, and what follows from them, until cancelled."""
        while True:
            self._changed = trio.Event()
            try:
                await self._keep_members()
            except StoreError as error:
                log.error("cannot keep the members: %s", error)
            self._here.tell_changed()
            await self._changed.wait()

    async def _keep_members(self) -> None:
        places = self._others.placement.follow(self._others.membership.placed())
        await self._save_members()
        while places != self._queued_for and not self._changed.is_set():
            if not await self._requeue():
                await trio.sleep(FULL_PAUSE_S)
            elif not self._changed.is_set():
                self._queued_for = places

    async def _save_members(self) -> None:
        known, database = self._others.membership, self._here.database
        members, evictions = known.members(), known.evictions
        out = [member.node_id for member in members if known.is_out(member.node_id)]
        await database.write(lambda: save_members(database.store, members, evictions, out))

    async def _requeue(self) -> bool:
        """Bring the queue of missing copies in line with the members; False when there is no room for that."""
        members = self._others.membership.placed()
        try:
            await requeue(self._env, self._here.database, self._others.placement, members, self._others.rest)
        except NoSpace:
            # What room there is others need, to delete files.
            return False
        return True

    def _handle(self, event: Event) -> None:
        self._carry_out(self._membership.handle(event, self._env.clock.now()))

    def _carry_out(self, effects: list[Effect]) -> None:
        self._take_note(effects)
        nursery = self._nursery
        if nursery is None:
            # It failed and starts again in a moment; then everybody is probed anew.
            return
        self._send_all([effect for effect in effects if isinstance(effect, Send)], nursery)
        for effect in effects:
            match effect:
                case SetTimer(after_s):
                    self._timer.cancel()
                    self._timer = trio.CancelScope()
                    nursery.start_soon(self._tick_later, after_s, self._timer)
                case StatusChanged(node_id, status):
                    log.info("%s is %s", node_id, status.value)
                    self._here.events.tell(status.value, node=node_id)
                case Doubled(address, must_stop):
                    log.error("another process answers as %s at %s", self._others.me, address)
                    self.doubled_at = address
                    self._here.events.tell("doubled", node=self._others.me, address=address)
                    if must_stop:
                        self._on_doubled(address)
                case MemberLeft(eviction):
                    log.info("%s has left the cluster", eviction.node_id)
                    self._here.events.tell("left", node=eviction.node_id)
                case Met(node_id):
                    self._may_rejoin = False
                    nursery.start_soon(self._on_met, node_id)

    def _take_note(self, effects: list[Effect]) -> None:
        """See to what is due even while no datagrams go out."""
        if any(isinstance(effect, MemberChanged | MemberLeft) for effect in effects):
            # At once, so that a change of the queue for those before ends.
            self._others.placement.follow(self._others.membership.placed())
            self._changed.set()
            self._tell_members()
        if any(isinstance(effect, Evicted) for effect in effects):
            self._on_own_eviction()

    def _tell_members(self) -> None:
        """Tell who watches who has joined, is about to leave, is out, or is back."""
        known = self._others.membership
        now = {member.node_id: known.place_of(member) for member in known.members()}
        for node_id, place in now.items():
            before = self._told.get(node_id)
            if place != before and not (before is None and node_id == self._others.me):
                kind = "joined" if before is None else "stays" if place == "member" else place
                self._here.events.tell(kind, node=node_id)
        self._told = now

    def _on_own_eviction(self) -> None:
        if self._may_rejoin:
            log.warning("this peer was removed from the cluster, and joins it again")
            self._handle(Rejoin())
        else:
            self._on_evicted()

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
        body = encode_datagram(self._others.cluster_id, send.message)
        await self._datagrams.send(self._sessions.seal(send.to, body), address)

    async def _tick_later(self, after_s: float, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(after_s)
        if not scope.cancel_called:
            self._handle(Tick())
