"""Ways to run tasks beside each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


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
