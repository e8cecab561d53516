"""Many short lives of simulated peers, each decided by its seed, under everything a disk, a network and a crash can do.

Clients work while disks fail at any call and at commits, bits flip in chunk files and rows, disks fill up, are lost and
rolled back, links are cut and the power goes. Then all faults end, and what the peers acknowledged must be what they
have.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import click
import trio

from sim.checkers import (
    CopiesWatch,
    answers_are_right,
    disks_are_right,
    is_tidy,
    nothing_is_left,
    receipt_is_true,
    still_missing,
)
from sim.faults import FaultMaker
from sim.model import Promise, PromiseBroken
from sim.scenarios import SCENARIOS, PlannedFault, draw_faults, draw_life
from sim.sometimes import LOST, RESUMED, ROLLED_BACK, never, witnessed
from sim.workload import Workload
from sim.world import World, few_partitions, run_world

HEAL_S = 400.0
"""Of virtual time, for everything to be well again."""
TIDY_S = 60.0
"""Then, for what is not needed any more to go."""
COPIES = 3
OPERATIONS_MIN, FAULTS_MIN = 100, 10
"""What a life of a storm has at least."""
PEERS_MIN = 2
RUNS_MAX = 150
"""Of a seed, to make it smaller."""
MINUTES = 10.0
PEERS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run for each seed."""

    peers: int = PEERS
    minutes: float = MINUTES
    scenario: str = "storm"
    until_s: float | None = None
    """When the storm is broken off; what comes before stays as it is."""
    only_faults: tuple[int, ...] | None = None
    """The numbers of the faults that come; the others are left out."""
    only_operations: tuple[str, ...] | None = None
    """The names of the clients' operations that are done, see `Workload.begun`."""

    @property
    def storm_s(self) -> float:
        """How long the storm lasts."""
        return 60 * self.minutes if self.until_s is None else min(self.until_s, 60 * self.minutes)


@dataclass(slots=True)
class Verdict:
    """What a seed came to: what was done and went wrong in it, and the promise that was broken, if any."""

    seed: int
    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    """Of that which must sometimes happen, see `sim.sometimes`."""
    operations: list[str] = field(default_factory=list)
    """Which were begun, see `Workload.begun`."""
    digest: str = ""
    kept: Counter[Promise] = field(default_factory=Counter)
    """How often each promise was looked at and found kept."""
    broken: Promise | None = None
    objection: str | None = None

    @property
    def is_too_little(self) -> bool:
        """Whether so little happened that it says little."""
        return self.done.total() < OPERATIONS_MIN or self.faults.total() < FAULTS_MIN

    def add(self, other: Verdict) -> None:
        """Count what another life came to along with this one."""
        self.done += other.done
        self.faults += other.faults
        self.seen += other.seen
        self.kept += other.kept
        self.virtual_s += other.virtual_s


class Storm:
    """The clients and the faults of one world."""

    def __init__(self, world: World, plan: Plan, verdict: Verdict) -> None:
        self._world = world
        self._plan = plan
        self._verdict = verdict
        self._life = draw_life(world.seed, *_terms_of(plan))
        self._faults = FaultMaker(world, planned_faults(plan, world.seed), verdict.faults, self._on_lost, self._look)
        self._watch = CopiesWatch(world, self._life.settings["copies"])
        self._workload = Workload(world, self._life, verdict.done, self._on_receipt, plan.only_operations)
        verdict.operations = self._workload.begun

    def _on_lost(self, name: str) -> None:
        for file in self._workload.files.values():
            file.forget_holder(name)

    def _look(self) -> None:
        self._watch.look(harmed=bool(self._faults.harmed_at))

    def _on_receipt(self, file_key: str, holders: frozenset[str], began: float) -> None:
        receipt_is_true(self._world, file_key, holders, self._faults.harmed_at, began)

    async def run(self) -> None:
        """Storm, heal, and check. Raises PromiseBroken."""
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._workload.run, over)
            nursery.start_soon(self._faults.run, over)
            await trio.sleep(self._plan.storm_s)
            over.set()
        self._watch.look(harmed=bool(self._faults.harmed_at))
        for name in await self._faults.heal():
            raise PromiseBroken(Promise.STARTS, f"{name} cannot start on a disk that is well again")
        self._world.kept[Promise.STARTS] += self._plan.peers
        await self._wait_converged()
        async for promise in answers_are_right(self._world, self._workload.files, self._workload.registered):
            self._world.trace("checker", "kept", promise)
        await self._wait_converged()
        disks_are_right(self._world, self._life.settings["copies"])
        with trio.move_on_after(TIDY_S):
            await self._world.wait_until(partial(is_tidy, self._world), math.inf)
        nothing_is_left(self._world)
        self._world.kept[Promise.TASKS] += self._plan.peers
        self._world.seen[LOST] += self._verdict.faults["lost disks"]
        self._world.seen[RESUMED] += self._verdict.faults["resumed machines"]
        self._world.seen[ROLLED_BACK] += self._verdict.faults["restored images"]

    async def _wait_converged(self) -> None:
        try:
            await self._world.wait_until(lambda: self._world.have_converged() and self._world.all_met(), HEAL_S)
        except trio.TooSlowError:
            missing = "; ".join(still_missing(self._world)[:5]) or "some peers take others for down"
            raise PromiseBroken(Promise.ALIKE, f"{HEAL_S:g} s after the last fault {missing}") from None
        self._world.kept[Promise.ALIKE] += 1


def _terms_of(plan: Plan) -> tuple[str, int, float]:
    return plan.scenario, min(COPIES, plan.peers), 60 * plan.minutes


def planned_faults(plan: Plan, seed: int) -> tuple[PlannedFault, ...]:
    """The faults of a seed's life that are not left out."""
    faults = draw_faults(seed, draw_life(seed, *_terms_of(plan)), plan.peers, 60 * plan.minutes)
    chosen = plan.only_faults
    return tuple(fault for fault in faults if fault.at_s < plan.storm_s and (chosen is None or fault.number in chosen))


def run_seed(plan: Plan, seed: int, show: Callable[[str], None] | None = None) -> Verdict:
    """One seed's life; `show` is given everything that happens."""
    verdict = Verdict(seed)
    settings = draw_life(seed, *_terms_of(plan)).settings

    async def scenario(world: World) -> None:
        world.show = show
        try:
            await world.start_all()
            await Storm(world, plan, verdict).run()
        finally:
            verdict.virtual_s, verdict.digest = trio.current_time(), world.digest()
            verdict.seen += world.seen
            verdict.kept += world.kept

    try:
        with few_partitions(), witnessed(verdict.seen):
            run_world(seed, scenario, peers=plan.peers, **settings)
    # Whatever ends a simulated run early is a finding, an assertion of ours as well as a broken promise.
    except Exception as error:  # noqa: BLE001
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        verdict.objection = f"{type(error).__name__}: {error}"
        verdict.broken = error.promise if isinstance(error, PromiseBroken) else Promise.TASKS
    return verdict


def smallest_failing(
    plan: Plan, seed: int, fails: Callable[[Plan], bool], operations: Callable[[Plan], list[str]], runs_max: int
) -> Plan | None:
    """A smaller plan that still fails, None when the whole one does not.

    Fewer peers (which is another life, and may fail by chance only), an earlier end, fewer faults, fewer operations.
    `operations` gives those that clients begin.
    """
    left = runs_max

    def still_fails(less: Plan) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and fails(less)

    if not still_fails(plan):
        return None
    smallest = plan
    while smallest.peers > PEERS_MIN and still_fails(less := replace(smallest, peers=smallest.peers - 1)):
        smallest = less
    smallest = _ended_sooner(smallest, still_fails)
    faults = [fault.number for fault in planned_faults(smallest, seed)]
    fewer_faults = fewest(faults, lambda some: still_fails(replace(smallest, only_faults=tuple(some))))
    if len(fewer_faults) < len(faults):
        smallest = replace(smallest, only_faults=tuple(fewer_faults))
    if left > 0:
        begun = operations(smallest)
        fewer = fewest(begun, lambda some: still_fails(replace(smallest, only_operations=tuple(some))))
        if len(fewer) < len(begun):
            smallest = replace(smallest, only_operations=tuple(fewer))
    return smallest


def _ended_sooner(plan: Plan, still_fails: Callable[[Plan], bool]) -> Plan:
    smallest, enough, too_little = plan, plan.storm_s, 0.0
    while enough - too_little > max(1.0, plan.storm_s / 64):
        until_s = (enough + too_little) / 2
        if still_fails(less := replace(plan, until_s=until_s)):
            smallest, enough = less, until_s
        else:
            too_little = until_s
    return smallest


T = TypeVar("T")


def fewest(needed: Sequence[T], still_fails: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Some of a failing sequence that are enough, none of which can be left out alone.

    Source: Zeller, Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002), ddmin without complements
    that are small already.
    """
    size = max(1, len(needed) // 2)
    while needed:
        for start in range(0, len(needed), size):
            fewer = [*needed[:start], *needed[start + size :]]
            if still_fails(fewer):
                needed = fewer
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return needed


def parse_seeds(text: str) -> range:
    """The seeds `A..B`, both included, or the one seed `A`. Raises click.BadParameter."""
    first, dots, last = text.partition("..")
    if not (first.isdecimal() and (last.isdecimal() if dots else True)) or (dots and int(last) < int(first)):
        raise click.BadParameter(f"{text!r} is no range of seeds; write A..B, for example 1..100")
    return range(int(first), int(last if dots else first) + 1)


def _seeds(_ctx: click.Context, _param: click.Parameter, value: str) -> range:
    return parse_seeds(value)


_peers_option = click.option(
    "--peers", type=click.IntRange(PEERS_MIN, 50), default=PEERS, show_default=True, help="Simulated peers."
)
_minutes_option = click.option(
    "--minutes",
    type=click.FloatRange(0.1, 1000),
    default=MINUTES,
    show_default=True,
    help="Of virtual time, of faults.",
)
_scenario_option = click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    default="storm",
    show_default=True,
    help="Which kinds of faults there are.",
)


_seeds_option = click.option(
    "--seeds", default="1..20", show_default=True, metavar="A..B", callback=_seeds, help="Seeds, both ends included."
)
_jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=os.cpu_count() or 1,
    show_default=True,
    help="How many to run at a time; as many as there are processors, unless said.",
)


def run_seeds(plan: Plan, seeds: Iterable[int], jobs: int) -> Iterator[Verdict]:
    """The lives of these seeds, in their order, `jobs` at a time, each in a process that may have had others before."""
    if jobs == 1:
        yield from map(partial(run_seed, plan), seeds)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(run_seed, plan), seeds)
        finally:
            pool.shutdown(cancel_futures=True)


@click.command()
@_seeds_option
@_peers_option
@_minutes_option
@_scenario_option
@_jobs_option
@click.option(
    "--sometimes",
    is_flag=True,
    help="Fail also when something that storms must bring about now and then did not happen in any of these lives,"
    f" or when a life had less than {OPERATIONS_MIN} operations or {FAULTS_MIN} faults.",
)
@click.option("--first", is_flag=True, help="Stop at the first broken promise.")
@click.option(
    "--within",
    "limit_minutes",
    type=click.FloatRange(0.01),
    default=math.inf,
    metavar="MINUTES",
    help="Of real time: after so long no more seeds are waited for.  [default: for ever]",
)
def run(
    seeds: range,
    peers: int,
    minutes: float,
    scenario: str,
    jobs: int,
    limit_minutes: float,
    *,
    sometimes: bool,
    first: bool,
) -> None:
    """Run simulated peers through storms of faults, one a seed.

    What was promised is checked. Exit code 1 when a promise was broken; the line says how to replay it.
    """
    started = time.monotonic()
    plan = Plan(peers, minutes, scenario)
    total, lives, broken, lacking = Verdict(0), 0, 0, 0
    for verdict in run_seeds(plan, seeds, jobs):
        lives += 1
        total.add(verdict)
        if verdict.broken is not None:
            broken += 1
            said = f"seed {verdict.seed}: {verdict.objection}\n  broken: {verdict.broken.value}"
            click.echo(f"{said}\n  again: {command_for(plan, verdict.seed)}")
            if first:
                break
        elif sometimes and verdict.is_too_little:
            lacking += 1
            click.echo(f"seed {verdict.seed}: {verdict.done.total()} operations, {verdict.faults.total()} faults")
        if lives < len(seeds) and time.monotonic() - started > 60 * limit_minutes:
            click.echo(f"{lives} of {len(seeds)} seeds in {limit_minutes:g} minutes; the others were not tried")
            break
    missing = never(total.seen) if sometimes else []
    for condition in missing:
        click.echo(f"never: {condition}")
    click.echo(_summary(lives, broken, total, time.monotonic() - started))
    if broken or missing or lacking:
        raise click.exceptions.Exit(1)


@click.command()
@_seeds_option
@_peers_option
@_minutes_option
@_jobs_option
def table(seeds: range, peers: int, minutes: float, jobs: int) -> None:
    """Run the seeds in every scenario: faults against promises.

    Prints, as Markdown, how often each promise was broken and looked at. Exit code 1 when one was broken.
    """
    click.echo(f"| faults | {' | '.join(promise.value for promise in Promise)} |\n|{' --- |' * (len(Promise) + 1)}")
    is_kept = True
    for scenario in SCENARIOS:
        total, broken = Verdict(0), Counter[Promise | None]()
        for verdict in run_seeds(Plan(peers, minutes, scenario), seeds, jobs):
            total.add(verdict)
            broken[verdict.broken] += verdict.broken is not None
        is_kept = is_kept and not broken.total()
        cells = [f"{broken[promise]} / {broken[promise] + total.kept[promise]}" for promise in Promise]
        click.echo(f"| {scenario}: {total.faults.total()} in {len(seeds)} lives | {' | '.join(cells)} |")
    if not is_kept:
        raise click.exceptions.Exit(1)


def command_for(plan: Plan, seed: int) -> str:
    """The command that runs a seed again, with all it prints."""
    command = f"sim replay {seed} --peers {plan.peers} --minutes {plan.minutes:g} --scenario {plan.scenario}"
    if plan.until_s is not None:
        command += f" --until {plan.until_s:g}"
    if plan.only_faults is not None:
        command += f" --faults {','.join(map(str, plan.only_faults)) or 'none'}"
    if plan.only_operations is not None:
        command += f" --operations {','.join(plan.only_operations) or 'none'}"
    return command


def _summary(seeds: int, broken: int, total: Verdict, took_s: float) -> str:
    done = ", ".join(f"{count} {what}" for what, count in sorted(total.done.items()))
    faults = ", ".join(f"{count} {what}" for what, count in sorted(total.faults.items()))
    return (
        f"{seeds} seeds, {broken} broke a promise; {total.kept.total()} looks at {len(Promise)} promises; "
        f"{total.faults.total()} faults ({faults}); {total.done.total()} operations ({done}); "
        f"{total.virtual_s / 3600:.1f} h in {took_s:.0f} s"
    )


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None or value == "none":
        return None if value is None else ()
    try:
        return tuple(int(number) for number in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers; write 3,7,12, or none") from None


def _operations(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return () if value == "none" else tuple(value.split(","))


@click.command()
@click.argument("seed", type=int)
@_peers_option
@_minutes_option
@_scenario_option
@click.option("--until", type=float, metavar="SECONDS", help="Break the storm off then.  [default: at its end]")
@click.option(
    "--faults", metavar="N,N,...", callback=_numbers, help="Only the faults of these numbers, or none.  [default: all]"
)
@click.option(
    "--operations",
    metavar="C.N,C.N,...",
    callback=_operations,
    help="Only these operations, by client and number, or none.  [default: all]",
)
def replay(
    seed: int,
    peers: int,
    minutes: float,
    scenario: str,
    until: float | None,
    faults: tuple[int, ...] | None,
    operations: tuple[str, ...] | None,
) -> None:
    """Run one seed again, and print what happens in it.

    Each line has the virtual time, who, and what. The last one is a digest of all of them: equal wherever it runs.
    """
    verdict = run_seed(Plan(peers, minutes, scenario, until, faults, operations), seed, click.echo)
    if verdict.objection is not None:
        click.echo(f"seed {seed}: {verdict.objection}", err=True)
    click.echo(f"trace {verdict.digest}")
    if verdict.objection is not None:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("seed", type=int)
@_peers_option
@_minutes_option
@_scenario_option
@click.option(
    "--runs", type=click.IntRange(1), default=RUNS_MAX, show_default=True, help="How often to run it at most."
)
def shrink(seed: int, peers: int, minutes: float, scenario: str, runs: int) -> None:
    """Find out how little of a failing seed is enough.

    Takes peers away, breaks the storm off earlier, and leaves out faults and operations, while a promise is broken.
    Exit code 1 when none is.
    """
    plan = Plan(peers, minutes, scenario)
    smallest = smallest_failing(
        plan,
        seed,
        lambda less: run_seed(less, seed).broken is not None,
        lambda less: run_seed(less, seed).operations,
        runs,
    )
    if smallest is None:
        raise click.ClickException(f"seed {seed} breaks no promise; there is nothing to make smaller")
    verdict = run_seed(smallest, seed)
    left, all_of_them = len(planned_faults(smallest, seed)), len(planned_faults(plan, seed))
    click.echo(
        f"{smallest.peers} of {plan.peers} peers, {left} of {all_of_them} faults, {len(verdict.operations)} operations"
        f" and {smallest.storm_s:g} s of {plan.storm_s:g} are enough: {verdict.objection}"
    )
    click.echo(command_for(smallest, seed))
