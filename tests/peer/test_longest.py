"""The longest duration of the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peer.longest import REMEMBERED_S, Longest


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1))
def test_what_was_noted_shows_for_half_a_minute_at_least_and_for_a_minute_at_most(
    noted: list[tuple[float, float]],
) -> None:
    now = 0.0
    longest = Longest(lambda: now)
    history: list[tuple[float, float]] = []
    for after_s, seconds in noted:
        now += after_s
        longest.note(seconds)
        history.append((now, seconds))
        shown = longest.seconds()
        assert shown >= max(one for at, one in history if now - at < REMEMBERED_S / 2)
        assert shown <= max((one for at, one in history if now - at <= REMEMBERED_S), default=0.0)


def test_nothing_is_the_longest_of_nothing() -> None:
    assert Longest(lambda: 5.0).seconds() == 0.0
