"""Many memberships in one process, over a network and a clock that are made up: nothing but the protocol's rules.

Each runs `protocol.membership` as a peer does; HTTP, by which whole lists travel, is one delivery each way.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from protocol.datagrams import encode_datagram
from protocol.identity import Life, Member, NodeId, Status
from protocol.member_events import Effect, Event, Learned, Met, Received, Send, SetTimer, StatusChanged, Tick
from protocol.member_list import MemberList
from protocol.membership import Membership, Timing
from protocol.messages import View
from protocol.sessions import SEAL_BYTES

CLUSTER = "0" * 32
LATENCY_S = (0.0005, 0.003)
EXCHANGE_S = 0.005
"""One way, of a list over HTTP."""
ANTI_ENTROPY_S = 30.0
JOIN_RETRY_S = 1.0
READING_S = 0.001


@dataclass(slots=True)
class One:
    """A peer of the crowd."""

    membership: Membership
    timer: int = 0
    """Which of the timers it has set counts: the last."""
    is_running: bool = True
    event_s: tuple[float, float] = (0.0, 0.0)
    """How long it takes for one thing that happens, between these: much, when it gets hardly any time."""
    busy_until: float = 0.0
    """Until then it is busy; what comes meanwhile waits."""
    bytes_sent: int = 0

    @property
    def node_id(self) -> NodeId:
        """Its name."""
        return self.membership.me.node_id


@dataclass(slots=True)
class Crowd:
    """All of them, and what happens next."""

    chance: Random
    loss: float = 0.0
    counts_bytes: bool = False
    now: float = 0.0
    peers: dict[str, One] = field(default_factory=dict)
    """By address."""
    on_status: Callable[[One, StatusChanged], None] = lambda one, changed: None
    sent: Counter[str] = field(default_factory=Counter)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    # --- peers ---

    def add(self, number: int, timing: Timing, *others: Member) -> One:
        """One more peer, which knows these others from its disk; `start` starts it."""
        me = Member(NodeId(f"node-{number}"), f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:9001", 1)
        chance = Random(self.chance.getrandbits(64))
        one = One(Membership(MemberList(me), others, timing, Life(number, number), chance))
        self.peers[me.address] = one
        return one

    def start(self, one: One, after_s: float) -> None:
        """Let it begin to probe, and to exchange lists every half a minute."""
        self.at(self.now + after_s, partial(self.tell, one, Tick()))
        self.at(self.now + after_s + self.chance.uniform(0, ANTI_ENTROPY_S), partial(self._compare, one))

    def formed(self, count: int, timing: Timing) -> list[One]:
        """So many peers that all know each other and have started."""
        ones = [self.add(number, timing) for number in range(count)]
        everybody = tuple(one.membership.me for one in ones)
        view = View(b"", everybody, (Status.ALIVE,) * count)
        for one, other in zip(ones, [*ones[1:], ones[0]], strict=True):
            one.membership.handle(Learned(view, other.node_id), 0.0)
            self.start(one, self.chance.uniform(0, timing.round_s))
        return ones

    def join(self, one: One, seed: One) -> None:
        """Ask a peer for the list, as `--join` does, until it answers."""
        if not seed.is_running or self.now < seed.busy_until:
            self.at(self.now + JOIN_RETRY_S, partial(self.join, one, seed))
            return
        self.after(EXCHANGE_S, partial(self._joined, one, seed))

    def _joined(self, one: One, seed: One) -> None:
        self.tell(seed, Learned(View.of(one.membership.me)))
        members = seed.membership.known.members()
        self.after(EXCHANGE_S, partial(self.tell, one, Learned(View.of(*members))))

    def crash(self, one: One) -> None:
        """It says and hears nothing from now on."""
        one.is_running = False

    # --- time ---

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Have something happen then."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what))

    def after(self, after_s: float, what: Callable[[], None]) -> None:
        """Have something happen in a while."""
        self.at(self.now + after_s, what)

    def run(self, until: float, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Let time go by until then, or until something is over; whether that came."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
            if is_over():
                return True
        self.now = until
        return False

    # --- what peers do ---

    def tell(self, one: One, event: Event) -> None:
        """Let a peer know of something, as soon as it has time."""
        if not one.is_running:
            return
        if self.now < one.busy_until:
            # Its timers fire first: it reads what waits on its socket one datagram after the other.
            self.at(one.busy_until + READING_S, partial(self.tell, one, event))
            return
        for effect in one.membership.handle(event, self.now):
            self._carry_out(one, effect)
        one.busy_until = self.now + self.chance.uniform(*one.event_s)

    def _carry_out(self, one: One, effect: Effect) -> None:
        match effect:
            case Send(to, message):
                self.sent[type(message).__name__] += 1
                if self.counts_bytes:
                    one.bytes_sent += len(encode_datagram(CLUSTER, message)) + SEAL_BYTES
                if to in self.peers and self.chance.random() >= self.loss:
                    self.after(self.chance.uniform(*LATENCY_S), partial(self.tell, self.peers[to], Received(message)))
            case SetTimer(after_s):
                one.timer += 1
                self.after(after_s, partial(self._tick, one, one.timer))
            case Met(node_id):
                self._exchange(one, node_id)
            case StatusChanged():
                self.on_status(one, effect)

    def _tick(self, one: One, timer: int) -> None:
        if self.now < one.busy_until:
            self.at(one.busy_until, partial(self._tick, one, timer))
        elif timer == one.timer:
            self.tell(one, Tick())

    def _exchange(self, one: One, node_id: NodeId) -> None:
        """Compare lists, as each exchange of logs does."""
        member = one.membership.known.member(node_id)
        other = self.peers.get(member.address) if member else None
        if other is None or not other.is_running or not one.is_running or self.now < other.busy_until:
            return
        mine, theirs = one.membership.known, other.membership.known
        self.after(EXCHANGE_S, partial(self.tell, other, Learned(mine.view(theirs.digest), one.node_id)))
        self.after(2 * EXCHANGE_S, lambda: self.tell(one, Learned(theirs.view(mine.digest), other.node_id)))

    def _compare(self, one: One) -> None:
        if not one.is_running:
            return
        self.after(ANTI_ENTROPY_S * self.chance.uniform(0.9, 1.1), partial(self._compare, one))
        reachable = one.membership.known.reachable()
        if reachable:
            self._exchange(one, self.chance.choice(reachable))
