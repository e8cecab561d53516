"""What happened, for people who watch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peer.events import KEPT_MAX, Events


@given(st.integers(0, 2 * KEPT_MAX), st.integers(-1, 3 * KEPT_MAX))
def test_the_newest_events_are_remembered_in_their_order_and_told_behind_any_of_them(told: int, behind: int) -> None:
    events = Events(lambda: 7, 1)
    for number in range(told):
        events.tell("down", node=f"node-{number}")
    assert events.last == told
    numbers = [event.number for event in events.since(behind)]
    assert numbers == list(range(max(behind, told - KEPT_MAX, 0) + 1, told + 1))
    assert all(event.about == {"node": f"node-{event.number - 1}"} for event in events.since(behind))


@given(st.lists(st.sampled_from(["uploaded", "down", "left"]), max_size=3 * KEPT_MAX), st.integers(0, 2 * KEPT_MAX))
def test_what_comes_often_pushes_out_nothing_of_another_kind(rest: list[str], behind: int) -> None:
    events = Events(lambda: 7, 1)
    kinds = ["down", *["uploaded"] * (2 * KEPT_MAX), *rest]
    for kind in kinds:
        events.tell(kind)
    numbered = list(enumerate(kinds, 1))
    remembered = {
        number
        for kind in set(kinds)
        for number in [number for number, one in numbered if one == kind][-KEPT_MAX:]
        if number > behind
    }
    assert [event.number for event in events.since(behind)] == sorted(remembered)
