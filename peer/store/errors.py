"""What can be wrong with what is on this disk."""

from __future__ import annotations

from peer.world.env import StoreError


class ChunkMissing(StoreError):
    """A chunk that should be there is not."""


class ChunkCorrupt(StoreError):
    """A chunk's bytes do not give its hash."""


class CatalogDamaged(StoreError):
    """A row of the catalog cannot be read."""
