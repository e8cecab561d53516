"""Removes the chunk files nobody needs: nobody else does, and only while it is known what was committed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from peer.store.chunk_files import ChunkFiles, FreshChunk
from peer.store.database import Database
from peer.store.rows import ChunkRow, chunk_file_name, chunk_row
from peer.worker import Worker
from peer.world.env import Env, StoreError, Work

log = logging.getLogger("minidfs.collector")


class Collector(Worker):
    """Removes files whose rows were removed, or never came; what it leaves, the next start removes."""

    name = "collector"

    def __init__(self, env: Env, database: Database, files: ChunkFiles) -> None:
        super().__init__()
        self._env = env
        self._database = database
        self._files = files
        self._unused: list[str] = []
        self._discarded: list[FreshChunk] = []

    def remove_later(self, paths: list[str]) -> None:
        """Remove files whose rows a commit removed."""
        self._unused += paths
        self.wake()

    def discard(self, fresh: Iterable[FreshChunk]) -> None:
        """Remove fresh chunks that were not adopted (never blocks, never fails).

        A commit thought to have failed may have adopted them all the same: the collector waits until that is known.
        """
        self._discarded += [chunk for chunk in fresh if chunk.serial is not None]
        if self._discarded:
            self.wake()

    def backlog(self) -> int:
        return len(self._unused) + len(self._discarded)

    async def step(self) -> None:
        await self._database.wait_settled()
        paths, self._unused = self._unused, []
        try:
            paths += self._take_unadopted()
        except StoreError as error:
            log.warning("discarded chunk files stay until there are more of them: %s", error)
        await self._env.run_blocking(Work.DISK, self._files.remove, paths)

    def _take_unadopted(self) -> list[str]:
        """The files of discarded chunks which no commit adopted."""
        rows = {chunk.hash: self._row(chunk.hash) for chunk in self._discarded}
        discarded, self._discarded = self._discarded, []
        return [
            chunk_file_name(chunk.hash, chunk.serial)
            for chunk in discarded
            if chunk.serial is not None and ((row := rows[chunk.hash]) is None or row.serial != chunk.serial)
        ]

    def _row(self, chunk_hash: bytes) -> ChunkRow | None:
        return self._database.look_up(lambda connection: chunk_row(connection, chunk_hash))
