"""A local cluster: one real process a peer, owned by one supervisor.

The supervisor starts the peers, waits until they answer, follows their logs, and takes orders (stop, start, kill,
status) from other terminals. Only it starts and ends the processes, so there is one place that knows what runs. What it
needs again after a restart is in the folder of the cluster:

    cluster.json     cluster id, number of peers, ports: a restart continues the same cluster
    cluster.lock     held while a supervisor runs
    control.json     where the running supervisor takes orders, and the token it wants; gone when it has ended
    NODE/            a peer's own data folder, with peer.log and, while it runs, peer.pid

Nothing here prints: what happens is told to a function (`Tell`), what goes wrong is a ClusterError.
"""

from __future__ import annotations

from peer.cluster.events import Event, PeerExited, PeerHangs, PeerStatus, PeerWrote, Tell
from peer.cluster.figures import Figures, read_figures
from peer.cluster.folder import Control
from peer.cluster.layout import (
    HOST,
    NODES_DEFAULT,
    NODES_MAX,
    ClusterError,
    Layout,
    PeerCommand,
    serve_command,
    settle_layout,
)
from peer.cluster.orders import Answer, send_order
from peer.cluster.ports import free_base_port
from peer.cluster.supervisor import LocalCluster, open_cluster

__all__ = [
    "HOST",
    "NODES_DEFAULT",
    "NODES_MAX",
    "Answer",
    "ClusterError",
    "Control",
    "Event",
    "Figures",
    "Layout",
    "LocalCluster",
    "PeerCommand",
    "PeerExited",
    "PeerHangs",
    "PeerStatus",
    "PeerWrote",
    "Tell",
    "free_base_port",
    "open_cluster",
    "read_figures",
    "send_order",
    "serve_command",
    "settle_layout",
]
