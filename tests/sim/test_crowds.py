"""Memberships in crowds: whatever is lost, late or restarted, views converge, and nobody who lives stays down."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.identity import Life, Member, Status
from protocol.member_list import MemberList
from protocol.membership import Membership, Timing
from sim.crowd import Crowd, One
from sim.membership import crashes, false_downs, full_view, idle_bytes, membership, rumor_rounds

TIMING = Timing()
SEED = 1


def views_differ(crowd: Crowd, ones: list[One]) -> str | None:
    """Who of those that run is not alive to one of them, or has another record there than its own."""
    running = [one for one in ones if one.is_running]
    for one in running:
        for other in running:
            if one.membership.known.status(other.node_id) is not Status.ALIVE:
                return f"at {crowd.now:.1f} {one.node_id} holds {other.node_id} for down"
            if one.membership.known.member(other.node_id) != other.membership.me:
                return f"at {crowd.now:.1f} {one.node_id} has another record of {other.node_id}"
    return None


def restart(crowd: Crowd, one: One, lost_disk: bool) -> None:
    """It starts again, with what it knew when it was killed, or nothing but its own name and those of the others."""
    known = one.membership.known
    incarnation = 1 if lost_disk else known.me.incarnation + 1
    members = tuple(replace(member, incarnation=1) if lost_disk else member for member in known.members())
    me = Member(one.node_id, known.me.address, incarnation)
    chance = Random(crowd.chance.getrandbits(64))
    one.membership = Membership(MemberList(me), members, TIMING, Life(round(crowd.now * 1000), 1), chance)
    one.timer += 1
    one.is_running = True
    crowd.start(one, 0.0)


ACTIONS = st.sampled_from(["crash", "restart", "lost disk", "pause", "loss", "wait"])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 8), st.integers(0, 999), st.lists(st.tuples(ACTIONS, st.floats(0.1, 20.0)), min_size=1, max_size=12)
)
def test_after_any_faults_all_who_live_hold_each_other_for_alive(
    peers: int, seed: int, actions: list[tuple[str, float]]
) -> None:
    crowd = Crowd(Random(seed))
    ones = crowd.formed(peers, TIMING)
    for action, for_s in actions:
        one = crowd.chance.choice(ones)
        crowd.loss = 0.5 if action == "loss" else 0.0
        if action == "crash":
            crowd.crash(one)
        elif action in ("restart", "lost disk"):
            crowd.crash(one)
            restart(crowd, one, lost_disk=action == "lost disk")
        elif action == "pause":
            one.busy_until = crowd.now + for_s
        crowd.run(crowd.now + for_s)
    crowd.loss = 0.0
    deadline = crowd.now + 200.0
    while (difference := views_differ(crowd, ones)) is not None:
        assert crowd.now < deadline, difference
        crowd.run(crowd.now + 1.0)
    down = [one for one in ones if not one.is_running]
    crowd.run(crowd.now + 60.0)
    for one in ones:
        assert one.membership.me.incarnation < 100
        for other in down if one.is_running else ():
            assert one.membership.known.status(other.node_id) is Status.DOWN
    assert views_differ(crowd, ones) is None


@pytest.mark.parametrize("peers", [3, 10])
def test_a_crash_is_noticed_in_seconds_and_then_by_all(peers: int) -> None:
    noticed = crashes(SEED, peers, 20, TIMING)
    assert len(noticed.first_s.values) == 20
    assert max(noticed.first_s.values) <= 6.0
    assert max(noticed.most_s.values) <= 1.0


def test_peers_that_are_well_do_not_hold_each_other_for_down_because_of_one_that_is_starved() -> None:
    _, at_those_that_are_well = false_downs(SEED, 12, TIMING)
    assert at_those_that_are_well == 0


def test_what_a_peer_sends_does_not_grow_with_their_number() -> None:
    few, many = idle_bytes(SEED, 5, TIMING), idle_bytes(SEED, 40, TIMING)
    assert many <= 1.1 * few
    assert many <= 700


def test_news_is_everywhere_within_some_rounds_of_gossip() -> None:
    rounds = rumor_rounds(SEED, 16, 10, TIMING)
    assert max(rounds.values) <= 6


def test_all_know_all_soon_after_a_start_at_once() -> None:
    assert full_view(SEED, 10, TIMING) < 5.0


def test_the_table_has_a_row_for_each_size() -> None:
    result = CliRunner().invoke(membership, ["--peers", "3", "--peers", "4"])
    assert result.exit_code == 0
    assert [line.split(" | ")[0] for line in result.stdout.splitlines()[2:]] == ["| 3", "| 4"]
