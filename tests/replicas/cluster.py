"""Two to five replicas without any I/O, driven as a peer would drive them, and watched after every step.

What is watched: a peer's live state is what the oracle derives from its version vector; the vector has no gap and
never falls; log, floors and sums belong together; no dot has two meanings; no hold is declared that the disk does not
back. After `heal` all peers are equal, and whatever a peer heard and did not lose with its disk is part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import islice
from random import Random

from replicas.oracle import Oracle, content_of, dots_of, element_of, live_under, versions_under
from replicas.stores import StoreKind

from protocol.catalog import sum_of_rows
from protocol.codec import decode_op, dots_in, encode_op
from protocol.forks import Fingerprints, find_fork, fingerprints_for, fingerprints_of_all
from protocol.identity import Dot, NodeId, Origin, VersionVector, covers_all
from protocol.ops import LiveOp, Manifest, Op, Put
from protocol.replica import Heard, Replica
from protocol.store import Store

NO_LIMIT = 1 << 30
ROUNDS_MAX = 12
START_MS = 1_700_000_000_000


class Outcome(Enum):
    """Of an exchange, for the one who asked."""

    DONE = auto()
    MORE = auto()
    BEHIND = auto()
    """Only the whole state can help."""
    DISPUTED = auto()
    """The two do not agree about a log; if one of them owns it, that was seen to."""


class Entropy(Random):
    """Chance that comes from outside of every process, so that an image of one does not hold what it will draw."""

    def __deepcopy__(self, memo: object) -> Entropy:
        return self


@dataclass(frozen=True)
class Image:
    """What a copy of a whole machine has: its store, its chunks, and its process."""

    replica: Replica
    disk: frozenset[bytes]
    known: dict[Dot, Op]
    heard: dict[Op, None]


@dataclass(frozen=True)
class Snapshot:
    """The live state of a peer, exactly the version vector it belongs to, and what that peer says of its logs."""

    version_vector: VersionVector
    fingerprints: Fingerprints
    ops: tuple[LiveOp, ...]


def snapshot_of(replica: Replica, compared: VersionVector | None = None) -> Snapshot:
    """The whole live state with its version vector, taken at one moment, for a peer that stands at `compared`."""
    store = replica.store
    vv = store.version_vector()
    return Snapshot(vv, fingerprints_of_all(store.log_hash, vv, compared or {}), tuple(store.live()))


def served_hashes(store: Store, origin: Origin) -> tuple[int, list[bytes]]:
    """The known running hashes of an origin's log, from the seq of the first one to the end."""
    found: list[bytes] = []
    last = store.seen(origin)
    while (log_hash := store.log_hash(Dot(origin, last - len(found)))) is not None and len(found) < last:
        found.insert(0, log_hash)
    return last - len(found) + 1, found


@dataclass
class Transfer:
    """A whole state on its way, a page at a time."""

    source: Peer
    life: int
    snapshot: Snapshot
    pages: Iterator[LiveOp]
    compared: VersionVector
    known: dict[Dot, Op]
    heard: dict[Op, None]
    complete: bool = False


@dataclass
class Peer:
    """A replica, the contents its disk really has, and what the test knows of it."""

    replica: Replica
    disk: set[bytes] = field(default_factory=set)
    skew_ms: int = 0
    life: int = 0
    """Grows whenever what the process had in memory is gone."""
    images: list[Image] = field(default_factory=list)
    incoming: Transfer | None = None
    witnessed: VersionVector = field(default_factory=dict)
    """All it has heard and not lost since with its disk."""
    known: dict[Dot, Op] = field(default_factory=dict)
    """The ops it knows now, those too that its log no longer has."""
    heard: dict[Op, None] = field(default_factory=dict)
    """The ops it has ever known and not lost with its disk, those too that it took back at a fork."""
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        self.origin = self.replica.origin

    @property
    def me(self) -> NodeId:
        return self.replica.me

    @property
    def store(self) -> Store:
        return self.replica.store

    @property
    def vv(self) -> VersionVector:
        return self.store.version_vector()

    def puts(self) -> list[Put]:
        return [op for op in self.store.live() if isinstance(op, Put)]

    def backs(self, put: Dot) -> bool:
        found = self.store.put_at(put)
        return found is not None and found.manifest.sha256 in self.disk


@dataclass(frozen=True)
class Request:
    """`asker` wants what it lacks."""

    asker: Peer
    answerer: Peer
    vv: VersionVector
    fingerprints: Fingerprints
    bytes_max: int


@dataclass(frozen=True)
class Answer:
    """What `answerer` found that `asker` lacked, when the request came."""

    asker: Peer
    answerer: Peer
    vv: VersionVector
    fingerprints: Fingerprints
    ops: tuple[bytes, ...] | None
    """None when part of that is no longer in its log."""


class Cluster:
    """The peers, what is under way between them, and the oracle."""

    def __init__(self, kind: StoreKind, peers: int) -> None:
        self.kind = kind
        self.oracle = Oracle()
        self.now_ms = START_MS
        self.entropy = Entropy(1)
        self.peers = [Peer(self._replica(NodeId(f"node-{n}"), kind.new())) for n in range(1, peers + 1)]
        self.sides: tuple[bool, ...] = (False,) * peers
        self.in_flight: list[Request | Answer] = []
        self._contents = 0
        self.truncated = False
        """Some log is gone somewhere, so that it may not be known what was removed before a fork."""
        self.resumed = False
        """An image of some process went on."""
        self.unclear = False
        """And two branches of a log became parts of states that way, about which peers cannot become alike any more."""

    def close(self) -> None:
        for peer in self.peers:
            self.kind.close(peer.store)
            for image in peer.images:
                self.kind.close(image.replica.store)

    def _replica(self, me: NodeId, store: Store) -> Replica:
        return Replica(me, store, self.entropy)

    def wall_ms(self, peer: Peer) -> int:
        self.now_ms += 7
        return max(0, self.now_ms + peer.skew_ms)

    def connected(self, one: Peer, other: Peer) -> bool:
        return self.sides[self.peers.index(one)] == self.sides[self.peers.index(other)]

    # --- what a peer does by itself ---

    def put(self, peer: Peer, file_key: str, *, hold: bool = True) -> Put:
        """Take an upload: bytes and a put that says it is held, in one step."""
        self._contents += 1
        content = self._contents.to_bytes(32, "big")
        manifest = Manifest(
            file_key=file_key,
            filename=f"{file_key}.txt",
            size_bytes=0,
            sha256=content,
            content_type="text/plain",
            uploaded_at_ms=self.now_ms,
            copies=3,
            chunks=(),
        )
        seen = versions_under(peer.known.values(), file_key)
        wall_ms = self.wall_ms(peer)
        put = peer.replica.put(manifest, wall_ms, is_held=hold)
        assert set(put.supersedes) == seen or self.unclear, (
            f"{peer.me} put {file_key} over {seen} and superseded {put.supersedes}"
        )
        peer.disk.add(content)
        assert bool(peer.replica.my_holds_of(put.dot)) is hold
        self.watch(peer)
        return put

    def delete(self, peer: Peer, file_key: str) -> None:
        seen = versions_under(peer.known.values(), file_key)
        delete = peer.replica.delete(file_key, self.wall_ms(peer))
        assert (set(delete.supersedes) if delete else set()) == seen or self.unclear
        assert not peer.store.puts_of(file_key)
        self.watch(peer)

    def fetch(self, peer: Peer, nth: int) -> None:
        """Get a copy of a live file, the `nth` of those it does not hold."""
        lacking = [put for put in peer.puts() if not peer.replica.my_holds_of(put.dot)]
        if lacking:
            put = lacking[nth % len(lacking)]
            peer.disk.add(put.manifest.sha256)
            assert peer.replica.hold(put.dot, self.wall_ms(peer), recovered=True) is not None
            self.watch(peer)

    def fetch_several(self, peer: Peer, nth: int) -> None:
        """Get copies of all live files it does not hold but `nth` of them, and say so in one op."""
        lacking = [put for put in peer.puts() if not peer.replica.my_holds_of(put.dot)][nth:]
        peer.disk.update(put.manifest.sha256 for put in lacking)
        held = peer.replica.hold_all([put.dot for put in lacking], self.wall_ms(peer))
        assert [hold.put for hold in held] == [put.dot for put in lacking]
        self.watch(peer)

    def lose_copy(self, peer: Peer, nth: int) -> None:
        """Free, or find rotten, the content of one held file."""
        held = peer.store.holds_by(peer.me)
        if held:
            put = peer.store.put_at(held[nth % len(held)].put)
            assert put is not None, f"{peer.me} lists a hold of a put that is not live"
            peer.disk.discard(put.manifest.sha256)
            peer.replica.drop_unbacked(peer.backs, self.wall_ms(peer))
            self.watch(peer)

    def lose_all_copies(self, peer: Peer) -> None:
        """The disk with the chunks is lost, the database is not."""
        peer.disk.clear()
        drop = peer.replica.drop_all(self.wall_ms(peer))
        assert not peer.store.holds_by(peer.me), f"{peer.me} dropped all with {drop}, and some are left"
        self.watch(peer)

    def settle(self, peer: Peer) -> None:
        """Bring what is declared in line with what the disk has (rule 4)."""
        peer.replica.drop_unbacked(peer.backs, self.wall_ms(peer))
        self._declare_again(peer)

    def _declare_again(self, peer: Peer) -> None:
        here = [put.dot for put in peer.puts() if put.manifest.sha256 in peer.disk]
        peer.replica.hold_all(here, self.wall_ms(peer))

    def truncate(self, peer: Peer, *, only_common: bool) -> None:
        """Forget the log, up to what all have, or all of it."""
        cut = peer.vv
        if only_common:
            for other in self.peers:
                theirs = other.vv
                cut = {origin: min(seq, theirs.get(origin, 0)) for origin, seq in cut.items()}
        peer.replica.truncate(cut)
        self.truncated = True
        self.watch(peer)

    # --- what happens to a peer ---

    def restart(self, peer: Peer) -> None:
        self._start(peer, peer.store, peer.disk)

    def take_image(self, peer: Peer) -> None:
        peer.images.append(self._copied(Image(peer.replica, frozenset(peer.disk), peer.known, peer.heard)))

    def _copied(self, image: Image) -> Image:
        store = self.kind.copy(image.replica.store)
        # Only the store is the kind's to copy; the rest of the process is plain values.
        replica = deepcopy(image.replica, {id(image.replica.store): store})
        return Image(replica, image.disk, dict(image.known), dict(image.heard))

    def restore(self, peer: Peer, nth: int) -> None:
        """The machine is set up again from a backup; the process starts anew."""
        if peer.images:
            image = self._copied(peer.images[nth % len(peer.images)])
            self._forget(peer, image)
            self._start(peer, image.replica.store, set(image.disk))

    def lose_disk(self, peer: Peer) -> None:
        store = self.kind.new()
        self._forget(peer)
        self._start(peer, store, set())

    def set_catalog_aside(self, peer: Peer) -> None:
        """The rows do not give the stored sum: start from nothing, but for the bytes (rule 6)."""
        store = self.kind.new()
        self._forget(peer)
        self._start(peer, store, peer.disk)

    def resume(self, peer: Peer, nth: int) -> None:
        """An image of the running machine goes on where it was, and first of all meets a peer that knows better."""
        told = [
            (image, other)
            for image in peer.images
            for other in self.peers
            if other is not peer
            and other.store.seen(image.replica.origin) > image.replica.store.seen(image.replica.origin)
        ]
        if not told:
            return
        image, other = told[nth % len(told)]
        image = self._copied(image)
        disputed = image.replica.origin
        self._go_on(peer, image)
        forgotten = [op for op in other.store.log_after(peer.vv) if op.dot.origin == disputed]
        if nth % 3 == 0:
            self.exchange(other, peer)
        elif nth % 3 == 1 and forgotten:
            self._tell(other, peer, forgotten[0])
        else:
            self.exchange(peer, other)
        assert peer.replica.origin != disputed, f"{peer.me} goes on to write under {disputed}, which has dots it forgot"

    def fork(self, peer: Peer, nth: int) -> None:
        """An image of the running machine goes on where it was, and nobody tells it what it forgot."""
        if peer.images:
            image = self._copied(peer.images[nth % len(peer.images)])
            self.oracle.forked.add(image.replica.origin)
            self._go_on(peer, image)

    def _go_on(self, peer: Peer, image: Image) -> None:
        self._forget(peer, image)
        peer.replica, peer.disk, peer.incoming = image.replica, set(image.disk), None
        peer.origin = image.replica.origin
        peer.life += 1
        self.resumed = True

    def leave_epoch(self, peer: Peer) -> None:
        peer.replica.leave_epoch()
        self.watch(peer)

    def _forget(self, peer: Peer, image: Image | None = None) -> None:
        peer.witnessed = image.replica.store.version_vector() if image else {}
        peer.known, peer.heard = (image.known, image.heard) if image else ({}, {})

    def _start(self, peer: Peer, store: Store, disk: set[bytes]) -> None:
        peer.replica, peer.disk, peer.incoming = self._replica(peer.me, store), disk, None
        peer.origin = peer.replica.origin
        peer.life += 1
        self.settle(peer)
        self.watch(peer)

    # --- exchanging logs ---

    def exchange(self, asker: Peer, answerer: Peer, bytes_max: int = NO_LIMIT, cut: int | None = None) -> Outcome:
        """`asker` gets what it lacks, or the first `cut` ops of it."""
        origins = asker.replica.origin, answerer.replica.origin
        answer = self._answer(self._request(asker, answerer, bytes_max))
        if answer is None:
            return Outcome.DISPUTED
        ops = [decode_op(raw) for raw in (answer.ops or ())[:cut]]
        heard = self._hear_from(asker, answerer, answer.vv, answer.fingerprints, ops)
        if heard.disputed:
            return Outcome.DISPUTED
        if answer.ops is None:
            return Outcome.BEHIND
        if origins == (asker.replica.origin, answerer.replica.origin):
            assert not heard.too_early, (
                f"{answerer.me} sent {asker.me} what it lacks in an order that cannot be applied"
            )
            assert heard.applied == len(ops), f"{answerer.me} sent {asker.me} what it has"
        return Outcome.DONE if covers_all(asker.vv, answerer.vv) else Outcome.MORE

    def _request(self, asker: Peer, answerer: Peer, bytes_max: int) -> Request:
        """Who asks need not know where the other stands."""
        fingerprints = fingerprints_for(asker.store.log_hash, answerer.me, asker.vv, asker.vv, ())
        return Request(asker, answerer, asker.vv, fingerprints, bytes_max)

    def _answer(self, request: Request) -> Answer | None:
        """None when the two do not agree about a log."""
        answerer, asker = request.answerer, request.asker
        heard = self._hear_from(answerer, asker, request.vv, request.fingerprints, ())
        if heard.disputed:
            return None
        suffix = answerer.replica.suffix(request.vv, request.bytes_max)
        hash_at, vv = answerer.store.log_hash, answerer.vv
        if suffix is None:
            return Answer(asker, answerer, vv, fingerprints_of_all(hash_at, vv, request.vv), None)
        sizes = [len(raw) for raw in suffix.ops]
        assert len(sizes) <= 1 or sum(sizes) <= request.bytes_max
        assert sizes or not suffix.more, "nothing was sent and there is more: that never ends"
        fingerprints = fingerprints_for(hash_at, asker.me, vv, request.vv, map(dots_in, suffix.ops))
        return Answer(asker, answerer, vv, fingerprints, suffix.ops)

    def _hear_from(
        self, peer: Peer, other: Peer, vv: VersionVector, fingerprints: Fingerprints, ops: Iterable[Op]
    ) -> Heard:
        heard = self.hear(peer, vv, fingerprints, ops)
        self._end_forks(peer, other, heard)
        return heard

    def _end_forks(self, peer: Peer, other: Peer, heard: Heard) -> None:
        """The owner of a log goes back to where it is like the other's; if that is one it gave up, the other does."""
        for origin in heard.disputed if self.connected(peer, other) else ():
            if origin in heard.given_up:
                self.end_fork(other, peer, origin)
            elif origin.node_id == peer.me:
                self.end_fork(peer, other, origin)

    def end_fork(self, peer: Peer, other: Peer, origin: Origin) -> None:
        """Go back to where the other's log of an origin is one's own, and write again what is one's own."""
        fork = find_fork(peer.store, origin, *served_hashes(other.store, origin))
        before = peer.store.version_vector()
        if not fork.is_certain:
            assert self.truncated
            self.unclear = self.unclear or fork.agreed > 0
        peer.replica.end_forks({origin: fork})
        vv = peer.vv
        fallen = [origin for origin, seq in before.items() if seq > vv.get(origin, 0)]
        peer.known = {dot: op for dot, op in peer.known.items() if dot.seq <= vv.get(dot.origin, 0)}
        peer.witnessed = {origin: seq for origin, seq in peer.witnessed.items() if origin not in fallen}
        self.settle(peer)
        self.watch(peer)

    def hear(self, peer: Peer, vv: VersionVector, fingerprints: Fingerprints, ops: Iterable[Op]) -> Heard:
        heard = peer.replica.hear(vv, fingerprints, ops, self.wall_ms(peer))
        if heard.my_holds:
            peer.replica.drop_unbacked(peer.backs, self.wall_ms(peer), [hold.put for hold in heard.my_holds])
        if heard.my_drops:
            self._declare_again(peer)
        self.watch(peer)
        return heard

    def rumor(self, teller: Peer, hearer: Peer, nth: int) -> None:
        """Tell one op out of turn, with nothing said about what came before it."""
        log = list(teller.store.log_after({}))
        if log:
            self._tell(teller, hearer, log[-1 - nth % len(log)])

    def _tell(self, teller: Peer, hearer: Peer, op: Op) -> None:
        fingerprints = fingerprints_for(teller.store.log_hash, hearer.me, {}, {}, [dots_in(encode_op(op))])
        self._hear_from(hearer, teller, {}, fingerprints, [op])

    def send(self, asker: Peer, answerer: Peer, bytes_max: int) -> None:
        self.in_flight.append(self._request(asker, answerer, bytes_max))

    def deliver(self, nth: int, *, again: bool) -> None:
        """A message arrives, however old, in whatever order; `again` leaves a duplicate of it under way."""
        if not self.in_flight:
            return
        at = nth % len(self.in_flight)
        message = self.in_flight[at]
        if not self.connected(message.asker, message.answerer):
            return
        if not again:
            del self.in_flight[at]
        if isinstance(message, Request):
            answer = self._answer(message)
            if answer is not None:
                self.in_flight.append(answer)
            return
        ops = [decode_op(raw) for raw in message.ops or ()]
        heard = self._hear_from(message.asker, message.answerer, message.vv, message.fingerprints, ops)
        if message.ops is None and not heard.disputed and message.asker.incoming is None:
            self.begin_transfer(message.asker, message.answerer)

    def lose_message(self, nth: int) -> None:
        if self.in_flight:
            del self.in_flight[nth % len(self.in_flight)]

    # --- exchanging whole states ---

    def begin_transfer(self, receiver: Peer, source: Peer) -> None:
        """Also starts one afresh that is under way."""
        receiver.store.clear_incoming()
        snapshot = snapshot_of(source.replica, receiver.vv)
        receiver.incoming = Transfer(
            source, source.life, snapshot, iter(snapshot.ops), receiver.vv, dict(source.known), dict(source.heard)
        )

    def page(self, receiver: Peer, ops: int) -> None:
        transfer = receiver.incoming
        if transfer is None or transfer.complete or not self.connected(receiver, transfer.source):
            return
        if transfer.life != transfer.source.life:
            self.abort_transfer(receiver)
            return
        page = list(islice(transfer.pages, ops))
        receiver.store.add_incoming(page)
        transfer.complete = len(page) < ops
        if transfer.complete:
            # It travels with the last page.
            receiver.incoming = replace(transfer, snapshot=replace(transfer.snapshot, ops=()), complete=True)

    def finish_transfer(self, receiver: Peer) -> None:
        transfer = receiver.incoming
        if transfer is not None and transfer.complete:
            receiver.incoming = None
            vv, fingerprints = transfer.snapshot.version_vector, transfer.snapshot.fingerprints
            heard = receiver.replica.merge_incoming(vv, fingerprints, transfer.compared, self.wall_ms(receiver))
            assert not list(receiver.store.incoming())
            if not heard.disputed and covers_all(receiver.vv, vv):
                self._learn_all(receiver, transfer)
            self.settle(receiver)
            self.watch(receiver)
            self._end_forks(receiver, transfer.source, heard)

    def _learn_all(self, receiver: Peer, transfer: Transfer) -> None:
        truncated, self.truncated = self.truncated, True
        for dot, op in transfer.known.items():
            if receiver.known.setdefault(dot, op) != op:
                assert truncated, f"{receiver.me} took over another meaning of {dot}"
                self.unclear = True
        receiver.heard |= transfer.heard

    def abort_transfer(self, receiver: Peer) -> None:
        receiver.incoming = None
        receiver.store.clear_incoming()

    def take_over(self, receiver: Peer, source: Peer) -> None:
        """A whole-state merge without a pause."""
        self._stage_all(receiver, source)
        self.finish_transfer(receiver)

    def _stage_all(self, receiver: Peer, source: Peer) -> None:
        self.begin_transfer(receiver, source)
        self.page(receiver, NO_LIMIT)

    # --- bit rot ---

    def alter(self, peer: Peer, nth: int) -> bool:
        """A row of a put changes behind the rules' back, and with it whatever it said."""
        puts = peer.puts()
        if not puts:
            return False
        put = puts[nth % len(puts)]
        holds = peer.store.holds_of(put.dot)
        for hold in holds:
            peer.store.remove(hold)
        peer.store.remove(put)
        peer.store.add(replace(put, manifest=replace(put.manifest, sha256=bytes(32), size_bytes=7)))
        for hold in holds:
            peer.store.add(hold)
        return True

    def adopt(self, peer: Peer, source: Peer) -> bool:
        """A peer whose rows are damaged takes over another one's state in place of its own, if it reaches that one."""
        if not self.connected(peer, source):
            return False
        self._stage_all(peer, source)
        assert peer.incoming is not None
        assert peer.incoming.complete
        transfer, peer.incoming = peer.incoming, None
        adopted = peer.replica.adopt_incoming(transfer.snapshot.version_vector, transfer.snapshot.fingerprints)
        assert not list(peer.store.incoming())
        if adopted:
            self._learn_all(peer, transfer)
            self.settle(peer)
            self.watch(peer)
        return adopted

    def rot(self, peer: Peer, nth: int, *, sum_follows: bool) -> bool:
        """Rows vanish behind the rules' back: a live put with its holds, or a hold alone."""
        live = list(peer.store.live())
        if not live:
            return False
        op = live[nth % len(live)]
        for hold in peer.store.holds_of(op.dot) if isinstance(op, Put) else ():
            peer.store.remove(hold)
        peer.store.remove(op)
        if sum_follows:
            peer.store.set_state_sum(sum_of_rows(peer.store))
        return True

    def scrub(self) -> None:
        for peer in self.peers:
            if sum_of_rows(peer.store) != peer.store.state_sum():
                self.set_catalog_aside(peer)

    def unite(self, one: Peer, other: Peer) -> None:
        """Equal version vectors, unequal sums: each takes what only the other has (rule 6)."""
        for receiver, source in ((one, other), (other, one)):
            self.begin_transfer(receiver, source)
            assert receiver.incoming is not None
            heard = receiver.replica.hear(
                source.vv, receiver.incoming.snapshot.fingerprints, (), self.wall_ms(receiver)
            )
            if heard.disputed:
                self.abort_transfer(one)
                self.abort_transfer(other)
                self._end_forks(receiver, source, heard)
                return
        for peer in (one, other):
            self.page(peer, NO_LIMIT)
        for peer in (one, other):
            before = {element_of(op) for op in peer.store.live()}
            revived = peer.replica.repair_from_incoming()
            peer.incoming = None
            after = {element_of(op) for op in peer.store.live()}
            assert before <= after, f"{peer.me} removed what {one.me} and {other.me} disagree about"
            assert len(after - before) == revived
        for peer in (one, other):
            self.settle(peer)
            self.watch(peer)

    # --- what must hold ---

    def watch(self, peer: Peer) -> None:
        """All that must be true of one peer after every step."""
        store, vv = peer.store, peer.vv
        log = list(store.log_after({}))
        self.oracle.record(peer.me, log, peer.known, peer.heard)
        self._watch_growth(peer, vv)
        self._watch_log(peer, vv, log)
        if not self.unclear:
            self._watch_state(peer)
        assert sum_of_rows(store) == store.state_sum(), f"{peer.me} has rows that do not give its sum"
        self.kind.check(store)

    def _watch_state(self, peer: Peer) -> None:
        live = list(peer.store.live())
        expected = live_under(peer.known.values())
        wrong = [op for op in live if element_of(op) not in expected], expected.keys() - set(map(element_of, live))
        assert {content_of(op) for op in live} == {content_of(op) for op in expected.values()}, (
            f"{peer.me} is not what its version vector says: it has {wrong[0]} too much and lacks {wrong[1]}"
        )
        assert len(live) == len(expected)
        assert len(peer.known) == sum(peer.vv.values()), f"{peer.me} does not know what its version vector says"
        assert all(peer.vv.get(dot.origin, 0) >= dot.seq for dot in peer.known)

    def _watch_growth(self, peer: Peer, vv: VersionVector) -> None:
        for origin, seq in peer.witnessed.items():
            assert vv.get(origin, 0) >= seq, f"{peer.me} knew {origin} up to {seq}, now {vv.get(origin, 0)}"
        peer.origin, peer.witnessed = peer.replica.origin, vv

    def _watch_log(self, peer: Peer, vv: VersionVector, log: list[Op]) -> None:
        floors = peer.store.floors()
        assert covers_all(vv, floors), f"{peer.me} has a floor above its version vector"
        seqs: dict[Origin, list[int]] = {origin: [] for origin in vv}
        for op in log:
            seqs.setdefault(op.dot.origin, []).extend(dot.seq for dot in dots_of(op))
        for origin, logged in seqs.items():
            kept = list(range(floors.get(origin, 0) + 1, vv.get(origin, 0) + 1))
            assert logged == kept, f"{peer.me} logged {logged} of {origin}, and its floor and vector say {kept}"

    # --- healing ---

    def heal(self) -> None:
        """Everyone meets everyone until nothing changes; then all must be equal, and right."""
        self.sides = (False,) * len(self.peers)
        self.in_flight.clear()
        for peer in self.peers:
            self.abort_transfer(peer)
        self._meet_until_quiet()
        for peer in self.peers:
            unbacked = [hold for hold in peer.store.holds_by(peer.me) if not peer.backs(hold.put)]
            assert not unbacked, f"{peer.me} still says it holds {unbacked}"
            self.settle(peer)
            self.watch(peer)
        self._meet_until_quiet()
        self._check_healed()

    def _meet_until_quiet(self) -> None:
        for _ in range(ROUNDS_MAX):
            before = [peer.replica.root() for peer in self.peers]
            for asker in self.peers:
                for answerer in self.peers:
                    if asker is not answerer:
                        self._catch_up(asker, answerer)
            if before == [peer.replica.root() for peer in self.peers]:
                return
        raise AssertionError(f"peers still have news for each other after {ROUNDS_MAX} rounds")

    def _catch_up(self, asker: Peer, answerer: Peer) -> None:
        if asker.replica.root() == answerer.replica.root():
            return
        if asker.replica.disagrees(answerer.vv, answerer.store.state_sum()):
            self.unite(asker, answerer)
            return
        for _ in range(ROUNDS_MAX):
            match self.exchange(asker, answerer):
                case Outcome.DISPUTED:
                    return
                case Outcome.BEHIND:
                    self.take_over(asker, answerer)
                case Outcome.DONE:
                    return
        raise AssertionError(f"{asker.me} cannot catch up with {answerer.me}")

    def _check_healed(self) -> None:
        for peer in self.peers:
            assert peer.replica.root() == self.peers[0].replica.root() or self.unclear
            assert peer.store.state_sum() == sum_of_rows(peer.store)
            for put in peer.puts():
                held = len(peer.replica.my_holds_of(put.dot))
                assert held == (put.manifest.sha256 in peer.disk), (
                    f"{peer.me} holds {put.dot} {held} times, its disk does not agree"
                )
        if not self.unclear:
            self._check_nothing_is_missing()

    def _check_nothing_is_missing(self) -> None:
        known: dict[Dot, Op] = {}
        for peer in self.peers:
            known |= peer.known
        expected = {content_of(op) for op in live_under(known.values()).values()}
        for peer in self.peers:
            # Of a fork that made no difference there may still be two branches.
            assert peer.known.keys() == known.keys(), f"{peer.me} has not heard everything"
            assert {content_of(op) for op in peer.store.live()} == expected
        self._check_contents(known.values())

    def _check_contents(self, known: Iterable[Op]) -> None:
        """What any peer has known and not lost with its disk is there, or removed, whatever it is called by now."""
        left, removed = self.oracle.contents(op for peer in self.peers for op in peer.heard)
        live = {op.manifest.sha256 for op in live_under(list(known)).values() if isinstance(op, Put)}
        assert left <= live, f"lost: {left - live}"
        if not (self.truncated and self.resumed):
            assert not live & removed, f"came back: {live & removed}"
