"""The stores that the contract and the convergence tests run on: a new one is added here, once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from protocol.store import MemoryStore, Store


@dataclass(frozen=True)
class StoreKind:
    """How to make an empty store, and how to take an image of one, as a backup of its disk would."""

    name: str
    new: Callable[[], Store]
    copy: Callable[[Store], Store]
    cases_share: float = 1.0
    """Of the cases a profile asks for, how many to run: a store on a disk is slower than one in memory."""
    close: Callable[[Store], None] = lambda _: None

    def cases(self, of_memory: int) -> int:
        """How many cases to try where the store in memory tries `of_memory`."""
        return max(1, int(of_memory * self.cases_share))

    def __str__(self) -> str:
        return self.name


STORES = (StoreKind("memory", MemoryStore, deepcopy),)
