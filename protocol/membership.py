"""Who belongs to the cluster and who of them answers: `handle(event, now) -> effects`.

Every peer probes every other one each interval. Whether a peer answers steers requests only and moves no data; a
silent one is probed on, so that it is met again as soon as it can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from protocol.identity import Life, Member, NodeId
from protocol.messages import Ack, Datagram, Ping

LATENCY_WEIGHT = 0.25
"""Of the newest round trip in the moving average."""

INCARNATION_STEP_MAX = 1 << 20
"""A record that is further ahead of the one known is no record: no peer starts so often while nobody looks, and who
makes up the highest number there is would have the last word for ever."""
INCARNATION_FIRST_MAX = 1 << 40
"""The same for a peer nobody has heard of: it may have had to outrank such records many times."""

MEMBERS_MAX = 4096
"""In a cluster: more are not heard of, whoever makes them up."""


class Status(Enum):
    """What we believe of a peer, from when it last answered."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Tick:
    """The probe timer fired; it is also the first event."""


@dataclass(frozen=True, slots=True)
class Received:
    """A datagram came from this address."""

    message: Datagram


@dataclass(frozen=True, slots=True)
class Learned:
    """Another peer told us of members, over HTTP."""

    members: tuple[Member, ...]


Event = Tick | Received | Learned


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram to this address."""

    to: str
    message: Datagram


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Give us a Tick after so many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member is new, or its record is: keep it on disk."""

    member: Member


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """We believe something else of a peer now."""

    node_id: NodeId
    status: Status


@dataclass(frozen=True, slots=True)
class Met:
    """A peer answers for the first time, or again after it was down: exchange logs with it now."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Doubled:
    """Another process answers under our id, from this address; `must_stop` is true for the one that started later."""

    address: str
    must_stop: bool


Effect = Send | SetTimer | MemberChanged | StatusChanged | Met | Doubled


@dataclass(slots=True)
class _Peer:
    member: Member
    status: Status = Status.DOWN
    heard_at: float | None = None
    pinged_at: float = 0.0
    pinged_number: int = 0
    latency_s: float | None = None


class Membership:
    """The member list of one peer and its beliefs. `members` are those it knew when it last stopped."""

    def __init__(
        self, me: Member, members: tuple[Member, ...], interval_s: float, down_after_s: float, life: Life
    ) -> None:
        self.me = me
        self._life = life
        self._double_asked_at = -math.inf
        self._double_number: int | None = None
        self._interval_s = interval_s
        self._down_after_s = down_after_s
        self._number = 0
        self._peers = {member.node_id: _Peer(member) for member in members if member.node_id != me.node_id}

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Let something happen; what follows from it is for the caller to carry out."""
        match event:
            case Tick():
                return self._on_tick(now)
            case Received(message):
                return self._on_received(message, now)
            case Learned(members):
                return [effect for member in members for effect in self._learn(member, now)]

    def _on_tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = [SetTimer(self._interval_s)]
        for peer in self._peers.values():
            effects += self._judge(peer, now)
            effects += self._probe(peer, now)
        return effects

    def _probe(self, peer: _Peer, now: float) -> list[Effect]:
        self._number += 1
        peer.pinged_at, peer.pinged_number = now, self._number
        return [Send(peer.member.address, Ping(self._number, self.me, self._life))]

    def _judge(self, peer: _Peer, now: float) -> list[Effect]:
        if peer.status is Status.DOWN or peer.heard_at is None:
            return []
        silent_s = now - peer.heard_at
        if silent_s >= self._down_after_s:
            believed = Status.DOWN
        else:
            believed = Status.SUSPECT if silent_s >= self._down_after_s / 2 else Status.ALIVE
        return self._believe(peer, believed)

    def _believe(self, peer: _Peer, status: Status) -> list[Effect]:
        if peer.status is status:
            return []
        was_down = peer.status is Status.DOWN
        peer.status = status
        effects: list[Effect] = [StatusChanged(peer.member.node_id, status)]
        return [*effects, Met(peer.member.node_id)] if was_down else effects

    def _on_received(self, message: Datagram, now: float) -> list[Effect]:
        sender = message.sender
        if sender.node_id == self.me.node_id:
            return self._on_double(message, now)
        effects = self._learn(sender, now)
        peer = self._peers.get(sender.node_id)
        if peer is None:
            return effects
        if isinstance(message, Ping):
            effects.append(Send(sender.address, Ack(message.number, self.me, self._life)))
            # One we took for down is there: two peers meet as soon as one of them starts.
            return effects + (self._probe(peer, now) if peer.status is Status.DOWN else [])
        if message.number == peer.pinged_number:
            self._measure(peer, now - peer.pinged_at)
        peer.heard_at = now
        return effects + self._believe(peer, Status.ALIVE)

    @staticmethod
    def _measure(peer: _Peer, round_trip_s: float) -> None:
        known = peer.latency_s
        peer.latency_s = round_trip_s if known is None else known + LATENCY_WEIGHT * (round_trip_s - known)

    def _on_double(self, message: Datagram, now: float) -> list[Effect]:
        """A datagram under our own id: of an earlier run of ours, late on its way, or of another process that lives.

        Only an answer to a question of now tells which. Both find out, and one of them has to go.
        """
        if message.life is None or message.life == self._life:
            return []
        if isinstance(message, Ping):
            address = message.sender.address
            return [Send(address, Ack(message.number, self.me, self._life)), *self._ask_double(address, now)]
        if message.number != self._double_number:
            return []
        self._double_number = None
        return [Doubled(message.sender.address, must_stop=self._life > message.life)]

    def _ask_double(self, address: str, now: float) -> list[Effect]:
        if address == self.me.address or now - self._double_asked_at < self._interval_s:
            return []
        self._number += 1
        self._double_asked_at, self._double_number = now, self._number
        return [Send(address, Ping(self._number, self.me, self._life))]

    def _learn(self, heard: Member, now: float) -> list[Effect]:
        if heard.node_id == self.me.node_id:
            return self._outrank(heard, now)
        peer = self._peers.get(heard.node_id)
        if peer is None:
            if heard.incarnation > INCARNATION_FIRST_MAX or len(self._peers) + 1 >= MEMBERS_MAX:
                return []
            self._peers[heard.node_id] = _Peer(heard)
            return [MemberChanged(heard)]
        if not 0 < heard.incarnation - peer.member.incarnation <= INCARNATION_STEP_MAX:
            return []
        peer.member = heard
        return [MemberChanged(heard)]

    def _outrank(self, heard: Member, now: float) -> list[Effect]:
        """A record of ourselves we do not remember, from before our disk was emptied, must not outlive us.

        Who is at its address is asked: it may be that another process goes by our id.
        """
        if not 0 <= heard.incarnation - self.me.incarnation <= INCARNATION_STEP_MAX or heard == self.me:
            return []
        self.me = replace(self.me, incarnation=heard.incarnation + 1)
        return [MemberChanged(self.me), *self._ask_double(heard.address, now)]

    # --- what is believed ---

    def members(self) -> tuple[Member, ...]:
        """All members with this peer among them, by node id."""
        everyone = {self.me.node_id: self.me} | {node_id: peer.member for node_id, peer in self._peers.items()}
        return tuple(member for _, member in sorted(everyone.items()))

    def member(self, node_id: NodeId) -> Member | None:
        """The record of a member."""
        if node_id == self.me.node_id:
            return self.me
        peer = self._peers.get(node_id)
        return peer.member if peer else None

    def status(self, node_id: NodeId) -> Status:
        """What is believed of a peer; of a stranger that it is down, of ourselves that we live."""
        if node_id == self.me.node_id:
            return Status.ALIVE
        peer = self._peers.get(node_id)
        return peer.status if peer else Status.DOWN

    def heard_at(self, node_id: NodeId) -> float | None:
        """When a peer last answered."""
        peer = self._peers.get(node_id)
        return peer.heard_at if peer else None

    def latency_s(self, node_id: NodeId) -> float | None:
        """The moving average of a peer's round trips; None when it never answered."""
        if node_id == self.me.node_id:
            return 0.0
        peer = self._peers.get(node_id)
        return peer.latency_s if peer else None

    def reachable(self) -> list[NodeId]:
        """The other members not believed down, the quickest to answer first."""
        up = [peer for peer in self._peers.values() if peer.status is not Status.DOWN]
        up.sort(key=lambda peer: (peer.latency_s or 0.0, peer.member.node_id))
        return [peer.member.node_id for peer in up]
