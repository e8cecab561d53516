"""`sim chaos`: sets a cluster up for faults, runs one storm, and leaves the evidence of what went wrong."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import trio

from peer.cluster import Layout, PeerCommand, free_base_port, open_cluster, serve_command
from sim.chaos.faults import KINDS, Means, clock_file
from sim.chaos.journal import Journal
from sim.chaos.picture import page
from sim.chaos.scene import Report
from sim.chaos.storm import Chaos
from sim.chaos.view import watch
from sim.model import Promise, PromiseBroken
from sim.relay import HOST, Relay

EVENTS, PAGE = "events.jsonl", "report.html"
SMALL_DISK_MIB = 256
SMALL_DISK_MIB_PER_MINUTE = 300
"""More than what clients upload; what is filled of it is memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is run."""

    peers: int
    seconds: float
    seed: int
    kinds: tuple[str, ...]
    heal_interval_s: float
    python: str = sys.executable


def peer_command(settings: Settings, relay_ports: dict[str, int]) -> PeerCommand:
    """The command line of peers that others find at the relay, on the Python that was asked for."""

    def command(layout: Layout, node_id: str, folder: Path) -> list[str]:
        words = serve_command(layout, node_id, folder)
        words[0] = settings.python
        module = words.index("peer")
        words[module : module + 1] = ["sim.chaos.skewed", str(clock_file(folder))]
        words[words.index("--advertise") + 1] = f"{HOST}:{relay_ports[node_id]}"
        for at in [at for at, word in enumerate(words) if word == "--join"]:
            other = next(other for other in layout.node_ids if str(layout.address_of(other)) == words[at + 1])
            words[at + 1] = f"{HOST}:{relay_ports[other]}"
        return [*words, "--heal-interval", f"{settings.heal_interval_s:g}"]

    return command


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[bool]:
    """A file system of that size at a folder, in memory, while the block runs; False where none can be mounted."""
    folder.mkdir(parents=True)
    arguments = ["-t", "tmpfs", "-o", f"size={mib}m", "minidfs-chaos", str(folder)]
    is_there = sys.platform == "linux" and _succeeds("mount", arguments)
    try:
        yield is_there
    finally:
        if is_there:
            # What was in it is evidence.
            kept = folder.with_name(f"{folder.name}.kept")
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("ballast.chaos"))
            _succeeds("umount", [str(folder)])
            folder.rmdir()
            kept.rename(folder)


def _succeeds(program: str, arguments: list[str]) -> bool:
    path = shutil.which(program)
    # The program is the system's, and what it is given is ours.
    return path is not None and subprocess.run([path, *arguments], capture_output=True, check=False).returncode == 0  # noqa: S603


async def run_in(folder: Path, settings: Settings, journal: Journal) -> Report:
    """Set up, storm, restart everybody, look again. Raises PromiseBroken."""
    base = free_base_port(2 * settings.peers + 1)
    names = [f"node-{number}" for number in range(1, settings.peers + 1)]
    ports = {name: base + 1 + at for at, name in enumerate(names)}
    relay = Relay(
        ports, {name: port + settings.peers for name, port in ports.items()}, random.Random(settings.seed + 3)
    )
    disk_mib = SMALL_DISK_MIB + int(SMALL_DISK_MIB_PER_MINUTE * settings.seconds / 60)
    async with _running(relay):
        with small_disk(folder / names[-1], disk_mib) as is_small:
            means = Means(relay, names[-1] if is_small else None, has_clocks=True)
            kinds = [kind for kind in settings.kinds if means.why_not(kind) is None]
            for kind in settings.kinds:
                if (why := means.why_not(kind)) is not None:
                    journal.note("left out", kind=kind, why=why)
                    click.echo(f"{kind} is left out: {why}", err=True)
            async with open_cluster(
                folder,
                nodes=settings.peers,
                base_port=base + 1,
                facade_port=base,
                command=peer_command(settings, relay.port_of),
            ) as cluster:
                await cluster.start_all()
                chaos = Chaos(
                    cluster, settings.seed, settings.heal_interval_s, kinds=kinds, means=means, journal=journal
                )
                look = partial(watch, seconds=settings.seconds) if sys.stdout.isatty() else None
                report = await chaos.run(settings.seconds, look)
                await cluster.stop_all()
                await cluster.start_all()
                await chaos.recheck()
                return report


@asynccontextmanager
async def _running(relay: Relay) -> AsyncIterator[None]:
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below: a nursery would wrap it in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _kinds(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(kind for kind in value.split(",") if kind))
    for kind in kinds:
        if kind not in KINDS:
            raise click.BadParameter(f"there is no fault {kind!r}; there are {', '.join(KINDS)}")
    return kinds


@click.command()
@click.option("--peers", type=click.IntRange(2, 20), default=5, show_default=True, help="Processes.")
@click.option("--minutes", type=click.FloatRange(0.05, 600), default=5.0, show_default=True, help="How long to storm.")
@click.option("--seed", type=int, help="Of all choices.  [default: drawn]")
@click.option(
    "--faults",
    "kinds",
    default=",".join(KINDS),
    show_default=True,
    metavar="KIND,…",
    callback=_kinds,
    help="What is done to the peers; nothing, when it is empty.",
)
@click.option("--heal-interval", type=float, default=5.0, show_default=True, metavar="SECONDS", help="Of the peers.")
@click.option(
    "--python",
    default=sys.executable,
    metavar="PATH",
    help="The Python the peers run on, with what they need installed.  [default: this one]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with a timeline there.  [default: only when a promise was broken, beside the data]",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all events there, as JSON lines.  [default: as for --report]",
)
def chaos(
    peers: int,
    minutes: float,
    seed: int | None,
    kinds: Sequence[str],
    heal_interval: float,
    python: str,
    report: Path | None,
    log: Path | None,
) -> int:
    """Kill, pause and cut off real peers while clients upload and read.

    What was promised is checked. Exit code 1 when it was not kept; then data, logs, events and the page stay where it
    says.
    """
    chosen = random.SystemRandom().getrandbits(32) if seed is None else seed
    settings = Settings(
        peers=peers,
        seconds=60 * minutes,
        seed=chosen,
        kinds=tuple(kinds),
        heal_interval_s=heal_interval,
        python=python,
    )
    click.echo(f"seed {chosen}")
    folder = Path(tempfile.mkdtemp(prefix="minidfs-chaos-"))
    told, broken = trio.run(_run, folder, settings)
    for wanted, name in ((report, PAGE), (log, EVENTS)):
        if wanted is not None:
            shutil.copyfile(folder / name, wanted)
    if broken is None:
        shutil.rmtree(folder)
        click.echo(told)
        return 0
    raise click.ClickException(f"seed {chosen}: {told}; data, logs, events and the page are in {folder}")


def _what_broke(error: BaseException) -> PromiseBroken:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, PromiseBroken):
        return error
    return PromiseBroken(Promise.TASKS, f"{type(error).__name__}: {error}")


async def _run(folder: Path, settings: Settings) -> tuple[str, PromiseBroken | None]:
    """Run it; what it came to, and the promise that was broken, if any. Leaves all events, and the page about them."""
    broken = None
    with (folder / EVENTS).open("w", encoding="utf-8") as events:
        journal = Journal(events)
        try:
            told = str(await run_in(folder / "cluster", settings, journal))
        # A peer that cannot be started or that says what nobody expects ends a run, and is evidence as well.
        except Exception as error:  # noqa: BLE001
            broken = _what_broke(error)
            told = f"{broken} (broken: {broken.promise.value})"
    names = [f"node-{number}" for number in range(1, settings.peers + 1)]
    title = f"Mini DFS: {settings.peers} peers, {settings.seconds:g} s of faults, seed {settings.seed}"
    (folder / PAGE).write_text(page(title, told, journal.events, names), encoding="utf-8")
    return told, broken
