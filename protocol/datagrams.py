"""What peers say to each other in datagrams: probes, answers, and rumors that travel along.

A datagram is a msgpack list that starts with its version and its kind; new fields are only ever added behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from protocol import codec
from protocol.errors import MalformedMessage, WrongVersion
from protocol.identity import Eviction, Life, Member, NodeId, Status
from protocol.messages import INCARNATION_MAX, check_cluster, member_fields, read_eviction, read_member
from protocol.sessions import SEAL_BYTES

DATAGRAM_VERSION = 3
"""2: rumors, and probes by way of others. 3: members that leave, or are out; sealed."""

DATAGRAM_BYTES_MAX = 1400 - SEAL_BYTES
"""Before it is sealed."""

RUMORS_BYTES_MAX = 700
"""Of the rumors in one datagram: the longest names, addresses and zones there can be fit in beside them."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """A peer takes the member, in the life of this incarnation, for suspect, down or out.

    A record of a higher incarnation refutes it; of two for one incarnation the graver counts.
    """

    node_id: NodeId
    incarnation: int
    status: Status
    accuser: NodeId


Rumor = Member | Accusation | Eviction


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? The receiver answers with an ack of the same number, and learns of the sender."""

    number: int
    sender: Member
    life: Life | None = None
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True, slots=True)
class Ack:
    """I am; in answer to the ping of this number."""

    number: int
    sender: Member
    life: Life | None = None
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """My ping of this number was not answered: ping the target for me, and tell me what came of it."""

    number: int
    sender: Member
    target: NodeId
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True, slots=True)
class IndirectAck:
    """The target of your request has answered me."""

    number: int
    sender: Member
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True, slots=True)
class Nack:
    """The target of your request has not answered me so far, but I am there and heard you."""

    number: int
    sender: Member
    rumors: tuple[Rumor, ...] = ()


@dataclass(frozen=True, slots=True)
class Gossip:
    """Nothing but rumors; it is not answered."""

    sender: Member
    rumors: tuple[Rumor, ...] = ()


Datagram = Ping | Ack | PingRequest | IndirectAck | Nack | Gossip


class _Kind(IntEnum):
    """What a datagram is, as its second field says."""

    PING = 0
    ACK = 1
    PING_REQUEST = 2
    INDIRECT_ACK = 3
    NACK = 4
    GOSSIP = 5


_STATUSES = (Status.SUSPECT, Status.DOWN, Status.OUT)
_RECORD, _EVICTION = len(_STATUSES), len(_STATUSES) + 1


def encode_datagram(cluster_id: str, message: Datagram) -> bytes:
    """The bytes of a datagram."""
    kind, number, last = _parts(message)
    rumors = [_rumor_fields(rumor) for rumor in message.rumors]
    fields = [DATAGRAM_VERSION, kind.value, cluster_id, number, member_fields(message.sender), rumors]
    return codec.pack([*fields, last])


def _parts(message: Datagram) -> tuple[_Kind, int, object]:
    """Kind, number, and what only this kind has."""
    match message:
        case Ping():
            return _Kind.PING, message.number, message.life
        case Ack():
            return _Kind.ACK, message.number, message.life
        case PingRequest():
            return _Kind.PING_REQUEST, message.number, message.target
        case IndirectAck():
            return _Kind.INDIRECT_ACK, message.number, None
        case Nack():
            return _Kind.NACK, message.number, None
        case Gossip():
            return _Kind.GOSSIP, 0, None


def decode_datagram(cluster_id: str, raw: bytes) -> Datagram:
    """The message in a datagram; raises MalformedMessage, WrongVersion or WrongCluster."""
    fields = codec.read_list(codec.unpack(raw, DATAGRAM_BYTES_MAX))
    version = codec.read_int(fields[0], 255) if fields else 0
    if version < DATAGRAM_VERSION:
        raise WrongVersion(f"its datagrams have version {version}, and this release's {DATAGRAM_VERSION}; upgrade it")
    if len(fields) < 7:
        raise MalformedMessage(f"a datagram of {len(fields)} fields; version {version} has seven")
    check_cluster(cluster_id, fields[2])
    number, sender = codec.read_int(fields[3], codec.SIZE_MAX), read_member(fields[4])
    rumors = codec.read_each(fields[5], _read_rumor)
    last = fields[6]
    match fields[1]:
        case _Kind.PING:
            return Ping(number, sender, _read_life(last), rumors)
        case _Kind.ACK:
            return Ack(number, sender, _read_life(last), rumors)
        case _Kind.PING_REQUEST:
            return PingRequest(number, sender, codec.read_node_id(last), rumors)
        case _Kind.INDIRECT_ACK:
            return IndirectAck(number, sender, rumors)
        case _Kind.NACK:
            return Nack(number, sender, rumors)
        case _Kind.GOSSIP:
            return Gossip(sender, rumors)
    raise MalformedMessage(f"a datagram of unknown kind {fields[1]!r}")


def rumor_size(rumor: Rumor) -> int:
    """Bytes of a rumor in a datagram."""
    return len(codec.pack(_rumor_fields(rumor)))


def _rumor_fields(rumor: Rumor) -> list[object]:
    if isinstance(rumor, Member):
        return [_RECORD, *member_fields(rumor)]
    if isinstance(rumor, Eviction):
        return [_EVICTION, *rumor]
    return [_STATUSES.index(rumor.status), rumor.node_id, rumor.incarnation, rumor.accuser]


def _read_rumor(value: object) -> Rumor:
    fields = codec.read_list(value)
    kind = codec.read_int(fields[0], _EVICTION) if fields else _RECORD
    if kind == _RECORD:
        return read_member(fields[1:])
    if kind == _EVICTION:
        return read_eviction(fields[1:])
    node_id, incarnation, accuser = codec.read_list(fields[1:], 3)
    return Accusation(
        codec.read_node_id(node_id),
        codec.read_int(incarnation, INCARNATION_MAX),
        _STATUSES[kind],
        codec.read_node_id(accuser),
    )


def _read_life(value: object) -> Life | None:
    if value is None:
        return None
    started_ms, number = codec.read_list(value, 2)
    return Life(codec.read_int(started_ms, codec.MS_MAX), codec.read_int(number, codec.SIZE_MAX))
