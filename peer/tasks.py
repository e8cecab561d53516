"""Ways to run tasks beside each other, and to wake those that wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


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
