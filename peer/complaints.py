"""Saying what goes wrong again and again: when it is new, and from then on rarely."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

REMIND_S = 300.0
"""What goes on being wrong is said so often."""
REMEMBERED_MAX = 256
"""Things complained about; who makes up more of them is only heard more often."""


class Complaints:
    """What was said to a log, and when."""

    def __init__(self, log: logging.Logger, now: Callable[[], float]) -> None:
        self._log = log
        self._now = now
        self._said: OrderedDict[object, tuple[str, float]] = OrderedDict()

    def say(self, about: object, sentence: str, level: int = logging.WARNING) -> None:
        """Log a sentence, unless it is what was said about the same thing within the last minutes."""
        before, said_at = self._said.get(about, ("", 0.0))
        if sentence == before and self._now() - said_at < REMIND_S:
            return
        self._note(about, sentence, level)

    def say_rarely(self, about: object, sentence: str, level: int = logging.WARNING) -> None:
        """Log a sentence, unless anything was said about the same thing within the last minutes.

        For what strangers bring about, under as many names as they like.
        """
        if about not in self._said or self._now() - self._said[about][1] >= REMIND_S:
            self._note(about, sentence, level)

    def _note(self, about: object, sentence: str, level: int) -> None:
        self._said[about] = sentence, self._now()
        self._said.move_to_end(about)
        if len(self._said) > REMEMBERED_MAX:
            self._said.popitem(last=False)
        self._log.log(level, "%s", sentence)
