"""Log exchange with other peers, both ends: the one way in which state moves between peers.

One exchange at a time runs with each peer; whatever wants one while it runs shares the next, so that under load a
single round trip, and a single commit at either end, carries many uploads.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import trio
from blake3 import blake3

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import PeerState
from peer.gossip.whole_state import Reason, WholeStates
from peer.store.chunk_files import FreshChunk
from peer.store.rows import ChunkRow, raw_log_after
from peer.world.env import StoreError, Work
from protocol.codec import decode_op
from protocol.errors import MalformedMessage
from protocol.identity import Dot, NodeId, VersionVector, covers_all
from protocol.messages import ExchangeReply, ExchangeRequest, Member
from protocol.ops import Chunk, Op, Put
from protocol.replica import Heard, Suffix, cut_suffix

log = logging.getLogger("minidfs.exchange")

OPS_BYTES_MAX = 512 * 1024
"""Of ops in one message."""

CHUNKS_BYTES_MAX = 4 * 1024 * 1024
"""Of small chunks' contents in one message."""

DECODE_INLINE_BYTES_MAX = 64 * 1024
"""More ops than this are decoded off the event loop."""

PUSH_DELAY_S = 0.1
"""News waits this long for more of it before it is pushed to others."""

PUSH_FANOUT = 3
"""Peers that news is pushed to; anti-entropy reaches the others."""


@dataclass(slots=True)
class _Answered:
    """What a request's transaction came to."""

    reply: ExchangeReply
    adopted: list[FreshChunk]
    applied: int
    declare: bool
    disagrees: bool


@dataclass(slots=True, eq=False)
class _Turn:
    """One exchange to come, and what it is to bring about."""

    hold: dict[Dot, None] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)
    error: PeerUnreachable | StoreError | None = None


class Exchanger:
    """Exchanges logs with every other peer of the cluster."""

    def __init__(self, state: PeerState, learn: Callable[[tuple[Member, ...]], None]) -> None:
        self._state = state
        self.learn = learn
        self._links: dict[NodeId, Link] = {}
        self._chance = state.env.chance("push")
        self._nursery: trio.Nursery | None = None
        self.whole_states = WholeStates(state)

    async def run(self) -> None:
        """Run the links and push news along them, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                await self._state.news.wait_ring()
                await trio.sleep(PUSH_DELAY_S)
                self._push()

    def _push(self) -> None:
        reachable = self._state.membership.reachable()
        lacking = [link for link in map(self.link, reachable) if link.may_lack_something()]
        for link in self._chance.sample(lacking, min(PUSH_FANOUT, len(lacking))):
            link.poke()

    def link(self, node_id: NodeId) -> Link:
        """The link to a peer."""
        link = self._links.get(node_id)
        if link is None:
            assert self._nursery is not None, "exchanges need a running exchanger"
            link = self._links[node_id] = Link(self, self._state, node_id)
            self._nursery.start_soon(link.run)
        return link

    async def exchange(self, node_id: NodeId, hold: Dot | None = None) -> None:
        """Swap logs with a peer, and ask it to hold a put; returns once all of it is applied on both sides.

        Whether it holds the put then stands in the catalog. Raises PeerUnreachable, StoreError.
        """
        await self.link(node_id).exchange(hold)

    # --- the answering end ---

    async def answer(self, request: ExchangeRequest) -> ExchangeReply:
        """Apply what a peer sent, hold what it asks for, and tell it what it lacks.

        Raises MalformedMessage when an op is none, and StoreError.
        """
        state = self._state
        self.learn((request.sender, *request.members))
        if state.space.reason is not None:
            # What others did is heard; their content has to wait.
            request = replace(request, hold=(), chunks=())
        ops = await self._decode(request.ops)
        inline = self._inline_content(request)
        wanted = self._wanted_content(request, ops)
        rows = await state.verified_rows(
            [chunk for chunk in wanted if chunk.hash not in inline and not state.chunks.staging.has(chunk.hash)], {}
        )
        # From here to the commit they are ours alone.
        claimed = [staged for chunk in wanted if (staged := state.chunks.staging.claim(chunk.hash)) is not None]
        fresh = {chunk.hash: chunk for chunk in claimed} | inline
        adopted: list[FreshChunk] = []
        # Looked at here and not in the step, which runs on another thread.
        members = state.membership.members()
        try:
            step = partial(self._answer, request, ops, fresh, rows, members)
            answered = await state.database.write(step, grows=bool(fresh))
            adopted = answered.adopted
        finally:
            self._stage_again(claimed, adopted)
        if answered.applied or answered.adopted:
            state.news.ring()
        self.link(request.sender.node_id).known_vv = request.vv
        if request.behind or answered.disagrees:
            reason = Reason.BEHIND if request.behind else Reason.DISAGREEMENT
            self._start(partial(self.whole_states.fetch, request.sender.node_id, reason))
        if answered.declare:
            self._start(self.whole_states.declare_backed)
        return answered.reply

    async def _decode(self, raws: Sequence[bytes]) -> list[Op]:
        if sum(map(len, raws)) <= DECODE_INLINE_BYTES_MAX:
            return [decode_op(raw) for raw in raws]
        return await self._state.env.run_blocking(Work.HASH, lambda: [decode_op(raw) for raw in raws])

    def _inline_content(self, request: ExchangeRequest) -> dict[bytes, FreshChunk]:
        """The chunks in the message. Raises MalformedMessage."""
        contents: dict[bytes, FreshChunk] = {}
        for content in request.chunks if request.hold else ():
            if len(content) > self._state.config.inline_bytes_max:
                raise MalformedMessage(f"a chunk of {len(content)} bytes inside a message")
            name = blake3(content).digest()
            contents[name] = FreshChunk(name, len(content), None, content)
        return contents

    def _wanted_content(self, request: ExchangeRequest, ops: Sequence[Op]) -> list[Chunk]:
        """The chunks of the files a peer asks us to hold."""
        sent = {op.dot: op for op in ops if isinstance(op, Put)}
        chunks = (chunk for dot in request.hold for chunk in self._chunks_of(sent.get(dot) or self._known_put(dot)))
        return list(dict.fromkeys(chunks))

    def _stage_again(self, claimed: Sequence[FreshChunk], adopted: Sequence[FreshChunk]) -> None:
        """What was claimed and not adopted may still be of use, unless this peer has the chunk by now."""
        kept = {id(chunk) for chunk in adopted}
        chunks = self._state.chunks
        for chunk in claimed:
            if id(chunk) in kept:
                continue
            if self._is_here(chunk.hash):
                chunks.discard([chunk])
            else:
                chunks.staging.stage(chunk)

    def _is_here(self, name: bytes) -> bool:
        try:
            return self._state.chunks.row(name) is not None
        except StoreError:
            # Nobody knows; what is staged lapses.
            return False

    def _known_put(self, dot: Dot) -> Put | None:
        found = self._state.put_row(dot)
        return found[1] if found else None

    @staticmethod
    def _chunks_of(put: Put | None) -> Sequence[Chunk]:
        return () if put is None else put.manifest.chunks or ()

    def _answer(
        self,
        request: ExchangeRequest,
        ops: Sequence[Op],
        fresh: dict[bytes, FreshChunk],
        rows: dict[bytes, ChunkRow],
        members: tuple[Member, ...],
    ) -> _Answered:
        """The transaction of an answer; its suffix brings the new holds along."""
        state = self._state
        heard = self.hear(request.vv, ops)
        adopted = [chunk for dot in request.hold for chunk in state.take_hold(dot, fresh, rows, recovered=False)]
        for dot in request.hold:
            # Who asks takes our hold in the catalog for our word that we have it now.
            if not state.database.store.is_held(dot):
                state.take_back(dot)
        suffix = state.replica.suffix(request.vv, OPS_BYTES_MAX)
        store = state.database.store
        reply = ExchangeReply(
            members=members,
            vv=store.version_vector(),
            state_sum=store.state_sum(),
            ops=suffix.ops if suffix else (),
            more=suffix.more if suffix else False,
            behind=suffix is None,
        )
        disagrees = state.replica.disagrees(request.vv, request.state_sum)
        return _Answered(reply, adopted, heard.applied, heard.my_drops > 0, disagrees)

    def hear(self, their_vv: VersionVector, ops: Sequence[Op]) -> Heard:
        """A step: apply a peer's ops; a hold of ours that this disk does not back is taken back at once."""
        state = self._state
        heard = state.replica.hear(their_vv, ops, state.wall_ms())
        unbacked = [hold for hold in heard.my_holds if not state.database.store.is_held(hold.put)]
        state.replica.drop(unbacked, state.wall_ms())
        return heard

    def _start(self, task: Callable[[], Awaitable[None]]) -> None:
        assert self._nursery is not None, "answers need a running exchanger"
        self._nursery.start_soon(self._guarded, task)

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """A task nobody waits for: what it could not do, the next exchange tries again."""
        try:
            await task()
        except (PeerUnreachable, StoreError) as error:
            log.warning("%s", error)


class Link:
    """The exchanges with one peer."""

    def __init__(self, exchanger: Exchanger, state: PeerState, node_id: NodeId) -> None:
        self._exchanger = exchanger
        self._state = state
        self.node_id = node_id
        self.known_vv: VersionVector | None = None
        """What the peer confirmed to have applied; it may have more."""
        self._next = _Turn()
        self._wanted = trio.Event()

    def may_lack_something(self) -> bool:
        """Whether, as far as we know, the peer has not heard all we have."""
        return self.known_vv is None or not covers_all(self.known_vv, self._state.database.committed.version_vector)

    def poke(self) -> _Turn:
        """See to it that an exchange starts soon; returns its turn."""
        self._wanted.set()
        return self._next

    async def exchange(self, hold: Dot | None) -> None:
        """See `Exchanger.exchange`."""
        turn = self.poke()
        if hold is not None:
            turn.hold[hold] = None
        await turn.done.wait()
        if turn.error is not None:
            raise turn.error

    async def run(self) -> None:
        """Carry out one turn after the other, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            turn, self._next = self._next, _Turn()
            try:
                await self._exchange_all(list(turn.hold))
            except (PeerUnreachable, StoreError) as error:
                turn.error = error
                log.debug("exchange with %s failed: %s", self.node_id, error)
            turn.done.set()

    async def _exchange_all(self, hold: list[Dot]) -> None:
        """Exchange until nothing is lacking on either side, or nothing moves any more."""
        before: VersionVector | None = None
        while True:
            peer = self._state.membership.member(self.node_id)
            if peer is None:
                raise PeerUnreachable(f"{self.node_id} is no member of this cluster")
            request, hold, more = await self._make_request(hold)
            reply = await self._state.client.exchange(peer, request)
            await self._take_reply(reply)
            moved = before != reply.vv
            before = reply.vv
            lacking = not covers_all(reply.vv, request.vv) and not request.behind
            if not (hold or more or reply.more or (lacking and moved)):
                return

    async def _make_request(self, hold: list[Dot]) -> tuple[ExchangeRequest, list[Dot], bool]:
        """A request, the files it could not bring yet, and whether ops were left over."""
        state = self._state
        committed = state.database.committed
        suffix = self._suffix(committed.floors)
        asked: list[Dot] = []
        contents: list[bytes] = []
        if suffix is not None and self.known_vv is not None and not suffix.more:
            asked, contents = self._contents(hold)
        request = ExchangeRequest(
            sender=state.membership.me,
            members=state.membership.members(),
            vv=committed.version_vector,
            state_sum=committed.state_sum,
            ops=suffix.ops if suffix else (),
            hold=tuple(asked),
            chunks=tuple(contents),
            behind=suffix is None,
        )
        left = hold[len(asked) :] if suffix is not None else []
        return request, left, suffix.more if suffix else False

    def _suffix(self, floors: VersionVector) -> Suffix | None:
        """What the peer lacks; nothing before it has said what it has; None when our log has no longer all of it."""
        if self.known_vv is None:
            return Suffix((), more=False)
        if not covers_all(self.known_vv, floors):
            return None
        known = self.known_vv
        return self._state.database.look_up(
            lambda connection: cut_suffix(raw_log_after(connection, known), OPS_BYTES_MAX)
        )

    def _contents(self, hold: list[Dot]) -> tuple[list[Dot], list[bytes]]:
        """The first of these files, and the contents of their small chunks, as many as fit a message."""
        asked: list[Dot] = []
        contents: dict[bytes, bytes] = {}
        size = 0
        for dot in hold:
            if size > CHUNKS_BYTES_MAX:
                break
            asked.append(dot)
            found = self._state.put_row(dot)
            for chunk in (found[1].manifest.chunks or ()) if found else ():
                row = self._state.chunks.row(chunk.hash) if chunk.size <= self._state.config.inline_bytes_max else None
                if row is not None and row.content is not None and chunk.hash not in contents:
                    contents[chunk.hash] = row.content
                    size += chunk.size
        return asked, list(contents.values())

    async def _take_reply(self, reply: ExchangeReply) -> None:
        state = self._state
        self._exchanger.learn(reply.members)
        try:
            ops = [decode_op(raw) for raw in reply.ops]
        except MalformedMessage as error:
            raise PeerUnreachable(f"{self.node_id} sent an op that is none: {error}") from None
        self.known_vv = reply.vv
        heard, disagrees = await state.database.write(lambda: self._hear(reply, ops))
        if heard.applied:
            state.news.ring()
        if reply.behind or disagrees:
            reason = Reason.BEHIND if reply.behind else Reason.DISAGREEMENT
            await self._exchanger.whole_states.fetch(self.node_id, reason)
        elif heard.my_drops:
            await self._exchanger.whole_states.declare_backed()

    def _hear(self, reply: ExchangeReply, ops: Sequence[Op]) -> tuple[Heard, bool]:
        heard = self._exchanger.hear(reply.vv, ops)
        return heard, self._state.replica.disagrees(reply.vv, reply.state_sum)
