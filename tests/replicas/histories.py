"""Random histories of a cluster, as plain lists of steps.

A step that makes no sense where it stands does nothing, so any sublist of a history is a history: it shrinks well, and
a printed one can be pasted into a test. Each history draws which kinds of trouble it has at all; a mix of everything
all the time hides what needs a calm neighbourhood.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from replicas.cluster import NO_LIMIT, START_MS, Cluster, Peer
from replicas.stores import StoreKind

PEERS_MAX = 5
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
        if cluster.exchange(asker, answerer, self.bytes_max, self.cut) is None and asker.incoming is None:
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
class Page(Step):
    ops: int

    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.page(peer, self.ops)


@dataclass(frozen=True)
class FinishTransfer(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.finish_transfer(peer)


@dataclass(frozen=True)
class AbortTransfer(Step):
    def act(self, cluster: Cluster, peer: Peer) -> None:
        cluster.abort_transfer(peer)


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


AT = st.integers(0, PEERS_MAX - 1)
TO = st.integers(0, PEERS_MAX - 2)
NTH = st.integers(0, 5)
KEY = st.sampled_from(KEYS)
SIZES = st.sampled_from((NO_LIMIT, 1, 300))
CUTS = st.none() | st.integers(0, 4)
SKEWS = st.sampled_from((0, 40_000, -40_000, 3_600_000, -3_600_000, 10 * 365 * 86_400_000, -START_MS))

# A history has all of these.
ALWAYS: tuple[st.SearchStrategy[Step], ...] = (
    st.builds(Exchange, AT, TO),
    st.builds(Upload, AT, KEY),
    st.builds(Exchange, AT, TO, SIZES, CUTS, st.booleans()),
    st.builds(Remove, AT, KEY),
    st.builds(Fetch, AT, NTH),
)

# And some of these, each with all its steps.
TROUBLES: dict[str, tuple[st.SearchStrategy[Step], ...]] = {
    "slow messages": (
        st.builds(Send, AT, TO, SIZES),
        st.builds(Deliver, NTH, st.booleans()),
        st.builds(Deliver, NTH),
        st.builds(LoseMessage, NTH),
    ),
    "rumors": (st.builds(Rumor, AT, TO, NTH), st.builds(Rumor, AT, TO, st.just(0))),
    "partitions": (st.builds(Partition, st.integers(0, 2**PEERS_MAX - 1)),),
    "truncated logs": (st.builds(Truncate, AT, st.booleans()), st.builds(TakeOver, AT, TO)),
    "slow whole states": (
        st.builds(BeginTransfer, AT, TO),
        st.builds(Page, AT, st.integers(1, 4)),
        st.builds(Page, AT, st.just(100)),
        st.builds(FinishTransfer, AT),
        st.builds(AbortTransfer, AT),
    ),
    "lost copies": (st.builds(LoseCopy, AT, NTH), st.builds(LoseAllCopies, AT), st.builds(Upload, AT, KEY, st.just(False))),
    "restarts": (st.builds(Restart, AT), st.builds(LeaveEpoch, AT)),
    "backups": (st.builds(TakeImage, AT), st.builds(Restore, AT, NTH)),
    "resumed images": (st.builds(TakeImage, AT), st.builds(Resume, AT, NTH), st.builds(Resume, AT, NTH)),
    "lost disks": (st.builds(LoseDisk, AT),),
    "wrong clocks": (st.builds(SetClock, AT, SKEWS),),
}


@st.composite
def histories(draw: st.DrawFn, steps_max: int = STEPS_MAX) -> History:
    peers = draw(st.integers(2, PEERS_MAX))
    troubles = draw(st.lists(st.sampled_from(sorted(TROUBLES)), max_size=len(TROUBLES), unique=True))
    kinds = [*ALWAYS, *(kind for trouble in troubles for kind in TROUBLES[trouble])]
    length = draw(st.integers(0, steps_max))
    steps = draw(st.lists(st.one_of(kinds), min_size=length, max_size=length))
    return History(peers, tuple(steps))
