"""Which peers should hold a file: arithmetic on the member list, the same on every peer.

A file belongs to one of PARTITIONS by the hash of its key. For each partition the members are ranked by weighted
rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and Schomaker 2005), and the best of each
zone not used yet goes first, so that copies lie in different zones while there are enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import log

from protocol.identity import NodeId

PARTITIONS = 4096

# The scores' uniform variable: 52 bits, which a float keeps exactly, and never 0 or 1.
_UNIFORM_BITS = 52


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A member as placement sees it; `weight` is its capacity against that of the others."""

    node_id: NodeId
    zone: str = ""
    weight: float = 1.0


def partition_of(file_key: str) -> int:
    """The partition, from 0 to PARTITIONS - 1, a key belongs to."""
    return (
        int.from_bytes(blake2b(file_key.encode(), digest_size=8, person=b"minidfs.part").digest(), "big") % PARTITIONS
    )


def rank_places(partition: int, places: Iterable[Place]) -> list[NodeId]:
    """All places in the order in which they should hold a partition's files."""
    remaining = sorted(places, key=lambda place: (-_score(partition, place), place.node_id))
    ranked: list[NodeId] = []
    while remaining:
        zones: dict[str, Place] = {}
        for place in remaining:
            # A place without a zone is alone in one of its own.
            zones.setdefault(place.zone or f"\0{place.node_id}", place)
        ranked += [place.node_id for place in zones.values()]
        chosen = dict.fromkeys(zones.values())
        remaining = [place for place in remaining if place not in chosen]
    return ranked


def rank_all(places: Sequence[Place]) -> list[list[NodeId]]:
    """`rank_places` for every partition."""
    return [rank_places(partition, places) for partition in range(PARTITIONS)]


def _score(partition: int, place: Place) -> float:
    digest = blake2b(f"{partition}/{place.node_id}".encode(), digest_size=8, person=b"minidfs.rank").digest()
    uniform = ((int.from_bytes(digest, "big") >> (64 - _UNIFORM_BITS)) + 0.5) / (1 << _UNIFORM_BITS)
    return -place.weight / log(uniform)
