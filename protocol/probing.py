"""Whom to probe next, and which probes are open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from protocol.identity import NodeId

OPEN_MAX = 4096
"""Probes without an answer that are remembered: an answer to an older one says nothing of how quick a peer is."""


class RoundRobin:
    """Probes everybody once before anybody twice, in an order shuffled anew each time.

    So a peer is probed after 2n - 1 rounds at the latest (SWIM, section 4.3).
    """

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._order: list[NodeId] = []
        self._at = 0

    def __contains__(self, node_id: NodeId) -> bool:
        return node_id in self._order

    def add(self, node_id: NodeId) -> None:
        """Probe one more, at a place drawn at random."""
        self._order.insert(self._chance.randrange(len(self._order) + 1), node_id)

    def remove(self, node_id: NodeId) -> None:
        """Probe one no more."""
        at = self._order.index(node_id)
        del self._order[at]
        self._at -= at < self._at

    def next(self, is_wanted: Callable[[NodeId], bool]) -> NodeId | None:
        """The next of those that are wanted, if there is one."""
        for _ in range(len(self._order)):
            if self._at >= len(self._order):
                self._chance.shuffle(self._order)
                self._at = 0
            node_id = self._order[self._at]
            self._at += 1
            if is_wanted(node_id):
                return node_id
        return None

    def some(self, count: int, is_wanted: Callable[[NodeId], bool]) -> list[NodeId]:
        """As many as that, drawn at random from those that are wanted; fewer where few are."""
        if len(self._order) <= 4 * count:
            wanted = list(filter(is_wanted, self._order))
            return self._chance.sample(wanted, min(count, len(wanted)))
        # Of many, most are wanted: some draws find them, without a look at all.
        drawn = dict.fromkeys(self._chance.choice(self._order) for _ in range(4 * count))
        return list(filter(is_wanted, drawn))[:count]


@dataclass(slots=True)
class Probe:
    """A question that is open: is this peer there?"""

    node_id: NodeId
    asked_at: float
    asked_for: tuple[NodeId, int] | None = None
    """Who asked us to ask, and the number of its own probe."""
    helpers: int = 0
    nacks: int = 0


class Probes:
    """The open probes of one peer, by their numbers."""

    def __init__(self) -> None:
        self._open: dict[int, Probe] = {}
        self._number = 0

    def draw(self) -> int:
        """A number that no probe has."""
        self._number += 1
        return self._number

    def add(self, probe: Probe) -> int:
        """Open one; its number."""
        number = self.draw()
        self._open[number] = probe
        if len(self._open) > OPEN_MAX:
            del self._open[next(iter(self._open))]
        return number

    def get(self, number: int) -> Probe | None:
        """A probe that is open."""
        return self._open.get(number)

    def forget(self, node_id: NodeId) -> None:
        """Close all of a peer, and all it asked for."""
        self._open = {
            number: probe
            for number, probe in self._open.items()
            if node_id not in (probe.node_id, probe.asked_for and probe.asked_for[0])
        }

    def end(self, number: int) -> Probe | None:
        """Close one."""
        return self._open.pop(number, None)
