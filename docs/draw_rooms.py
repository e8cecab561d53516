"""Draws `docs/rooms.svg`: the rooms of the code, the imports between them, and the way of an upload through them.

    python docs/draw_rooms.py

Everything but the way is read from the code's own imports; tests/test_docs.py fails when the picture is out of date.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "rooms.svg"

WAY = (
    ("peer/world/server.py", "bytes from a socket"),
    ("peer/http/uploads.py", "the form's file part"),
    ("peer/files/uploads.py", "whose targets, which receipt"),
    ("peer/files/intake.py", "cut into chunks, hashed"),
    ("peer/store/chunk_files.py", "written aside, synced"),
    ("peer/files/delivery.py", "larger chunks to the targets"),
    ("peer/store/holding.py", "chunks, put and hold: one commit"),
    ("peer/gossip/exchange.py", "the log suffix to each target"),
    ("peer/gossip/answer.py", "there: applied, held, answered"),
)
"""The way of an upload: the file at each step, and what happens there."""

WIDTH, ROW, BOX_HEIGHT, BOX_WIDTH, MARGIN = 1000, 74, 40, 128, 24
WAY_X = 640


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports from; a room is a package of `peer`, or a file beside them."""
    found: dict[str, set[str]] = {}
    for package in ("protocol", "peer", "sim"):
        for path in sorted((ROOT / package).rglob("*.py")):
            here = room_of(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
            if here is None:
                continue
            used = found.setdefault(here, set())
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    there = room_of(f"{node.module}.{node.names[0].name}")
                    if there is not None and there != here:
                        used.add(there)
    return found


def room_of(module: str) -> str | None:
    """The room of a module: `protocol`, `sim`, or what stands directly in `peer`; None for anything else."""
    parts = module.split(".")
    if parts[0] in ("protocol", "sim"):
        return parts[0]
    if parts[0] == "peer" and len(parts) > 1 and not parts[1].startswith("__"):
        return parts[1]
    return None


def floors(uses: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one above the highest it uses. Raises RecursionError when rooms form a circle."""

    def floor_of(room: str) -> int:
        return 1 + max((floor_of(used) for used in uses[room]), default=-1)

    return {room: floor_of(room) for room in sorted(uses)}


def direct(uses: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""

    def below(room: str) -> set[str]:
        return uses[room] | {deeper for used in uses[room] for deeper in below(used)}

    return [
        (room, used)
        for room in sorted(uses)
        for used in sorted(uses[room])
        if not any(used in below(between) for between in uses[room] if between != used)
    ]


def picture() -> str:
    """The SVG."""
    uses = imports()
    floor = floors(uses)
    top = max(floor.values())
    rows = {number: [room for room in sorted(uses) if floor[room] == number] for number in range(top + 1)}
    height = 2 * MARGIN + (top + 1) * ROW
    middle: dict[str, tuple[float, float]] = {}
    for number, row in rows.items():
        for place, room in enumerate(row):
            x = MARGIN + (WAY_X - 2 * MARGIN) * (place + 0.5) / len(row)
            middle[room] = (x, MARGIN + (top - number) * ROW + BOX_HEIGHT / 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="14">',
        "<title>The rooms of Mini DFS and the way of an upload</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for room, used in direct(uses):
        (x1, y1), (x2, y2) = middle[room], middle[used]
        y1, y2 = y1 + BOX_HEIGHT / 2, y2 - BOX_HEIGHT / 2
        bend = (y2 - y1) / 2
        lines.append(
            f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"'
            ' fill="none" stroke="#888" marker-end="url(#tip)"/>'
        )
    for room, (x, y) in sorted(middle.items()):
        lines += [
            f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
            ' rx="6" fill="#eef3fb" stroke="#345"/>',
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(room)}</text>',
        ]
    lines += _way(height)
    return "\n".join([*lines, "</svg>", ""])


def _way(height: int) -> list[str]:
    lines = [f'<text x="{WAY_X}" y="{MARGIN + 14}" font-weight="bold">An upload</text>']
    step = (height - 2 * MARGIN - 30) / len(WAY)
    for number, (path, what) in enumerate(WAY):
        y = MARGIN + 44 + number * step
        lines += [
            f'<circle cx="{WAY_X + 12}" cy="{y:.0f}" r="11" fill="#345"/>',
            f'<text x="{WAY_X + 12}" y="{y + 5:.0f}" text-anchor="middle" fill="#fff">{number + 1}</text>',
            f'<text x="{WAY_X + 32}" y="{y + 1:.0f}" font-family="monospace">{escape(path)}</text>',
            f'<text x="{WAY_X + 32}" y="{y + 18:.0f}" fill="#555">{escape(what)}</text>',
        ]
        if number + 1 < len(WAY):
            lines.append(f'<path d="M{WAY_X + 12} {y + 12:.0f}V{y + step - 12:.0f}" stroke="#345"/>')
    return lines


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
