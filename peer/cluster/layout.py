"""What a local cluster is made of, and the files its folder keeps."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peer.config import Address, ConfigError

HOST = "127.0.0.1"
NODES_DEFAULT = 3
NODES_MAX = 200
BASE_PORT_DEFAULT = 8001
FACADE_PORT_DEFAULT = 8080

KEY_FILE = "cluster.key"
"""In the cluster's folder."""

START_TIMEOUT_S = 30.0
"""A peer that has not answered by then is taken for stuck."""
STOP_TIMEOUT_S = 15.0
"""Longer than a peer lets its running requests finish; one that still runs then is killed."""


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a cluster is made of; kept in its folder. Peers are node-1, node-2, … on ports in a row."""

    cluster_id: str
    nodes: int
    base_port: int
    facade_port: int

    def __post_init__(self) -> None:
        last = self.base_port + self.nodes - 1
        if not 1 <= self.nodes <= NODES_MAX:
            raise ConfigError(f"a local cluster has 1 to {NODES_MAX} nodes, not {self.nodes}")
        if not (1 <= self.base_port <= last <= 65535 and 1 <= self.facade_port <= 65535):
            raise ConfigError(f"ports {self.base_port} to {last} and {self.facade_port} must lie within 1 to 65535")
        if self.base_port <= self.facade_port <= last:
            raise ConfigError(
                f"facade port {self.facade_port} lies among the peers' own ports {self.base_port} to {last}; "
                "choose another with --facade-port or --base-port"
            )

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))

    @property
    def facade(self) -> Address:
        return Address(HOST, self.facade_port)

    def address_of(self, node_id: str) -> Address:
        return Address(HOST, self.base_port + self.node_ids.index(node_id))


PeerCommand = Callable[[Layout, str, Path], Sequence[str]]
"""Gives the command line of a peer, from the layout, its node id and its data folder."""


def serve_command(layout: Layout, node_id: str, folder: Path) -> list[str]:
    """The command line of a real peer."""
    # -P: a file named like a module in the folder the user happens to be in must not be imported by the peers.
    command = [sys.executable, "-P", "-m", "peer", "serve", "--id", node_id]
    # What could also come from variables and a settings file, where it would be meant for another peer, is said here.
    own = str(layout.address_of(node_id))
    command += ["--listen", own, "--advertise", own, "--no-rejoin", "--facade", str(layout.facade)]
    for other in layout.node_ids:
        if other != node_id:
            command += ["--join", str(layout.address_of(other))]
    command += ["--cluster-id", layout.cluster_id, "--cluster-key-file", str(folder.parent / KEY_FILE)]
    return [*command, "--data", str(folder)]


def rejoining(command: Sequence[str]) -> list[str]:
    """The command line of a peer that is to join again the cluster it has left."""
    words = ["--rejoin" if word == "--no-rejoin" else word for word in command]
    if "--cluster-id" in words:
        at = words.index("--cluster-id")
        del words[at : at + 2]
    return words


def settle_layout(
    data: Path, nodes: int | None, base_port: int | None, facade_port: int | None, *, grow: bool = False
) -> Layout:
    """Find what the cluster in `data` is to be: as it was, with nodes added when it is to `grow`, else a new one.

    Raises ClusterError when the folder holds a cluster on other ports or of another number of nodes, ConfigError for
    ports that cannot be.
    """
    known = _read_layout(data)
    if known is None:
        return Layout(
            cluster_id=secrets.token_hex(16),
            nodes=NODES_DEFAULT if nodes is None else nodes,
            base_port=BASE_PORT_DEFAULT if base_port is None else base_port,
            facade_port=FACADE_PORT_DEFAULT if facade_port is None else facade_port,
        )
    if nodes is not None and nodes < known.nodes:
        raise ClusterError(
            f"{data} holds a cluster of {known.nodes} nodes; fewer could leave out files that only the others have: "
            f"use --nodes {known.nodes}, or another --data; if its files are of no use any more, remove that folder"
        )
    if nodes is not None and nodes > known.nodes and not grow:
        raise ClusterError(
            f"{data} holds a cluster of {known.nodes} nodes, and one that has grown cannot be made smaller again; "
            f"add --grow to make it {nodes} for good, or try that with another --data"
        )
    if base_port not in (None, known.base_port) or facade_port not in (None, known.facade_port):
        raise ClusterError(
            f"{data} holds a cluster on --base-port {known.base_port} --facade-port {known.facade_port}; "
            "use these, or another --data"
        )
    return Layout(
        cluster_id=known.cluster_id,
        nodes=nodes or known.nodes,
        base_port=known.base_port,
        facade_port=known.facade_port,
    )


def _read_layout(data: Path) -> Layout | None:
    try:
        stored = json.loads((data / "cluster.json").read_bytes())
        return Layout(
            cluster_id=str(stored["cluster_id"]),
            nodes=int(stored["nodes"]),
            base_port=int(stored["base_port"]),
            facade_port=int(stored["facade_port"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{data / 'cluster.json'} cannot be read ({error}); repair it or use another --data"
        ) from error
