"""`sim run`: storms of faults over seeds, and that they would find what they are for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from peer.files.delivery import Deliveries
from peer.store.chunks import ChunkStore
from protocol.ops import Put
from sim.faults import NEWCOMERS
from sim.model import Promise
from sim.run import (
    Plan,
    fewest,
    parse_seeds,
    planned_faults,
    replay,
    run,
    run_seed,
    shrink,
    smallest_failing,
)
from sim.scenarios import ALWAYS, SCENARIOS, draw_faults, draw_life


@pytest.mark.parametrize(("text", "seeds"), [("1..3", [1, 2, 3]), ("7", [7]), ("0..0", [0]), ("10..11", [10, 11])])
def test_seeds_are_a_range_with_both_its_ends(text: str, seeds: list[int]) -> None:
    assert list(parse_seeds(text)) == seeds


@pytest.mark.parametrize("text", ["", "..", "3..1", "a..b", "1..", "..2", "-1..2", "1...3"])
def test_what_is_no_range_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no range"):
        parse_seeds(text)


SMALL = Plan(peers=3, minutes=1)
SHORT = Plan(peers=3, minutes=0.25)


def test_a_seed_keeps_all_promises_and_says_what_it_tried() -> None:
    verdict = run_seed(SMALL, 3)
    assert verdict.objection is None
    assert verdict.done["uploads"] > 20
    assert verdict.done.total() > 100
    assert verdict.faults.total() > 10
    assert verdict.faults["power cuts"]
    assert verdict.faults["cut links"]


def test_a_seed_replays_what_happened_to_the_last_byte() -> None:
    lines: list[str] = []
    first, again = run_seed(SHORT, 5), run_seed(SHORT, 5, lines.append)
    assert (first.digest, first.done, first.faults) == (again.digest, again.done, again.faults)
    assert any(" fault " in line for line in lines)
    assert any(" client " in line for line in lines)


@pytest.mark.parametrize(
    ("scenario", "kinds"), [("calm", set()), ("clocks", {"clock steps"}), ("power", {"power cuts"})]
)
def test_a_scenario_has_only_its_own_kinds_of_faults(scenario: str, kinds: set[str]) -> None:
    verdict = run_seed(Plan(peers=2, minutes=0.3, scenario=scenario), 2)
    assert verdict.objection is None
    assert set(verdict.faults) <= kinds


@given(st.integers(0, 10_000), st.sampled_from(sorted(SCENARIOS)), st.floats(6, 60_000))
def test_a_life_has_what_no_seed_leaves_out_and_time_between(seed: int, scenario: str, storm_s: float) -> None:
    life = draw_life(seed, scenario, 3, storm_s)
    assert life == draw_life(seed, scenario, 3, storm_s)
    assert set(life.faults) <= set(SCENARIOS[scenario])
    assert {kind for kind in ALWAYS if kind in SCENARIOS[scenario]} <= set(life.faults)
    assert life.fault_pause_s > 0
    assert 0 < life.client_pause_s <= 2 * storm_s


@given(st.integers(0, 1000), st.sampled_from(sorted(SCENARIOS)), st.floats(6, 6000), st.integers(2, 9))
def test_faults_are_planned_in_order_with_what_no_seed_leaves_out_first(
    seed: int, scenario: str, storm_s: float, peers: int
) -> None:
    faults = draw_faults(seed, draw_life(seed, scenario, 3, storm_s), peers, storm_s)
    assert [fault.number for fault in faults] == list(range(len(faults)))
    assert all(one.at_s + one.lasts_s <= other.at_s for one, other in pairwise(faults))
    assert all(fault.at_s < storm_s and fault.peer < peers for fault in faults)
    assert len({fault.seed for fault in faults}) == len(faults)


# --- shrinking ---


@given(st.data())
def test_the_smallest_plan_has_what_makes_it_fail_and_little_else(data: st.DataObject) -> None:
    plan = Plan(peers=3, minutes=5)
    numbers = [fault.number for fault in planned_faults(plan, 1)]
    guilty = set(data.draw(st.lists(st.sampled_from(numbers), max_size=3)))
    operations = [f"{client}.{number}" for client in range(3) for number in range(20)]
    wanted = set(data.draw(st.lists(st.sampled_from(operations), max_size=3)))
    at_s = max((fault.at_s for fault in planned_faults(plan, 1) if fault.number in guilty), default=0.0)

    def fails(less: Plan) -> bool:
        # With fewer peers it is another life.
        has_faults = less.peers == plan.peers and guilty <= {fault.number for fault in planned_faults(less, 1)}
        return has_faults and (less.only_operations is None or wanted <= set(less.only_operations))

    smallest = smallest_failing(plan, 1, fails, lambda _: operations, 2000)
    assert smallest is not None
    assert fails(smallest)
    assert smallest.peers == plan.peers
    assert {fault.number for fault in planned_faults(smallest, 1)} == guilty
    assert set(smallest.only_operations or ()) == wanted
    assert smallest.storm_s <= at_s + 2 * max(1.0, plan.storm_s / 64)


def test_what_fails_with_fewer_peers_too_is_shown_with_them() -> None:
    smallest = smallest_failing(Plan(peers=7, minutes=1), 1, lambda less: less.peers > 3, lambda _: ["0.0"], 2000)
    assert smallest is not None
    assert smallest.peers == 4
    assert planned_faults(smallest, 1) == ()
    assert smallest.only_operations == ()


@given(st.sets(st.integers(0, 40), max_size=5), st.integers(0, 41))
def test_of_what_fails_exactly_what_is_needed_is_left(needed: set[int], count: int) -> None:
    everything = sorted(needed | set(range(count)))
    assert set(fewest(everything, lambda some: needed <= set(some))) == needed


def test_what_does_not_fail_is_not_made_smaller_and_runs_are_counted() -> None:
    plan = Plan(peers=3, minutes=1)
    asked: list[Plan] = []
    assert smallest_failing(plan, 1, lambda less: asked.append(less) is not None, lambda _: [], 10) is None
    assert asked == [plan]
    asked.clear()
    assert smallest_failing(plan, 1, lambda less: not asked.append(less), lambda _: [], 5) is not None
    assert len(asked) == 5


@pytest.mark.once
def test_a_failing_seed_comes_with_the_command_that_shows_it_and_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ChunkStore, "read_inline", lambda self, name, row: row.content)
    seed = next(seed for seed in range(1, 20) if run_seed(SHORT, seed).objection is not None)
    result = CliRunner().invoke(shrink, [str(seed), "--peers", "3", "--minutes", "0.25", "--runs", "5"])
    assert result.exit_code == 0, result.output
    command = result.output.splitlines()[-1]
    assert command.startswith(f"sim replay {seed} --peers ")
    again = CliRunner().invoke(replay, command.split()[2:])
    assert again.exit_code == 1
    assert f"seed {seed}: PromiseBroken" in again.output


# --- a planted bug: many more are in `sim hunt` ---


def broken_by(*seeds: int) -> list[str]:
    """What the first of these seeds that breaks a promise says."""
    for seed in seeds:
        objection = run_seed(SMALL, seed).objection
        if objection is not None:
            return [objection]
    return []


@pytest.mark.once
def test_storms_find_a_receipt_that_names_who_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Deliveries.deliver

    async def deliver(self: Deliveries, put: Put, targets: Any, pushers: Any) -> Any:
        return [replace(delivery, error=None) for delivery in await real(self, put, targets, pushers)]

    monkeypatch.setattr(Deliveries, "deliver", deliver)
    assert "which does not have it" in broken_by(*range(1, 9))[0]


# --- the commands ---


def test_the_command_gives_one_line_of_verdict() -> None:
    options = ["--seeds", "1..2", "--jobs", "2", "--peers", "3", "--minutes", "0.1"]
    result = CliRunner().invoke(run, options)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 seeds, 0 broke a promise; ")
    assert result.output.count("\n") == 1


def test_peers_join_in_the_midst_of_faults_and_become_like_the_others() -> None:
    verdict = run_seed(Plan(2, 0.5, "members"), 1)
    assert verdict.objection is None
    assert 1 <= verdict.faults["new peers"] <= NEWCOMERS
    assert verdict.kept[Promise.ALIKE] == 2


def test_a_replay_ends_in_the_digest_of_its_trace() -> None:
    options = ["7", "--peers", "2", "--minutes", "0.2", "--scenario", "calm"]
    first, again = CliRunner().invoke(replay, options), CliRunner().invoke(replay, options)
    assert first.exit_code == 0, first.output
    assert first.output == again.output
    *_, last = first.output.splitlines()
    assert last == f"trace {run_seed(Plan(2, 0.2, 'calm'), 7).digest}"


def test_no_more_seeds_are_waited_for_after_the_time_there_is() -> None:
    options = ["--seeds", "1..500", "--peers", "2", "--minutes", "0.1", "--jobs", "1", "--within", "0.01"]
    result = CliRunner().invoke(run, options)
    assert result.exit_code == 0
    said, summary = result.stdout.splitlines()
    tried = said.split()[0]
    assert said == f"{tried} of 500 seeds in 0.01 minutes; the others were not tried"
    assert 0 < int(tried) < 500
    assert summary.startswith(f"{tried} seed")
