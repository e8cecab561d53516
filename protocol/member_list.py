"""What one peer knows of the others: their records, accusations of them, and whether they answer.

Of each it is three maxima, so that the order in which things are heard does not matter:

| of a member       | the greater is                       | says                                          |
| ----------------- | ------------------------------------ | --------------------------------------------- |
| its own record    | that of the higher incarnation       | where it is; only the member itself writes it |
| an accusation     | by incarnation, then by gravity      | void once the record's incarnation is higher  |
| an eviction       | by how often it had joined           | void once it has joined once more             |

and what this peer found out by itself and tells nobody: whether the member has answered at all, and since when not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocol.datagrams import Accusation
from protocol.identity import Eviction, Member, NodeId, Status
from protocol.messages import View

LATENCY_WEIGHT = 0.25
"""Of the newest round trip in the moving average."""

INCARNATION_STEP_MAX = 1 << 20
"""A record that is further ahead of the one known is no record: no peer starts so often while nobody looks, and who
makes up the highest number there is would have the last word for ever."""
INCARNATION_FIRST_MAX = 1 << 40
"""The same for a peer nobody has heard of: it may have had to outrank such records many times."""

MEMBERS_MAX = 4096
"""In a cluster: more are not heard of, whoever makes them up."""

DIGEST_BYTES = 8


@dataclass(slots=True)
class Peer:
    """What is known of another member, and found out."""

    member: Member
    accusation: Accusation | None = None
    is_up: bool = False
    """It has answered, or somebody who knows has said so, since it was last down."""
    is_met: bool = False
    """Its answer was taken note of, since it was last down."""
    status: Status = Status.DOWN
    """What follows from all else."""
    down_since: float | None = None
    """None before anybody has looked."""
    heard_at: float | None = None
    unanswered_since: float | None = None
    """Of the first of our probes that was not answered in time, since it last answered."""
    asked_at: float = -math.inf
    latency_s: float | None = None

    @property
    def standing(self) -> Accusation | None:
        """The accusation, unless the member has refuted it."""
        accusation = self.accusation
        return accusation if accusation and accusation.incarnation >= self.member.incarnation else None

    @property
    def believed(self) -> Status:
        """What follows from the rest."""
        accusation = self.standing
        if not self.is_up or self.is_out:
            return Status.DOWN
        return accusation.status if accusation else Status.ALIVE

    @property
    def is_out(self) -> bool:
        """Whether others hold its share for as long as it does not refute that it is gone."""
        accusation = self.standing
        return accusation is not None and accusation.status is Status.OUT

    def is_unanswered(self, now: float, for_s: float) -> bool:
        """Whether it has not answered us for so long."""
        return self.unanswered_since is not None and now - self.unanswered_since >= for_s

    def outranks(self, heard: Accusation) -> bool:
        """Whether an accusation is not news: refuted, or no graver than the one that stands."""
        if not 0 <= heard.incarnation - self.member.incarnation <= INCARNATION_STEP_MAX:
            return True
        known = self.standing
        return known is not None and _gravity(heard) <= _gravity(known)

    def measure(self, round_trip_s: float) -> None:
        """Take note of how long an answer took."""
        known = self.latency_s
        self.latency_s = round_trip_s if known is None else known + LATENCY_WEIGHT * (round_trip_s - known)


_GRAVITIES = (Status.SUSPECT, Status.DOWN, Status.OUT)


def _gravity(accusation: Accusation) -> tuple[int, int]:
    return accusation.incarnation, _GRAVITIES.index(accusation.status)


class MemberList:
    """The members of a cluster as one of them (`me`) sees them."""

    def __init__(self, me: Member, evictions: Iterable[Eviction] = ()) -> None:
        self.me = me
        self._evicted = dict(evictions)
        """How often those had joined that were removed for good."""
        self.peers: dict[NodeId, Peer] = {}
        """The others."""
        self._up = 0
        self._digest: bytes | None = None

    # --- records ---

    def add(self, member: Member) -> Peer | None:
        """One more, if it was not removed, there is room for it, and its incarnation can be."""
        if member.incarnation > INCARNATION_FIRST_MAX or len(self.peers) + 1 >= MEMBERS_MAX:
            return None
        if self.eviction_of(member) is not None:
            return None
        self._digest = None
        peer = self.peers[member.node_id] = Peer(member)
        return peer

    def replace(self, peer: Peer, member: Member) -> bool:
        """Take a newer record of a member; False when it is none."""
        if not 0 < member.incarnation - peer.member.incarnation <= INCARNATION_STEP_MAX:
            return False
        if self.eviction_of(member) is not None:
            return False
        self._digest = None
        peer.member = member
        return True

    def eviction_of(self, member: Member) -> Eviction | None:
        """What says that a member was removed, if this record of it is from before."""
        joined = self._evicted.get(member.node_id, -1)
        return Eviction(member.node_id, joined) if member.joined <= joined else None

    def evict(self, eviction: Eviction) -> bool:
        """Let an eviction stand; whether it is news. Its member is forgotten, unless it has come back since."""
        if eviction.joined <= self._evicted.get(eviction.node_id, -1):
            return False
        if eviction.node_id not in self._evicted and len(self._evicted) >= MEMBERS_MAX:
            return False
        self._digest = None
        self._evicted[eviction.node_id] = eviction.joined
        peer = self.peers.get(eviction.node_id)
        if peer is not None and peer.member.joined <= eviction.joined:
            self._up -= peer.status is not Status.DOWN
            del self.peers[eviction.node_id]
        return True

    @property
    def evictions(self) -> tuple[Eviction, ...]:
        """Of all members that were ever removed, by node id."""
        return tuple(Eviction(node_id, joined) for node_id, joined in sorted(self._evicted.items()))

    def become(self, me: Member) -> None:
        """A new record of ourselves."""
        self._digest = None
        self.me = me

    def accuse(self, peer: Peer, accusation: Accusation) -> None:
        """Let an accusation stand."""
        self._digest = None
        peer.accusation = accusation
        if accusation.status is not Status.SUSPECT:
            peer.is_up = False

    def judge(self, peer: Peer, now: float) -> bool:
        """Bring the status of a peer in line with what is known; whether it changed."""
        before, peer.status = peer.status, peer.believed
        if before is peer.status:
            return False
        self._digest = None
        if peer.status is Status.DOWN:
            self._up -= 1
            peer.down_since, peer.is_met = now, False
        elif before is Status.DOWN:
            self._up += 1
        return True

    # --- what is believed ---

    @property
    def up(self) -> int:
        """How many peers are not down, this one included."""
        return self._up + 1

    def members(self) -> tuple[Member, ...]:
        """All members with this peer among them, by node id."""
        everyone = {self.me.node_id: self.me} | {node_id: peer.member for node_id, peer in self.peers.items()}
        return tuple(member for _, member in sorted(everyone.items()))

    def placed(self) -> tuple[Member, ...]:
        """Those that files are placed on, by node id: not who is out or leaves, unless nobody else is there."""
        members = self.members()
        staying = [member for member in members if not member.is_draining and not self.is_out(member.node_id)]
        return tuple(staying) or members

    def place_of(self, member: Member) -> str:
        """In one word, whether files are placed on a member: `member`, `draining` or `out`."""
        if self.is_out(member.node_id):
            return "out"
        return "draining" if member.is_draining else "member"

    def is_out(self, node_id: NodeId) -> bool:
        """Whether a peer was down for so long that others hold its share."""
        peer = self.peers.get(node_id)
        return peer is not None and peer.is_out

    def member(self, node_id: NodeId) -> Member | None:
        """The record of a member."""
        if node_id == self.me.node_id:
            return self.me
        peer = self.peers.get(node_id)
        return peer.member if peer else None

    def status(self, node_id: NodeId) -> Status:
        """What is believed of a peer; of a stranger that it is down, of ourselves that we live."""
        if node_id == self.me.node_id:
            return Status.ALIVE
        peer = self.peers.get(node_id)
        return peer.status if peer else Status.DOWN

    def is_not_down(self, node_id: NodeId) -> bool:
        """Whether a peer is not believed to be down."""
        return self.status(node_id) is not Status.DOWN

    def heard_at(self, node_id: NodeId) -> float | None:
        """When a peer last answered a probe of ours."""
        peer = self.peers.get(node_id)
        return peer.heard_at if peer else None

    def down_since(self, node_id: NodeId) -> float | None:
        """Since when a peer has been down; None while it is not, and before anybody has looked."""
        peer = self.peers.get(node_id)
        return peer.down_since if peer and peer.status is Status.DOWN else None

    def answers(self, node_id: NodeId) -> bool:
        """Whether a peer has answered what it was last asked in time."""
        peer = self.peers.get(node_id)
        return peer is not None and peer.heard_at is not None and peer.unanswered_since is None

    def latency_s(self, node_id: NodeId) -> float | None:
        """The moving average of a peer's round trips; None when it never answered."""
        if node_id == self.me.node_id:
            return 0.0
        peer = self.peers.get(node_id)
        return peer.latency_s if peer else None

    def reachable(self) -> list[NodeId]:
        """The other members not believed down, the quickest to answer first."""
        up = [peer for peer in self.peers.values() if peer.status is not Status.DOWN]
        up.sort(key=lambda peer: (peer.latency_s or 0.0, peer.member.node_id))
        return [peer.member.node_id for peer in up]

    # --- what others are told ---

    @property
    def digest(self) -> bytes:
        """Of the records, and of who is down or was not heard of: who has the same one need not be told the list."""
        if self._digest is None:
            total = hashlib.blake2b(digest_size=DIGEST_BYTES)
            for member, status in self._entries():
                told = status.value if status in (Status.DOWN, Status.OUT) else status is not None
                total.update(repr((member, told)).encode())
            total.update(repr(self.evictions).encode())
            self._digest = total.digest()
        return self._digest

    def view(self, known: bytes | None) -> View:
        """The list for one who has a list of this digest: without members when it has the same."""
        if known == self.digest:
            return View(self.digest)
        entries = list(self._entries())
        members, statuses = tuple(member for member, _ in entries), tuple(status for _, status in entries)
        return View(self.digest, members, statuses, self.evictions)

    def _entries(self) -> Iterator[tuple[Member, Status | None]]:
        """All members by id, with what is told of them: nothing of those that have not answered yet."""
        for member in self.members():
            peer = self.peers.get(member.node_id)
            if peer is None:
                yield member, Status.ALIVE
            elif accusation := peer.standing:
                yield member, accusation.status
            else:
                yield member, Status.ALIVE if peer.is_up else None
