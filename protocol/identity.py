"""The small ordered values everything is keyed by: origins, dots, version vectors, stamps.

An *origin* is one life of a peer: its node id and the random epoch it drew when it started. A *dot* names one op of
one origin and is never used twice. A *version vector* says, for each origin, up to which op a peer has applied that
origin's log without a gap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, NewType

from protocol.errors import MalformedMessage

NodeId = NewType("NodeId", str)

NODE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

# One bit short of 64, so that an epoch fits SQLite's signed integers as it is.
EPOCH_BITS = 63

SEQ_MAX = (1 << 63) - 1

# One spelling for each dot: no leading zeros, signs or capitals.
_DOT_PATTERN = re.compile(r"([^:]+):(0|[1-9a-f][0-9a-f]{0,15}):([1-9][0-9]{0,18})", re.ASCII)


class Origin(NamedTuple):
    """One life of a peer, between two starts: the writer of one log."""

    node_id: NodeId
    epoch: int


class Dot(NamedTuple):
    """The name of one op: the `seq`-th (from 1) of its origin's log."""

    origin: Origin
    seq: int

    def __str__(self) -> str:
        return f"{self.origin.node_id}:{self.origin.epoch:x}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Dot:
        """Read what `str(dot)` wrote.

        Raises MalformedMessage when the text is no dot.
        """
        match = _DOT_PATTERN.fullmatch(text)
        if match is None or not NODE_ID_PATTERN.fullmatch(match[1]):
            raise MalformedMessage(f"{text[:100]!r} is no dot; one reads node-1:3fa9:17")
        dot = cls(Origin(NodeId(match[1]), int(match[2], 16)), int(match[3]))
        if dot.origin.epoch >= 1 << EPOCH_BITS or dot.seq > SEQ_MAX:
            raise MalformedMessage(f"{text!r} has numbers beyond those of any dot")
        return dot


VersionVector = dict[Origin, int]
"""For each origin the seq up to which its log was applied without a gap; an absent origin stands at 0."""


@dataclass(frozen=True, slots=True)
class Member:
    """A peer as the cluster knows it; of two records of one peer the higher incarnation counts."""

    node_id: NodeId
    address: str
    incarnation: int
    zone: str = ""
    joined: int = 0
    """How often it was removed for good and came back; it stays the same while the incarnation rises."""
    is_draining: bool = False
    """It is about to leave: it serves what it has, and others are to hold it in its place."""


class Eviction(NamedTuple):
    """A member was removed for good: all of its records that joined no later than so are void, whatever it refutes."""

    node_id: NodeId
    joined: int


class Status(Enum):
    """What is believed of a peer, or said of it."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DOWN = "down"
    OUT = "out"
    """Only said, of one that was down for long: it is believed to be down, and others hold its share meanwhile."""


BELIEFS = (Status.ALIVE, Status.SUSPECT, Status.DOWN)


class Life(NamedTuple):
    """One run of a peer's process; of two, the one that started later is the greater, and no two are equal."""

    started_ms: int
    number: int
    """Drawn at the start."""


def covers(vv: VersionVector, dot: Dot) -> bool:
    """Whether the op of this dot was applied (or taken over as state) by the owner of `vv`."""
    return vv.get(dot.origin, 0) >= dot.seq


def covers_all(vv: VersionVector, other: VersionVector) -> bool:
    """Whether the owner of `vv` has applied everything the owner of `other` has."""
    return all(vv.get(origin, 0) >= seq for origin, seq in other.items())


Stamp = NewType("Stamp", int)
"""Hybrid logical time: milliseconds since 1970 in the upper 48 bits, a logical counter in the lower 16."""

_LOGICAL_BITS = 16
STAMP_MAX = (1 << 63) - 1


def stamp_of_ms(wall_ms: int) -> Stamp:
    """The earliest stamp of a millisecond."""
    return Stamp(wall_ms << _LOGICAL_BITS)


def ms_of_stamp(stamp: Stamp) -> int:
    """The wall-clock part of a stamp, in milliseconds since 1970."""
    return stamp >> _LOGICAL_BITS


class HybridClock:
    """Stamps that grow with every op this peer writes and stay close to wall-clock time.

    Source: Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014). They only break ties between concurrent
    puts of one key, so a wrong clock can never lose a file.
    """

    DRIFT_MAX_MS = 60_000
    """A stamp heard from further ahead than this does not pull ours along, or one wrong clock would set them all."""

    def __init__(self) -> None:
        self._last = Stamp(0)
        self.stamps_ignored = 0

    def tick(self, wall_ms: int) -> Stamp:
        """A stamp for an op written now, later than every stamp ticked before."""
        self._last = max(Stamp(self._last + 1), stamp_of_ms(wall_ms))
        return self._last

    def observe(self, stamp: Stamp, wall_ms: int) -> None:
        """Hear of another peer's stamp: what we write from now on comes after it."""
        if ms_of_stamp(stamp) > wall_ms + self.DRIFT_MAX_MS:
            self.stamps_ignored += 1
        else:
            self._last = max(self._last, stamp)
