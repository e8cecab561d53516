"""News of members that travel on datagrams sent anyway: each a bounded number of times, those told least first.

Source: Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership" (2002),
section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocol.datagrams import Accusation, Rumor, rumor_size
from protocol.identity import NodeId

RETRANSMIT = 4
"""Times the decimal logarithm of the number of peers: how often one peer tells a rumor."""


@dataclass(slots=True)
class _Told:
    rumor: Rumor
    size: int
    times: int = 0


def subject_of(rumor: Rumor) -> NodeId:
    """Whom a rumor is about."""
    return rumor.node_id


class Rumors:
    """What one peer still has to tell: of each member the latest."""

    def __init__(self) -> None:
        self._about: dict[NodeId, _Told] = {}

    def __len__(self) -> int:
        return len(self._about)

    def add(self, rumor: Rumor) -> None:
        """Tell this from now on, and nothing older of the same member."""
        self._about.pop(subject_of(rumor), None)
        self._about[subject_of(rumor)] = _Told(rumor, rumor_size(rumor))

    def take(self, bytes_max: int, peers: int, first: Accusation | None = None) -> tuple[Rumor, ...]:
        """What to tell in one datagram, in a cluster of so many; before all `first`, for its receiver alone."""
        taken: list[Rumor] = []
        left = bytes_max
        if first is not None:
            taken.append(first)
            left -= rumor_size(first)
        limit = RETRANSMIT * math.ceil(math.log10(peers + 1))
        for told in sorted(self._about.values(), key=lambda told: told.times):
            if told.size > left:
                continue
            left -= told.size
            taken.append(told.rumor)
            told.times += 1
            if told.times >= limit:
                del self._about[subject_of(told.rumor)]
        return tuple(taken)
