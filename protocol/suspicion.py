"""How long a suspect has to answer for itself, and how far this peer trusts its own judgement.

Source: Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection" (2018).
"""

from __future__ import annotations

import math

from protocol.identity import NodeId

CONFIRMATIONS = 2
"""Accusers besides the first with whom the shortest time is enough."""

LONGEST = 6
"""Times the shortest: what a suspect has when only one peer accuses it."""

SCORE_MAX = 7


class Suspicion:
    """One suspect's time to refute. It shrinks with each peer that accuses it by its own probes."""

    def __init__(self, accuser: NodeId, now: float, shortest_s: float, others: int) -> None:
        """`others` could confirm it; where those are too few, there is nobody to wait for."""
        self._accusers = [accuser]
        self._began_at = now
        self._shortest_s = shortest_s
        self._wanted = CONFIRMATIONS if others >= CONFIRMATIONS else 0

    def accuse(self, accuser: NodeId) -> bool:
        """Hear of an accuser; whether that is news which others should hear too."""
        if accuser in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers.append(accuser)
        return True

    @property
    def ends_at(self) -> float:
        """When the suspect is down, if it has not refuted by then."""
        if not self._wanted:
            return self._began_at + self._shortest_s
        share = math.log(len(self._accusers)) / math.log(self._wanted + 1)
        longest_s = LONGEST * self._shortest_s
        return self._began_at + max(self._shortest_s, longest_s - (longest_s - self._shortest_s) * share)


class LocalHealth:
    """How slow this peer itself is: who is starved of time hears answers late, and must not blame others for it."""

    def __init__(self) -> None:
        self.score = 0

    @property
    def stretch(self) -> int:
        """What probes and their time-outs are lengthened by."""
        return self.score + 1

    def better(self) -> None:
        """A probe was answered in time."""
        self.score = max(0, self.score - 1)

    def worse(self, by: int = 1) -> None:
        """A probe failed, a helper was not heard from, we were accused, or a timer fired late."""
        self.score = min(SCORE_MAX, self.score + by)
