"""Ops and version vectors survive the wire, and nothing a stranger sends does more than MalformedMessage."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from replicas.ops import all_ops, dot_lists, dots, live_ops, manifests, puts, version_vectors
from replicas.oracle import content_of

from protocol.codec import (
    CONTENT_TYPE_CHARS_MAX,
    FILENAME_CHARS_MAX,
    HASH_BYTES,
    MS_MAX,
    OP_BYTES_MAX,
    RUN_WEIGHT,
    SIZE_MAX,
    OpDots,
    decode_op,
    digest_of,
    dots_in,
    encode_op,
    manifest_fields,
    pack,
    read_manifest,
    read_vv,
    root_of,
    unpack,
    vv_fields,
    weight_of,
)
from protocol.errors import MalformedMessage
from protocol.identity import EPOCH_BITS, SEQ_MAX, STAMP_MAX, Dot, NodeId, Origin, VersionVector
from protocol.ops import COPIES_MAX, RUN_MAX, HoldRun, LiveOp, Manifest, Op, Put, holds_in, last_dot, needs_of

PUT = ["node-1", 7, 1, 0, ["a", "a.txt", 0, bytes(HASH_BYTES), "text/plain", 0, 3, []], []]

_leaves = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
plain_values = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=20
)


def check_op_or_malformed(raw: bytes) -> None:
    """Whatever is taken for an op is one: it goes over the wire again and stays the same."""
    with suppress(MalformedMessage):
        op = decode_op(raw)
        assert decode_op(encode_op(op)) == op


@given(all_ops)
def test_an_op_comes_back_from_its_bytes(op: Op) -> None:
    assert decode_op(encode_op(op)) == op


@given(all_ops)
def test_the_dots_in_an_ops_bytes_are_its_own_and_those_it_names(op: Op) -> None:
    assert dots_in(encode_op(op)) == OpDots(op.dot.origin, op.dot.seq, last_dot(op).seq, needs_of(op))


@given(all_ops)
def test_equal_ops_have_equal_bytes(op: Op) -> None:
    assert encode_op(decode_op(encode_op(op))) == encode_op(op)


@given(all_ops, all_ops)
def test_different_ops_have_different_bytes(one: Op, other: Op) -> None:
    assert (one == other) == (encode_op(one) == encode_op(other))


@given(manifests())
def test_a_manifest_comes_back_from_its_bytes(manifest: Manifest) -> None:
    assert read_manifest(unpack(pack(manifest_fields(manifest)))) == manifest


@given(version_vectors)
def test_a_version_vector_comes_back_from_its_bytes(vv: VersionVector) -> None:
    assert read_vv(unpack(pack(vv_fields(vv)))) == vv


@given(version_vectors, st.randoms(use_true_random=False))
def test_the_bytes_of_a_version_vector_do_not_depend_on_the_order_it_was_filled_in(vv: VersionVector, rng) -> None:
    entries = list(vv.items())
    rng.shuffle(entries)
    assert pack(vv_fields(dict(entries))) == pack(vv_fields(vv))
    assert root_of(dict(entries), 5) == root_of(vv, 5)


@given(version_vectors, version_vectors, st.integers(0, (1 << 128) - 1), st.integers(0, (1 << 128) - 1))
def test_roots_are_equal_exactly_when_vector_and_sum_are(
    one: VersionVector, other: VersionVector, one_sum: int, other_sum: int
) -> None:
    assert (root_of(one, one_sum) == root_of(other, other_sum)) == ((one, one_sum) == (other, other_sum))


@given(puts, dot_lists)
def test_what_a_put_superseded_is_no_part_of_its_digest(put: Put, supersedes: tuple[Dot, ...]) -> None:
    assert digest_of(replace(put, supersedes=supersedes)) == digest_of(put)


@given(live_ops, live_ops)
def test_different_live_ops_have_different_digests(one: LiveOp, other: LiveOp) -> None:
    same = content_of(one) == content_of(other)
    assert (digest_of(one) == digest_of(other)) == same


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
def test_any_bytes_are_an_op_or_malformed(raw: bytes) -> None:
    check_op_or_malformed(raw)


@given(all_ops, st.data())
def test_an_op_with_some_bytes_changed_is_an_op_or_malformed(op: Op, data: st.DataObject) -> None:
    raw = bytearray(encode_op(op))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    check_op_or_malformed(bytes(raw))


@given(all_ops, st.data())
def test_a_truncated_op_is_malformed(op: Op, data: st.DataObject) -> None:
    raw = encode_op(op)
    with pytest.raises(MalformedMessage):
        decode_op(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(all_ops, st.binary(min_size=1, max_size=5))
def test_bytes_behind_the_end_of_an_op_are_malformed(op: Op, more: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_op(encode_op(op) + more)


@given(plain_values)
def test_any_plain_values_are_an_op_or_malformed(value: object) -> None:
    check_op_or_malformed(msgpack.packb(value))


@given(st.integers(0, 4) | _leaves, st.lists(plain_values | st.integers(0, 9), min_size=6, max_size=6), st.data())
def test_a_put_with_one_field_replaced_is_an_op_or_malformed(kind: object, values: list, data: st.DataObject) -> None:
    fields = [kind, *PUT]
    fields[data.draw(st.integers(1, 6))] = values[0]
    check_op_or_malformed(msgpack.packb(fields))


@given(plain_values)
def test_any_plain_values_are_a_version_vector_and_a_manifest_or_malformed(value: object) -> None:
    with suppress(MalformedMessage):
        vv = read_vv(value)
        assert read_vv(vv_fields(vv)) == vv
    with suppress(MalformedMessage):
        assert manifest_fields(read_manifest(value)) == value


@pytest.mark.parametrize("depth", [100, 500, 900, 1000, 1023, 5000, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa0", b"\x97"])
def test_values_nested_without_end_are_malformed(depth: int, opening: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_op(opening * depth + b"\x90")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a list that fingerprints four thousand million values"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="a map that fingerprints as many"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bytes that claim four gigabytes"),
        pytest.param(b"\x81\x90\x00", id="a list as a key"),
        pytest.param(b"\x81\x01\x02", id="a number as a key"),
        pytest.param(b"\xa1\xff", id="text that is no UTF-8"),
        pytest.param(b"\xd4\x05\x00", id="an extension"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="a timestamp"),
    ],
)
def test_bytes_made_to_break_a_decoder_are_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack(raw)
    with pytest.raises(MalformedMessage):
        decode_op(b"\x97" + raw * 7)


def test_a_message_beyond_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(MalformedMessage, match="the limit is 10"):
        unpack(b"\xc1" * 11, size_max=10)
    with pytest.raises(MalformedMessage, match=f"the limit is {OP_BYTES_MAX}"):
        decode_op(bytes(OP_BYTES_MAX + 1))


def changed(path: tuple[int, ...], value: object) -> bytes:
    """A good put with one field set to something else."""
    fields: list = [0, *PUT]
    fields[5] = list(fields[5])
    inner = fields
    for index in path[:-1]:
        inner = inner[index]
    inner[path[-1]] = value
    return pack(fields)


AT_THE_LIMIT = {
    "epoch": ((2,), (1 << EPOCH_BITS) - 1),
    "seq": ((3,), SEQ_MAX),
    "stamp": ((4,), STAMP_MAX),
    "filename": ((5, 1), "x" * FILENAME_CHARS_MAX),
    "content type": ((5, 4), "x" * CONTENT_TYPE_CHARS_MAX),
    "time": ((5, 5), MS_MAX),
    "copies": ((5, 6), COPIES_MAX),
    "file key": ((5, 0), "x" * 128),
    "node id": ((1,), "x" * 64),
}


@pytest.mark.parametrize("limit", AT_THE_LIMIT)
def test_a_value_at_its_limit_passes_and_one_beyond_is_malformed(limit: str) -> None:
    path, value = AT_THE_LIMIT[limit]
    decode_op(changed(path, value))
    beyond = value + 1 if isinstance(value, int) else value + "x"
    with pytest.raises(MalformedMessage):
        decode_op(changed(path, beyond))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0,), 6),
        ((0,), True),
        ((0,), 0.0),
        ((1,), "../etc"),
        ((1,), "a\n"),
        ((1,), ""),
        ((2,), -1),
        ((2,), True),
        ((3,), 0),
        ((5, 0), ".hidden"),
        ((5, 0), "a/b"),
        ((5, 2), 1),
        ((5, 2), SIZE_MAX + 1),
        ((5, 3), bytes(HASH_BYTES - 1)),
        ((5, 3), "x" * HASH_BYTES),
        ((5, 7), [bytes(HASH_BYTES)]),
        ((5, 7), [bytes(HASH_BYTES), -1]),
        ((6,), [["node-1", 7, 0]]),
        ((6,), [["node-1", 7]]),
        ((6,), None),
    ],
)
def test_a_put_with_a_value_that_cannot_be_is_malformed(path: tuple[int, ...], value: object) -> None:
    decode_op(pack([0, *PUT]))
    with pytest.raises(MalformedMessage):
        decode_op(changed(path, value))


@pytest.mark.parametrize(
    ("seq", "puts"), [(1, 0), (1, 1), (1, RUN_MAX + 1), (SEQ_MAX, 2), (SEQ_MAX - RUN_MAX + 2, RUN_MAX)]
)
def test_a_run_of_too_few_holds_or_too_many_is_malformed(seq: int, puts: int) -> None:
    def raw(seq: int, puts: int) -> bytes:
        return pack([5, "node-1", 7, seq, 0, [["node-1", 7, 1]] * puts, False])

    for size in (2, RUN_MAX):
        op = decode_op(raw(SEQ_MAX - size + 1, size))
        assert last_dot(op).seq == SEQ_MAX
    with pytest.raises(MalformedMessage):
        decode_op(raw(seq, puts))


@given(puts)
def test_what_a_put_says_of_its_writers_hold_is_no_part_of_its_digest_but_of_its_bytes(put: Put) -> None:
    other = replace(put, is_held=not put.is_held)
    assert digest_of(put) == digest_of(other)
    assert encode_op(put) != encode_op(other)
    (held,) = (one for one in (put, other) if one.is_held)
    assert [(hold.dot, hold.put, hold.stamp) for hold in holds_in(held)] == [(put.dot, put.dot, put.stamp)]
    assert not list(holds_in(replace(put, is_held=False)))


@given(dots)
def test_a_dot_comes_back_from_its_text(dot: Dot) -> None:
    assert Dot.parse(str(dot)) == dot


@given(st.text(max_size=40) | st.from_regex(r"[a-z][a-z0-9]{0,4}:[0-9a-fx_+ ]{0,20}:[0-9_+ ]{0,22}", fullmatch=True))
@example("node-1:0x1:1")
@example("node-1:1:+1")
@example("node-1:1:1_0")
@example("node-1:01:1")
@example("node-1:1:٣")
@example("node-1:1:1\n")
@example(f"node-1:{1 << EPOCH_BITS:x}:1")
@example(f"node-1:1:{SEQ_MAX + 1}")
def test_text_that_reads_as_a_dot_is_the_one_spelling_of_that_dot(text: str) -> None:
    with suppress(MalformedMessage):
        dot = Dot.parse(text)
        assert str(dot) == text
        assert decode_op(pack([0, *dot.origin, dot.seq, *PUT[3:]])).dot == dot


def test_dots_order_by_node_then_epoch_then_seq() -> None:
    parts = [("a", 1, 2), ("a", 2, 1), ("b", 0, 1), ("b", 0, 10)]
    ordered = [Dot(Origin(NodeId(node), epoch), seq) for node, epoch, seq in parts]
    assert sorted(ordered[i] for i in (2, 0, 3, 1)) == ordered


@given(all_ops)
def test_a_run_weighs_more_than_its_bytes_and_every_other_op_as_much(op: Op) -> None:
    raw = encode_op(op)
    assert weight_of(raw) == (RUN_WEIGHT if isinstance(op, HoldRun) else 1) * len(raw)
