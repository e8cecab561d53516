"""What happens in a local cluster, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerWrote:
    """A peer wrote a line."""

    node_id: str
    line: str


@dataclass(frozen=True, slots=True)
class PeerExited:
    """A peer's process ended; `ordered` when it was told to."""

    node_id: str
    how: str
    ordered: bool


@dataclass(frozen=True, slots=True)
class PeerHangs:
    """A peer's process is there and has not answered for some seconds; or it answers again after that."""

    node_id: str
    pid: int
    silent_s: float
    answers_again: bool = False


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer as the supervisor sees it; `pid` is None while it is down."""

    node_id: str
    address: str
    pid: int | None
    hangs: bool = False
    """It is there and does not answer."""


Event = PeerWrote | PeerExited | PeerHangs

Tell = Callable[[Event], None]


def tell_nobody(_event: Event) -> None:
    pass
