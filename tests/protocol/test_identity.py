"""Dots as text, version vectors, and hybrid logical time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.identity import (
    EPOCH_BITS,
    NODE_ID_PATTERN,
    SEQ_MAX,
    STAMP_MAX,
    Dot,
    HybridClock,
    NodeId,
    Origin,
    Stamp,
    covers,
    covers_all,
    ms_of_stamp,
    stamp_of_ms,
)

NODE_IDS = st.from_regex(NODE_ID_PATTERN, fullmatch=True).map(NodeId)
ORIGINS = st.builds(Origin, NODE_IDS, st.integers(0, (1 << EPOCH_BITS) - 1))
DOTS = st.builds(Dot, ORIGINS, st.integers(1, SEQ_MAX))
FEW_ORIGINS = st.builds(Origin, st.sampled_from(["a", "b"]).map(NodeId), st.integers(0, 2))
VECTORS = st.dictionaries(FEW_ORIGINS, st.integers(1, 5))
WALL_MS = st.integers(0, 1 << 46)


@given(DOTS)
def test_a_dot_reads_back_as_it_was_written(dot: Dot) -> None:
    assert Dot.parse(str(dot)) == dot


@given(DOTS, DOTS)
def test_different_dots_are_written_differently(one: Dot, other: Dot) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(st.text() | st.from_regex(r"[^:]*:[0-9a-fA-F+_ -]*:[0-9+_ -]*"))
def test_a_text_is_a_dot_in_its_one_spelling_or_malformed(text: str) -> None:
    try:
        dot = Dot.parse(text)
    except MalformedMessage:
        return
    assert str(dot) == text
    assert NODE_ID_PATTERN.fullmatch(dot.origin.node_id)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a:1", "a:1:0", "a:1:-1", "a:1:1:1", ":1:1", "a::1", "a:1:", "a: 1:1", "a:1: 1", "a:g:1", "a:A:1",
        "a:01:1", "a:1:01", "a:1:1\n", "a:8000000000000000:1", "a:1:9223372036854775808", "-a:1:1", "a:\u0661:1",
        "a:1:\u0661", "a:0x1:1", "a:1:1_0",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_dot_is_malformed(text: str) -> None:
    with pytest.raises(MalformedMessage):
        Dot.parse(text)


@given(VECTORS, VECTORS)
def test_a_vector_covers_another_when_it_covers_each_of_its_dots(
    one: dict[Origin, int], other: dict[Origin, int]
) -> None:
    dots = [Dot(origin, number) for origin, seq in other.items() for number in range(1, seq + 1)]
    assert covers_all(one, other) == all(covers(one, dot) for dot in dots)
    assert covers_all(one, {})
    assert covers_all(one, one)


@given(WALL_MS)
def test_a_stamp_keeps_its_millisecond(wall_ms: int) -> None:
    assert ms_of_stamp(stamp_of_ms(wall_ms)) == wall_ms
    assert ms_of_stamp(Stamp(stamp_of_ms(wall_ms) + 0xFFFF)) == wall_ms
    assert stamp_of_ms(wall_ms) <= STAMP_MAX


EVENTS = st.lists(
    st.tuples(st.sampled_from(["tick", "observe"]), WALL_MS, st.integers(0, STAMP_MAX).map(Stamp)), max_size=40
)


@given(EVENTS)
def test_stamps_only_grow_whatever_the_wall_clock_does(events: list[tuple[str, int, Stamp]]) -> None:
    clock, last = HybridClock(), Stamp(-1)
    for what, wall_ms, stamp in events:
        if what == "observe":
            clock.observe(stamp, wall_ms)
            continue
        ticked = clock.tick(wall_ms)
        assert ticked > last
        assert ticked >= stamp_of_ms(wall_ms)
        last = ticked


@given(EVENTS, WALL_MS, st.integers(-(10**6), HybridClock.DRIFT_MAX_MS))
def test_what_is_written_after_hearing_a_stamp_comes_after_it(
    events: list[tuple[str, int, Stamp]], wall_ms: int, ahead_ms: int
) -> None:
    clock = HybridClock()
    for _, at_ms, stamp in events:
        clock.observe(stamp, at_ms)
    heard = stamp_of_ms(max(0, wall_ms + ahead_ms))
    clock.observe(heard, wall_ms)
    assert clock.tick(wall_ms) > heard


@given(WALL_MS, st.integers(1, 1 << 40))
def test_one_wrong_clock_does_not_pull_the_others_along(wall_ms: int, beyond_ms: int) -> None:
    clock = HybridClock()
    clock.observe(stamp_of_ms(wall_ms + HybridClock.DRIFT_MAX_MS + beyond_ms), wall_ms)
    assert clock.stamps_ignored == 1
    assert ms_of_stamp(clock.tick(wall_ms)) == wall_ms


@given(st.lists(st.integers(0, 5), min_size=1, max_size=300))
def test_without_wrong_clocks_stamps_stay_close_to_the_wall_clock(pauses_ms: list[int]) -> None:
    ours, theirs, wall_ms = HybridClock(), HybridClock(), 10**9
    for pause_ms in pauses_ms:
        wall_ms += pause_ms
        stamp = ours.tick(wall_ms)
        theirs.observe(stamp, wall_ms)
        ours, theirs = theirs, ours
        assert ms_of_stamp(stamp) == wall_ms
