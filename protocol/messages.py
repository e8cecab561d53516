"""Every message peers exchange: probes as datagrams, log exchanges over HTTP, and their bytes.

A message is a msgpack list that starts with the wire version and its kind; a peer one version older still understands
it, for new fields are only ever added behind.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import codec
from protocol.errors import MalformedMessage, WrongCluster
from protocol.identity import Dot, NodeId, VersionVector

WIRE_VERSION = 1
DATAGRAM_BYTES_MAX = 1400
ADDRESS_CHARS_MAX = 255
ZONE_CHARS_MAX = 63
CLUSTER_ID_CHARS_MAX = 64
INCARNATION_MAX = (1 << 53) - 1

_PING, _ACK = range(2)


@dataclass(frozen=True, slots=True)
class Member:
    """A peer as the cluster knows it; of two records of one peer the higher incarnation counts."""

    node_id: NodeId
    address: str
    incarnation: int
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? The receiver answers with an ack of the same number, and learns of the sender."""

    number: int
    sender: Member


@dataclass(frozen=True, slots=True)
class Ack:
    """I am; in answer to the ping of this number."""

    number: int
    sender: Member


Datagram = Ping | Ack


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """Here is my version vector, what you lack of my logs, and files I ask you to hold."""

    sender: Member
    members: tuple[Member, ...]
    vv: VersionVector
    state_sum: int
    ops: tuple[bytes, ...]
    hold: tuple[Dot, ...] = ()
    chunks: tuple[bytes, ...] = ()
    """Contents of small chunks of the files to hold."""
    behind: bool = False
    """What you lack is no longer in my log: fetch my whole state."""


@dataclass(frozen=True, slots=True)
class ExchangeReply:
    """Where I stand now, and what you lack of my logs."""

    members: tuple[Member, ...]
    vv: VersionVector
    state_sum: int
    ops: tuple[bytes, ...]
    more: bool
    """There are more ops than fit; exchange again."""
    behind: bool
    """What you lack is no longer in my log: fetch my whole state."""


def encode_datagram(cluster_id: str, message: Datagram) -> bytes:
    """The bytes of a datagram."""
    kind = _PING if isinstance(message, Ping) else _ACK
    return codec.pack([WIRE_VERSION, kind, cluster_id, message.number, _member_fields(message.sender)])


def decode_datagram(cluster_id: str, raw: bytes) -> Datagram:
    """The message in a datagram; raises MalformedMessage, or WrongCluster."""
    fields = _versioned(codec.unpack(raw, DATAGRAM_BYTES_MAX), 5)
    _check_cluster(cluster_id, fields[2])
    number = codec.read_int(fields[3], codec.SIZE_MAX)
    sender = read_member(fields[4])
    if fields[1] == _PING:
        return Ping(number, sender)
    if fields[1] == _ACK:
        return Ack(number, sender)
    raise MalformedMessage(f"a datagram of unknown kind {fields[1]!r}")


def encode_request(cluster_id: str, request: ExchangeRequest) -> bytes:
    """The bytes of an exchange's request."""
    return codec.pack(
        [
            WIRE_VERSION,
            cluster_id,
            _member_fields(request.sender),
            members_fields(request.members),
            codec.vv_fields(request.vv),
            request.state_sum.to_bytes(16, "big"),
            request.ops,
            codec.dots_fields(request.hold),
            request.chunks,
            request.behind,
        ]
    )


def decode_request(cluster_id: str, raw: bytes) -> ExchangeRequest:
    """The request in these bytes; raises MalformedMessage, or WrongCluster."""
    fields = _versioned(codec.unpack(raw), 10)
    _check_cluster(cluster_id, fields[1])
    return ExchangeRequest(
        sender=read_member(fields[2]),
        members=read_members(fields[3]),
        vv=codec.read_vv(fields[4]),
        state_sum=int.from_bytes(codec.read_bytes(fields[5], 16), "big"),
        ops=codec.read_each(fields[6], codec.read_bytes),
        hold=codec.read_dots(fields[7]),
        chunks=codec.read_each(fields[8], codec.read_bytes),
        behind=codec.read_bool(fields[9]),
    )


def encode_reply(reply: ExchangeReply) -> bytes:
    """The bytes of an exchange's reply."""
    return codec.pack(
        [
            WIRE_VERSION,
            members_fields(reply.members),
            codec.vv_fields(reply.vv),
            reply.state_sum.to_bytes(16, "big"),
            reply.ops,
            reply.more,
            reply.behind,
        ]
    )


def decode_reply(raw: bytes) -> ExchangeReply:
    """The reply in these bytes; raises MalformedMessage."""
    fields = _versioned(codec.unpack(raw), 7)
    return ExchangeReply(
        members=read_members(fields[1]),
        vv=codec.read_vv(fields[2]),
        state_sum=int.from_bytes(codec.read_bytes(fields[3], 16), "big"),
        ops=codec.read_each(fields[4], codec.read_bytes),
        more=codec.read_bool(fields[5]),
        behind=codec.read_bool(fields[6]),
    )


def _member_fields(member: Member) -> list[object]:
    return [member.node_id, member.address, member.incarnation, member.zone]


def members_fields(members: tuple[Member, ...]) -> list[object]:
    """Members as plain values."""
    return [_member_fields(member) for member in members]


def read_member(value: object) -> Member:
    """The member in plain values; raises MalformedMessage."""
    node_id, address, incarnation, zone = codec.read_list(value, 4)
    return Member(
        codec.read_node_id(node_id),
        codec.read_text(address, ADDRESS_CHARS_MAX),
        codec.read_int(incarnation, INCARNATION_MAX),
        codec.read_text(zone, ZONE_CHARS_MAX),
    )


def read_members(value: object) -> tuple[Member, ...]:
    """The members in plain values; raises MalformedMessage."""
    return codec.read_each(value, read_member)


def _versioned(value: object, length: int) -> list[object]:
    """The fields of a message of this wire version or a later one, which may have more of them."""
    fields = codec.read_list(value)
    if len(fields) < length or codec.read_int(fields[0], 255) < WIRE_VERSION:
        raise MalformedMessage(f"a message of {len(fields)} fields; this wire version has {length}")
    return fields


def _check_cluster(ours: str, theirs: object) -> None:
    if codec.read_text(theirs, CLUSTER_ID_CHARS_MAX) != ours:
        raise WrongCluster(f"a message from cluster {theirs}; this is {ours}")
