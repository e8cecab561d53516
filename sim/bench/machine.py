"""What a run was measured on, what processes cost, as far as the system tells (Linux does), and what peers tell."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

PROC = Path("/proc")
_GAUGE = re.compile(r"^(minidfs_\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def describe() -> str:
    """Processor, memory, system and versions, in one line."""
    parts = [f"{os.cpu_count()} x {_processor()}", _memory(), f"{platform.system()} {platform.release()}"]
    parts += [f"Python {platform.python_version()}", f"SQLite {sqlite3.sqlite_version}"]
    parts += [f"{name} {version(name)}" for name in ("trio", "minidfs")]
    return ", ".join(filter(None, parts))


def _processor() -> str:
    with suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    if not hasattr(os, "sysconf") or sys.platform == "darwin":
        return ""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def with_descendants(pids: Iterable[int]) -> list[int]:
    """These processes, and all they started that still run; only these where the system does not tell."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*") if PROC.is_dir() else ():
        with suppress(OSError, ValueError, IndexError):
            parent = int(_stat(int(folder.name))[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = list(pids)
    for pid in found:
        found += children.get(pid, ())
    return found


def cpu_s(pids: Iterable[int]) -> float | None:
    """Processor time these processes have used; None where the system does not tell."""
    if not PROC.is_dir():
        return None
    ticks = 0
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            ticks += sum(map(int, _stat(pid)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may have blanks."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def memory_mib(pids: Iterable[int]) -> float | None:
    """Memory these processes take up, shared pages in proportion (PSS); None where the system does not tell."""
    total, is_told = 0, False
    for pid in pids:
        with suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total, is_told = total + int(line.split()[1]), True
    return total / 1024 if is_told else None


def disk_bytes(folder: Path) -> int:
    """What a folder takes up on the disk, in blocks where the system tells."""
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.stat(os.path.join(above, name))
                total += found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size
    return total


def gauges_in(text: str) -> dict[str, float]:
    """What a peer's `/metrics` say, a number each: the sum of those that differ by labels only."""
    found: dict[str, float] = {}
    for name, value in _GAUGE.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found
