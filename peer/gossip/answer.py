"""Log exchange with other peers, the answering end: apply what came, hold what is asked for, tell what is lacking.

One transaction does all of it, so the suffix in the answer brings the new holds along: it is the receipt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from blake3 import blake3

from peer.complaints import Complaints
from peer.gossip.catching_up import is_far_behind
from peer.gossip.exchange import OPS_BYTES_MAX, Exchanger
from peer.gossip.forks import Forks
from peer.gossip.membership import Gossip
from peer.gossip.peers import Peers
from peer.gossip.whole_state import Reason, WholeStates
from peer.store.chunk_files import FreshChunk
from peer.store.holding import Holding
from peer.store.rows import ChunkRow
from peer.world.env import Env, StoreError, Work
from protocol import messages
from protocol.codec import decode_op, dots_in
from protocol.errors import MalformedMessage, WrongCluster, WrongVersion
from protocol.forks import fingerprints_for, fingerprints_of_all
from protocol.messages import ExchangeReply, ExchangeRequest, View
from protocol.ops import Chunk, Op, Put
from protocol.replica import Heard, Suffix

log = logging.getLogger("minidfs.answer")

SENDER_CHARS_MAX = 200
"""Of what a stranger calls itself."""

DECODE_INLINE_BYTES_MAX = 64 * 1024
"""More ops than this are decoded off the event loop."""


@dataclass(slots=True)
class _Answered:
    """What a request's transaction came to."""

    reply: ExchangeReply
    adopted: list[FreshChunk]
    applied: int
    declare: bool
    disagrees: bool
    heard: Heard


class Answering:
    """Answers the exchanges other peers ask for."""

    def __init__(
        self,
        env: Env,
        here: Holding,
        others: Peers,
        exchanger: Exchanger,
        whole_states: WholeStates,
        forks: Forks,
        gossip: Gossip,
    ) -> None:
        self._forks = forks
        self._env = env
        self._here = here
        self._others = others
        self._exchanger = exchanger
        self._whole_states = whole_states
        self._gossip = gossip
        self._complaints = Complaints(log, env.clock.now)

    def read(self, raw: bytes, sender: str) -> ExchangeRequest:
        """A request from its bytes; `sender` is what whoever sent it calls itself.

        Raises MalformedMessage, WrongCluster, and WrongVersion, which is logged: nothing else would say why nothing
        comes of it.
        """
        try:
            return messages.decode_request(self._others.cluster_id, raw)
        except WrongVersion as error:
            name = sender[:SENDER_CHARS_MAX]
            self._complaints.say(name, f"an exchange with {name!r} was refused: {error}")
            raise

    async def answer(self, request: ExchangeRequest) -> ExchangeReply:
        """Apply what a peer sent, hold what it asks for, and tell it what it lacks.

        Raises MalformedMessage when an op is none, WrongCluster for who was removed, and StoreError.
        """
        here = self._here
        if self._others.membership.eviction_of(request.sender) is not None:
            raise WrongCluster(f"{request.sender.node_id} was removed from this cluster; --rejoin joins it again")
        for view in (View.of(request.sender), request.view):
            self._gossip.learn(view, request.sender.node_id)
        self._others.pace.heard(request.sender.node_id, is_serving=request.is_serving)
        if here.space.reason is not None:
            # What others did is heard; their content has to wait.
            request = replace(request, hold=(), chunks=())
        ops = await self._decode(request.ops)
        inline = self._inline_content(request)
        wanted = self._wanted_content(request, ops)
        staging = here.chunks.staging
        known = [chunk for chunk in wanted if chunk.hash not in inline and not staging.has(chunk.hash)]
        rows = await here.verified_rows(known)
        # From here to the commit they are ours alone.
        claimed = [staged for chunk in wanted if (staged := staging.claim(chunk.hash)) is not None]
        fresh = {chunk.hash: chunk for chunk in claimed} | inline
        adopted: list[FreshChunk] = []
        # Looked at here and not in the step, which runs on another thread.
        view = self._others.membership.view(request.view.digest)
        try:
            step = partial(self._apply, request, ops, fresh, rows, view)
            answered = await here.database.write(step, grows=bool(fresh))
            adopted = answered.adopted
        finally:
            self._stage_again(claimed, adopted)
        here.tell_heard(ops, answered.heard)
        self._follow_up(request, answered)
        return answered.reply

    def _follow_up(self, request: ExchangeRequest, answered: _Answered) -> None:
        """What is due after the commit, and need not be waited for."""
        if answered.applied or answered.adopted:
            self._here.tell_changed(by_others=True)
        link = self._exchanger.link(request.sender.node_id)
        link.known_vv = request.vv
        self._forks.note(request.sender.node_id, answered.heard, request.gave_up)
        if self._here.is_damaged:
            self._whole_states.fetch_soon(request.sender.node_id, Reason.DAMAGE)
        elif request.behind:
            # Asked for what we lack it says how its logs compare with ours, and then gives its whole state.
            link.wake()
        elif answered.disagrees:
            self._whole_states.fetch_soon(request.sender.node_id, Reason.DISAGREEMENT)
        elif is_far_behind(self._here.database.committed.version_vector, request.vv):
            # It leaves that to us.
            link.wake()
        if answered.declare:
            self._whole_states.declare_soon()

    async def _decode(self, raws: Sequence[bytes]) -> list[Op]:
        if sum(map(len, raws)) <= DECODE_INLINE_BYTES_MAX:
            return [decode_op(raw) for raw in raws]
        return await self._env.run_blocking(Work.HASH, lambda: [decode_op(raw) for raw in raws])

    def _inline_content(self, request: ExchangeRequest) -> dict[bytes, FreshChunk]:
        """The chunks in the message. Raises MalformedMessage."""
        contents: dict[bytes, FreshChunk] = {}
        for content in request.chunks if request.hold else ():
            if len(content) > messages.SMALL_CHUNK_BYTES_MAX:
                raise MalformedMessage(f"a chunk of {len(content)} bytes inside a message")
            chunk_hash = blake3(content).digest()
            contents[chunk_hash] = FreshChunk(chunk_hash, len(content), None, content)
        return contents

    def _wanted_content(self, request: ExchangeRequest, ops: Sequence[Op]) -> list[Chunk]:
        """The chunks of the files a peer asks us to hold."""
        sent = {op.dot: op for op in ops if isinstance(op, Put)}
        chunks = (chunk for dot in request.hold for chunk in _chunks_of(sent.get(dot) or self._here.put_at(dot)))
        return list(dict.fromkeys(chunks))

    def _stage_again(self, claimed: Sequence[FreshChunk], adopted: Sequence[FreshChunk]) -> None:
        """What was claimed and not adopted may still be of use, unless this peer has the chunk by now."""
        kept = {id(chunk) for chunk in adopted}
        chunks = self._here.chunks
        for chunk in claimed:
            if id(chunk) in kept:
                continue
            if self._is_here(chunk.hash):
                chunks.discard([chunk])
            else:
                chunks.staging.stage(chunk)

    def _is_here(self, chunk_hash: bytes) -> bool:
        try:
            return self._here.chunks.row(chunk_hash) is not None
        except StoreError:
            # Nobody knows; what is staged lapses.
            return False

    def _apply(
        self,
        request: ExchangeRequest,
        ops: Sequence[Op],
        fresh: dict[bytes, FreshChunk],
        rows: dict[bytes, ChunkRow],
        view: View,
    ) -> _Answered:
        """The transaction of an answer; its suffix brings the new holds along."""
        here, store = self._here, self._here.database.store
        heard = here.hear(request.vv, request.fingerprints, ops)
        if heard.disputed:
            refused = self._reply(view, request, None, heard)
            return _Answered(refused, [], 0, declare=False, disagrees=False, heard=heard)
        adopted = here.take_holds(request.hold, fresh, rows, recovered=False)
        held = tuple(filter(store.is_held, request.hold))
        if len(held) < len(request.hold):
            # Who asks takes our hold in the catalog for our word that we have it now.
            for dot in request.hold:
                if dot not in held:
                    here.take_back(dot)
        suffix = here.replica.suffix(request.vv, OPS_BYTES_MAX)
        reply = replace(self._reply(view, request, suffix, heard), held=held)
        disagrees = here.replica.disagrees(request.vv, request.state_sum)
        return _Answered(reply, adopted, heard.applied, heard.my_drops > 0, disagrees, heard)

    def _reply(self, view: View, request: ExchangeRequest, suffix: Suffix | None, heard: Heard) -> ExchangeReply:
        """What is said of our logs and state as they are in this transaction."""
        store = self._here.database.store
        vv, behind = store.version_vector(), suffix is None and not heard.disputed
        ops = suffix.ops if suffix else ()
        if behind:
            fingerprints = fingerprints_of_all(store.log_hash, vv, request.vv)
        else:
            fingerprints = fingerprints_for(store.log_hash, request.sender.node_id, vv, request.vv, map(dots_in, ops))
        return ExchangeReply(
            view=view,
            vv=vv,
            state_sum=store.state_sum(),
            ops=ops,
            more=suffix.more if suffix else False,
            behind=behind,
            fingerprints=fingerprints,
            gave_up=heard.given_up,
            disputed=bool(heard.disputed),
            is_serving=self._others.pace.is_serving(),
        )


def _chunks_of(put: Put | None) -> Sequence[Chunk]:
    return () if put is None else put.manifest.chunks or ()
