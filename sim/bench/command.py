"""`sim bench`: systems side by side, load after load, round after round."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

from sim.bench import machine
from sim.bench.loads import Figures, Place, Workload, drive, fill, tool
from sim.bench.report import Row, as_markdown, as_picture
from sim.bench.seaweed import SeaweedFiler
from sim.bench.swift import Swift
from sim.bench.systems import HEAL_S, Elsewhere, HealTimeout, MiniDfs, System, SystemMissing, running

MIB = 1024 * 1024
WORKLOADS = (
    Workload("heal a lost disk, 2,000 files of 64 KiB", "heal", 65_536, 1, files=2000),
    Workload("PUT 4 KiB, 16 connections", "put", 4096, 16),
    Workload("PUT 4 KiB, 64 connections", "put", 4096, 64),
    Workload("GET 4 KiB, 16 connections", "get", 4096, 16),
    Workload("GET 4 KiB, 16 connections, from a peer without a copy", "get", 4096, 16, is_elsewhere=True),
    Workload("PUT 64 KiB, 16 connections", "put", 65_536, 16),
    Workload("GET 64 KiB, 16 connections", "get", 65_536, 16),
    Workload("mixed, 4 KiB, 16 connections", "mixed", 4096, 16),
    Workload("LIST 1,000 files, 4 connections", "list", 4096, 4),
    Workload("PUT 64 MiB", "put", 64 * MIB, 1),
    Workload("GET 64 MiB", "get", 64 * MIB, 1),
    Workload("PUT 4 KiB, 16 connections, one peer dead", "put", 4096, 16, is_degraded=True),
)
"""Healing comes first, while there is nothing else to be healed; those on degraded systems come last, for nobody brings
back what was killed."""
MANY = (Workload("LIST 100,000 files, page by page", "walk", 4096, 1, files=100_000),)
HUGE = (
    Workload("PUT 1 GiB", "put", 1024 * MIB, 1),
    Workload("GET 1 GiB", "get", 1024 * MIB, 1),
)
QUICK = (
    Workload("heal a lost disk, 100 files of 64 KiB", "heal", 65_536, 1, files=100),
    Workload("PUT 4 KiB, 4 connections", "put", 4096, 4),
    Workload("GET 4 KiB, 4 connections", "get", 4096, 4),
    Workload("GET 4 KiB, from a peer without a copy", "get", 4096, 4, is_elsewhere=True),
    Workload("mixed, 4 KiB, 4 connections", "mixed", 4096, 4),
    Workload("LIST 1,000 files, 2 connections", "list", 4096, 2),
    Workload("LIST 2,000 files, page by page", "walk", 4096, 1, files=2000),
    Workload("PUT 2 MiB", "put", 2 * MIB, 1),
    Workload("GET 2 MiB", "get", 2 * MIB, 1),
    Workload("PUT 4 KiB, one peer dead", "put", 4096, 4, is_degraded=True),
)
FILES_READ = {4096: 1000, 65_536: 500}
"""How many files of a size reads are spread over; two of any other."""
FILES_READ_QUICK = 20


@dataclass(slots=True)
class Contestant:
    """A system that runs, and what has been stored there to be read."""

    system: System
    place: Place
    stored: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    """By their size and number."""
    stored_elsewhere: list[str] = field(default_factory=list)

    def paths(self, size: int, count: int) -> list[str]:
        """So many files of this size, stored when they are asked for first."""
        if (size, count) not in self.stored:
            self.stored[size, count] = fill(self.place, size, count)
        return self.stored[size, count]

    def paths_elsewhere(self, elsewhere: Elsewhere, size: int, count: int) -> list[str]:
        """Files of this size that the other peer has no copy of, stored when they are asked for first."""
        if not self.stored_elsewhere:
            found = fill(elsewhere.stores, size, count)
            self.stored_elsewhere = [path for path in found if not elsewhere.has_copy(path)]
        return self.stored_elsewhere


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of each load on each system, in turn."
)
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=5.0, show_default=True, help="For each load in each round."
)
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="Peers of the cluster.")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Another checkout, to measure too; may be repeated.  [default: none]",
)
@click.option(
    "--rivals/--no-rivals",
    default=True,
    show_default=True,
    help="Measure SeaweedFS and Swift too, where they are there.",
)
@click.option(
    "--unsynced/--no-unsynced",
    default=False,
    show_default=True,
    help="Measure also a cluster with --durability os, which syncs as little as SeaweedFS does.",
)
@click.option("--huge", is_flag=True, help="Also files of 1 GiB: each upload takes 3 GiB of the disk.")
@click.option("--many", is_flag=True, help="Also lists of 100,000 files, which takes minutes to store.")
@click.option("--only", metavar="TEXT", default="", help="Loads whose names have this in them.  [default: all]")
@click.option("--quick", is_flag=True, help="A second of small loads, to see that it works.")
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.md, report.json and report.svg there.  [default: only print]",
)
def bench(
    rounds: int,
    seconds: float,
    nodes: int,
    against: Sequence[Path],
    rivals: bool,
    unsynced: bool,
    huge: bool,
    many: bool,
    only: str,
    quick: bool,
    report: Path | None,
) -> None:
    """Measure a local cluster, beside others on this machine.

    All run at once, and are loaded in turn. Quote ratios of one run: what
    else the machine does changes all of it.
    """
    more = (*(HUGE if huge else ()), *(MANY if many else ()))
    known = QUICK if quick else sorted((*WORKLOADS, *more), key=lambda load: load.is_degraded)
    loads = [load for load in known if only.lower() in load.name.lower() and (load.kind != "heal" or nodes > 1)]
    if not loads:
        raise click.ClickException(f"no load has {only!r} in its name; leave --only away to see them")
    with tempfile.TemporaryDirectory(prefix="minidfs-bench-") as name, ExitStack() as stack:
        # So that being told to end ends what was started, too.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        folder = Path(name)
        systems: list[System] = [MiniDfs(folder / "minidfs", nodes)]
        systems += [MiniDfs(folder / f"other-{number}", nodes, code) for number, code in enumerate(against)]
        systems += [MiniDfs(folder / "unsynced", nodes, durability="os")] if unsynced else []
        systems += [SeaweedFiler(folder / "seaweedfs", nodes), Swift(folder / "swift", nodes)] if rivals else []
        contestants = _start(systems, stack)
        about = _about(contestants, nodes, rounds, seconds)
        rows = _measure(contestants, loads, 1 if quick else rounds, 1.0 if quick else seconds, folder, quick=quick)
    text = as_markdown(about, rows)
    click.echo(text, nl=False)
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / "report.md").write_text(text, encoding="utf-8")
        (report / "report.svg").write_text(as_picture(rows), encoding="utf-8")
        values = {"about": about, "rows": [row.as_json() for row in rows]}
        (report / "report.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _start(systems: Sequence[System], stack: ExitStack) -> list[Contestant]:
    started: list[Contestant] = []
    for system in systems:
        try:
            started.append(Contestant(system, stack.enter_context(running(system))))
        except SystemMissing as error:
            if system is systems[0]:
                raise click.ClickException(str(error)) from None
            click.echo(f"bench: {error}", err=True)
    return started


def _about(contestants: Sequence[Contestant], nodes: int, rounds: int, seconds: float) -> list[str]:
    return [
        machine.describe(),
        f"{nodes} peers, up to 3 copies; {rounds} rounds of {seconds:g} s, in turn; small loads driven by {tool()}",
        *(f"{one.system.name} ({one.system.version()}): {one.system.promise}" for one in contestants),
    ]


def _measure(
    contestants: Sequence[Contestant],
    loads: Sequence[Workload],
    rounds: int,
    seconds: float,
    folder: Path,
    *,
    quick: bool,
) -> list[Row]:
    rows: list[Row] = []
    is_degraded = False
    for load in loads:
        if load.is_degraded and not is_degraded:
            is_degraded = True
            for one in contestants:
                one.system.lose_one()
        able = [one for one in contestants if load.kind not in one.system.cannot]
        of_load = [Row(one.system.name, load) for one in able]
        for _ in range(rounds):
            for one, row in zip(able, of_load, strict=True):
                click.echo(f"bench: {load.name} on {row.system}", err=True)
                files = load.files or (FILES_READ_QUICK if quick else FILES_READ.get(load.size, 2))
                _add_round(one, row, seconds, folder, files)
        rows += of_load
    return rows


def _add_round(one: Contestant, row: Row, seconds: float, folder: Path, files: int) -> None:
    place, paths = one.place, []
    if row.workload.is_elsewhere:
        elsewhere = one.system.elsewhere()
        if elsewhere is None:
            return
        place, paths = elsewhere.reads, one.paths_elsewhere(elsewhere, row.workload.size, files)
    elif row.workload.kind != "put":
        paths = one.paths(row.workload.size, files)
    if row.workload.kind == "heal":
        row.rounds.append(_healed(one.system, files))
        row.memory_mib = machine.memory_mib(machine.with_descendants(one.system.pids))
        return
    pids = machine.with_descendants(one.system.pids)
    before, size = machine.cpu_s(pids), machine.disk_bytes(one.system.folder)
    row.rounds.append(drive(place, row.workload, seconds, paths, folder))
    after = machine.cpu_s(pids)
    if before is not None and after is not None:
        row.cpu_s.append(after - before)
    row.disk_bytes += machine.disk_bytes(one.system.folder) - size
    row.memory_mib = machine.memory_mib(pids)


def _healed(system: System, files: int) -> Figures:
    """A disk that is lost and comes back: the rate is that of its files, the times are those of the whole.

    An error, and no file, where they do not come back in time.
    """
    try:
        took_s = system.heal_lost_disk()
    except HealTimeout as error:
        click.echo(f"bench: {error}", err=True)
        return Figures(0, HEAL_S, 1000 * HEAL_S, 1000 * HEAL_S, 1)
    return Figures(files, took_s, 1000 * took_s, 1000 * took_s, 0)
