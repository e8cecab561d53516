"""Random histories of a cluster, as plain lists of steps.

A step that makes no sense where it stands does nothing, so any sublist of a history is a history: it shrinks well, and
a printed one can be pasted into a test. Each history draws which kinds of trouble it has at all; a mix of everything
all the time hides what needs a calm neighbourhood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from hypothesis import strategies as st
from replicas.cluster import NO_LIMIT, START_MS, Cluster, Outcome, Peer
from replicas.stores import StoreKind

PEERS_MIN, PEERS_MAX = 2, 5
STEPS_MAX = 70
KEYS = ("a", "b", "c")


@dataclass(frozen=True)
class Step:
    """Something that happens at, or first of all to, one peer."""

    at: int

    def run(self, cluster: Cluster) -> None:
        self.act(cluster, cluster.peers[self.at % len(cluster.peers)])

    def act(self, cluster: Cluster, peer: Peer) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Step2(Step):
    """Something that happens between two peers; `to` counts on from the first."""

    to: int

    def run(self, cluster: Cluster) -> None:
        first = self.at % len(cluster.peers)
        second = (first + 1 + self.to % (len(cluster.peers) - 1)) % len(cluster.peers)
        one, other = cluster.peers[first], cluster.peers[second]
        if cluster.connected(one, other):
            self.between(cluster, one, other)

    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        raise NotImplementedError


# --- writes ---


@dataclass(frozen=True)
class Upload(Step):
    key: str
    hold: bool = True

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.put(peer, self.key, hold=self.hold)


@dataclass(frozen=True)
class Remove(Step):
    key: str

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.delete(peer, self.key)


@dataclass(frozen=True)
class Fetch(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.fetch(peer, self.nth)


@dataclass(frozen=True)
class FetchSeveral(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.fetch_several(peer, self.nth)


@dataclass(frozen=True)
class LoseCopy(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.lose_copy(peer, self.nth)


@dataclass(frozen=True)
class LoseAllCopies(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.lose_all_copies(peer)


# --- log exchanges ---


@dataclass(frozen=True)
class Exchange(Step2):
    bytes_max: int = NO_LIMIT
    cut: int | None = None
    both: bool = True

    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        """The reply in the other direction may be lost."""
        self._one_way(cluster, one, other)
        if self.both:
            self._one_way(cluster, other, one)

    def _one_way(self, cluster: Cluster, asker: Peer, answerer: Peer) -> None:
        outcome = cluster.exchange(asker, answerer, self.bytes_max, self.cut)
        if outcome is Outcome.BEHIND and asker.incoming is None:
            cluster.begin_transfer(asker, answerer)


@dataclass(frozen=True)
class Send(Step2):
    bytes_max: int = NO_LIMIT

    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        cluster.send(one, other, self.bytes_max)


@dataclass(frozen=True)
class Deliver(Step):
    again: bool = False

    def run(self, cluster: Cluster) -> None:
        cluster.deliver(self.at, again=self.again)


@dataclass(frozen=True)
class LoseMessage(Step):
    def run(self, cluster: Cluster) -> None:
        cluster.lose_message(self.at)


@dataclass(frozen=True)
class Rumor(Step2):
    nth: int

    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        cluster.rumor(one, other, self.nth)


class Telling:
    """Steps that write something and tell another peer of it at once, before it hears of what came earlier."""

    @staticmethod
    def upload(at: int, to: int, key: str) -> Step:
        return Told(at, to, Upload(at, key, hold=False))

    @staticmethod
    def remove(at: int, to: int, key: str) -> Step:
        return Told(at, to, Remove(at, key))

    @staticmethod
    def fetch(at: int, to: int, nth: int) -> Step:
        return Told(at, to, Fetch(at, nth))

    @staticmethod
    def lose_copy(at: int, to: int, nth: int) -> Step:
        return Told(at, to, LoseCopy(at, nth))


@dataclass(frozen=True)
class Told(Step2):
    step: Step

    def run(self, cluster: Cluster) -> None:
        self.step.run(cluster)
        super().run(cluster)

    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        cluster.rumor(one, other, 0)


@dataclass(frozen=True)
class Partition(Step):
    """The bits of `at` say which side each peer is on."""

    def run(self, cluster: Cluster) -> None:
        cluster.sides = tuple(bool(self.at >> n & 1) for n in range(len(cluster.peers)))


@dataclass(frozen=True)
class Truncate(Step):
    only_common: bool = False

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.truncate(peer, only_common=self.only_common)


# --- whole states ---


@dataclass(frozen=True)
class TakeOver(Step2):
    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        cluster.take_over(one, other)


@dataclass(frozen=True)
class BeginTransfer(Step2):
    def between(self, cluster: Cluster, one: Peer, other: Peer) -> None:
        cluster.begin_transfer(one, other)


@dataclass(frozen=True)
class TransferStep(Step):
    """Something that happens to one of the whole states under way."""

    def run(self, cluster: Cluster) -> None:
        receivers = [peer for peer in cluster.peers if peer.incoming is not None]
        if receivers:
            self.advance(cluster, receivers[self.at % len(receivers)])

    def advance(self, cluster: Cluster, receiver: Peer) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Page(TransferStep):
    ops: int

    def advance(self, cluster: Cluster, receiver: Peer) -> None:
        cluster.page(receiver, self.ops)


@dataclass(frozen=True)
class FinishTransfer(TransferStep):
    def advance(self, cluster: Cluster, receiver: Peer) -> None:
        cluster.finish_transfer(receiver)


@dataclass(frozen=True)
class AbortTransfer(TransferStep):
    def advance(self, cluster: Cluster, receiver: Peer) -> None:
        cluster.abort_transfer(receiver)


# --- machines ---


@dataclass(frozen=True)
class Restart(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.restart(peer)


@dataclass(frozen=True)
class TakeImage(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.take_image(peer)


@dataclass(frozen=True)
class Restore(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.restore(peer, self.nth)


@dataclass(frozen=True)
class LoseDisk(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.lose_disk(peer)


@dataclass(frozen=True)
class Resume(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.resume(peer, self.nth)


@dataclass(frozen=True)
class Fork(Step):
    nth: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.fork(peer, self.nth)


@dataclass(frozen=True)
class LeaveEpoch(Step):
    """As after a commit that failed nobody knows how."""

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.leave_epoch(peer)


@dataclass(frozen=True)
class SetClock(Step):
    skew_ms: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        peer.skew_ms = self.skew_ms


@dataclass(frozen=True)
class History:
    peers: int
    steps: tuple[Step, ...]

    def run(self, kind: StoreKind) -> Cluster:
        """The cluster as the steps leave it; AssertionError when a promise was broken on the way."""
        cluster = Cluster(kind, self.peers)
        for step in self.steps:
            step.run(cluster)
        return cluster


AT = range(PEERS_MAX)
TO = range(PEERS_MAX - 1)
NTH = range(6)
SIZES = (NO_LIMIT, 1, 300)
CUTS = (None, 0, 1, 2, 3, 4)
YES_OR_NO = (False, True)
SKEWS_MS = (0, 40_000, -40_000, 3_600_000, -3_600_000, 10 * 365 * 86_400_000, -START_MS)


@dataclass(frozen=True)
class Kind:
    """A kind of step, and for each of its arguments what it may be, the simplest first."""

    step: Callable[..., Step]
    choices: tuple[Sequence[object], ...]

    def any(self) -> st.SearchStrategy[Step]:
        return st.builds(self.step, *map(st.sampled_from, self.choices))

    def draw(self, chance: Random) -> Step:
        return self.step(*map(chance.choice, self.choices))


def kind(step: Callable[..., Step], *choices: Sequence[object]) -> Kind:
    return Kind(step, choices)


# A history has all of these.
ALWAYS = (
    kind(Exchange, AT, TO),
    kind(Upload, AT, KEYS),
    kind(Exchange, AT, TO, SIZES, CUTS, YES_OR_NO),
    kind(Remove, AT, KEYS),
    kind(Fetch, AT, NTH),
    kind(FetchSeveral, AT, (0, 1)),
)

# And some of these, each with all its steps.
TROUBLES = {
    "slow messages": (
        kind(Send, AT, TO, SIZES),
        kind(Deliver, NTH, YES_OR_NO),
        kind(Deliver, NTH),
        kind(LoseMessage, NTH),
    ),
    "rumors": (
        kind(Rumor, AT, TO, NTH),
        kind(Telling.upload, AT, TO, KEYS),
        kind(Telling.remove, AT, TO, KEYS),
        kind(Telling.fetch, AT, TO, NTH),
    ),
    "partitions": (kind(Partition, range(1 << PEERS_MAX)),),
    "truncated logs": (kind(Truncate, AT, YES_OR_NO), kind(TakeOver, AT, TO)),
    "slow whole states": (
        kind(BeginTransfer, AT, TO),
        kind(Page, AT, (1, 2, 3, 4)),
        kind(Page, AT, (1, 2, 3, 4)),
        kind(Page, AT, (100,)),
        kind(FinishTransfer, AT),
        kind(FinishTransfer, AT),
        kind(AbortTransfer, AT),
    ),
    "lost copies": (
        kind(LoseCopy, AT, NTH),
        kind(Telling.lose_copy, AT, TO, NTH),
        kind(LoseAllCopies, AT),
        kind(Upload, AT, KEYS, (False,)),
    ),
    "restarts": (kind(Restart, AT), kind(LeaveEpoch, AT)),
    "backups": (kind(TakeImage, AT), kind(Restore, AT, NTH)),
    "resumed images": (kind(TakeImage, AT), kind(Resume, AT, NTH), kind(Resume, AT, NTH)),
    "forked logs": (kind(TakeImage, AT), kind(Fork, AT, NTH), kind(Fork, AT, NTH)),
    "lost disks": (kind(LoseDisk, AT),),
    "wrong clocks": (kind(SetClock, AT, SKEWS_MS),),
}


@st.composite
def histories(draw: st.DrawFn, steps_max: int = STEPS_MAX) -> History:
    """A history that shrinks to the steps that matter."""
    peers = draw(st.integers(PEERS_MIN, PEERS_MAX))
    troubles = draw(st.lists(st.sampled_from(sorted(TROUBLES)), max_size=len(TROUBLES), unique=True))
    kinds = [*ALWAYS, *(kind for trouble in troubles for kind in TROUBLES[trouble])]
    length = draw(st.integers(0, steps_max))
    steps = draw(st.lists(st.one_of([kind.any() for kind in kinds]), min_size=length, max_size=length))
    return History(peers, tuple(steps))


def history_of(seed: int) -> History:
    """The history of this seed: the same mix as `histories`, ten times as many of them in the same time."""
    chance = Random(seed)
    troubles = [trouble for trouble in sorted(TROUBLES) if chance.random() < 0.4]
    kinds = [*ALWAYS, *(kind for trouble in troubles for kind in TROUBLES[trouble])]
    steps = [chance.choice(kinds).draw(chance) for _ in range(chance.randint(10, STEPS_MAX))]
    return History(chance.randint(PEERS_MIN, PEERS_MAX), tuple(steps))


def shortest(history: History, fails: Callable[[History], bool]) -> History:
    """This failing history without the steps it also fails without."""
    size = len(history.steps)
    while size := size // 2:
        start = 0
        while start < len(history.steps):
            shorter = replace(history, steps=history.steps[:start] + history.steps[start + size :])
            if fails(shorter):
                history = shorter
            else:
                start += size
    return history
