"""Every message peers exchange over HTTP, and its bytes.

What two peers exchange of their logs starts with the wire version, and both must speak the same one: an op that one of
them cannot read would be lost on it, and all that builds on it. New fields are only ever added behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from protocol import codec
from protocol.errors import MalformedMessage, WrongCluster, WrongVersion
from protocol.forks import FINGERPRINTS_MAX, Fingerprints
from protocol.identity import SEQ_MAX, Dot, Eviction, Member, Origin, Status, VersionVector
from protocol.ops import Hold, LiveOp, Put

WIRE_VERSION = 4
"""Of log exchanges, which grows with every kind of op. 2: puts that say they are held, runs of holds. 3: evictions.
4: members that leave, or are out."""
ADDRESS_CHARS_MAX = 255
ZONE_CHARS_MAX = 63
CLUSTER_ID_CHARS_MAX = 64
INCARNATION_MAX = (1 << 53) - 1

LOG_HASHES_MAX = 1_000_000
"""Of one log in one message."""
HASHES_MAX = 1024
"""Of chunks named in one message."""
SMALL_CHUNK_BYTES_MAX = 1024 * 1024
"""Of a chunk whose content is part of a message, however few bytes either peer keeps in its database."""
STATUS_CHARS_MAX = 32
ERROR_CHARS_MAX = 65_536

_STATUSES = (None, *Status)
_RECOVERY_FIELDS = ("total", "success", "failed")


@dataclass(frozen=True, slots=True)
class View:
    """The sender's member list: its digest, and the list itself for one who may have another."""

    digest: bytes = b""
    members: tuple[Member, ...] = ()
    statuses: tuple[Status | None, ...] = ()
    """What the sender believes of each of these; None where it does not know."""
    evictions: tuple[Eviction, ...] = ()

    @classmethod
    def of(cls, *members: Member) -> View:
        """A list that says nothing of who is up."""
        return cls(b"", members, (None,) * len(members))


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """Here is my version vector, what you lack of my logs, and files I ask you to hold."""

    sender: Member
    view: View
    vv: VersionVector
    state_sum: int
    ops: tuple[bytes, ...]
    hold: tuple[Dot, ...] = ()
    chunks: tuple[bytes, ...] = ()
    """Contents of small chunks of the files to hold."""
    behind: bool = False
    """What you lack is no longer in my log: fetch my whole state."""
    fingerprints: Fingerprints = field(default_factory=dict)
    """Of logs we both know."""
    gave_up: tuple[Origin, ...] = ()
    """Origins of mine of which you follow a branch that I gave up."""
    is_serving: bool = False
    """Clients are being served by the sender: who works in the background gives way to them."""


@dataclass(frozen=True, slots=True)
class ExchangeReply:
    """Where I stand now, and what you lack of my logs."""

    view: View
    vv: VersionVector
    state_sum: int
    ops: tuple[bytes, ...]
    more: bool
    """There are more ops than fit; exchange again."""
    behind: bool
    """What you lack is no longer in my log: fetch my whole state."""
    fingerprints: Fingerprints = field(default_factory=dict)
    gave_up: tuple[Origin, ...] = ()
    disputed: bool = False
    """We do not agree about a log, so I applied nothing."""
    is_serving: bool = False
    """Clients are being served by the sender."""
    held: tuple[Dot, ...] = ()
    """Of the files I was asked to hold those I have; my holds are in the ops, but you may have more to hear before."""


class ItemStatus(Enum):
    """Of an item of the replication queue."""

    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class RepairAttempt:
    """What a peer alone knows of a copy it lacks; times in milliseconds since 1970."""

    item_id: int
    status: ItemStatus
    retry_count: int
    last_attempt_ms: int | None
    error: str | None
    next_attempt_ms: int | None = None
    """Of one that failed, at the earliest."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one look at everything a peer lacks came to, in files."""

    total: int
    success: int
    failed: int


def encode_request(cluster_id: str, request: ExchangeRequest) -> bytes:
    """The bytes of an exchange's request."""
    return codec.pack(
        [
            WIRE_VERSION,
            cluster_id,
            member_fields(request.sender),
            members_fields(request.view.members),
            codec.vv_fields(request.vv),
            request.state_sum.to_bytes(16, "big"),
            request.ops,
            codec.dots_fields(request.hold),
            request.chunks,
            request.behind,
            _fingerprints_fields(request.fingerprints),
            _origins_fields(request.gave_up),
            request.is_serving,
            *_view_fields(request.view),
        ]
    )


def decode_request(cluster_id: str, raw: bytes) -> ExchangeRequest:
    """The request in these bytes; raises MalformedMessage, WrongVersion or WrongCluster."""
    fields = _versioned(codec.unpack(raw), 16)
    check_cluster(cluster_id, fields[1])
    return ExchangeRequest(
        sender=read_member(fields[2]),
        view=_read_view(fields[3], fields[13:16]),
        vv=codec.read_vv(fields[4]),
        state_sum=int.from_bytes(codec.read_bytes(fields[5], 16), "big"),
        ops=codec.read_each(fields[6], codec.read_bytes),
        hold=codec.read_dots(fields[7]),
        chunks=codec.read_each(fields[8], codec.read_bytes),
        behind=codec.read_bool(fields[9]),
        fingerprints=_read_fingerprints(fields[10]),
        gave_up=_read_origins(fields[11]),
        is_serving=codec.read_bool(fields[12]),
    )


def encode_reply(reply: ExchangeReply) -> bytes:
    """The bytes of an exchange's reply."""
    return codec.pack(
        [
            WIRE_VERSION,
            members_fields(reply.view.members),
            codec.vv_fields(reply.vv),
            reply.state_sum.to_bytes(16, "big"),
            reply.ops,
            reply.more,
            reply.behind,
            _fingerprints_fields(reply.fingerprints),
            _origins_fields(reply.gave_up),
            reply.disputed,
            reply.is_serving,
            codec.dots_fields(reply.held),
            *_view_fields(reply.view),
        ]
    )


def decode_reply(raw: bytes) -> ExchangeReply:
    """The reply in these bytes; raises MalformedMessage or WrongVersion."""
    fields = _versioned(codec.unpack(raw), 15)
    return ExchangeReply(
        view=_read_view(fields[1], fields[12:15]),
        vv=codec.read_vv(fields[2]),
        state_sum=int.from_bytes(codec.read_bytes(fields[3], 16), "big"),
        ops=codec.read_each(fields[4], codec.read_bytes),
        more=codec.read_bool(fields[5]),
        behind=codec.read_bool(fields[6]),
        fingerprints=_read_fingerprints(fields[7]),
        gave_up=_read_origins(fields[8]),
        disputed=codec.read_bool(fields[9]),
        is_serving=codec.read_bool(fields[10]),
        held=codec.read_dots(fields[11]),
    )


def encode_join(cluster_id: str, me: Member | None) -> bytes:
    """The bytes that ask for a cluster's id and members; an empty `cluster_id` is for any cluster."""
    return _encode_cluster(cluster_id, (me,) if me else ())


def encode_joined(cluster_id: str, members: tuple[Member, ...]) -> bytes:
    """The bytes that answer who asked to join."""
    return _encode_cluster(cluster_id, members)


def decode_join(raw: bytes) -> tuple[str, tuple[Member, ...]]:
    """A cluster's id and members, as asked or as answered; raises MalformedMessage."""
    cluster_id, members = codec.read_list(codec.unpack(raw), 2)
    return codec.read_text(cluster_id, CLUSTER_ID_CHARS_MAX), read_members(members)


def _encode_cluster(cluster_id: str, members: tuple[Member, ...]) -> bytes:
    return codec.pack([cluster_id, members_fields(members)])


def encode_hashes(hashes: Sequence[bytes]) -> bytes:
    """The bytes of a list of chunk hashes, of HASHES_MAX at most."""
    return codec.pack(hashes)


def decode_hashes(raw: bytes) -> tuple[bytes, ...]:
    """The chunk hashes in these bytes; raises MalformedMessage, also for more than are looked up at a time."""
    fields = codec.read_list(codec.unpack(raw))
    if len(fields) > HASHES_MAX:
        raise MalformedMessage(f"{len(fields)} chunks in one message; the limit is {HASHES_MAX}")
    return codec.read_each(fields, lambda value: codec.read_bytes(value, codec.HASH_BYTES))


def encode_contents(contents: Sequence[bytes | None]) -> bytes:
    """The bytes of small chunks' contents, None for those that are not there."""
    return codec.pack(contents)


def decode_contents(raw: bytes) -> tuple[bytes | None, ...]:
    """The contents in these bytes; raises MalformedMessage."""
    return codec.read_each(codec.unpack(raw), lambda value: None if value is None else codec.read_bytes(value))


def dot_as_text(dot: Dot) -> str:
    """A dot as it stands in an address."""
    return codec.pack(codec.dot_fields(dot)).hex()


def dot_of_text(text: str) -> Dot:
    """The dot in a part of an address; raises MalformedMessage."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raise MalformedMessage("no dot in hexadecimal digits") from None
    return codec.read_dot(codec.unpack(raw))


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """What a whole state begins with: its version vector and its sum."""

    vv: VersionVector
    state_sum: int
    is_damaged: bool = False
    """Its rows are not what they were: what is missing may not be taken for removed."""
    fingerprints: Fingerprints = field(default_factory=dict)
    """The running hashes of its logs, as of `vv`."""


def encode_snapshot_head(head: SnapshotHead) -> bytes:
    """The bytes of the frame a whole state begins with."""
    state_sum = head.state_sum.to_bytes(16, "big")
    return codec.pack([codec.vv_fields(head.vv), state_sum, head.is_damaged, _fingerprints_fields(head.fingerprints)])


def decode_snapshot_head(raw: bytes) -> SnapshotHead:
    """The head of a whole state; raises MalformedMessage."""
    fields = codec.read_list(codec.unpack(raw))
    if len(fields) < 2:
        raise MalformedMessage(f"the head of a whole state has {len(fields)} fields; it needs two")
    state_sum = int.from_bytes(codec.read_bytes(fields[1], 16), "big")
    is_damaged = len(fields) > 2 and codec.read_bool(fields[2])
    fingerprints = _read_fingerprints(fields[3]) if len(fields) > 3 else {}
    return SnapshotHead(codec.read_vv(fields[0]), state_sum, is_damaged, fingerprints)


def encode_log_hashes(first: int, log_hashes: Sequence[bytes]) -> bytes:
    """The bytes of a log's running hashes, from a seq on."""
    return codec.pack([first, b"".join(log_hashes)])


def decode_log_hashes(raw: bytes) -> tuple[int, list[bytes]]:
    """The seq of the first hash, and all of them; raises MalformedMessage."""
    first, joined = codec.read_list(codec.unpack(raw), 2)
    step, joined = codec.LOG_HASH_BYTES, codec.read_bytes(joined)
    if len(joined) % step or first == 0:
        raise MalformedMessage(f"{len(joined)} bytes of running hashes from seq {first!r}")
    return codec.read_int(first, SEQ_MAX), [joined[at : at + step] for at in range(0, len(joined), step)]


def encode_snapshot_page(ops: Sequence[bytes]) -> bytes:
    """The bytes of a frame of a whole state; one without ops is its end."""
    return codec.pack(ops)


def decode_snapshot_page(raw: bytes) -> tuple[LiveOp, ...]:
    """The live ops in a frame of a whole state; raises MalformedMessage."""
    return codec.read_each(codec.unpack(raw), _read_live_op)


def _read_live_op(value: object) -> LiveOp:
    op = codec.decode_op(codec.read_bytes(value))
    if not isinstance(op, Put | Hold):
        raise MalformedMessage(f"{type(op).__name__} where a live op belongs")
    return op


def encode_recovery(recovery: Recovery) -> bytes:
    """The bytes of what a recovery came to."""
    return codec.pack({"total": recovery.total, "success": recovery.success, "failed": recovery.failed})


def decode_recovery(raw: bytes) -> Recovery:
    """The recovery in these bytes; raises MalformedMessage."""
    fields = codec.unpack(raw)
    if not isinstance(fields, dict):
        raise MalformedMessage("a recovery that is no map")
    total, success, failed = (codec.read_int(fields.get(name), codec.SIZE_MAX) for name in _RECOVERY_FIELDS)
    return Recovery(total, success, failed)


def encode_attempts(attempts: Sequence[RepairAttempt]) -> bytes:
    """The bytes of what a peer alone knows of its repairs."""
    return codec.pack([_attempt_fields(attempt) for attempt in attempts])


def _attempt_fields(attempt: RepairAttempt) -> list[object]:
    error = None if attempt.error is None else attempt.error[:ERROR_CHARS_MAX]
    times = attempt.last_attempt_ms, attempt.next_attempt_ms
    return [attempt.item_id, attempt.status.value, attempt.retry_count, *times, error]


def decode_attempts(raw: bytes) -> tuple[RepairAttempt, ...]:
    """The attempts in these bytes; raises MalformedMessage."""
    return codec.read_each(codec.unpack(raw), _read_attempt)


def _read_attempt(value: object) -> RepairAttempt:
    item_id, status, retry_count, last_attempt_ms, next_attempt_ms, error = codec.read_list(value, 6)
    if codec.read_text(status, STATUS_CHARS_MAX) not in ItemStatus.__members__:
        raise MalformedMessage(f"a repair of unknown status {status!r}")
    return RepairAttempt(
        codec.read_int(item_id, codec.SIZE_MAX),
        ItemStatus(status),
        codec.read_int(retry_count, codec.SIZE_MAX),
        None if last_attempt_ms is None else codec.read_int(last_attempt_ms, codec.MS_MAX),
        None if error is None else codec.read_text(error, ERROR_CHARS_MAX),
        None if next_attempt_ms is None else codec.read_int(next_attempt_ms, codec.MS_MAX),
    )


def member_fields(member: Member) -> list[object]:
    """A member as plain values."""
    return [member.node_id, member.address, member.incarnation, member.zone, member.joined, member.is_draining]


def members_fields(members: tuple[Member, ...]) -> list[object]:
    """Members as plain values."""
    return [member_fields(member) for member in members]


def read_member(value: object) -> Member:
    """The member in plain values; raises MalformedMessage."""
    node_id, address, incarnation, zone, joined, is_draining = codec.read_list(value, 6)
    return Member(
        codec.read_node_id(node_id),
        codec.read_text(address, ADDRESS_CHARS_MAX),
        codec.read_int(incarnation, INCARNATION_MAX),
        codec.read_text(zone, ZONE_CHARS_MAX),
        codec.read_int(joined, INCARNATION_MAX),
        codec.read_bool(is_draining),
    )


def _fingerprints_fields(fingerprints: Fingerprints) -> list[object]:
    return [[*codec.dot_fields(dot), log_hash] for dot, log_hash in fingerprints.items()]


def _read_fingerprints(value: object) -> Fingerprints:
    fingerprints: dict[Dot, bytes] = {}
    items = codec.read_list(value)
    if len(items) > FINGERPRINTS_MAX:
        raise MalformedMessage(f"{len(items)} fingerprints in one message; the limit is {FINGERPRINTS_MAX}")
    for item in items:
        node_id, epoch, seq, log_hash = codec.read_list(item, 4)
        fingerprints[codec.read_dot([node_id, epoch, seq])] = codec.read_bytes(log_hash, codec.LOG_HASH_BYTES)
    return fingerprints


def _origins_fields(origins: tuple[Origin, ...]) -> list[object]:
    return codec.dots_fields([Dot(origin, 1) for origin in origins])


def _read_origins(value: object) -> tuple[Origin, ...]:
    return tuple(dot.origin for dot in codec.read_dots(value))


def _view_fields(view: View) -> list[object]:
    """What a view says besides its members."""
    return [view.digest, bytes(map(_STATUSES.index, view.statuses)), [list(eviction) for eviction in view.evictions]]


def read_eviction(value: object) -> Eviction:
    """An eviction in plain values; raises MalformedMessage."""
    node_id, joined = codec.read_list(value, 2)
    return Eviction(codec.read_node_id(node_id), codec.read_int(joined, INCARNATION_MAX))


def _read_view(members: object, more: list[object]) -> View:
    read = read_members(members)
    digest, statuses = codec.read_bytes(more[0]), codec.read_bytes(more[1], len(read))
    if any(status >= len(_STATUSES) for status in statuses):
        raise MalformedMessage("a member of unknown status")
    return View(digest, read, tuple(_STATUSES[status] for status in statuses), codec.read_each(more[2], read_eviction))


def read_members(value: object) -> tuple[Member, ...]:
    """The members in plain values; raises MalformedMessage."""
    return codec.read_each(value, read_member)


def _versioned(value: object, length: int) -> list[object]:
    """The fields of a message of this wire version, which may have more of them; raises WrongVersion."""
    fields = codec.read_list(value)
    version = codec.read_int(fields[0], 255) if fields else 0
    if version != WIRE_VERSION:
        raise WrongVersion(
            f"the sender speaks wire version {version} and the receiver {WIRE_VERSION}; upgrade the one with the lower"
        )
    _check_length(fields, length, version)
    return fields


def _check_length(fields: list[object], length: int, version: int) -> None:
    if len(fields) < length:
        raise MalformedMessage(f"a message of {len(fields)} fields; version {version} has {length}")


def check_cluster(ours: str, theirs: object) -> None:
    """Raises WrongCluster when a message is of another one."""
    if codec.read_text(theirs, CLUSTER_ID_CHARS_MAX) != ours:
        raise WrongCluster(f"a message from cluster {theirs}; this is {ours}")
