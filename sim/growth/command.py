"""`sim growth`: fills clusters with more and more files, and measures what each does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import click
import trio

from peer.cluster import free_base_port, settle_layout
from sim.bench import machine
from sim.fill import Filling, fill
from sim.growth.phases import NODES, SIZE, measure
from sim.growth.report import Cluster, as_json, as_markdown, as_picture


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--files",
    "sizes",
    type=click.IntRange(100, 100_000_000),
    multiple=True,
    default=(10_000, 100_000),
    show_default=True,
    help="How many; may be given several times.",
)
@click.option("--limit", "limit_s", type=click.FloatRange(5), default=300.0, show_default=True, help="Of a phase, s.")
@click.option("--calm", "calm_s", type=click.FloatRange(0.5), default=15.0, show_default=True, help="Of a calm one, s.")
@click.option("--missed", type=click.IntRange(1), default=10_000, show_default=True, help="Files, of the one away.")
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.md, report.json and report.svg there, beside what was measured of other sizes before."
    "  [default: only print]",
)
def growth(
    folder: Path, sizes: tuple[int, ...], limit_s: float, calm_s: float, missed: int, report: Path | None
) -> None:
    """Fill clusters with more and more files, and measure what each does.

    Uploads go on all the time while a peer joins, while one is away and comes back, and while one has lost its disk.
    FOLDER keeps the clusters that were filled; what is measured is a copy.
    """
    about = [machine.describe(), f"sim growth: {limit_s:g} s a phase at most, calm ones {calm_s:g} s"]
    click.echo("\n".join(f"# {line}" for line in about), err=True)
    for files in sizes:
        used = _copy_of(folder, files)
        try:
            grown = trio.run(measure, used.absolute(), files, limit_s, calm_s, missed, click.echo)
        finally:
            shutil.rmtree(used, ignore_errors=True)
        if report is not None:
            _add_to(report, {"about": about, **as_json(grown)})


def _copy_of(folder: Path, files: int) -> Path:
    """A cluster of so many files, to be used up."""
    filled, used = folder / str(files), folder / f"{files}-used"
    if not (filled / "cluster.json").exists():
        base_port = free_base_port(NODES + 2)
        layout = settle_layout(filled, NODES, base_port, base_port + NODES + 1)
        fill(filled.absolute(), layout, Filling(files, SIZE, NODES), lambda line: None)
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(filled, used)
    if hasattr(os, "sync"):
        # What is written behind a copy would be measured as what commits take.
        os.sync()
    return used


def _add_to(report: Path, cluster: Cluster) -> None:
    """Write what was measured of a cluster into a report, in place of what it has of one of this size."""
    report.mkdir(parents=True, exist_ok=True)
    path = report / "report.json"
    known: list[Cluster] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [other for other in known if other["files"] != cluster["files"]]
    clusters = sorted([*others, cluster], key=lambda one: int(one["files"]))
    path.write_text(json.dumps(clusters, indent=1) + "\n", encoding="utf-8")
    (report / "report.md").write_text(as_markdown(clusters), encoding="utf-8")
    (report / "report.svg").write_text(as_picture(clusters), encoding="utf-8")
