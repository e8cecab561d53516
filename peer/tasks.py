"""Ways to run tasks beside each other, and to wake those that wait."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

log = logging.getLogger("minidfs.tasks")

RESTART_PAUSE_S = 0.5
"""Before a failed task starts again; each further failure doubles it."""
RESTART_PAUSE_MAX_S = 30.0
CALM_S = 60.0
"""After so long without a failure, the next one counts as the first."""


class News:
    """Something has changed: whoever follows is called, at once and on the event loop."""

    def __init__(self) -> None:
        self._followers: list[Callable[[], None]] = []

    def follow(self, follower: Callable[[], None]) -> None:
        """Call `follower` for every piece of news from now on; it must not block."""
        self._followers.append(follower)

    def tell(self) -> None:
        """There is news."""
        for follower in self._followers:
            follower()


class Keeper:
    """Keeps tasks running: one that fails as nobody foresaw is logged, counted and started again, later each time.

    So that one bug, or one message nobody thought of, costs one kind of work for a moment, and not the peer.
    """

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()

    async def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task to its end, which for most is never."""
        pause_s = RESTART_PAUSE_S
        while True:
            started = trio.current_time()
            try:
                await run()
            except Exception:
                self.failures[name] += 1
                log.exception("%s failed; it is started again", name)
            else:
                return
            if trio.current_time() - started > CALM_S:
                pause_s = RESTART_PAUSE_S
            await trio.sleep(pause_s)
            pause_s = min(RESTART_PAUSE_MAX_S, 2 * pause_s)


@asynccontextmanager
async def helper_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that help a block and end with it; the block's own error comes out as it is."""
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        # Raised again below, outside the nursery: inside, it would come out wrapped in a group.
        except Exception as error:  # noqa: BLE001
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
