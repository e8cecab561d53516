"""A peer whose wall clock is wrong by as many seconds as a file says, which may change while it runs.

    python -m sim.chaos.skewed FILE serve --id node-1 …

Only the wall clock: time-outs and pauses are measured by another one, which nobody can set.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from peer.cli.main import main

NS_PER_S = 1_000_000_000
LOOK_EACH_S = 0.2


def skewed(path: Path, right: Callable[[], int], monotonic: Callable[[], float]) -> Callable[[], int]:
    """A clock in nanoseconds that is wrong by what `path` says, in seconds; right while there is no such file."""
    looked_at, offset_ns = float("-inf"), 0

    def now_ns() -> int:
        nonlocal looked_at, offset_ns
        if monotonic() - looked_at > LOOK_EACH_S:
            looked_at = monotonic()
            try:
                offset_ns = int(float(path.read_text(encoding="ascii")) * NS_PER_S)
            except (FileNotFoundError, ValueError):
                # Not there yet, or being written.
                offset_ns = 0
        return right() + offset_ns

    return now_ns


if __name__ == "__main__":
    clock = skewed(Path(sys.argv.pop(1)), time.time_ns, time.monotonic)
    time.time_ns = clock
    time.time = lambda: clock() / NS_PER_S
    sys.exit(main())
