"""What clusters of several sizes did, for people (Markdown, a picture) and for programs (JSON)."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sim.bench.report import COLORS
from sim.growth.phases import Grown

HEAD = (
    "| files | what happens | until no copy lacks | uploads /s | p50, p99, longest ms | a copy short "
    "| longest transaction, stall of a loop, ms | MiB of the largest peer |"
)
PANEL_WIDTH, PANEL_HEIGHT, MARGIN, PANELS_A_ROW = 260, 170, 50, 3


Cluster = dict[str, Any]
"""All figures of a cluster, as plain values; a phase is one too."""


def as_json(grown: Grown) -> Cluster:
    """What was measured, as plain values; of the uploads of a phase what they came to."""
    found = asdict(grown)
    for phase, plain in zip(grown.phases, found["phases"], strict=True):
        uploads = phase.uploads
        plain["uploads"] = {
            "per_s": uploads.per_s,
            "p50_ms": uploads.at(0.5),
            "p99_ms": uploads.at(0.99),
            "longest_ms": uploads.at(1),
            "short": uploads.short,
            "errors": uploads.errors,
        }
    return found


def as_markdown(clusters: Sequence[Cluster]) -> str:
    """The tables, with what they were measured on above them."""
    about = dict.fromkeys(line for cluster in clusters for line in cluster["about"])
    lines = [*(f"- {line}" for line in about), ""]
    sizes = [f"{cluster['files']:,} files" for cluster in clusters]
    lines.append(f"| | {' | '.join(sizes)} |")
    lines.append("| --- " * (len(clusters) + 1) + "|")
    for name, key, form in _CALM:
        lines.append(f"| {name} | {' | '.join(form.format(cluster[key]) for cluster in clusters)} |")
    lines += ["", HEAD, "| --- " * HEAD.count("| ") + "|"]
    lines += [_line(cluster["files"], phase) for cluster in clusters for phase in cluster["phases"]]
    return "\n".join(lines) + "\n"


_CALM = (
    ("from the start of three peers until all are ready", "ready_s", "{:.1f} s"),
    ("until they have looked over their rows and files", "verified_s", "{:.0f} s"),
    ("a list of 100 files", "list_ms", "{:.1f} ms"),
    ("a read of 4 KiB", "read_ms", "{:.2f} ms"),
    ("database, bytes a file of 4 KiB", "bytes_per_file", "{:,.0f}"),
)


def _line(files: int, phase: dict[str, Any]) -> str:
    uploads, took_s = phase["uploads"], phase["took_s"]
    took = "" if not phase["has_end"] else "not within the limit" if took_s is None else f"{took_s:.0f} s"
    cells = [
        f"{files:,}",
        phase["name"],
        took,
        f"{uploads['per_s']:.0f}",
        f"{uploads['p50_ms']:.0f}, {uploads['p99_ms']:.0f}, {uploads['longest_ms']:.0f}",
        str(uploads["short"]),
        f"{phase['hold_ms']:.0f}, {phase['stall_ms']:.0f}",
        "-" if phase["memory_mib"] is None else f"{phase['memory_mib']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def as_picture(clusters: Sequence[Cluster]) -> str:
    """Panels (SVG), one for each figure: how it grows with the number of files, a line for each phase."""
    names = list(dict.fromkeys(phase["name"] for cluster in clusters for phase in cluster["phases"]))
    panels: list[tuple[str, list[tuple[str, list[tuple[int, float]]]]]] = [
        (title, [("", [(cluster["files"], cluster[key]) for cluster in clusters])]) for title, key in _OF_CLUSTERS
    ]
    for title, figure in _OF_PHASES:
        panels.append((title, [(name, _points(clusters, name, figure)) for name in names]))
    drawn = [_panel(at, title, lines, names) for at, (title, lines) in enumerate(panels)]
    rows = math.ceil(len(panels) / PANELS_A_ROW)
    height = rows * (PANEL_HEIGHT + MARGIN) + 20 * (len(names) + 1)
    legend = [
        f'<text x="{MARGIN}" y="{rows * (PANEL_HEIGHT + MARGIN) + 20 * at + 14}" fill="{_color(at)}">'
        f"{html.escape(name)}</text>"
        for at, name in enumerate(names)
    ]
    width = PANELS_A_ROW * (PANEL_WIDTH + MARGIN) + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="12">{"".join(drawn)}{"".join(legend)}</svg>\n'
    )


_OF_CLUSTERS = (
    ("until ready, s", "ready_s"),
    ("a list of 100 files, ms", "list_ms"),
    ("database, bytes a file", "bytes_per_file"),
)
_OF_PHASES: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("uploads a second", lambda phase: phase["uploads"]["per_s"]),
    ("upload, p50 ms", lambda phase: phase["uploads"]["p50_ms"]),
    ("upload, p99 ms", lambda phase: phase["uploads"]["p99_ms"]),
    ("longest transaction, ms", lambda phase: phase["hold_ms"]),
    ("longest stall of a loop, ms", lambda phase: phase["stall_ms"]),
    ("memory of the largest peer, MiB", lambda phase: phase["memory_mib"] or 0.0),
)


def _points(
    clusters: Sequence[Cluster], name: str, figure: Callable[[dict[str, Any]], float]
) -> list[tuple[int, float]]:
    return [
        (cluster["files"], figure(phase))
        for cluster in clusters
        for phase in cluster["phases"]
        if phase["name"] == name
    ]


def _color(at: int) -> str:
    return (*COLORS, "#d53f8c", "#718096")[at % (len(COLORS) + 2)]


def _panel(at: int, title: str, lines: Sequence[tuple[str, list[tuple[int, float]]]], names: Sequence[str]) -> str:
    """Axes from nothing to the largest value, and over the number of files by its logarithm."""
    left = MARGIN + at % PANELS_A_ROW * (PANEL_WIDTH + MARGIN)
    bottom = (at // PANELS_A_ROW + 1) * (PANEL_HEIGHT + MARGIN) - MARGIN + 20
    points = [point for _, line in lines for point in line]
    top = max((value for _, value in points), default=0.0) or 1.0
    sizes = sorted({files for files, _ in points})
    span = math.log(sizes[-1] / sizes[0]) if len(sizes) > 1 else 1.0

    def place(files: int, value: float) -> tuple[float, float]:
        across = math.log(files / sizes[0]) / span if len(sizes) > 1 else 0.5
        return left + across * PANEL_WIDTH, bottom - value / top * (PANEL_HEIGHT - 40)

    parts = [
        f'<text x="{left}" y="{bottom - PANEL_HEIGHT + 22}">{html.escape(title)}, up to {top:,.0f}</text>',
        f'<path d="M{left} {bottom - PANEL_HEIGHT + 40}V{bottom}H{left + PANEL_WIDTH}" fill="none" stroke="#808890"/>',
    ]
    parts += [
        f'<text x="{place(files, 0)[0]:.0f}" y="{bottom + 14}" text-anchor="middle">{files:,}</text>' for files in sizes
    ]
    for name, line in lines:
        color = _color(names.index(name)) if name else "#2b6cb0"
        placed = [place(*point) for point in line]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in placed]
    return "".join(parts)
