"""What happens to the membership of a peer, and what follows from it for others to carry out."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.datagrams import Datagram
from protocol.identity import Eviction, Member, NodeId, Status
from protocol.messages import View


@dataclass(frozen=True, slots=True)
class Tick:
    """The timer fired; it is also the first event."""


@dataclass(frozen=True, slots=True)
class Received:
    """A datagram came."""

    message: Datagram


@dataclass(frozen=True, slots=True)
class Learned:
    """Another peer told us of members, over HTTP; `said_by` is who believes what the view says of them."""

    view: View
    said_by: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Doubted:
    """A request of ours takes longer than it should: find out now whether the peer is there at all."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Evict:
    """An operator removes a member for good."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Rejoin:
    """This peer was removed for good, and joins again."""


@dataclass(frozen=True, slots=True)
class Drain:
    """This peer is to leave, when others have what it holds; or it stays after all."""

    leaves: bool


Event = Tick | Received | Learned | Doubted | Evict | Rejoin | Drain


@dataclass(frozen=True, slots=True)
class Send:
    """Send this datagram to an address."""

    to: str
    message: Datagram


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Tick after so many seconds, instead of when it was last asked for."""

    after_s: float


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Keep this on disk: a member is new, elsewhere, on its way out or back, or it is we."""

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


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A member was removed for good; keep that on disk."""

    eviction: Eviction


@dataclass(frozen=True, slots=True)
class Evicted:
    """We were removed for good: others hear nothing of what we say, unless we join again."""


Effect = Send | SetTimer | MemberChanged | MemberLeft | StatusChanged | Met | Doubled | Evicted
