"""Ops and version vectors to bytes and back, and every size limit.

The encoding of an op is canonical: equal ops give equal bytes on every peer, which is what sums and roots are made of.
Whatever breaks a limit or a type raises MalformedMessage; nothing else comes out of a decoder.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

import msgpack

from protocol.errors import MalformedMessage
from protocol.identity import (
    EPOCH_BITS,
    NODE_ID_PATTERN,
    SEQ_MAX,
    STAMP_MAX,
    Dot,
    NodeId,
    Origin,
    Stamp,
    VersionVector,
)
from protocol.ops import (
    COPIES_MAX,
    FILE_KEY_PATTERN,
    RUN_MAX,
    Chunk,
    Delete,
    Drop,
    Hold,
    HoldRun,
    LiveOp,
    Manifest,
    Op,
    Put,
)

MESSAGE_BYTES_MAX = 32 * 1024 * 1024
OP_BYTES_MAX = 8 * 1024 * 1024
FILENAME_CHARS_MAX = 1024
CONTENT_TYPE_CHARS_MAX = 255
SIZE_MAX = (1 << 63) - 1
MS_MAX = (1 << 47) - 1
HASH_BYTES = 32
LOG_HASH_BYTES = 16
NO_LOG = bytes(LOG_HASH_BYTES)
"""The running hash of a log without ops."""

_PUT, _DELETE, _HOLD, _DROP, _HELD_PUT, _HOLD_RUN = range(6)
_HOLD_RUN_BYTE = bytes([_HOLD_RUN])
_KIND_MAX = 255

RUN_WEIGHT = 4
"""See `weight_of`."""

T = TypeVar("T")


class OpDots(NamedTuple):
    """The dots an op has, `first` to `last` of its origin, and those it names, as `needs_of` has them."""

    origin: Origin
    first: int
    last: int
    needs: tuple[Dot, ...]


def pack(value: object) -> bytes:
    """The msgpack bytes of plain values."""
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    return packed


def unpack(raw: bytes, size_max: int = MESSAGE_BYTES_MAX) -> Any:
    """The plain values in `raw`.

    Raises MalformedMessage when it is longer than `size_max`, no msgpack, or has anything behind its end.
    """
    if len(raw) > size_max:
        raise MalformedMessage(f"a message of {len(raw)} bytes; the limit is {size_max}")
    try:
        return msgpack.unpackb(raw, use_list=True, strict_map_key=True, max_ext_len=0)
    # msgpack documents ValueError and its kinds, but nesting and invalid UTF-8 give others.
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MalformedMessage(f"{len(raw)} bytes that are no message: {error}") from None


def encode_op(op: Op) -> bytes:
    """The canonical bytes of an op."""
    origin, seq = op.dot
    head = [origin.node_id, origin.epoch, seq, op.stamp]
    match op:
        case Put(manifest=manifest, supersedes=supersedes):
            kind = _HELD_PUT if op.is_held else _PUT
            return pack([kind, *head, manifest_fields(manifest), dots_fields(supersedes)])
        case Delete(file_key=file_key, supersedes=supersedes):
            return pack([_DELETE, *head, file_key, dots_fields(supersedes)])
        case Hold(put=put, recovered=recovered):
            return pack([_HOLD, *head, dot_fields(put), recovered])
        case HoldRun(puts=puts, recovered=recovered):
            return pack([_HOLD_RUN, *head, dots_fields(puts), recovered])
        case Drop(supersedes=supersedes, up_to=up_to):
            return pack([_DROP, *head, dots_fields(supersedes), dots_fields(up_to)])


def weight_of(raw: bytes) -> int:
    """What it costs to apply an encoded op, as bytes of a put would: each few bytes of a run are a hold."""
    return RUN_WEIGHT * len(raw) if raw[1:2] == _HOLD_RUN_BYTE else len(raw)


def decode_op(raw: bytes) -> Op:
    """The op whose bytes these are.

    Raises MalformedMessage.
    """
    fields = read_list(unpack(raw, OP_BYTES_MAX), 7)
    kind, first, second = read_int(fields[0], _KIND_MAX), fields[5], fields[6]
    dot = read_dot(fields[1:4])
    stamp = Stamp(read_int(fields[4], STAMP_MAX))
    if kind in (_PUT, _HELD_PUT):
        return Put(dot, stamp, read_manifest(first), read_dots(second), kind == _HELD_PUT)
    if kind == _DELETE:
        return Delete(dot, stamp, read_file_key(first), read_dots(second))
    if kind == _HOLD:
        return Hold(dot, stamp, read_dot(first), read_bool(second))
    if kind == _HOLD_RUN:
        return HoldRun(dot, stamp, _read_run(dot, first), read_bool(second))
    if kind == _DROP:
        return Drop(dot, stamp, read_dots(first), read_dots(second))
    raise MalformedMessage(f"an op of unknown kind {kind}")


def _read_run(dot: Dot, value: object) -> tuple[Dot, ...]:
    puts = read_dots(value)
    if not 2 <= len(puts) <= RUN_MAX or dot.seq + len(puts) - 1 > SEQ_MAX:
        raise MalformedMessage(f"a run of {len(puts)} holds from seq {dot.seq}")
    return puts


def dots_in(raw: bytes) -> OpDots:
    """The dots of an op, from bytes that `encode_op` made."""
    kind, node_id, epoch, seq, _, first, second = unpack(raw, OP_BYTES_MAX)
    if kind == _HOLD:
        needs = [first]
    elif kind == _HOLD_RUN:
        needs = first
    else:
        needs = [*(first if kind == _DROP else ()), *second]
    named = tuple(Dot(Origin(need[0], need[1]), need[2]) for need in needs)
    last = seq + len(needs) - 1 if kind == _HOLD_RUN else seq
    return OpDots(Origin(node_id, epoch), seq, last, named)


def digest_of(op: LiveOp) -> int:
    """128 bits that stand for a live dot and its content.

    What a put superseded when it was written is no part of the state: peers that took it over as state do not know.
    Nor is what it says of its writer's hold, which is a live dot of its own.
    """
    entry = Put(op.dot, op.stamp, op.manifest) if isinstance(op, Put) else op
    return int.from_bytes(blake2b(encode_op(entry), digest_size=16).digest(), "big")


def next_log_hash(before: bytes, raw_op: bytes) -> bytes:
    """The running hash of a log with one more op."""
    return blake2b(before + raw_op, digest_size=LOG_HASH_BYTES, person=b"minidfs.log").digest()


def root_of(vv: VersionVector, state_sum: int) -> bytes:
    """32 bytes that are equal on two peers exactly when version vector and live state are."""
    return blake2b(pack([vv_fields(vv), state_sum.to_bytes(16, "big")]), digest_size=32).digest()


def manifest_fields(manifest: Manifest) -> list[object]:
    """A manifest as plain values, chunks flattened: they are most of a large file's op."""
    chunks: list[bytes | int] | None = None
    if manifest.chunks is not None:
        chunks = []
        for chunk in manifest.chunks:
            chunks += chunk
    fields: list[object] = [
        manifest.file_key,
        manifest.filename,
        manifest.size_bytes,
        manifest.sha256,
        manifest.content_type,
        manifest.uploaded_at_ms,
        manifest.copies,
        chunks,
    ]
    # Only where it says something, so that the bytes of other puts, and their digests, are those of wire version 1.
    return [*fields, True] if manifest.registered else fields


def read_manifest(value: object) -> Manifest:
    """The manifest in plain values; raises MalformedMessage."""
    fields = read_list(value)
    if len(fields) != 8 and not (len(fields) == 9 and fields[8] is True):
        raise MalformedMessage(f"{_shown(value)} where a manifest belongs")
    size_bytes = read_int(fields[2], SIZE_MAX)
    chunks = None if fields[7] is None else _read_chunks(fields[7])
    if chunks is not None and sum(chunk.size for chunk in chunks) != size_bytes:
        raise MalformedMessage(f"chunks that do not add up to the file's {size_bytes} bytes")
    return Manifest(
        file_key=read_file_key(fields[0]),
        filename=read_text(fields[1], FILENAME_CHARS_MAX),
        size_bytes=size_bytes,
        sha256=read_bytes(fields[3], HASH_BYTES),
        content_type=read_text(fields[4], CONTENT_TYPE_CHARS_MAX),
        uploaded_at_ms=read_int(fields[5], MS_MAX),
        copies=read_int(fields[6], COPIES_MAX),
        chunks=chunks,
        registered=len(fields) == 9,
    )


def _read_chunks(value: object) -> tuple[Chunk, ...]:
    flat = read_list(value)
    if len(flat) % 2:
        raise MalformedMessage("a chunk without its size")
    return tuple(
        Chunk(read_bytes(flat[i], HASH_BYTES), read_int(flat[i + 1], SIZE_MAX)) for i in range(0, len(flat), 2)
    )


def dot_fields(dot: Dot) -> list[object]:
    """A dot as plain values."""
    return [dot.origin.node_id, dot.origin.epoch, dot.seq]


def dots_fields(dots: Sequence[Dot]) -> list[object]:
    """Dots as plain values."""
    return [dot_fields(dot) for dot in dots]


def vv_fields(vv: VersionVector) -> list[object]:
    """A version vector as plain values, in the order of its origins, so that equal ones give equal bytes."""
    return [[origin.node_id, origin.epoch, seq] for origin, seq in sorted(vv.items())]


def read_vv(value: object) -> VersionVector:
    """The version vector in plain values; raises MalformedMessage."""
    return dict(read_dots(value))


def read_dot(value: object) -> Dot:
    """The dot in plain values; raises MalformedMessage."""
    node_id, epoch, seq = read_list(value, 3)
    dot = Dot(Origin(read_node_id(node_id), read_int(epoch, (1 << EPOCH_BITS) - 1)), read_int(seq, SEQ_MAX))
    if dot.seq < 1:
        raise MalformedMessage("a dot with the seq 0; the first is 1")
    return dot


def read_dots(value: object) -> tuple[Dot, ...]:
    """The dots in plain values; raises MalformedMessage."""
    return read_each(value, read_dot)


def read_each(value: object, read: Callable[[object], T]) -> tuple[T, ...]:
    """A list, each of its values read by `read`; raises MalformedMessage."""
    return tuple(read(item) for item in read_list(value))


def read_list(value: object, length: int | None = None) -> list[Any]:
    """A list, of this length if one is given; raises MalformedMessage."""
    if not isinstance(value, list) or length not in (None, len(value)):
        wanted = "a list" if length is None else f"a list of {length}"
        raise MalformedMessage(f"{_shown(value)} where {wanted} belongs")
    return value


def read_int(value: object, maximum: int) -> int:
    """A whole number from 0 to `maximum`; raises MalformedMessage."""
    if type(value) is not int or not 0 <= value <= maximum:
        raise MalformedMessage(f"{_shown(value)} where a number up to {maximum} belongs")
    return value


def read_bool(value: object) -> bool:
    """True or false; raises MalformedMessage."""
    if not isinstance(value, bool):
        raise MalformedMessage(f"{_shown(value)} where true or false belongs")
    return value


def read_text(value: object, chars_max: int) -> str:
    """Text of at most `chars_max` characters; raises MalformedMessage."""
    if not isinstance(value, str) or len(value) > chars_max:
        raise MalformedMessage(f"{_shown(value)} where text of up to {chars_max} characters belongs")
    return value


def read_bytes(value: object, length: int | None = None) -> bytes:
    """Bytes, of this length if one is given; raises MalformedMessage."""
    if not isinstance(value, bytes) or length not in (None, len(value)):
        raise MalformedMessage(f"{_shown(value)} where {'' if length is None else f'{length} '}bytes belong")
    return value


def read_node_id(value: object) -> NodeId:
    """A node id; raises MalformedMessage."""
    if not isinstance(value, str) or not NODE_ID_PATTERN.fullmatch(value):
        raise MalformedMessage(f"{_shown(value)} where a node id belongs")
    return NodeId(value)


def read_file_key(value: object) -> str:
    """A file key; raises MalformedMessage."""
    if not isinstance(value, str) or not FILE_KEY_PATTERN.fullmatch(value):
        raise MalformedMessage(f"{_shown(value)} where a file key belongs")
    return value


def _shown(value: object) -> str:
    # repr() of what a stranger sent may be megabytes long, or nested deeper than it can go.
    return reprlib.repr(value)
