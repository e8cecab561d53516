"""Peers that stand still, as a process does that got SIGSTOP or whose machine sleeps, and then go on as if nothing was.

What runs for a machine is known by a context variable, which tasks inherit. While the machine is paused trio's queue
of runnable tasks sets its tasks aside; time goes on, so deadlines pass meanwhile, and come to light afterwards.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from trio.lowlevel import Task

MACHINE: ContextVar[str | None] = ContextVar("machine", default=None)
"""Whose the running task is; None for clients and for the world itself."""


class Pauses:
    """Which machines of a world are paused."""

    def __init__(self) -> None:
        self._held: dict[str, list[Task]] = {}

    def is_paused(self, name: str) -> bool:
        """Whether a machine stands still."""
        return name in self._held

    def pause(self, name: str) -> None:
        """Let no task of a machine run any more."""
        self._held.setdefault(name, [])
        runner = trio_runner()
        runner.runq = _Gate(runner.runq, self._held)

    def resume(self, name: str) -> None:
        """Let a machine go on; one that was not paused does so anyway."""
        held = self._held.pop(name, [])
        runner = trio_runner()
        kept = _Gate if self._held else _open
        runner.runq = kept([*runner.runq, *held], self._held)


def trio_runner() -> Any:
    """The loop that runs: trio has no public way to hold its tasks back, or to ask for what they wait.

    A test notices when this one moves.
    """
    return importlib.import_module("trio._core._run").GLOBAL_RUN_CONTEXT.runner


def _open(tasks: Iterable[Task], _held: dict[str, list[Task]]) -> deque[Task]:
    return deque(tasks)


class _Gate(deque[Task]):
    """Runnable tasks; those of paused machines are put aside instead."""

    def __init__(self, tasks: Iterable[Task], held: dict[str, list[Task]]) -> None:
        super().__init__()
        self._held = held
        for task in tasks:
            self.append(task)

    def append(self, task: Task) -> None:
        """See deque."""
        aside = self._held.get(task.context.get(MACHINE, None) or "")
        if aside is None:
            super().append(task)
        else:
            aside.append(task)
