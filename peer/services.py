"""The services of a running peer, as its HTTP routes and its owner see them."""

from __future__ import annotations

from dataclasses import dataclass

from peer.downloads import Downloads
from peer.exchange import Exchanger
from peer.files import Files
from peer.gossip import Gossip
from peer.listing import Listing
from peer.repair import Repair
from peer.state import PeerState
from peer.upkeep import Upkeep
from peer.uploads import Uploads


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
