"""What must sometimes happen in simulated lives: a storm in which it never does has not tried what it is for.

A peer's own log lines tell most of it, so the code needs no marks for it; the world and the clients tell the rest.
Source of the idea: the coverage probes of FoundationDB's simulator (Zhou et al., SIGMOD 2021, section 4).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

LOGGED: dict[str, str] = {
    "took over the whole state of %s, %s": "a whole state was taken over",
    "the log of %s:%x is that of %s again: %d ops were taken back, and what was ours written again": "a fork was ended",
    "a commit failed and may or may not be on the disk; writing on under a new epoch: %s": (
        "a commit had an unknown outcome"
    ),
    "there is room on the disk again; this peer takes content": "a full disk had room again",
    "%s; reading the chunk from another peer": "a read failed on one disk and went on elsewhere",
    "chunk %s is no longer good; %d files with it are no longer held": "holds were taken back for a bad chunk",
    "the state of %s has taken the place of damaged rows; all content is verified again": "damaged rows were replaced",
    "Auto-recovered %s to %s (%d bytes from %s)": "a missing copy was fetched",
    "repair of a copy failed, attempt %d: %s": "a repair failed and was tried again",
    "chunk %s came from %s, which does not hold its file": "a chunk came from a partial copy",
    "exchange with %s failed: %s": "an exchange failed",
}
"""What a line of a peer's log stands for, by its text before values are put in."""

SIBLINGS = "siblings were seen"
NO_ANSWER = "an upload had no answer"
NO_ROOM = "an upload was refused for want of room"
SHORT = "a receipt named fewer copies than wanted"
WITHOUT_COPY = "a peer without a copy served a file"
LESS_THAN_ALL = "an upload was acknowledged while a peer was down"
TORN = "a power cut took bytes or names that were not synced"
CAME_BACK = "a commit that had failed was on the disk all the same"
MET = "the collector met content that had come again"
LOST = "all was well after a lost disk"
RESUMED = "all was well after a machine was resumed"
ROLLED_BACK = "all was well after a disk was rolled back"

CONDITIONS: tuple[str, ...] = (
    *LOGGED.values(), SIBLINGS, NO_ANSWER, NO_ROOM, SHORT, WITHOUT_COPY, LESS_THAN_ALL, TORN, CAME_BACK, MET, LOST,
    RESUMED, ROLLED_BACK,
)  # fmt: skip
"""Each must occur in a run of many seeds of the scenario `storm`."""


def never(seen: Counter[str]) -> list[str]:
    """The conditions that did not occur."""
    return [condition for condition in CONDITIONS if not seen[condition]]


class _Witness(logging.Handler):
    """Counts what log lines stand for, and writes none."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self._seen = seen

    def handle(self, record: logging.LogRecord) -> bool:
        condition = LOGGED.get(record.msg)
        if condition is not None:
            self._seen[condition] += 1
        return True


@contextmanager
def witnessed(seen: Counter[str]) -> Iterator[None]:
    """Count what the peers' logs tell instead of writing them."""
    log = logging.getLogger("minidfs")
    before = log.level, log.propagate, log.handlers
    log.propagate, log.handlers = False, [_Witness(seen)]
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.propagate, log.handlers = before[1], before[2]
        log.setLevel(before[0])
