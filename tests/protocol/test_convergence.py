"""Peers converge, nothing acknowledged is lost and nothing removed comes back, whatever happens on the way.

The promises themselves are checked by `replicas.cluster`, after every step and after healing.
"""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from replicas.cluster import Cluster
from replicas.histories import (
    NTH,
    BeginTransfer,
    Exchange,
    Fetch,
    FinishTransfer,
    History,
    LoseAllCopies,
    Page,
    Partition,
    Remove,
    Restore,
    Resume,
    Rumor,
    TakeImage,
    TakeOver,
    Truncate,
    Upload,
    histories,
    history_of,
    shortest,
)
from replicas.stores import STORES, StoreKind

from protocol.identity import covers_all

SEEDS_SHARE, SEEDS_MAX = 30, 50_000
"""Seeded histories for each case the profile asks for, and at most: this is the test the rules stand on."""

every_store = pytest.mark.parametrize("kind", STORES, ids=str)

# Nothing here waits for anything, so more cases may simply take longer.
pytestmark = pytest.mark.timeout(0)


@every_store
def test_peers_converge_after_any_history(kind: StoreKind) -> None:
    def fails(history: History) -> bool:
        try:
            live_through(history, kind)
        except AssertionError:
            return True
        return False

    for seed in range(kind.cases(min(settings().max_examples * SEEDS_SHARE, SEEDS_MAX))):
        history = history_of(seed)
        try:
            live_through(history, kind)
        except AssertionError as error:
            if Phase.shrink not in settings().phases:
                raise
            raise AssertionError(f"seed {seed}; the steps that matter:\n{shortest(history, fails)}\n{error}") from error


@every_store
def test_peers_converge_after_any_history_that_hypothesis_thinks_of(kind: StoreKind) -> None:
    @settings(max_examples=kind.cases(settings().max_examples))
    @given(histories())
    def converge(history: History) -> None:
        live_through(history, kind)

    converge()


def live_through(history: History, kind: StoreKind) -> None:
    """Run a history, heal the cluster and check it."""
    cluster = history.run(kind)
    cluster.heal()
    cluster.close()


@every_store
def test_rows_that_rot_away_on_one_peer_come_back_and_nothing_is_removed_for_them(kind: StoreKind) -> None:
    @settings(max_examples=kind.cases(settings().max_examples))
    @given(histories(steps_max=20), st.sampled_from(NTH), st.sampled_from(NTH), st.booleans())
    def recover(history: History, who: int, nth: int, sum_follows: bool) -> None:
        cluster = history.run(kind)
        cluster.put(cluster.peers[0], "always-one")
        cluster.heal()
        rotten = cluster.peers[who % len(cluster.peers)]
        before = {op.dot for op in rotten.store.live()}
        assert cluster.rot(rotten, nth, sum_follows=sum_follows)
        cluster.scrub()
        cluster.heal()
        assert before <= {op.dot for op in rotten.store.live()}
        cluster.close()

    recover()


@every_store
def test_a_peer_whose_rows_are_damaged_takes_over_another_ones_state_and_keeps_what_its_log_has_beyond(
    kind: StoreKind,
) -> None:
    @settings(max_examples=kind.cases(settings().max_examples))
    @given(histories(steps_max=25), st.sampled_from(NTH), st.sampled_from(NTH), st.booleans(), st.booleans())
    def recover(history: History, who: int, nth: int, is_altered: bool, sum_follows: bool) -> None:
        cluster = history.run(kind)
        damaged = cluster.peers[who % len(cluster.peers)]
        source = cluster.peers[(who + 1) % len(cluster.peers)]
        cluster.put(damaged, "its-own")
        vv = damaged.vv
        assert cluster.alter(damaged, nth) if is_altered else cluster.rot(damaged, nth, sum_follows=sum_follows)
        adopted = cluster.adopt(damaged, source)
        if adopted:
            assert covers_all(damaged.vv, vv)
            assert covers_all(damaged.vv, source.vv)
        else:
            cluster.set_catalog_aside(damaged)
        cluster.heal()
        if adopted:
            assert all(peer.store.puts_of("its-own") for peer in cluster.peers)
        cluster.close()

    recover()


# Each broke a rule once, or is the shortest that breaks one when the code that keeps it is taken away.
TOLD = {
    "a hold heard as a rumor shows that the held put was heard, so a resumed image does not give that put's dot back": [
        *(Upload(1, "a"), Exchange(2, 2), TakeImage(1), Fetch(2, 0), Rumor(2, 1, 0), TakeImage(1)),
        *(Upload(1, "b"), Exchange(0, 0), Resume(1, 0), Exchange(1, 0), Exchange(1, 1)),
    ],
    "a resumed image that only hears a rumor of what it forgot leaves its epoch": [
        *(Upload(0, "a"), TakeImage(0), Upload(0, "b"), Exchange(0, 0), Resume(0, 1), Upload(0, "c")),
    ],
    "a delete on one side of a partition leaves alone what the other side wrote meanwhile": [
        *(Upload(0, "a"), Exchange(0, 0), Exchange(0, 1), Partition(0b001), Remove(0, "a"), Upload(1, "a")),
        *(Exchange(1, 0), Partition(0)),
    ],
    "a backup from before a delete does not bring the file back": [
        *(Upload(0, "a"), Exchange(0, 0), TakeImage(1), Remove(0, "a"), Exchange(0, 0), Truncate(0), Restore(1, 0)),
    ],
    "a file that is written while a whole state is under way is not taken for removed": [
        *(Upload(0, "a"), Upload(0, "b"), BeginTransfer(1, 1), Page(1, 1), Upload(0, "c"), Remove(0, "a")),
        *(Page(1, 100), Upload(1, "a"), FinishTransfer(1), Exchange(1, 1)),
    ],
    "who took over a whole state sends others on to it and not to a log it never had": [
        *(Upload(0, "a"), Upload(0, "b"), Truncate(0), TakeOver(1, 1), Upload(0, "c"), Exchange(1, 1), Exchange(2, 1)),
    ],
    "a drop of everything reaches the holds of every life": [
        *(Upload(0, "a"), TakeImage(0), Upload(0, "b"), Exchange(0, 0), Restore(0, 0), Upload(0, "c")),
        *(Exchange(0, 0), LoseAllCopies(0), Exchange(1, 1)),
    ],
}


@every_store
@pytest.mark.parametrize("claim", TOLD)
def test_it_holds_that(claim: str, kind: StoreKind) -> None:
    live_through(History(3, tuple(TOLD[claim])), kind)


@every_store
def test_what_was_deleted_before_everyone_lost_the_log_stays_deleted(kind: StoreKind) -> None:
    cluster = Cluster(kind, 3)
    away, *others = cluster.peers
    put = cluster.put(away, "a")
    for other in others:
        cluster.exchange(other, away)
    cluster.delete(others[0], "a")
    cluster.exchange(others[1], others[0])
    for other in others:
        cluster.truncate(other, only_common=False)
    cluster.heal()
    assert all(peer.store.put_at(put.dot) is None for peer in cluster.peers)
    assert not any(peer.puts() for peer in cluster.peers)
    cluster.close()


@every_store
def test_concurrent_puts_of_one_key_both_live_and_every_peer_shows_the_same(kind: StoreKind) -> None:
    cluster = Cluster(kind, 4)
    puts = [cluster.put(peer, "a") for peer in cluster.peers[:3]]
    cluster.heal()
    shown = [[put.dot for put in peer.store.puts_of("a")] for peer in cluster.peers]
    assert all(versions == shown[0] for versions in shown)
    assert sorted(shown[0]) == sorted(put.dot for put in puts)
    cluster.close()


@every_store
def test_a_resumed_image_does_not_write_again_what_was_deleted_since(kind: StoreKind) -> None:
    cluster = History(2, (Upload(0, "a"), TakeImage(0), Exchange(1, 0), Remove(1, "a"), Upload(0, "b"))).run(kind)
    Exchange(1, 0).run(cluster)
    Resume(0, 0).run(cluster)
    cluster.heal()
    assert not any(peer.store.puts_of("a") for peer in cluster.peers)
