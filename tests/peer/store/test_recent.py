"""Contents of small files that were taken in a moment ago."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from peer.store import recent
from peer.store.recent import RecentContents
from protocol.identity import Dot, NodeId, Origin

ORIGIN = Origin(NodeId("node-1"), 1)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, recent.BYTES_MAX // 2)), max_size=12))
def test_the_last_are_remembered_as_many_as_fit(puts: list[tuple[int, int]]) -> None:
    contents = RecentContents()
    for seq, size in puts:
        contents.remember(Dot(ORIGIN, seq), {b"hash": bytes(size)})
        assert contents.of(Dot(ORIGIN, seq)) == {b"hash": bytes(size)}
    last = dict(reversed([(seq, size) for seq, size in reversed(puts)]))
    order = list(dict.fromkeys(seq for seq, _ in reversed(puts)))
    left = recent.BYTES_MAX
    for seq in order:
        left -= last[seq]
        expected = {b"hash": bytes(last[seq])} if left >= 0 else None
        assert contents.of(Dot(ORIGIN, seq)) == expected


def test_one_that_is_too_large_is_not_remembered() -> None:
    contents = RecentContents()
    contents.remember(Dot(ORIGIN, 1), {b"hash": bytes(recent.BYTES_MAX + 1)})
    assert contents.of(Dot(ORIGIN, 1)) is None
    contents.remember(Dot(ORIGIN, 2), {b"hash": b"small"})
    assert contents.of(Dot(ORIGIN, 2)) == {b"hash": b"small"}
