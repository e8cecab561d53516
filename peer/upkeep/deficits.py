"""What a peer lacks, in pages: first what has the fewest copies, and never all of it in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from peer.store.database import Database
from peer.store.lookups import DEFICITS_MAX, deficits_behind, puts_of_rows
from protocol.identity import NodeId
from protocol.ops import Put


class Deficits:
    """One walk through what `me` lacks: once for each number of copies there are on `live` peers, from none on.

    What comes to be lacking behind its back is for the next walk.
    """

    def __init__(self, database: Database, me: NodeId, live: Callable[[], Sequence[NodeId]]) -> None:
        self._database = database
        self._me = me
        self._live = live
        self._copies = 0
        self._more_copies: set[int] = set()
        """Numbers of copies that were come across, and whose turn is later."""
        self._last: int | None = None

    async def page(self) -> list[Put]:
        """The next of them, at most DEFICITS_MAX; none at the end. Raises StoreError."""
        while True:
            look = partial(deficits_behind, me=self._me, live=self._live(), after=self._last)
            found = await self._database.read(look)
            self._more_copies |= {deficit.copies for deficit in found if deficit.copies > self._copies}
            rows = [deficit.put_row for deficit in found if deficit.copies == self._copies]
            self._last = found[-1].item_id if found else None
            # Some may have gone by now.
            puts = await self._database.read(partial(puts_of_rows, rows=rows)) if rows else []
            if puts:
                return puts
            if len(found) < DEFICITS_MAX and not self._go_on():
                return []

    def _go_on(self) -> bool:
        """Begin anew with those that have more copies; False when there are none."""
        if not self._more_copies:
            return False
        self._copies, self._last = min(self._more_copies), None
        self._more_copies.discard(self._copies)
        return True
