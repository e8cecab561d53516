"""Chunks pushed here ahead of the put that will name them, each with a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from peer.store.chunk_files import FreshChunk
from peer.world.env import Clock

STAGED_FOR_S = 600.0
"""A chunk another peer put here ahead of the put that names it waits this long for it, or for a word that it comes."""


class _Staged(NamedTuple):
    """A chunk that waits for its put, until when, and how often it was brought: equal ones may belong to several."""

    chunk: FreshChunk
    until: float
    times: int


class Staging:
    """The staged chunks of one peer. What is of no use any more is handed to `discard`. Nothing here blocks."""

    def __init__(self, clock: Clock, discard: Callable[[Iterable[FreshChunk]], None]) -> None:
        self._clock = clock
        self._discard = discard
        self._staged: dict[bytes, _Staged] = {}

    def stage(self, chunk: FreshChunk) -> None:
        """Keep a chunk for the put that will name it, in place of one of equal bytes."""
        replaced = self._staged.pop(chunk.hash, None)
        times = replaced.times + 1 if replaced else 1
        self._staged[chunk.hash] = _Staged(chunk, self._clock.now() + STAGED_FOR_S, times)
        if replaced:
            self._discard([replaced.chunk])

    def renew(self, chunk_hash: bytes) -> bool:
        """Let a staged chunk wait anew for its put; False when it is not staged."""
        found = self._staged.get(chunk_hash)
        if found is None:
            return False
        self._staged[chunk_hash] = found._replace(until=self._clock.now() + STAGED_FOR_S)
        return True

    def withdraw(self, chunk_hash: bytes) -> None:
        """One put that would have named this chunk will not come; it goes if no other may."""
        found = self._staged.get(chunk_hash)
        if found is None:
            return
        if found.times > 1:
            self._staged[chunk_hash] = found._replace(times=found.times - 1)
            return
        del self._staged[chunk_hash]
        self._discard([found.chunk])

    @property
    def has_any(self) -> bool:
        """Whether any chunk is staged."""
        return bool(self._staged)

    def has(self, chunk_hash: bytes) -> bool:
        """Whether a chunk of this hash is staged."""
        return chunk_hash in self._staged

    def claim(self, chunk_hash: bytes) -> FreshChunk | None:
        """The staged chunk of this hash, the caller's alone from now on: to adopt, to stage again, or to discard."""
        found = self._staged.pop(chunk_hash, None)
        return found.chunk if found else None

    def expire(self) -> None:
        """Let go of the chunks whose put never came."""
        now = self._clock.now()
        expired = [staged.chunk for staged in self._staged.values() if staged.until <= now]
        for chunk in expired:
            del self._staged[chunk.hash]
        self._discard(expired)
