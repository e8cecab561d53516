"""The table under the log of a local cluster: its peers, how they are, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from peer.cluster import Figures, PeerStatus

STYLE_OF = {"running": "green", "hangs": "bold red", "down": "red"}


def state_of(peer: PeerStatus) -> str:
    """One word for how a peer's process is."""
    if peer.pid is None:
        return "down"
    return "hangs" if peer.hangs else "running"


def table_of(peers: Sequence[PeerStatus], figures: Mapping[str, Figures]) -> Table:
    """The cluster at one moment; figures are there for peers that answer."""
    from rich.table import Table
    from rich.text import Text

    missing: dict[str, int] = {}
    for found in figures.values():
        for node_id, count in found.missing.items():
            missing[node_id] = max(count, missing.get(node_id, 0))
    files = max((found.files for found in figures.values()), default=0)
    table = Table(title=f"{files} files, {sum(missing.values())} copies missing", title_justify="left")
    for heading in ("node", "state", "address", "files held", "copies short"):
        table.add_column(heading, justify="right" if heading in ("files held", "copies short") else "left")
    for peer in peers:
        state, held = state_of(peer), figures.get(peer.node_id)
        table.add_row(
            Text(peer.node_id),
            Text(state, STYLE_OF[state]),
            Text(peer.address),
            "-" if held is None else str(held.copies_here),
            str(missing.get(peer.node_id, 0)),
        )
    return table
