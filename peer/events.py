"""What happened at a peer and around it, for people who watch: the last so many events, and whether there are more."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

KEPT_MAX = 1000
"""Events remembered, the newest ones."""

Value = str | int | list[str]


class Event(NamedTuple):
    """One thing that happened; `about` says to whom or what, by names that depend on the `kind`."""

    number: int
    at_ms: int
    kind: str
    about: dict[str, Value]


class Events:
    """The events of one life of a peer, in their order. It may be told of one from any thread."""

    def __init__(self, wall_ms: Callable[[], int], life: int) -> None:
        self._wall_ms = wall_ms
        self.life = life
        """Tells the events of this life from those of another one, which have the same numbers."""
        self._numbers = itertools.count(1)
        self._kept: deque[Event] = deque(maxlen=KEPT_MAX)

    def tell(self, kind: str, **about: Value) -> None:
        """Something happened."""
        self._kept.append(Event(next(self._numbers), self._wall_ms(), kind, about))

    @property
    def last(self) -> int:
        """The number of the newest event, 0 before there is one."""
        return self._kept[-1].number if self._kept else 0

    def since(self, number: int) -> list[Event]:
        """Those behind an event, oldest first, as far as they are remembered."""
        if number >= self.last:
            return []
        # Another thread may be adding to them.
        return [event for event in self._kept.copy() if event.number > number]
