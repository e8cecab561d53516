"""What happened in a chaos run, in its order: for the report, for the view, and as lines of JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any

import trio


@dataclass(slots=True)
class Journal:
    """Events with their moments, in seconds since the run began; written to `file` at once, where there is one."""

    file: IO[str] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    """Operations and faults, by kind."""
    running: dict[str, None] = field(default_factory=dict)
    """The faults there are now."""
    began: float = field(default_factory=trio.current_time)

    @property
    def now_s(self) -> float:
        """Since the run began."""
        return trio.current_time() - self.began

    def note(self, event: str, **details: Any) -> None:
        """Something happened."""
        line = {"t": round(self.now_s, 3), "event": event, **details}
        self.events.append(line)
        if self.file is not None:
            print(json.dumps(line), file=self.file, flush=True)

    def operation(self, kind: str, via: str, outcome: str, took_s: float) -> None:
        """A client's request ended: `outcome` is `ok`, a status, or how it failed."""
        self.counted[kind] += outcome == "ok"
        self.note("operation", kind=kind, via=via, outcome=outcome, took_s=round(took_s, 4))

    def fault_begins(self, kind: str, where: str) -> None:
        """From now on something is wrong."""
        self.counted[kind] += 1
        self.running[f"{kind} {where}"] = None
        self.note("fault begins", kind=kind, where=where)

    def fault_ends(self, kind: str, where: str) -> None:
        """It is mended."""
        self.running.pop(f"{kind} {where}", None)
        self.note("fault ends", kind=kind, where=where)
