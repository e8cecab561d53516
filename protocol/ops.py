"""What a log can say.

`put` and `hold` make their own dot live; `put`, `delete` and `drop` remove the dots they name, those their writer had
seen. A hold names the put it holds and is live only while that put is. No entry is ever needed to say that something
is gone: a dot that a version vector covers and that is not live *is* the proof of its removal.

Two things keep the log short. A put says whether its writer holds it; then its dot is that of a live hold too, and
whatever is asked of a live dot is asked of a put or of a hold. And several holds may be one op, a run, with a dot for
each: it is applied whole or not at all, so that version vectors, floors and cuts stand at ends of ops only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from protocol.identity import Dot, NodeId, Stamp

FILE_KEY_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
COPIES_MAX = 255
RUN_MAX = 1024
"""Holds in one op."""


class Chunk(NamedTuple):
    """A piece of a file's content, named by its BLAKE3 hash (32 bytes)."""

    hash: bytes
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a file is: its name, what it looks like and which chunks it is made of, in order."""

    file_key: str
    filename: str
    size_bytes: int
    sha256: bytes
    content_type: str
    uploaded_at_ms: int
    copies: int
    chunks: tuple[Chunk, ...] | None
    """None: registered by a client, and no peer has the content yet."""
    registered: bool = False
    """Made known by a client and not uploaded: whatever chunks it names are those of equal content."""

    @property
    def is_upload(self) -> bool:
        """Whether a client sent content for it, which no registration may hide."""
        return self.chunks is not None and not self.registered


@dataclass(frozen=True, slots=True)
class Put:
    """A version of a file; replaces the versions its writer had seen."""

    dot: Dot
    stamp: Stamp
    manifest: Manifest
    supersedes: tuple[Dot, ...] = ()
    is_held: bool = False
    """The writer has all chunks of it on its disk, synced and verified. Said, and not to be inferred from `chunks`: a
    registration may name those of equal content that are elsewhere."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes the versions of a file that its writer had seen."""

    dot: Dot
    stamp: Stamp
    file_key: str
    supersedes: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """The writer has all chunks of this put on its disk, synced and verified."""

    dot: Dot
    stamp: Stamp
    put: Dot
    recovered: bool = False
    """True when the copy was made later, by repair, and not as part of the upload."""

    @property
    def holder(self) -> NodeId:
        """Only a peer itself says what it holds."""
        return self.dot.origin.node_id


@dataclass(frozen=True, slots=True)
class HoldRun:
    """Holds of several puts in one op: the first has its dot, each further one the next seq."""

    dot: Dot
    stamp: Stamp
    puts: tuple[Dot, ...]
    """2 to RUN_MAX of them."""
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """The writer no longer has what these holds of its own said."""

    dot: Dot
    stamp: Stamp
    supersedes: tuple[Dot, ...] = ()
    up_to: tuple[Dot, ...] = ()
    """Each: all holds of that origin up to that seq, for a peer that lost a disk full of them."""


Op = Put | Delete | Hold | HoldRun | Drop
LiveOp = Put | Hold


def last_dot(op: Op) -> Dot:
    """The dot at the end of an op; its own, of all but a run."""
    if not isinstance(op, HoldRun):
        return op.dot
    return Dot(op.dot.origin, op.dot.seq + len(op.puts) - 1)


def holds_in(op: Op) -> Iterator[Hold]:
    """The holds an op declares."""
    match op:
        case Put(is_held=True):
            yield Hold(op.dot, op.stamp, op.dot)
        case Hold():
            yield op
        case HoldRun(dot=(origin, first)):
            for seq, put in enumerate(op.puts, first):
                yield Hold(Dot(origin, seq), op.stamp, put, op.recovered)


def needs_of(op: Op) -> tuple[Dot, ...]:
    """The dots whose ops must have been applied before this one may be.

    They are what the op removes and what it holds: were it applied first, the later arrival of one of them would
    bring to life what this op had already ended.
    """
    match op:
        case Put(supersedes=supersedes) | Delete(supersedes=supersedes):
            return supersedes
        case Hold(put=put):
            return (put,)
        case HoldRun(puts=puts):
            return puts
        case Drop(supersedes=supersedes, up_to=up_to):
            return supersedes + up_to


def item_id(put: Dot, target: NodeId) -> int:
    """The number of a replication queue's item: the same on every peer, and exact in a JSON reader's doubles."""
    digest = blake2b(f"{put}/{target}".encode(), digest_size=8, person=b"minidfs.item").digest()
    return int.from_bytes(digest, "big") >> 11
