"""What happened at a peer and around it, for people who watch: the last so many events of each kind."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

KEPT_MAX = 200
"""Events of a kind that are remembered, the newest: a thousand uploads do not push out that a peer went down."""

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
        self._kept: dict[str, deque[Event]] = {}
        """By kind."""
        self.last = 0
        """The number of the newest event, 0 before there is one."""

    def tell(self, kind: str, **about: Value) -> None:
        """Something happened."""
        event = Event(next(self._numbers), self._wall_ms(), kind, about)
        self._kept.setdefault(kind, deque(maxlen=KEPT_MAX)).append(event)
        self.last = max(self.last, event.number)

    def since(self, number: int) -> list[Event]:
        """Those behind an event, oldest first, as far as they are remembered."""
        if number >= self.last:
            return []
        # Another thread may be adding to them.
        kinds = list(self._kept.values())
        return sorted(event for kept in kinds for event in kept.copy() if event.number > number)
