"""Bugs planted for storms: each still applies, and what finds one is told with its seed and its promise."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from sim.hunt import FROM_MUTANTS, hunt, wanted
from sim.mutants import MUTANTS, Mutant
from sim.mutations import check_applies
from sim.planted import PLANTED


@pytest.mark.parametrize("mutant", PLANTED, ids=lambda mutant: mutant.name)
def test_each_planted_bug_applies(mutant: Mutant) -> None:
    check_applies(mutant)
    assert mutant.old != mutant.new


def test_names_choose_and_are_used_once() -> None:
    names = [mutant.name for mutant in (*PLANTED, *MUTANTS)]
    assert len(set(names)) == len(names)
    assert [mutant.name for mutant in wanted((), every=False)] == [
        *(mutant.name for mutant in PLANTED),
        *FROM_MUTANTS,
    ]
    assert len(wanted((), every=True)) == len(names)
    assert [mutant.name for mutant in wanted(["chunk-not-synced", "vv-past-a-gap"], every=False)] == [
        "chunk-not-synced",
        "vv-past-a-gap",
    ]
    with pytest.raises(click.BadParameter, match="no mutant 'nothing'"):
        wanted(["nothing"], every=False)


@pytest.mark.once
def test_a_storm_finds_a_planted_bug_and_says_by_which_promise() -> None:
    result = CliRunner().invoke(hunt, ["checksum-not-looked-at", "--seeds", "1..2", "--jobs", "1"])
    assert result.exit_code == 0, result.output
    assert "| 1 | what is not what its checksum says is refused |" in result.output
    assert "1 planted bugs, 0 not found" in result.output
