"""Messages as bytes: they read back, and what is none is refused in one way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    ATTEMPTS,
    CLUSTER,
    COUNTS,
    DATAGRAMS,
    DOTS,
    FINGERPRINTS,
    JUNK,
    MANY_MEMBERS,
    REPLIES,
    REQUESTS,
    SUMS,
    TEXT,
    VECTORS,
)

from protocol import messages
from protocol.codec import FILE_KEY_PATTERN, MS_MAX, SIZE_MAX, encode_op
from protocol.datagrams import (
    DATAGRAM_BYTES_MAX,
    DATAGRAM_VERSION,
    RUMORS_BYTES_MAX,
    Ack,
    Datagram,
    Gossip,
    IndirectAck,
    Nack,
    Ping,
    PingRequest,
    decode_datagram,
    encode_datagram,
    rumor_size,
)
from protocol.errors import MalformedMessage, ProtocolError, WrongCluster, WrongVersion
from protocol.forks import Fingerprints
from protocol.identity import (
    NODE_ID_PATTERN,
    SEQ_MAX,
    Dot,
    Life,
    Member,
    NodeId,
    Origin,
    Stamp,
    VersionVector,
)
from protocol.messages import (
    ADDRESS_CHARS_MAX,
    CLUSTER_ID_CHARS_MAX,
    HASHES_MAX,
    INCARNATION_MAX,
    WIRE_VERSION,
    ZONE_CHARS_MAX,
    ExchangeReply,
    ExchangeRequest,
    Recovery,
    RepairAttempt,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from protocol.ops import Drop, Hold


@given(DATAGRAMS)
def test_datagrams_read_back(message: Datagram) -> None:
    raw = encode_datagram(CLUSTER, message)
    if len(raw) <= DATAGRAM_BYTES_MAX:
        assert decode_datagram(CLUSTER, raw) == message


@settings(max_examples=30)
@given(REQUESTS)
def test_requests_read_back(request: ExchangeRequest) -> None:
    assert decode_request(CLUSTER, encode_request(CLUSTER, request)) == request


@settings(max_examples=30)
@given(REPLIES)
def test_replies_read_back(reply: ExchangeReply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_the_largest_datagram_of_plain_text_fits_its_limit() -> None:
    """Addresses and zones are plain ASCII: host names and ports."""
    member = Member(NodeId("n" * 64), "a" * ADDRESS_CHARS_MAX, INCARNATION_MAX, "z" * ZONE_CHARS_MAX)
    life = Life(MS_MAX, SIZE_MAX)
    rumors: tuple[Member, ...] = ()
    while sum(map(rumor_size, (*rumors, member))) <= RUMORS_BYTES_MAX:
        rumors += (member,)
    messages: tuple[Datagram, ...] = (
        Ping(SEQ_MAX, member, life, rumors),
        Ack(SEQ_MAX, member, life, rumors),
        PingRequest(SEQ_MAX, member, member.node_id, rumors),
        IndirectAck(SEQ_MAX, member, rumors),
        Nack(SEQ_MAX, member, rumors),
        Gossip(member, rumors),
    )
    for message in messages:
        raw = encode_datagram("c" * CLUSTER_ID_CHARS_MAX, message)
        assert len(raw) <= DATAGRAM_BYTES_MAX
        assert decode_datagram("c" * CLUSTER_ID_CHARS_MAX, raw) == message


def test_a_datagram_over_the_limit_is_refused() -> None:
    raw = encode_datagram(CLUSTER, Ping(1, Member(NodeId("a"), "\U0001f600" * 255, 1, "\U0001f600" * 63)))
    if len(raw) > DATAGRAM_BYTES_MAX:
        with pytest.raises(MalformedMessage):
            decode_datagram(CLUSTER, raw)
    with pytest.raises(MalformedMessage):
        decode_datagram(CLUSTER, bytes(DATAGRAM_BYTES_MAX + 1))


PLAIN_DECODERS: tuple[Callable[[bytes], object], ...] = (
    messages.decode_join,
    messages.decode_hashes,
    messages.decode_contents,
    messages.decode_snapshot_head,
    messages.decode_snapshot_page,
    messages.decode_log_hashes,
    messages.decode_recovery,
    messages.decode_attempts,
)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=CLUSTER_ID_CHARS_MAX), MANY_MEMBERS)
def test_joining_reads_back(cluster_id: str, members: tuple[Member, ...]) -> None:
    assert messages.decode_join(messages.encode_joined(cluster_id, members)) == (cluster_id, members)
    me = members[0] if members else None
    assert messages.decode_join(messages.encode_join(cluster_id, me)) == (cluster_id, members[:1])


@given(st.lists(st.binary(min_size=32, max_size=32)), st.lists(st.none() | st.binary(max_size=50)))
def test_hashes_and_contents_read_back(hashes: list[bytes], contents: list[bytes | None]) -> None:
    assert messages.decode_hashes(messages.encode_hashes(hashes)) == tuple(hashes)
    assert messages.decode_contents(messages.encode_contents(contents)) == tuple(contents)


def test_more_hashes_than_are_looked_up_at_a_time_are_refused() -> None:
    most = [bytes(32)] * HASHES_MAX
    assert len(messages.decode_hashes(messages.encode_hashes(most))) == HASHES_MAX
    with pytest.raises(MalformedMessage):
        messages.decode_hashes(messages.encode_hashes([*most, bytes(32)]))


@given(DOTS, VECTORS, SUMS, FINGERPRINTS)
def test_dots_in_addresses_and_heads_of_snapshots_read_back(
    dot: Dot, vv: VersionVector, state_sum: int, fingerprints: Fingerprints
) -> None:
    assert messages.dot_of_text(messages.dot_as_text(dot)) == dot
    for is_damaged in (False, True):
        head = messages.SnapshotHead(vv, state_sum, is_damaged, fingerprints)
        assert messages.decode_snapshot_head(messages.encode_snapshot_head(head)) == head


@given(st.integers(1, SEQ_MAX), st.lists(st.binary(min_size=16, max_size=16)))
def test_running_hashes_read_back(first: int, log_hashes: list[bytes]) -> None:
    assert messages.decode_log_hashes(messages.encode_log_hashes(first, log_hashes)) == (first, log_hashes)


@given(VECTORS, SUMS, FINGERPRINTS)
def test_the_head_of_a_whole_state_may_say_nothing_of_forks(
    vv: VersionVector, state_sum: int, fingerprints: Fingerprints
) -> None:
    head = messages.encode_snapshot_head(messages.SnapshotHead(vv, state_sum, fingerprints=fingerprints))
    old = bytes(msgpack.packb(msgpack.unpackb(head)[:2]))
    assert messages.decode_snapshot_head(old) == messages.SnapshotHead(vv, state_sum)


@given(TEXT)
def test_any_text_in_an_address_is_a_dot_or_malformed(text: str) -> None:
    with suppress(MalformedMessage):
        messages.dot_of_text(text)


def test_a_page_of_a_snapshot_has_live_ops_only() -> None:
    dot = Dot(Origin(NodeId("a"), 1), 1)
    hold = Hold(dot, Stamp(1), dot, recovered=False)
    page = messages.encode_snapshot_page([encode_op(hold)])
    assert messages.decode_snapshot_page(page) == (hold,)
    with pytest.raises(MalformedMessage, match="Drop where a live op belongs"):
        messages.decode_snapshot_page(messages.encode_snapshot_page([encode_op(Drop(dot, Stamp(1), (dot,)))]))


@given(st.builds(Recovery, COUNTS, COUNTS, COUNTS), st.lists(ATTEMPTS))
def test_recoveries_and_attempts_read_back(recovery: Recovery, attempts: list[RepairAttempt]) -> None:
    assert messages.decode_recovery(messages.encode_recovery(recovery)) == recovery
    assert messages.decode_attempts(messages.encode_attempts(attempts)) == tuple(attempts)


@settings(max_examples=50)
@given(ATTEMPTS, st.integers(0, 4), JUNK)
def test_an_attempt_with_any_value_in_it_is_an_attempt_or_malformed(
    attempt: RepairAttempt, place: int, junk: object
) -> None:
    (fields,) = msgpack.unpackb(messages.encode_attempts([attempt]))
    for value in (junk, [], {}):
        fields[place] = value
        with suppress(MalformedMessage):
            messages.decode_attempts(msgpack.packb([fields]))


def decode_all(raw: bytes) -> None:
    for decode in (
        lambda: decode_datagram(CLUSTER, raw),
        lambda: decode_request(CLUSTER, raw),
        lambda: decode_reply(raw),
        *(partial(decode, raw) for decode in PLAIN_DECODERS),
    ):
        try:
            decode()
        except ProtocolError:
            continue


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(raw: bytes) -> None:
    decode_all(raw)


@given(st.lists(JUNK, max_size=12))
def test_any_values_are_a_message_or_a_protocol_error(values: list[object]) -> None:
    raw = msgpack.packb(values, use_bin_type=True)
    decode_all(raw)
    decode_all(msgpack.packb([1, 0, CLUSTER, *values]))
    decode_all(msgpack.packb([1, CLUSTER, *values]))


@settings(max_examples=30)
@given(DATAGRAMS, REQUESTS, REPLIES, st.data())
def test_a_message_with_something_changed_is_a_message_or_a_protocol_error(
    datagram: Datagram, request: ExchangeRequest, reply: ExchangeReply, data: st.DataObject
) -> None:
    for raw in (encode_datagram(CLUSTER, datagram), encode_request(CLUSTER, request), encode_reply(reply)):
        at = data.draw(st.integers(0, len(raw) - 1))
        changed = bytearray(raw)
        changed[at] = data.draw(st.integers(0, 255))
        decode_all(bytes(changed))
        decode_all(raw[:at])
        decode_all(raw + raw[:at])
        fields = msgpack.unpackb(raw)
        fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(JUNK)
        decode_all(msgpack.packb(fields))


@given(st.integers(1, 60), st.booleans())
def test_nesting_and_lengths_that_are_lies_are_refused(depth: int, deep: bool) -> None:
    decode_all((b"\x91" * depth * (1000 if deep else 1)) + b"\xc0")
    for lie in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01"):
        decode_all(lie)
        decode_all(b"\x95\x01\x00" + lie)


@settings(max_examples=30)
@given(DATAGRAMS, REQUESTS)
def test_messages_of_another_cluster_are_told_apart(datagram: Datagram, request: ExchangeRequest) -> None:
    raw = encode_datagram("another", datagram)
    if len(raw) <= DATAGRAM_BYTES_MAX:
        with pytest.raises(WrongCluster):
            decode_datagram(CLUSTER, raw)
    with pytest.raises(WrongCluster):
        decode_request(CLUSTER, encode_request("another", request))


@settings(max_examples=30)
@given(REQUESTS, REPLIES, DATAGRAMS, JUNK)
def test_more_fields_are_understood_and_datagrams_of_a_later_version(
    request: ExchangeRequest, reply: ExchangeReply, datagram: Datagram, more: object
) -> None:
    def later(raw: bytes, version: int) -> bytes:
        return bytes(msgpack.packb([version, *msgpack.unpackb(raw)[1:], more]))

    assert decode_request(CLUSTER, later(encode_request(CLUSTER, request), WIRE_VERSION)) == request
    assert decode_reply(later(encode_reply(reply), WIRE_VERSION)) == reply
    raw = later(encode_datagram(CLUSTER, datagram), DATAGRAM_VERSION + 1)
    if len(raw) <= DATAGRAM_BYTES_MAX:
        assert decode_datagram(CLUSTER, raw) == datagram


@settings(max_examples=10)
@given(REQUESTS, REPLIES, st.integers(0, 255).filter(lambda version: version != WIRE_VERSION))
def test_logs_are_exchanged_with_peers_of_the_same_wire_version_only(
    request: ExchangeRequest, reply: ExchangeReply, version: int
) -> None:
    def of_another(raw: bytes) -> bytes:
        return bytes(msgpack.packb([version, *msgpack.unpackb(raw)[1:]]))

    with pytest.raises(WrongVersion, match=f"version {version} and the receiver {WIRE_VERSION}; upgrade"):
        decode_request(CLUSTER, of_another(encode_request(CLUSTER, request)))
    with pytest.raises(WrongVersion, match="upgrade"):
        decode_reply(of_another(encode_reply(reply)))


def test_patterns_match_whole_texts_only() -> None:
    assert not FILE_KEY_PATTERN.fullmatch("a\n")
    assert not NODE_ID_PATTERN.fullmatch("a\n")
