"""The services of a running peer, as its HTTP routes and its owner see them."""

from __future__ import annotations

from dataclasses import dataclass

from peer.files.downloads import Downloads
from peer.files.keys import Files
from peer.files.listing import Listing
from peer.files.uploads import Uploads
from peer.gossip.exchange import Exchanger
from peer.gossip.membership import Gossip
from peer.gossip.peers import PeerState
from peer.upkeep.anti_entropy import Upkeep
from peer.upkeep.repair import Repair


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    state: PeerState
    gossip: Gossip
    exchanger: Exchanger
    uploads: Uploads
    downloads: Downloads
    files: Files
    listing: Listing
    repair: Repair
    upkeep: Upkeep
