"""Who the others are: members and beliefs about them, who should hold what, and the way to ask them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peer.gossip.client import PeerClient
from peer.gossip.placement import Placement
from protocol.identity import NodeId
from protocol.membership import Membership, Status


@dataclass(frozen=True, slots=True)
class Peers:
    """The peers of one cluster, as one of them (`me`) sees them."""

    me: NodeId
    cluster_id: str
    membership: Membership
    placement: Placement
    client: PeerClient

    def is_down(self, node_id: NodeId) -> bool:
        """Whether a peer is believed to be down; one that is no member is."""
        return self.membership.status(node_id) is Status.DOWN

    def worth_asking(self, node_ids: Iterable[NodeId]) -> list[NodeId]:
        """Those of these peers that are not this one and not believed to be down, each once."""
        return [node_id for node_id in dict.fromkeys(node_ids) if node_id != self.me and not self.is_down(node_id)]
