"""News of members that travel on datagrams sent anyway: each a bounded number of times, the newest first.

Source: Das, Gupta, Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership" (2002),
section 4.1.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

from protocol.datagrams import Accusation, Rumor, rumor_size
from protocol.identity import NodeId

RETRANSMIT = 4
"""Times the decimal logarithm of the number of peers: how often one peer tells a rumor."""

LOOKED_AT_MAX = 64
"""Rumors that are looked at for one datagram: more than fit into it, but for very long names."""


@dataclass(slots=True)
class _Told:
    rumor: Rumor
    size: int
    times: int = 0


class Rumors:
    """What one peer still has to tell: of each member the latest."""

    def __init__(self) -> None:
        self._about: OrderedDict[NodeId, _Told] = OrderedDict()
        """The newest first, and behind them those told longest ago: a look at all for each datagram would take long."""

    def __len__(self) -> int:
        return len(self._about)

    def add(self, rumor: Rumor) -> None:
        """Tell this from now on, and nothing older of the same member."""
        self._about[rumor.node_id] = _Told(rumor, rumor_size(rumor))
        self._about.move_to_end(rumor.node_id, last=False)

    def take(self, bytes_max: int, peers: int, first: Accusation | None = None) -> tuple[Rumor, ...]:
        """What to tell in one datagram, in a cluster of so many; before all `first`, for its receiver alone."""
        taken: list[Rumor] = []
        left = bytes_max
        if first is not None:
            taken.append(first)
            left -= rumor_size(first)
        limit = RETRANSMIT * math.ceil(math.log10(peers + 1))
        for told in list(islice(self._about.values(), LOOKED_AT_MAX)):
            if told.size > left:
                continue
            left -= told.size
            taken.append(told.rumor)
            told.times += 1
            if told.times >= limit:
                del self._about[told.rumor.node_id]
            else:
                self._about.move_to_end(told.rumor.node_id)
        return tuple(taken)
