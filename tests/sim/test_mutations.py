"""Every planted bug still applies, and the engine that plants them tells red from broken."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
import pytest

from sim.mutants import MUTANTS, Mutant
from sim.mutations import (
    PROJECT,
    MutantDoesNotApply,
    Outcome,
    Run,
    check_applies,
    chosen,
    judge,
    pytest_servers,
    run_tests,
    scratch_copy,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_replaces_text_that_is_there_once_and_names_tests_that_are_there(mutant: Mutant) -> None:
    check_applies(mutant)
    assert mutant.old != mutant.new
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert f"def {name or 'test_'}" in (PROJECT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("old", ["a text that is nowhere", "    "])
def test_a_mutant_whose_text_is_not_there_exactly_once_is_an_error(old: str) -> None:
    with pytest.raises(MutantDoesNotApply, match="rewrite it"):
        check_applies(replace(MUTANTS[0], old=old))


def test_a_name_that_no_mutant_has_is_an_error() -> None:
    with pytest.raises(click.BadParameter, match="no mutant 'nonsense'"):
        chosen(["nonsense"])


@pytest.mark.parametrize(
    ("exit_code", "output", "outcome"),
    [
        (1, "FAILED tests/protocol/test_codec.py::test_it - AssertionError", Outcome.FOUND),
        (0, "1 passed", Outcome.SURVIVED),
        (1, "ERROR tests/protocol/test_codec.py", Outcome.ERROR),
        (2, "Interrupted: 1 error during collection", Outcome.ERROR),
        (4, "ERROR: not found", Outcome.ERROR),
        (5, "no tests ran", Outcome.ERROR),
        (70, "protocol was imported from elsewhere", Outcome.ERROR),
        (None, "no result after 120 s", Outcome.ERROR),
    ],
)
def test_only_failing_tests_count_as_found(exit_code: int | None, output: str, outcome: Outcome) -> None:
    assert judge(MUTANTS[0], Run(exit_code, output, 1.0)).outcome is outcome


@pytest.mark.parametrize(
    ("body", "exit_code"),
    [("assert True", 0), ("assert False", 1), ("import sys; sys.modules['protocol'].__file__ = '/elsewhere/x.py'", 70)],
)
@pytest.mark.parametrize("count", [0, 1], ids=["processes", "forks"])
def test_tests_run_on_the_copy_and_nowhere_else(body: str, exit_code: int, count: int) -> None:
    with pytest_servers(count) as servers, scratch_copy() as scratch:
        server = servers.get() if count else None
        probe = ["import protocol", "def test_probe():", f"    assert protocol.__file__.startswith({str(scratch)!r})"]
        (scratch / "tests" / "test_probe.py").write_text("\n".join([*probe, f"    {body}"]))
        run = run_tests(scratch, ["tests/test_probe.py"], server=server)
        assert run.exit_code == exit_code, run.output
        assert Path.cwd() != scratch


@pytest.mark.skipif(not hasattr(os, "fork"), reason="on this system processes do not fork")
@pytest.mark.once
def test_a_run_that_takes_too_long_is_ended_and_the_next_one_goes_on() -> None:
    with pytest_servers(1) as servers, scratch_copy() as scratch:
        server = servers.get()
        (scratch / "tests" / "test_slow.py").write_text("import time, peer\ndef test_slow(): time.sleep(60)\n")
        slow = run_tests(scratch, ["tests/test_slow.py"], 3.0, server)
        assert (slow.exit_code, slow.output) == (None, "no result after 3 s")
        (scratch / "tests" / "test_quick.py").write_text("import peer\ndef test_quick(): pass\n")
        assert run_tests(scratch, ["tests/test_quick.py"], 60.0, server).exit_code == 0
