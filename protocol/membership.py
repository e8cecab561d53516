"""Who belongs to the cluster and who of them answers: `handle(event, now) -> effects`.

SWIM (Das, Gupta, Motivala 2002) with all of Lifeguard (Dadgar, Phillips, Currey 2018). Each round a peer probes one
other. Who does not answer is probed by way of others; who does not answer them either is accused. A suspect that
refutes in time, by a higher incarnation, lives; one that does not is down:

| believed | what happens                                             | then             | and also             |
| -------- | -------------------------------------------------------- | ---------------- | -------------------- |
| alive    | a probe of ours fails, or it is heard that it is suspect | suspect          | its time begins      |
| suspect  | another peer's probe failed                              | suspect          | its time is shorter  |
| suspect  | its time is over                                         | down             |                      |
| any      | it is heard that it is down                              | down             |                      |
| any      | its record of a higher incarnation comes                 | as it answers us |                      |
| any      | it is on another peer's list as down                     | suspect at most  | that may be long ago |
| not down | it has long not answered us, though others               | down             | nobody is told       |
| down     | it answers a knock, and is not accused any more          | alive            | logs are exchanged   |
| down     | for ten minutes, and helpers do not reach it either      | down, and out    | others get its share |
| out      | its record of a higher incarnation comes                 | as it answers us | it gets it back      |

What is found out travels as rumors on datagrams sent anyway. It steers requests and moves no data, but for who is out.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from random import Random

from protocol.datagrams import (
    RUMORS_BYTES_MAX,
    Accusation,
    Ack,
    Datagram,
    Gossip,
    IndirectAck,
    Nack,
    Ping,
    PingRequest,
    Rumor,
)
from protocol.identity import Eviction, Life, Member, NodeId, Status
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
from protocol.member_list import INCARNATION_STEP_MAX, MemberList, Peer
from protocol.messages import View
from protocol.probing import Probe, Probes, RoundRobin
from protocol.rumors import Rumors
from protocol.suspicion import LocalHealth, Suspicion
from protocol.timers import Timers

HELPERS = 3
"""Peers asked to probe one that did not answer."""

TIMEOUT_SHARE = 0.5
"""Of a round: so long a direct probe has; the helpers have the rest of it."""
NACK_SHARE = 0.8
"""Of that: then a helper says that it has no answer yet."""

GOSSIP_S = 0.2
GOSSIP_PEERS = 3
"""While there are rumors so many peers are told them so often, besides those that are probed anyway."""

NEWS_MAX = 8
"""New members of one list that are passed on as rumors; whoever lacks more of them is given a list."""

KNOCKS_MAX = 16
"""Of those that do not answer so many are probed in a round, at most, besides the one whose turn it is."""
KNOCK_SHARE = 8
"""Who has been silent for so many times a while is knocked at again after that while."""
KNOCK_S_MAX = 5.0

ACCUSERS_OF_OUT = 3
"""So many peers have to have got no answer before one is out, or all that there are."""
FROZEN_SHARE = 1 / 3
"""While more of the cluster looks down, nobody is out: it is cut in two, or it is we that are cut off."""

DEAF_TIMES = 2
"""The shortest suspicion: who has not answered us for so long is down to us, though it may be up to others."""

LATE_S = 0.25
"""A timer that fires later than that shows that this peer was held up, and answers may wait for it to hear them."""
HELD_UP_S, HELD_UP_S_MAX = 4.0, 30.0
"""After such a timer it judges nobody for so long, or for as long as it was held up, but for half a minute at most."""


@dataclass(frozen=True, slots=True)
class _RoundDue:
    """Probe the next one."""


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A direct probe has had its time: ask helpers."""

    number: int


@dataclass(frozen=True, slots=True)
class _NackDue:
    """Who asked us to probe for it wants to hear from us."""

    number: int


@dataclass(frozen=True, slots=True)
class _SuspicionEnds:
    """A suspect's time to refute may be over."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class _GossipDue:
    """Tell some peers what there is to tell."""


@dataclass(frozen=True, slots=True)
class _BallotEnds:
    """Helpers had time to say whether they reach one that was down for long."""

    number: int


_Timer = _RoundDue | _Unanswered | _NackDue | _SuspicionEnds | _GossipDue | _BallotEnds


@dataclass(frozen=True, slots=True)
class Timing:
    """How quick to probe and to judge, in seconds."""

    round_s: float = 0.5
    """Between two rounds, in each of which one other peer is probed."""
    suspicion_s: float = 2.5
    """So long a suspect has to refute at the least, in a cluster of up to ten; longer in larger ones."""
    out_s: float = 600.0
    """So long one has to be down, without a word, before others are given its share."""
    is_lifeguard: bool = True
    """False is SWIM alone, to compare with: no local health, no shrinking suspicion, no accusation told the suspect
    first, no patience with late timers."""


class Membership:
    """Keeps the member list of one peer. `members` are those it knew when it last stopped, some of them `out`."""

    def __init__(
        self,
        known: MemberList,
        members: Iterable[Member],
        timing: Timing,
        life: Life,
        chance: Random,
        out: Container[NodeId] = (),
    ) -> None:
        self.known = known
        self.health = LocalHealth()
        self._life = life
        self._timing = timing
        self._double_asked_at = -math.inf
        self._double_number: int | None = None
        self._order = RoundRobin(chance)
        self._unreached: dict[NodeId, None] = {}
        """Those to knock at, for they are down or did not answer; the one knocked at longest ago first."""
        self._suspicions: dict[NodeId, Suspicion] = {}
        self._probes = Probes()
        self._round: int | None = None
        """The number of the probe of this round."""
        self._rumors = Rumors()
        self._is_gossiping = False
        self._timers: Timers[_Timer] = Timers()
        self._has_begun = False
        self._wake_at = -math.inf
        self._judges_from = -math.inf
        for member in members:
            peer = self._add(member) if member.node_id != known.me.node_id else None
            if peer is not None and member.node_id in out:
                known.accuse(peer, Accusation(member.node_id, member.incarnation, Status.OUT, known.me.node_id))

    @property
    def me(self) -> Member:
        """Our own record."""
        return self.known.me

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Let something happen; what follows from it is for the caller to carry out."""
        match event:
            case Tick():
                effects = self._on_tick(now)
            case Received(message):
                effects = self._on_received(message, now)
            case Learned(view, said_by):
                effects = self._on_learned(view, said_by, now)
            case Doubted(node_id):
                effects = self._on_doubted(node_id, now)
            case Evict(node_id):
                effects = self._on_evict(node_id, now)
            case Rejoin():
                effects = self._on_rejoin(now)
            case Drain(leaves):
                effects = self._on_drain(now, leaves=leaves)
        return [*effects, *self._set_timer(now)]

    # --- time ---

    def _on_tick(self, now: float) -> list[Effect]:
        self._wake_at = -math.inf
        effects: list[Effect] = []
        if not self._has_begun:
            self._has_begun = True
            self._timers.set(now, _RoundDue())
            if self.known.eviction_of(self.me) is not None:
                effects.append(Evicted())
        late_s = now - self._timers.next_at
        if late_s > LATE_S and self._timing.is_lifeguard:
            self._judges_from = now + max(HELD_UP_S, min(late_s, HELD_UP_S_MAX))
            self.health.worse()
        for timer in self._timers.due(now):
            effects += self._on_timer(timer, now)
        return effects

    def _set_timer(self, now: float) -> list[Effect]:
        at = self._timers.next_at
        if at in (self._wake_at, math.inf):
            return []
        self._wake_at = at
        return [SetTimer(max(0.0, at - now))]

    def _on_timer(self, timer: _Timer, now: float) -> list[Effect]:
        match timer:
            case _RoundDue():
                return self._begin_round(now)
            case _Unanswered(number):
                return self._ask_helpers(number)
            case _NackDue(number):
                return self._say_not_yet(number)
            case _SuspicionEnds(node_id):
                return self._end_suspicion(node_id, now)
            case _GossipDue():
                return self._gossip(now)
            case _BallotEnds(number):
                return self._end_ballot(number, now)

    # --- probing ---

    def _begin_round(self, now: float) -> list[Effect]:
        effects = self._end_round(now)
        round_s = self._timing.round_s * self._stretch
        self._timers.set(now + round_s, _RoundDue())
        target = self._order.next(self.known.is_not_down)
        if target is not None:
            self._round, ping = self._ask(target, now)
            self._timers.set(now + round_s * TIMEOUT_SHARE, _Unanswered(self._round))
            effects.append(ping)
        return effects + self._knock(now)

    @property
    def _stretch(self) -> int:
        return self.health.stretch if self._timing.is_lifeguard else 1

    def _end_round(self, now: float) -> list[Effect]:
        """Accuse the one probed in the last round, if neither it nor a helper has answered."""
        number, self._round = self._round, None
        probe = None if number is None else self._probes.end(number)
        if probe is None:
            return []
        # Helpers that say nothing at all make it likely that the fault is ours.
        self.health.worse(probe.helpers - probe.nacks if probe.helpers else 1)
        if now < self._judges_from:
            return []
        suspect = self.known.peers[probe.node_id].member
        return self._accuse(Accusation(suspect.node_id, suspect.incarnation, Status.SUSPECT, self.me.node_id), now)

    def _ask(self, node_id: NodeId, now: float, asked_for: tuple[NodeId, int] | None = None) -> tuple[int, Send]:
        self.known.peers[node_id].asked_at = now
        number = self._probes.add(Probe(node_id, now, asked_for))
        return number, self._send(node_id, Ping(number, self.me, self._life))

    def _on_doubted(self, node_id: NodeId, now: float) -> list[Effect]:
        peer = self.known.peers.get(node_id)
        timeout_s = self._timing.round_s * TIMEOUT_SHARE
        if peer is None or now - peer.asked_at < timeout_s:
            return []
        number, ping = self._ask(node_id, now)
        self._timers.set(now + timeout_s, _Unanswered(number))
        return [ping]

    def _ask_helpers(self, number: int) -> list[Effect]:
        probe = self._probes.get(number)
        if probe is None:
            return []
        peer = self.known.peers[probe.node_id]
        if peer.unanswered_since is None:
            peer.unanswered_since = probe.asked_at
            self._unreached[probe.node_id] = None
        helpers = self._some(HELPERS, besides=probe.node_id)
        probe.helpers = len(helpers)
        return [self._send(helper, PingRequest(number, self.me, probe.node_id)) for helper in helpers]

    def _some(self, count: int, besides: NodeId | None = None) -> list[NodeId]:
        """Some peers that are not down, drawn at random."""
        return self._order.some(count, lambda node_id: node_id != besides and self.known.is_not_down(node_id))

    def _say_not_yet(self, number: int) -> list[Effect]:
        probe = self._probes.get(number)
        if probe is None or probe.asked_for is None:
            return []
        asker, theirs = probe.asked_for
        return [self._send(asker, Nack(theirs, self.me))]

    def _knock(self, now: float) -> list[Effect]:
        """Probe some of those that do not answer: they are met again soon, however long they were away."""
        effects: list[Effect] = []
        knocked = 0
        deaf_s = DEAF_TIMES * self._suspicion_s() * self._stretch
        for node_id in list(self._unreached):
            peer = self.known.peers[node_id]
            if now >= self._judges_from and peer.is_unanswered(now, deaf_s):
                peer.is_up = False
                effects += self._judge(node_id, now)
            peer.down_since = now if peer.down_since is None else peer.down_since
            if peer.status is not Status.DOWN and peer.unanswered_since is None:
                del self._unreached[node_id]
            elif knocked < KNOCKS_MAX and now - peer.asked_at >= self._knock_pause_s(peer, now):
                knocked += 1
                number, ping = self._ask(node_id, now)
                effects.append(ping)
                if self._may_be_out(peer, now):
                    self._timers.set(now + self._timing.round_s * TIMEOUT_SHARE, _Unanswered(number))
                    self._timers.set(now + self._timing.round_s, _BallotEnds(number))
                # To the end of the line.
                del self._unreached[node_id]
                self._unreached[node_id] = None
        return effects

    def _knock_pause_s(self, peer: Peer, now: float) -> float:
        down_since = now if peer.down_since is None else peer.down_since
        silent_s = now - down_since if peer.status is Status.DOWN else 0.0
        # A hair less than a round, or rounding would make it every other one.
        return min(KNOCK_S_MAX, max(0.9 * self._timing.round_s, silent_s / KNOCK_SHARE))

    # --- who is out ---

    def _may_be_out(self, peer: Peer, now: float) -> bool:
        """Whether others should get the share of a peer: not while so many look down that the fault may be ours."""
        if peer.down_since is None or now - peer.down_since < self._timing.out_s or peer.is_out:
            return False
        if peer.status is not Status.DOWN or now < self._judges_from:
            return False
        others = [other for other in self.known.peers.values() if not other.is_out]
        down = sum(other.status is Status.DOWN for other in others)
        return down <= FROZEN_SHARE * (len(others) + 1)

    def _end_ballot(self, number: int, now: float) -> list[Effect]:
        """Let a peer be out, if it has answered neither us nor as many others as there can be, up to three in all."""
        probe = self._probes.end(number)
        if probe is None or probe.nacks + 1 < min(ACCUSERS_OF_OUT, self.known.up):
            return []
        peer = self.known.peers[probe.node_id]
        if not self._may_be_out(peer, now):
            return []
        return self._accuse(Accusation(probe.node_id, peer.member.incarnation, Status.OUT, self.me.node_id), now)

    # --- hearing ---

    def _on_received(self, message: Datagram, now: float) -> list[Effect]:
        sender = message.sender
        if sender.node_id == self.me.node_id:
            return self._on_double(message, now)
        effects = self._learn(sender, now, is_said_up=False)
        for rumor in message.rumors:
            effects += self._on_rumor(rumor, now)
        peer = self.known.peers.get(sender.node_id)
        if peer is not None:
            return effects + self._on_said(peer, message, now)
        eviction = self.known.eviction_of(sender)
        if eviction is not None and isinstance(message, Ping):
            effects.append(Send(sender.address, Gossip(self.me, (eviction,))))
        return effects

    def _on_said(self, peer: Peer, message: Datagram, now: float) -> list[Effect]:
        """What a member says, besides rumors."""
        match message:
            case Ping():
                return self._on_ping(peer, message, now)
            case Ack():
                return self._on_ack(peer, message, now)
            case PingRequest():
                return self._help(message, now)
            case IndirectAck(number):
                self._on_indirect_ack(number)
            case Nack(number):
                if probe := self._probes.get(number):
                    probe.nacks = min(probe.helpers, probe.nacks + 1)
            case Gossip():
                pass
        return []

    def _on_ping(self, peer: Peer, ping: Ping, now: float) -> list[Effect]:
        effects: list[Effect] = [self._send(peer.member.node_id, Ack(ping.number, self.me, self._life))]
        if ping.sender.incarnation < peer.member.incarnation:
            # Of an earlier life, or somebody made up the record that we have: it is told that, where it says it is.
            effects.append(Send(ping.sender.address, Gossip(self.me, (peer.member,))))
        if peer.status is Status.DOWN and now - peer.asked_at >= GOSSIP_S:
            # One we took for down is there: two peers meet as soon as one of them starts.
            effects.append(self._ask(peer.member.node_id, now)[1])
        return effects

    def _on_ack(self, peer: Peer, ack: Ack, now: float) -> list[Effect]:
        effects: list[Effect] = []
        probe = self._probes.get(ack.number)
        if probe is not None and probe.node_id == peer.member.node_id:
            self._probes.end(ack.number)
            peer.measure(now - probe.asked_at)
            if ack.number == self._round:
                self.health.better()
            if probe.asked_for is not None:
                asker, theirs = probe.asked_for
                effects.append(self._send(asker, IndirectAck(theirs, self.me)))
        # However late it is, and whatever it answers: it is there.
        peer.heard_at, peer.unanswered_since, peer.is_up = now, None, True
        effects += self._judge(peer.member.node_id, now)
        if peer.status is not Status.DOWN and not peer.is_met:
            peer.is_met = True
            effects.append(Met(peer.member.node_id))
        return effects

    def _on_indirect_ack(self, number: int) -> None:
        probe = self._probes.get(number)
        if probe is not None and probe.helpers:
            self._probes.end(number)
            if number == self._round:
                self.health.better()

    def _help(self, request: PingRequest, now: float) -> list[Effect]:
        """Probe a peer for another one; only a member, so that nobody is made to send to strangers."""
        if request.target not in self.known.peers or request.target == request.sender.node_id:
            return []
        number, ping = self._ask(request.target, now, (request.sender.node_id, request.number))
        self._timers.set(now + self._timing.round_s * TIMEOUT_SHARE * NACK_SHARE, _NackDue(number))
        return [ping]

    # --- telling ---

    def _send(self, node_id: NodeId, message: Datagram) -> Send:
        """A datagram with what there is to tell; who is accused is told so first of all (Lifeguard's buddy system).

        So whoever comes with a record it was accused under is answered with the accusation, and can refute it.
        """
        peer = self.known.peers[node_id]
        first = peer.standing if self._timing.is_lifeguard or peer.status is Status.DOWN else None
        rumors = self._rumors.take(RUMORS_BYTES_MAX, self.known.up, first)
        return Send(peer.member.address, replace(message, rumors=rumors) if rumors else message)

    def _spread(self, rumor: Rumor, now: float) -> None:
        self._rumors.add(rumor)
        if not self._is_gossiping:
            self._is_gossiping = True
            self._timers.set(now + GOSSIP_S, _GossipDue())

    def _gossip(self, now: float) -> list[Effect]:
        self._is_gossiping = bool(self._rumors)
        if not self._is_gossiping:
            return []
        self._timers.set(now + GOSSIP_S, _GossipDue())
        return [self._send(node_id, Gossip(self.me)) for node_id in self._some(GOSSIP_PEERS)]

    # --- accusations ---

    def _on_rumor(self, rumor: Rumor, now: float) -> list[Effect]:
        if isinstance(rumor, Member):
            return self._learn(rumor, now, is_said_up=True)
        if isinstance(rumor, Eviction):
            return self._evict(rumor, now)
        return self._accuse(rumor, now)

    def _accuse(self, heard: Accusation, now: float) -> list[Effect]:
        if heard.node_id == self.me.node_id:
            return self._refute(heard, now)
        peer = self.known.peers.get(heard.node_id)
        if peer is None:
            return []
        if peer.outranks(heard):
            self._confirm(heard, peer.standing, now)
            return []
        self.known.accuse(peer, heard)
        self._spread(heard, now)
        if heard.status is Status.OUT:
            return [*self._judge(heard.node_id, now), MemberChanged(peer.member)]
        if heard.status is Status.SUSPECT:
            others = self.known.up - 2 if self._timing.is_lifeguard else 0
            self._suspicions[heard.node_id] = Suspicion(heard.accuser, now, self._suspicion_s(), others)
            self._timers.set(self._suspicions[heard.node_id].ends_at, _SuspicionEnds(heard.node_id))
        return self._judge(heard.node_id, now)

    def _confirm(self, heard: Accusation, standing: Accusation | None, now: float) -> None:
        """One more accuses a suspect, by its own probe: the suspect's time shrinks, and others hear of it too."""
        if standing is None or replace(heard, accuser=standing.accuser) != standing:
            return
        suspicion = self._suspicions.get(heard.node_id)
        if suspicion is not None and suspicion.accuse(heard.accuser):
            self._spread(heard, now)
            self._timers.set(max(now, suspicion.ends_at), _SuspicionEnds(heard.node_id))

    def _end_suspicion(self, node_id: NodeId, now: float) -> list[Effect]:
        suspicion = self._suspicions.get(node_id)
        if suspicion is None or now < suspicion.ends_at:
            return []
        standing = self.known.peers[node_id].standing
        if now < self._judges_from:
            self._timers.set(self._judges_from, _SuspicionEnds(node_id))
            return []
        del self._suspicions[node_id]
        if standing is None or standing.status is not Status.SUSPECT:
            return []
        return self._accuse(replace(standing, status=Status.DOWN, accuser=self.me.node_id), now)

    def _suspicion_s(self) -> float:
        """The shortest: it grows with the time a refutation takes to come round."""
        return self._timing.suspicion_s * max(1.0, math.log10(self.known.up))

    def _refute(self, heard: Accusation, now: float) -> list[Effect]:
        if not 0 <= heard.incarnation - self.me.incarnation <= INCARNATION_STEP_MAX:
            return []
        self.health.worse()
        return self._become(heard.incarnation + 1, now)

    def _become(self, incarnation: int, now: float) -> list[Effect]:
        self.known.become(replace(self.me, incarnation=incarnation))
        self._spread(self.me, now)
        return [MemberChanged(self.me)]

    def _judge(self, node_id: NodeId, now: float) -> list[Effect]:
        """Bring what is believed of a peer in line with what is known of it."""
        peer = self.known.peers[node_id]
        if not self.known.judge(peer, now):
            return []
        if peer.status is Status.DOWN:
            self._unreached[node_id] = None
        return [StatusChanged(node_id, peer.status)]

    # --- records ---

    def _add(self, member: Member) -> Peer | None:
        peer = self.known.add(member)
        if peer is not None:
            self._order.add(member.node_id)
            self._unreached[member.node_id] = None
        return peer

    def _learn(self, heard: Member, now: float, *, is_said_up: bool, is_passed_on: bool = True) -> list[Effect]:
        """Hear of a record; when it is news, and `is_said_up`, its owner was up not long ago."""
        if heard.node_id == self.me.node_id:
            return self._outrank(heard, now)
        peer = self.known.peers.get(heard.node_id)
        if peer is None:
            peer = self._add(heard)
            changed = peer is not None
            if peer is None:
                return []
        else:
            before, was_out = peer.member, peer.is_out
            if not self.known.replace(peer, heard):
                return []
            changed = replace(before, incarnation=heard.incarnation) != heard or was_out is not peer.is_out
        if is_passed_on:
            self._spread(heard, now)
        if is_said_up:
            self._hear_up(peer)
        effects: list[Effect] = [MemberChanged(heard)] if changed else []
        return effects + self._judge(heard.node_id, now)

    def _on_learned(self, view: View, said_by: NodeId | None, now: float) -> list[Effect]:
        """Take over another peer's list, or one that wants to join."""
        news = sum(member.node_id not in self.known.peers for member in view.members)
        effects = [effect for eviction in view.evictions for effect in self._evict(eviction, now)]
        for member, status in zip(view.members, view.statuses, strict=True):
            effects += self._learn(member, now, is_said_up=False, is_passed_on=news <= NEWS_MAX)
            if said_by is None or member.node_id == self.me.node_id:
                continue
            peer = self.known.peers.get(member.node_id)
            if status is Status.ALIVE and peer is not None and peer.member == member and peer.standing is None:
                self._hear_up(peer)
                effects += self._judge(member.node_id, now)
            elif status not in (Status.ALIVE, None):
                # Being down may be long ago, and only whoever was asked just now knows; being out was looked into.
                said = Status.OUT if status is Status.OUT else Status.SUSPECT
                effects += self._accuse(Accusation(member.node_id, member.incarnation, said, said_by), now)
        return effects

    @staticmethod
    def _hear_up(peer: Peer) -> None:
        """Others say that a peer is up: take it for that, or, where it has not answered us, find out at once."""
        if peer.unanswered_since is None:
            peer.is_up = True
        else:
            peer.asked_at = -math.inf

    def _outrank(self, heard: Member, now: float) -> list[Effect]:
        """A record of ourselves we do not remember, from before our disk was emptied, must not outlive us.

        Who is at its address is asked: it may be that another process goes by our id.
        """
        if not 0 <= heard.incarnation - self.me.incarnation <= INCARNATION_STEP_MAX or heard == self.me:
            return []
        self.known.become(replace(self.me, joined=max(self.me.joined, heard.joined)))
        return [*self._become(heard.incarnation + 1, now), *self._ask_double(heard.address, now)]

    # --- members that are removed for good ---

    def _on_evict(self, node_id: NodeId, now: float) -> list[Effect]:
        member = self.known.member(node_id)
        return [] if member is None else self._evict(Eviction(node_id, member.joined), now)

    def _evict(self, heard: Eviction, now: float) -> list[Effect]:
        if not self.known.evict(heard):
            return []
        self._spread(heard, now)
        if heard.node_id == self.me.node_id:
            return [Evicted()] if heard.joined >= self.me.joined else []
        if heard.node_id not in self.known.peers and heard.node_id in self._order:
            self._order.remove(heard.node_id)
            self._unreached.pop(heard.node_id, None)
            self._suspicions.pop(heard.node_id, None)
            self._probes.forget(heard.node_id)
        return [MemberLeft(heard)]

    def _on_rejoin(self, now: float) -> list[Effect]:
        eviction = self.known.eviction_of(self.me)
        if eviction is None:
            return []
        self.known.become(replace(self.me, joined=eviction.joined + 1, is_draining=False))
        return self._become(self.me.incarnation + 1, now)

    # --- leaving ---

    def _on_drain(self, now: float, *, leaves: bool) -> list[Effect]:
        if self.me.is_draining is leaves:
            return []
        self.known.become(replace(self.me, is_draining=leaves))
        return self._become(self.me.incarnation + 1, now)

    # --- another process with our id ---

    def _on_double(self, message: Datagram, now: float) -> list[Effect]:
        """A datagram under our own id: of an earlier run of ours, late on its way, or of another process that lives.

        Only an answer to a question of now tells which. Both find out, and one of them has to go.
        """
        if not isinstance(message, Ping | Ack) or message.life is None or message.life == self._life:
            return []
        if isinstance(message, Ping):
            address = message.sender.address
            return [
                Send(address, Ack(message.number, self.me, self._life)),
                *self._ask_double(address, now),
            ]
        if message.number != self._double_number:
            return []
        self._double_number = None
        return [Doubled(message.sender.address, must_stop=self._life > message.life)]

    def _ask_double(self, address: str, now: float) -> list[Effect]:
        if address == self.me.address or now - self._double_asked_at < self._timing.round_s:
            return []
        self._double_asked_at = now
        self._double_number = self._probes.draw()
        return [Send(address, Ping(self._double_number, self.me, self._life))]
