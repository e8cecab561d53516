"""Who the others are: members and beliefs about them, who should hold what, and the way to ask them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peer.gossip.client import PeerClient
from peer.gossip.placement import Placement
from peer.pace import RESTS, Pace
from protocol.identity import Member, NodeId, Status
from protocol.member_list import MemberList


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers of one cluster, as one of them (`me`) sees them."""

    me: NodeId
    cluster_id: str
    membership: MemberList
    placement: Placement
    client: PeerClient
    pace: Pace

    def is_down(self, node_id: NodeId) -> bool:
        """Whether a peer is believed to be down; one that is no member is."""
        return self.membership.status(node_id) is Status.DOWN

    async def give_way(self, since: float, node_id: NodeId | None, rests: float = RESTS) -> None:
        """Rest after a piece of work that began then, if this peer, the one that had a part in it or one nearby serves.

        See `Pace.rest`.
        """
        await self.rest(self.pace.now() - since, node_id, rests)

    async def rest(self, worked_s: float, node_id: NodeId | None = None, rests: float = RESTS) -> None:
        """The same after work of so long."""
        await self.pace.rest(worked_s, [*self._on_this_machine(), *filter(None, [node_id])], rests)

    def _on_this_machine(self) -> list[NodeId]:
        """The other members whose address has the same host as ours: they share the machine with this one."""
        host = _host_of(self.membership.me)
        members = self.membership.members()
        return [member.node_id for member in members if member.node_id != self.me and _host_of(member) == host]

    def worth_asking(self, node_ids: Iterable[NodeId]) -> list[NodeId]:
        """Those of these peers that are not this one and not believed to be down, each once."""
        return [node_id for node_id in dict.fromkeys(node_ids) if node_id != self.me and not self.is_down(node_id)]


def _host_of(member: Member) -> str:
    return member.address.rpartition(":")[0]
