"""The services of a running peer, as its HTTP routes and its owner see them."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from peer.config import Config
from peer.events import Events
from peer.files.downloads import Downloads
from peer.files.keys import Keys
from peer.files.listing import Listing
from peer.files.small_reads import SmallReads
from peer.files.uploads import Uploads
from peer.gossip.answer import Answering
from peer.gossip.exchange import Exchanger
from peer.gossip.fetching import Fetching
from peer.gossip.forks import Forks
from peer.gossip.membership import Gossip
from peer.gossip.peers import Peers
from peer.gossip.whole_state import WholeStates
from peer.store.holding import Holding
from peer.tasks import Keeper
from peer.upkeep.anti_entropy import AntiEntropy
from peer.upkeep.inventory import Inventory
from peer.upkeep.lag import LoopLag
from peer.upkeep.leaving import Leaving
from peer.upkeep.queue import Queue
from peer.upkeep.repair import Repair
from peer.upkeep.verification import Verification
from peer.worker import Worker
from peer.world.env import Env
from protocol.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Services:
    """One of each."""

    env: Env
    config: Config
    here: Holding
    others: Peers
    sessions: Sessions
    events: Events
    gossip: Gossip
    exchanger: Exchanger
    answering: Answering
    whole_states: WholeStates
    forks: Forks
    fetching: Fetching
    uploads: Uploads
    downloads: Downloads
    small_reads: SmallReads
    keys: Keys
    listing: Listing
    repair: Repair
    queue: Queue
    anti_entropy: AntiEntropy
    verification: Verification
    inventory: Inventory
    leaving: Leaving
    loop_lag: LoopLag
    keeper: Keeper
    workers: tuple[Worker, ...]
    """All that works without being asked."""
    watchers: set[object] = field(default_factory=set)
    """Those who watch events as they happen."""
    ready: trio.Event = field(default_factory=trio.Event)
    """Set once this peer has joined its cluster."""
    draining: trio.Event = field(default_factory=trio.Event)
    """Set once this peer is told to stop."""
