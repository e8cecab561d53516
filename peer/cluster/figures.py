"""What a peer says of its files, read out of its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import httpx

from peer.config import Address

_LINE = re.compile(
    r'^(minidfs_files|minidfs_copies|minidfs_missing_copies)(?:\{node="([^"]*)"\})? (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Figures:
    """The files of the cluster, as one peer knows them."""

    files: int = 0
    copies_here: int = 0
    """Files this peer holds."""
    missing: dict[str, int] = field(default_factory=dict)
    """Copies that nodes should hold and do not, by node; a node that lacks none may be absent."""


async def read_figures(client: httpx.AsyncClient, address: Address) -> Figures | None:
    """What the peer at this address says; None when it does not answer."""
    try:
        answer = await client.get(f"http://{address}/metrics")
    except httpx.HTTPError:
        return None
    found = [(name, node, int(float(value))) for name, node, value in _LINE.findall(answer.text)]
    plain = {name: value for name, _, value in found}
    if not answer.is_success or "minidfs_files" not in plain:
        return None
    missing = {node: value for name, node, value in found if name == "minidfs_missing_copies" and value}
    return Figures(plain["minidfs_files"], plain.get("minidfs_copies", 0), missing)
