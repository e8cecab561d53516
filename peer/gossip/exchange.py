"""Log exchange with other peers, the asking end: the one way in which state moves between peers.

One exchange at a time runs with each peer; whatever wants one while it runs shares the next, so that under load a
single round trip, and a single commit at either end, carries many uploads. `peer/gossip/answer.py` is the other end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import trio

from peer.complaints import Complaints
from peer.config import Config
from peer.gossip.catching_up import CatchingUp, is_far_behind
from peer.gossip.client import PeerRefused, PeerUnreachable
from peer.gossip.forks import Forks
from peer.gossip.membership import Gossip
from peer.gossip.peers import Peers
from peer.gossip.whole_state import Reason, WholeStates
from peer.pace import RESTS_CATCHING_UP
from peer.store.database import Committed
from peer.store.holding import Holding
from peer.store.rows import find_log_hash, raw_log_after
from peer.tasks import Keeper
from peer.worker import Worker
from peer.world.env import Env, StoreError
from protocol.codec import OpDots, decode_op, dots_in
from protocol.errors import MalformedMessage
from protocol.forks import Fingerprints, fingerprints_for
from protocol.identity import Dot, NodeId, Origin, VersionVector, covers, covers_all
from protocol.messages import ExchangeReply, ExchangeRequest
from protocol.ops import Op
from protocol.replica import Heard, Suffix, cut_suffix

log = logging.getLogger("minidfs.exchange")

OPS_BYTES_MAX = 24 * 1024
"""Of ops in one message: what is applied in one transaction, for which uploads have to wait."""

CHUNKS_BYTES_MAX = 4 * 1024 * 1024
"""Of small chunks' contents in one message."""

PUSH_DELAY_S = 0.1
"""A peer's own news waits this long for more of it before it is pushed to others, and as long between some and more."""

PUSH_FANOUT = 3
"""Peers that news is pushed to at a time."""

RELAY_DELAYS_S = 2.0, 4.0
"""Within these, drawn anew each time, others' news is passed on; by then most have it from whose it is.

Where everybody passed everything on at once, each would have told each of every upload.
"""

LEFT_ALONE_S = 3.0
"""A peer that catches up is not told of news before so long after it was told last."""

PATIENCE_MAX = 5
"""A peer that gives signs of life may take this many times `target_timeout_s`."""


@dataclass(slots=True, eq=False)
class _Turn:
    """One exchange to come, and what it is to bring about."""

    hold: dict[Dot, None] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)
    error: PeerUnreachable | StoreError | None = None
    unasked: Sequence[Dot] = ()
    """Puts that the peer could not be asked to hold."""
    held: Sequence[Dot] = ()
    """Puts that the peer holds, as the catalog has it now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody waits for an exchange that was begun."""

    node_id: NodeId
    hold: Dot | None
    turn: _Turn
    since_s: float


def _not_asked(hold: Dot) -> _Turn:
    """A turn that is over, and in which the peer was not asked to hold this."""
    turn = _Turn(unasked=(hold,))
    turn.done.set()
    return turn


class Exchanger(Worker):
    """Exchanges logs with every other peer of the cluster, and pushes this peer's own news to them."""

    name = "push"

    def __init__(
        self,
        env: Env,
        config: Config,
        here: Holding,
        others: Peers,
        whole_states: WholeStates,
        forks: Forks,
        gossip: Gossip,
        keeper: Keeper,
    ) -> None:
        super().__init__()
        self._forks = forks
        forks.on_ended = self._exchange_soon
        self._keeper = keeper
        self._env = env
        self._config = config
        self._here = here
        self._others = others
        self._whole_states = whole_states
        self._gossip = gossip
        self._links: dict[NodeId, Link] = {}
        self._chance = env.chance("push")
        self._complaints = Complaints(log, env.clock.now)
        self._catching_up = CatchingUp()
        self._nursery: trio.Nursery | None = None
        here.own_news.follow(self.wake)

    async def run(self) -> None:
        """Run the links and push news along them, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            for link in self._links.values():
                self._start(link)
            await super().run()

    def _start(self, link: Link) -> None:
        assert self._nursery is not None, "exchanges need a running exchanger"
        self._nursery.start_soon(self._keeper.keep, "exchange", link.run)

    def _exchange_soon(self, node_id: NodeId) -> None:
        self.link(node_id).wake()

    def settle_s(self) -> float:
        return PUSH_DELAY_S

    async def step(self) -> None:
        lacking = self._lacking()
        self._chance.shuffle(lacking)
        while True:
            for link in lacking[:PUSH_FANOUT]:
                link.wake()
            # Some have heard of it by then, or of later news.
            lacking = [link for link in lacking[PUSH_FANOUT:] if link.may_lack_something()]
            if not lacking:
                return
            await trio.sleep(PUSH_DELAY_S)

    def push_to_some(self) -> None:
        """Push what there is to a few peers, if there are any that may lack something."""
        lacking = self._lacking()
        for link in self._chance.sample(lacking, min(PUSH_FANOUT, len(lacking))):
            link.wake()

    def _lacking(self) -> list[Link]:
        links = map(self.link, self._others.membership.reachable())
        return [link for link in links if link.may_lack_something() and not link.is_left_alone()]

    def backlog(self) -> int:
        return sum(link.may_lack_something() for link in self._links.values())

    def links(self) -> Sequence[Link]:
        """The links there are so far."""
        return list(self._links.values())

    def link(self, node_id: NodeId) -> Link:
        """The link to a peer."""
        link = self._links.get(node_id)
        if link is None:
            link = self._links[node_id] = Link(
                self._here,
                self._others,
                self._whole_states,
                self._forks,
                self._gossip,
                self._complaints,
                self._catching_up,
                self._exchange_soon,
                node_id,
            )
            self._start(link)
        return link

    async def exchange(self, node_id: NodeId, hold: Dot | None = None) -> bool:
        """Swap logs with a peer, and ask it to hold a put; returns once all of it is applied on both sides.

        Where one of them is far behind, that one catches up by itself, and it is not waited for. Whether the peer holds
        the put then stands in the catalog, if it could be asked; False when it is far behind, or has to take over a
        whole state first, and what the catalog has of it is from before. Raises PeerUnreachable, StoreError.
        """
        return await self.link(node_id).exchange(hold)

    def begin(self, node_id: NodeId, hold: Dot | None = None) -> Wait:
        """Have an exchange with a peer start soon that asks it to hold a put; `outcome` waits for it.

        One that is far behind is not asked: it will fetch what it lacks.
        """
        if hold is not None and self.link(node_id).is_far_behind():
            return Wait(node_id, hold, _not_asked(hold), self._env.clock.now())
        return Wait(node_id, hold, self.link(node_id).wake(hold), self._env.clock.now())

    async def outcome(self, wait: Wait) -> str | None:
        """Wait for an exchange as long as the peer gives signs of life; what went wrong, or None.

        It went wrong too when the peer does not hold the put it was asked to.
        """
        node_id, turn, clock = wait.node_id, wait.turn, self._env.clock
        deadline = wait.since_s + self._config.target_timeout_s
        limit = wait.since_s + PATIENCE_MAX * self._config.target_timeout_s
        while not turn.done.is_set():
            with trio.CancelScope(deadline=deadline):
                await turn.done.wait()
            if turn.done.is_set():
                break
            # A busy peer that answers probes gets more time than one that may be gone.
            if clock.now() >= limit or not self._others.membership.answers(node_id):
                return f"{node_id} did not answer in time; it gets the file as soon as it can"
            self._gossip.doubt(node_id)
            deadline = min(limit, clock.now() + self._config.target_timeout_s / 2)
        if turn.error is not None:
            return str(turn.error)
        if wait.hold in turn.unasked:
            return f"{node_id} is catching up with what it has missed; it gets the file with it"
        if wait.hold is not None and wait.hold not in turn.held:
            return f"{node_id} has heard of the file and will fetch it"
        return None

    async def exchange_patiently(self, node_id: NodeId, hold: Dot | None = None) -> str | None:
        """`begin`, and wait for the `outcome`."""
        return await self.outcome(self.begin(node_id, hold))

    async def hear_all(self, node_id: NodeId) -> None:
        """Exchange with a peer until this one has heard all it has, or nothing comes of it."""
        while True:
            before = self._here.database.committed.version_vector
            failure = await self.exchange_patiently(node_id)
            has_moved = self._here.database.committed.version_vector != before
            if failure is not None or not has_moved or not self.link(node_id).has_more():
                return


class Relay(Worker):
    """Passes others' news on, a while after it was heard: to who could not be reached by whose it is."""

    name = "relay"

    def __init__(self, env: Env, here: Holding, exchanger: Exchanger) -> None:
        super().__init__()
        self._chance = env.chance("relay")
        self._exchanger = exchanger
        here.news.follow(self.wake)

    def settle_s(self) -> float:
        return self._chance.uniform(*RELAY_DELAYS_S)

    async def step(self) -> None:
        self._exchanger.push_to_some()


class Link:
    """The exchanges with one peer."""

    def __init__(
        self,
        here: Holding,
        others: Peers,
        whole_states: WholeStates,
        forks: Forks,
        gossip: Gossip,
        complaints: Complaints,
        catching_up: CatchingUp,
        exchange_soon: Callable[[NodeId], None],
        node_id: NodeId,
    ) -> None:
        self._forks = forks
        self._complaints = complaints
        self._catching_up = catching_up
        self._exchange_soon = exchange_soon
        self._here = here
        self._others = others
        self._whole_states = whole_states
        self._gossip = gossip
        self.node_id = node_id
        self._known_digest: bytes | None = None
        """Of the peer's member list, as it last told."""
        self.known_vv: VersionVector | None = None
        """What the peer confirmed to have applied; it may have more."""
        self.done = 0
        self.failed = 0
        self._is_stuck = False
        self._goes_on = False
        """This peer catches up from that one, and the next turn goes on with it."""
        self._began = 0.0
        """When the turn of now, or the last one, did, by the clock of `Pace`."""
        self._left_at: VersionVector | None = None
        """Where the peer stood when a turn ended before all was told: then it must have moved by the next one."""
        self._gave_up: tuple[Origin, ...] = ()
        """Origins of ours of which the peer follows a branch that was given up here."""
        self._next = _Turn()
        self._wanted = trio.Event()

    def may_lack_something(self) -> bool:
        """Whether, as far as we know, the peer has not heard all we have."""
        return self.known_vv is None or not covers_all(self.known_vv, self._here.database.committed.version_vector)

    def is_far_behind(self) -> bool:
        """Whether, as far as we know, the peer takes long to hear of all we have."""
        return is_far_behind(self.known_vv, self._here.database.committed.version_vector)

    def is_left_alone(self) -> bool:
        """Whether the peer is to catch up by itself for now; every few seconds it is asked how far it is."""
        return self.is_far_behind() and self._others.pace.now() - self._began < LEFT_ALONE_S

    def has_more(self) -> bool:
        """Whether, as far as we know, the peer has heard what we have not."""
        return not covers_all(self._here.database.committed.version_vector, self.known_vv or {})

    def has_applied(self, dot: Dot) -> bool:
        """Whether the peer has confirmed to have applied an op."""
        return covers(self.known_vv or {}, dot)

    def wake(self, hold: Dot | None = None) -> _Turn:
        """See to it that an exchange starts soon, which asks the peer to hold a put; returns its turn."""
        self._wanted.set()
        if hold is not None:
            self._next.hold[hold] = None
        return self._next

    async def exchange(self, hold: Dot | None) -> bool:
        """See `Exchanger.exchange`."""
        turn = self.wake(hold)
        await turn.done.wait()
        if turn.error is not None:
            raise turn.error
        return hold not in turn.unasked

    async def run(self) -> None:
        """Carry out one turn after the other, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            turn, self._next = self._next, _Turn()
            turn.error = PeerUnreachable(f"the exchange with {self.node_id} broke off here; the log says why")
            try:
                turn.unasked = await self._exchange_all(turn)
                await self._forks.exchanged(self.node_id)
                turn.error = None
                self.done += 1
            except (PeerUnreachable, StoreError) as error:
                turn.error = error
                self.failed += 1
                log.debug("exchange with %s failed: %s", self.node_id, error)
                if isinstance(error, PeerRefused):
                    # Until somebody does something about it nothing is exchanged with that one.
                    self._complaints.say(self.node_id, f"exchange with {self.node_id} failed: {error}")
            finally:
                # Whatever happened: who waits is told.
                turn.done.set()
                if not self._goes_on:
                    for node_id in self._catching_up.end(self.node_id):
                        self._exchange_soon(node_id)
            if self._goes_on and not self._next.hold:
                await self._others.give_way(self._began, self.node_id, RESTS_CATCHING_UP)

    async def _exchange_all(self, turn: _Turn) -> list[Dot]:
        """Exchange until nothing is lacking on either side, or nothing moves any more; the puts nobody asked it for."""
        before, self._left_at = self._left_at, None
        self._goes_on, self._began = False, self._others.pace.now()
        hold = list(turn.hold)
        self._is_stuck = False
        while True:
            peer = self._others.membership.member(self.node_id)
            if peer is None:
                raise PeerUnreachable(f"{self.node_id} is no member of this cluster")
            request, hold, more = await self._make_request(hold)
            reply = await self._others.client.exchange(peer, request)
            await self._take_reply(request, reply, turn)
            moved = before != reply.vv
            if await self._end_standstill(request, reply, is_still_there=not moved) or request.behind:
                return hold
            before = reply.vv
            has_more = reply.more and self._may_ask_more(reply.vv)
            if moved and not has_more and self.is_far_behind():
                self._left_at = before
                return hold
            if has_more and not hold and self._catching_up.is_from(self.node_id):
                # In the next turn: those who wait for this one have what they wait for.
                self._left_at, self._goes_on = before, True
                self._wanted.set()
                return hold
            lacking = not covers_all(reply.vv, request.vv)
            if not (hold or more or has_more or self._is_stuck or (lacking and moved)):
                return hold

    def _may_ask_more(self, their_vv: VersionVector) -> bool:
        """Whether to go on hearing what the peer has, or leave that to the link over which this peer catches up."""
        is_far = is_far_behind(self._here.database.committed.version_vector, their_vv)
        return not is_far or self._catching_up.may_ask_more(self.node_id)

    async def _end_standstill(self, request: ExchangeRequest, reply: ExchangeReply, *, is_still_there: bool) -> bool:
        """Ops that went over and moved nothing build on rows that are lost: then a whole state helps, and no repeating.

        Those it has by now prove nothing: what it was thought to know was of an older request, answered late.
        The next request tells the other to take ours over; what it has is taken over here. True to end the exchange.
        """
        if is_still_there and not self._is_stuck and _is_something_lacking(request, reply):
            log.error("rows of the log are lost: %s, which cannot apply what is left, gets a whole state", self.node_id)
            self._is_stuck = True
        if reply.ops and self._here.database.committed.version_vector == request.vv:
            log.error("%s has lost rows of its log: taking its whole state instead of what is left", self.node_id)
            await self._whole_states.fetch(self.node_id, Reason.BEHIND, reply.fingerprints, request.vv)
            return True
        return False

    async def _make_request(self, hold: list[Dot]) -> tuple[ExchangeRequest, list[Dot], bool]:
        """A request, the files it could not bring yet, and whether ops were left over."""
        known = self.known_vv
        suffix, dots = (None, ()) if self._is_stuck else await self._suffix(known)
        # What was read a moment ago must not be newer than what is said of it.
        committed = self._here.database.committed
        asked: list[Dot] = []
        contents: list[bytes] = []
        if suffix is not None and known is not None and not suffix.more:
            asked, contents = self._contents(hold)
        request = ExchangeRequest(
            sender=self._others.membership.me,
            view=self._others.membership.view(self._known_digest),
            vv=committed.version_vector,
            state_sum=committed.state_sum,
            ops=suffix.ops if suffix else (),
            hold=tuple(asked),
            chunks=tuple(contents),
            behind=suffix is None,
            fingerprints=self._fingerprints(committed, known, dots),
            gave_up=self._gave_up,
            is_serving=self._others.pace.is_serving(),
        )
        return request, hold[len(asked) :], suffix.more if suffix else False

    def _fingerprints(self, committed: Committed, known: VersionVector | None, dots: Iterable[OpDots]) -> Fingerprints:
        """What is said of our logs along with the ops of these dots, to one who knows so much."""
        vv, database = committed.version_vector, self._here.database
        theirs = vv if known is None else known

        def log_hash(dot: Dot) -> bytes | None:
            return committed.tail.log_hash(dot) or database.look_up(lambda reader: find_log_hash(reader, dot))

        return fingerprints_for(log_hash, self.node_id, vv, theirs, dots)

    async def _suffix(self, known: VersionVector | None) -> tuple[Suffix | None, Iterable[OpDots]]:
        """What a peer lacks that knows so much, and the dots of that; nothing before it has said what it has; None when
        our log has no longer all of it."""
        committed = self._here.database.committed
        if known is None:
            return Suffix((), more=False), ()
        if not covers_all(known, committed.floors):
            return None, ()
        rows = committed.tail.after(known, committed.version_vector)
        if rows is not None:
            suffix = cut_suffix((row.raw for row in rows), OPS_BYTES_MAX)
            return suffix, [row.dots for row in rows[: len(suffix.ops)]]
        suffix = await self._here.database.read(
            lambda connection: cut_suffix(raw_log_after(connection, known), OPS_BYTES_MAX)
        )
        return suffix, map(dots_in, suffix.ops)

    def _contents(self, hold: list[Dot]) -> tuple[list[Dot], list[bytes]]:
        """The first of these files, and the contents of their small chunks, as many as fit a message."""
        asked: list[Dot] = []
        contents: dict[bytes, bytes] = {}
        size = 0
        for dot in hold:
            if size > CHUNKS_BYTES_MAX:
                break
            asked.append(dot)
            for chunk_hash, content in self._here.small_contents(dot).items():
                if chunk_hash not in contents:
                    contents[chunk_hash] = content
                    size += len(content)
        return asked, list(contents.values())

    async def _take_reply(self, request: ExchangeRequest, reply: ExchangeReply, turn: _Turn) -> None:
        self._gossip.learn(reply.view, self.node_id)
        self._known_digest = reply.view.digest
        self._others.pace.heard(self.node_id, is_serving=reply.is_serving)
        try:
            ops = [decode_op(raw) for raw in reply.ops]
        except MalformedMessage as error:
            raise PeerUnreachable(f"{self.node_id} sent an op that is none: {error}") from None
        self.known_vv = reply.vv
        heard, disagrees, held = await self._here.database.write(lambda: self._hear(reply, ops, turn.hold))
        # Who has much to hear yet hears of these holds last.
        turn.held = [*held, *reply.held] if reply.more else held
        if heard.applied:
            self._here.tell_heard(ops, heard)
            # The holds that were asked for are this peer's to tell of.
            self._here.tell_changed(by_others=not turn.hold)
        if heard.disputed or reply.disputed:
            self._dispute(heard, reply)
        self._gave_up = ()
        if self._here.is_damaged:
            self._whole_states.fetch_soon(self.node_id, Reason.DAMAGE)
        elif reply.behind:
            await self._whole_states.fetch(self.node_id, Reason.BEHIND, reply.fingerprints, request.vv)
        elif disagrees:
            await self._whole_states.fetch(self.node_id, Reason.DISAGREEMENT)
        elif heard.my_drops:
            await self._here.declare_backed()

    def _dispute(self, heard: Heard, reply: ExchangeReply) -> NoReturn:
        """Nothing was applied, here or there. Raises PeerUnreachable."""
        self._forks.note(self.node_id, heard, reply.gave_up)
        if heard.given_up != self._gave_up:
            # It has to be told, and that was not in this request.
            self._gave_up = heard.given_up
            self._wanted.set()
        raise PeerUnreachable(f"{self.node_id} does not agree with this peer about a log; that is being seen to")

    def _hear(self, reply: ExchangeReply, ops: Sequence[Op], asked: Iterable[Dot]) -> tuple[Heard, bool, list[Dot]]:
        """A step: apply a reply's ops; whether two that know the same disagree, and what the peer holds of this."""
        heard = self._here.hear(reply.vv, reply.fingerprints, ops)
        disagrees = not heard.disputed and self._here.replica.disagrees(reply.vv, reply.state_sum)
        store = self._here.database.store
        held = [dot for dot in asked if store.has_hold(dot, self.node_id)]
        return heard, disagrees, held


def _is_something_lacking(request: ExchangeRequest, reply: ExchangeReply) -> bool:
    """Whether the peer still lacks ops that it was sent."""
    sent = map(dots_in, request.ops)
    return any(not covers(reply.vv, Dot(dots.origin, dots.last)) for dots in sent)
