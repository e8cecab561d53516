"""Plants bugs of `sim.mutants` in a scratch copy of the project, for the simulator itself to find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from sim.mutants import Mutant
from sim.mutations import MutantDoesNotApply, check_applies, chosen, compiled_copy, plant, scratch_copy
from sim.planted import PLANTED

LIMIT_S = 150.0
"""For one bug and all the seeds it gets."""

FROM_MUTANTS: tuple[str, ...] = (
    "vv-past-a-gap",
    "vv-raised-for-an-op-that-waits",
    "forgotten-supersede",
    "hold-outlives-its-put",
    "sum-not-lowered",
    "look-up-on-a-disk-thread",
    "digest-of-what-was-superseded",
    "sum-not-lowered-for-purged-holds",
    "full-for-ever",
    "altered-rows-stay",
    "failing-step-ends-the-worker",
    "holds-of-former-lives-pile-up",
    "found-for-ever",
    "rot-goes-direct",
)
"""Of the bugs that tests must find, those that storms of the seeds below must find too."""

PLAN = ("--peers", "3", "--minutes", "1")
SEEDS = "1..8"

_FOUND = re.compile(r"^seed (\d+): (.*)\n  broken: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Find:
    """What storms made of one planted bug: the seed that showed it and the promise it broke, or why there is none."""

    mutant: Mutant
    seed: int | None
    promise: str
    objection: str
    seconds: float


def hunt_for(mutant: Mutant, pristine: Path, seeds: str) -> Find:
    """Plant one bug, and let one storm after the other look for it."""
    started = time.monotonic()
    with scratch_copy(pristine) as scratch:
        plant(mutant, scratch)
        command = [sys.executable, "-m", "sim", "run", "--first", "--jobs", "1", "--seeds", seeds, *PLAN]
        variables = os.environ | {"PYTHONPATH": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(  # noqa: S603 - the command is ours
                command, cwd=scratch, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Find(mutant, None, "", f"no result after {LIMIT_S:.0f} s", time.monotonic() - started)
    took_s = time.monotonic() - started
    found = _FOUND.search(done.stdout)
    if found is not None and done.returncode == 1:
        return Find(mutant, int(found[1]), found[3], found[2], took_s)
    said = "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"
    return Find(mutant, None, "", said, took_s)


def wanted(names: Sequence[str], *, every: bool) -> list[Mutant]:
    """The bugs of these names, or `every` one there is, or those that must be found.

    Raises click.BadParameter for a name there is not.
    """
    own = {mutant.name: mutant for mutant in PLANTED}
    if names:
        return [own[name] if name in own else chosen([name])[0] for name in names]
    return [*PLANTED, *chosen(() if every else FROM_MUTANTS)]


@click.command("hunt")
@click.argument("names", nargs=-1)
@click.option(
    "--all", "every", is_flag=True, help="All that `sim mutations` knows, whether storms must find it or not."
)
@click.option("--seeds", default=SEEDS, show_default=True, metavar="A..B", help="The storms that look for each.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="How many to hunt at a time.")
def hunt(names: tuple[str, ...], *, every: bool, seeds: str, jobs: int) -> None:
    """Plant bugs in a copy of the project, for simulated storms to find.

    Prints a table, as Markdown. Exit code 1 when one was not found.
    """
    mutants = wanted(names, every=every)
    started, missed = time.monotonic(), 0
    try:
        for mutant in mutants:
            check_applies(mutant)
    except MutantDoesNotApply as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        "| planted bug | what it takes away | seed | promise that was broken | s |\n| --- | --- | --- | --- | --- |"
    )
    with compiled_copy() as pristine, ThreadPoolExecutor(jobs) as pool:
        for find in pool.map(lambda mutant: hunt_for(mutant, pristine, seeds), mutants):
            missed += find.seed is None
            seed = "not found" if find.seed is None else find.seed
            cells = (find.mutant.name, find.mutant.says, seed, find.promise or find.objection, f"{find.seconds:.0f}")
            click.echo(f"| {' | '.join(map(str, cells))} |")
    click.echo(f"{len(mutants)} planted bugs, {missed} not found, {time.monotonic() - started:.0f} s")
    if missed:
        raise click.exceptions.Exit(1)
