"""What a bench came to, for people (Markdown, a picture) and for programs (JSON)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sim.bench.loads import PAGE, Figures, Workload

BAR_WIDTH, BAR_HEIGHT, LABEL_WIDTH = 360, 16, 260
COLORS = ("#2b6cb0", "#dd6b20", "#38a169", "#805ad5")


@dataclass(slots=True)
class Row:
    """All rounds of one load on one system."""

    system: str
    workload: Workload
    rounds: list[Figures] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of all its processes, in each round."""
    disk_bytes: int = 0
    """What its folder grew by in all rounds."""
    memory_mib: float | None = None
    """Behind the last round."""

    def rates(self) -> list[float]:
        """Of each round: requests a second, MiB a second of large files, or files a second of long lists."""
        scale = self.workload.size / 2**20 if self.workload.is_large else 1.0
        scale = PAGE if self.workload.kind == "walk" else scale
        return [figures.per_s * scale for figures in self.rounds]

    def cpu_per_1000(self) -> float | None:
        """Processor seconds for a thousand requests."""
        requests = sum(figures.requests for figures in self.rounds)
        return 1000 * sum(self.cpu_s) / requests if self.cpu_s and requests else None

    def disk_per_byte(self) -> float | None:
        """Bytes on the disk for each byte that was stored, with all copies, logs and what is set aside for later."""
        stored = sum(figures.requests - figures.errors for figures in self.rounds) * self.workload.size
        return self.disk_bytes / stored if self.workload.kind == "put" and stored else None

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "system": self.system,
            "workload": self.workload.name,
            "rates": self.rates(),
            "unit": unit_of(self.workload),
            "p50_ms": [figures.p50_ms for figures in self.rounds],
            "p99_ms": [figures.p99_ms for figures in self.rounds],
            "errors": sum(figures.errors for figures in self.rounds),
            "cpu_s_per_1000": self.cpu_per_1000(),
            "disk_bytes_per_byte": self.disk_per_byte(),
            "memory_mib": self.memory_mib,
        }


def unit_of(workload: Workload) -> str:
    """In what its rates are given."""
    if workload.kind == "walk":
        return "files/s"
    return "MiB/s" if workload.is_large else "/s"


HEAD = (
    "| load | system | median | least to most | p50 ms | p99 ms | CPU s per 1,000 | disk bytes per byte | memory MiB "
    "| errors |"
)


def as_markdown(about: Sequence[str], rows: Sequence[Row]) -> str:
    """The table, with what it was measured on above it."""
    lines = [*(f"- {line}" for line in about), "", HEAD, "| --- " * HEAD.count("| ") + "|"]
    lines += [_line(row) for row in rows if row.rounds]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    rates = row.rates()
    cells = [
        row.workload.name,
        row.system,
        f"{median(rates):,.0f} {unit_of(row.workload)}",
        f"{min(rates):,.0f} to {max(rates):,.0f}",
        f"{median(figures.p50_ms for figures in row.rounds):,.1f}",
        f"{median(figures.p99_ms for figures in row.rounds):,.1f}",
        _number(row.cpu_per_1000(), "{:.2f}"),
        _number(row.disk_per_byte(), "{:.2f}"),
        _number(row.memory_mib, "{:.0f}"),
        str(sum(figures.errors for figures in row.rounds)),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def as_picture(rows: Sequence[Row]) -> str:
    """Bars (SVG), each as long as its share of the fastest system's median for that load."""
    systems = list(dict.fromkeys(row.system for row in rows))
    best = {row.workload.name: 0.0 for row in rows if row.rounds}
    for row in filter(lambda row: row.rounds, rows):
        best[row.workload.name] = max(best[row.workload.name], median(row.rates()))
    bars: list[str] = []
    for at, row in enumerate(row for row in rows if row.rounds):
        middle, y = median(row.rates()), 10 + at * (BAR_HEIGHT + 6)
        length = BAR_WIDTH * middle / (best[row.workload.name] or 1.0)
        label = html.escape(f"{row.workload.name} · {row.system}")
        color = COLORS[systems.index(row.system) % len(COLORS)]
        bars.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{y + 12}" text-anchor="end">{label}</text>'
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{length:.0f}" height="{BAR_HEIGHT}" fill="{color}"/>'
            f'<text x="{LABEL_WIDTH + length + 6:.0f}" y="{y + 12}">{middle:,.0f} {unit_of(row.workload)}</text>'
        )
    height = 20 + len(bars) * (BAR_HEIGHT + 6)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL_WIDTH + BAR_WIDTH + 120}" height="{height}" '
        f'font-family="sans-serif" font-size="12">{"".join(bars)}</svg>\n'
    )
