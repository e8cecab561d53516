"""After each start: whether the rows of the catalog give their sum, found out while the peer serves already.

Of a million files it takes half a minute. Until then this peer gives its whole state to nobody, and takes over nobody
else's: what is missing in damaged rows would be taken for deleted.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from itertools import islice

import trio

from peer.gossip.exchange import Exchanger
from peer.gossip.peers import Peers
from peer.store.database import translated_errors
from peer.store.errors import CatalogDamaged
from peer.store.holding import Holding
from peer.store.lookups import vv_and_sum
from peer.store.rows import PAGE_ROWS, UNREADABLE, count_files, count_shown, live_ops
from peer.world.env import Env, StoreError, Work
from protocol.catalog import SUM_MODULUS
from protocol.codec import digest_of
from protocol.ops import LiveOp

log = logging.getLogger("minidfs.verification")

RETRY_S = 5.0
"""After a disk failed it."""


class Verification:
    """Looks over the rows of one peer once."""

    def __init__(self, env: Env, here: Holding, others: Peers, exchanger: Exchanger) -> None:
        self._env = env
        self._here = here
        self._others = others
        self._exchanger = exchanger

    async def run(self) -> None:
        """Look over the rows, and have damaged ones replaced."""
        while not self._here.verified.is_set():
            try:
                await self._look_over()
            except StoreError as error:
                log.error("cannot look over the rows of the catalog: %s", error)
                await trio.sleep(RETRY_S)

    async def _look_over(self) -> None:
        here = self._here
        if not await self._give_their_sum():
            # What others did meanwhile is in the sum as in the rows: the difference stays.
            here.is_damaged = await here.database.write(here.set_damage_apart) or here.is_damaged
        elif await here.database.read(_is_miscounted):
            await here.database.write(here.database.store.count_files_anew)
        here.verified.set()
        if here.is_damaged:
            for node_id in self._others.membership.reachable():
                self._exchanger.link(node_id).wake()

    async def _give_their_sum(self) -> bool:
        """Whether the rows, as of one moment, give the sum of that moment."""
        clock = self._env.clock
        pinned = await self._here.database.pin()
        try:
            ops = live_ops(pinned)
            found: int | None = 0
            total = 0
            while found is not None:
                began = clock.now()
                found = await self._env.run_blocking(Work.DATABASE_READ, _sum_of_some, ops)
                total += found or 0
                # Half of the time is for others.
                await trio.sleep(clock.now() - began)
            expected = await self._env.run_blocking(Work.DATABASE_READ, _sum_of, pinned)
        except (CatalogDamaged, *UNREADABLE):
            return False
        finally:
            await self._here.database.unpin(pinned)
        return total % SUM_MODULUS == expected


def _sum_of_some(ops: Iterator[LiveOp]) -> int | None:
    """The sum of the next ops; None when there are no more."""
    with translated_errors():
        digests = [digest_of(op) for op in islice(ops, PAGE_ROWS)]
    return sum(digests) if digests else None


def _is_miscounted(connection: sqlite3.Connection) -> bool:
    """Whether there are other than as many files as was kept; one that changes meanwhile is counted twice in vain."""
    return count_files(connection) != count_shown(connection)


def _sum_of(pinned: sqlite3.Connection) -> int:
    with translated_errors():
        return vv_and_sum(pinned)[1]
