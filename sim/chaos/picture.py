"""The report of a chaos run: one HTML page that needs nothing else, with a timeline as a picture in it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

WIDTH, LEFT, ROW, LANE, GAP = 960, 110, 90, 16, 26
"""Of the picture, in its own units."""

COLOURS = {
    "kill": "#d1495b", "restart-all": "#8d1c33", "pause": "#edae49", "partition": "#6a4c93", "slow": "#b79ced",
    "disk-full": "#66a182", "bit-rot": "#2e4057", "clock": "#3d8ec9",
}  # fmt: skip
STYLE = (
    "<style>svg { color: #808890; } text { font: 12px system-ui, sans-serif; fill: currentColor; }"
    " .scale { font-size: 10px; opacity: .8; } .grid { stroke: currentColor; opacity: .3; }</style>"
)
"""Legible on light and dark."""
SHORTEST = 3.0
"""What a fault that takes no time is drawn as wide as."""

Events = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Second:
    """What clients saw in one second of the run."""

    ok: int = 0
    failed: int = 0
    took_s: list[float] = field(default_factory=list)


def seconds_of(events: Events) -> dict[int, Second]:
    """By whole second, the operations that ended in it."""
    found: dict[int, Second] = defaultdict(Second)
    for event in events:
        if event["event"] == "operation":
            second = found[int(event["t"])]
            second.ok += event["outcome"] == "ok"
            second.failed += event["outcome"] != "ok"
            second.took_s.append(event["took_s"])
    return dict(found)


def faults_of(events: Events, end_s: float) -> list[tuple[str, str, float, float]]:
    """Kind, place, and from when to when, of each fault; those that were not mended last until the end."""
    running: dict[tuple[str, str], float] = {}
    found: list[tuple[str, str, float, float]] = []
    for event in events:
        if event["event"] == "fault begins":
            running[event["kind"], event["where"]] = event["t"]
        elif event["event"] == "fault ends":
            began = running.pop((event["kind"], event["where"]), event["t"])
            found.append((event["kind"], event["where"], began, event["t"]))
    return found + [(kind, where, began, end_s) for (kind, where), began in running.items()]


class _Picture:
    """Grows downwards, one row after the other."""

    def __init__(self, end_s: float) -> None:
        self._end_s = end_s
        self._parts: list[str] = []
        self._y = 10.0

    def x(self, t: float) -> float:
        """Where a moment is."""
        return LEFT + (WIDTH - LEFT - 20) * min(t, self._end_s) / self._end_s

    def lane(self, name: str, bars: Iterable[tuple[float, float, str, str]]) -> None:
        """A thin row of bars: from when to when, colour, and what they are."""
        self._say(name, self._y + LANE - 4)
        self._parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 20}" y1="{self._y}" y2="{self._y}"/>')
        for began, ended, colour, what in bars:
            width = max(SHORTEST, self.x(ended) - self.x(began))
            self._parts.append(
                f'<rect x="{self.x(began):.1f}" y="{self._y + 1:.1f}" width="{width:.1f}" height="{LANE - 2}"'
                f' rx="2" fill="{colour}"><title>{escape(what)}</title></rect>'
            )
        self._y += LANE

    def curve(self, name: str, points: Sequence[tuple[float, float]], unit: str, colour: str) -> None:
        """A row with an area below a curve; its scale is that of its highest point."""
        self._y += GAP
        highest = max((value for _, value in points), default=0.0) or 1.0
        bottom = self._y + ROW
        at = [f"{self.x(t):.1f},{bottom - ROW * value / highest:.1f}" for t, value in points]
        self._say(name, self._y + 12)
        self._say(f"up to {highest:.3g} {unit}", self._y + 28, "scale")
        if at:
            first, last = self.x(points[0][0]), self.x(points[-1][0])
            area = f"{first:.1f},{bottom} {' '.join(at)} {last:.1f},{bottom}"
            self._parts.append(f'<polygon points="{area}" fill="{colour}" opacity="0.25"/>')
            self._parts.append(f'<polyline points="{" ".join(at)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        self._parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 20}" y1="{bottom}" y2="{bottom}"/>')
        self._y = bottom

    def ruler(self) -> None:
        """The time below it all."""
        step = max(1, round(self._end_s / 10 / 5) * 5 or 1)
        for t in range(0, math.ceil(self._end_s), step):
            self._parts.append(f'<text class="scale" x="{self.x(t):.1f}" y="{self._y + 16}">{t} s</text>')
        self._y += 24

    def _say(self, text: str, y: float, kind: str = "name") -> None:
        self._parts.append(f'<text class="{kind}" x="4" y="{y:.1f}">{escape(text)}</text>')

    def svg(self) -> str:
        """The whole picture."""
        return (
            f'<svg viewBox="0 0 {WIDTH} {self._y:.0f}" xmlns="http://www.w3.org/2000/svg" role="img"'
            f' aria-label="faults, answers, latency and missing copies over time">{STYLE}{"".join(self._parts)}</svg>'
        )


def timeline(events: Events, node_ids: Sequence[str]) -> str:
    """The picture: faults of each peer, share of requests that were answered, 99th percentile, copies missing."""
    end_s = max((event["t"] for event in events), default=0.0) or 1.0
    picture, faults, seconds = _Picture(end_s), faults_of(events, end_s), seconds_of(events)
    for node_id in ("all", *node_ids):
        bars = [
            (began, ended, COLOURS.get(kind, "gray"), f"{kind} {where}, {began:.1f} s to {ended:.1f} s")
            for kind, where, began, ended in faults
            if where == node_id
        ]
        picture.lane("all peers" if node_id == "all" else node_id, bars)
    answered = [(t, 100 * second.ok / (second.ok + second.failed)) for t, second in sorted(seconds.items())]
    slowest = [(t, 1000 * _percentile(second.took_s, 99)) for t, second in sorted(seconds.items())]
    missing = [(event["t"], event["missing"]) for event in events if event["event"] == "sample"]
    picture.curve("answered", answered, "%", "#2a9d8f")
    picture.curve("latency, p99", slowest, "ms", "#e76f51")
    picture.curve("copies missing", missing, "", "#8d6cab")
    picture.ruler()
    return picture.svg()


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def page(title: str, verdict: str, events: Events, node_ids: Sequence[str]) -> str:
    """The report as HTML."""
    kinds = sorted({str(event["kind"]) for event in events if event["event"] == "fault begins"})
    legend = "".join(
        f'<span><i style="background:{COLOURS.get(kind, "gray")}"></i>{escape(kind)}</span>' for kind in kinds
    )
    outcomes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["event"] == "operation":
            outcomes[event["kind"], event["outcome"]].append(event["took_s"])
    rows = "".join(
        f"<tr><td>{escape(kind)}<td>{escape(outcome)}<td>{len(took_s)}"
        f"<td>{1000 * statistics.median(took_s):.1f}<td>{1000 * _percentile(took_s, 99):.1f}</tr>"
        for (kind, outcome), took_s in sorted(outcomes.items())
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
.legend span {{ margin-right: 1rem; }}
.legend i {{ display: inline-block; width: .8em; height: .8em; margin-right: .3em; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; }}
td:nth-child(-n+2), th:nth-child(-n+2) {{ text-align: left; }}
pre {{ white-space: pre-wrap; }}
</style></head><body>
<h1>{escape(title)}</h1><pre>{escape(verdict)}</pre>
<p class="legend">{legend}</p>
{timeline(events, node_ids)}
<h2>Requests</h2>
<table><tr><th>kind<th>outcome<th>count<th>median ms<th>p99 ms</tr>{rows}</table>
</body></html>
"""
