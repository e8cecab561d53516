"""After each start: whether chunk files are where their rows say, found out while the peer serves already.

A crash leaves files that no row names, and a disk that was restored, or tidied by hand, has rows whose files are gone.
A file that was written since the start is none of both: its row may come yet. Whoever reads a chunk before this has
come to it finds out by itself that its file is missing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import trio

from peer.store.chunk_files import CHUNKS
from peer.store.holding import Holding
from peer.store.lookups import chunk_files_between
from peer.store.rows import ChunkRow, chunk_file_name
from peer.world.env import Env, StoreError, Work

log = logging.getLogger("minidfs.inventory")

FOLDERS = 256
FOLDERS_A_STEP = 16
"""Looked through at a time."""

LOST_A_STEP = 64
"""Chunks that are found missing are told to the catalog so many at a time."""

RETRY_S = 5.0
"""After a disk failed it."""

_NAME = re.compile(r"([0-9a-f]{64})\.(\d{1,16})")

Found = dict[bytes, set[int]]
"""Files, as the serials there are of each hash."""


class Inventory:
    """Looks through the chunk folders of one peer once."""

    def __init__(self, env: Env, here: Holding) -> None:
        self._env = env
        self._here = here
        self._next = 0
        """The first of the folders that were not looked through yet."""

    async def run(self) -> None:
        """Look through all folders; removes what is of no use, and has what is missing fetched."""
        clock = self._env.clock
        while self._next < FOLDERS:
            began = clock.now()
            try:
                await self._look_through(range(self._next, self._next + FOLDERS_A_STEP))
            except StoreError as error:
                log.error("cannot look through the chunk folders: %s", error)
                await trio.sleep(RETRY_S)
                continue
            self._next += FOLDERS_A_STEP
            # Half of the time is for others.
            await trio.sleep(clock.now() - began)
        self._here.chunks.files.forget_serials()
        self._here.inventoried.set()

    async def _look_through(self, folders: Sequence[int]) -> None:
        """See to some folders: files first, and rows after them, for a row stays as long as its file."""
        here = self._here
        found, foreign = await self._env.run_blocking(Work.DISK, self._files_in, folders)
        first, last = bytes([folders[0]]), bytes([folders[-1]]) + b"\xff" * 31
        rows = await here.database.read(partial(chunk_files_between, first=first, last=last))
        lost: list[tuple[bytes, ChunkRow]] = []
        for chunk_hash, row in self._not_found(rows, found):
            if not await self._find_again(chunk_hash, row, found) and row.serial is not None:
                lost.append((chunk_hash, row))
        for begin in range(0, len(lost), LOST_A_STEP):
            await here.lose_chunks(lost[begin : begin + LOST_A_STEP])
        here.chunks.collector.remove_later([*foreign, *_names_of(found)])

    def _files_in(self, folders: Iterable[int]) -> tuple[Found, list[str]]:
        """The chunk files that were there before this start, and the paths of files that are none. Blocks."""
        found: Found = {}
        foreign: list[str] = []
        for number in folders:
            folder = f"{CHUNKS}/{number:02x}"
            for name, _ in self._env.disk.list_files(folder):
                known = _NAME.fullmatch(name)
                if known is None or not name.startswith(f"{number:02x}"):
                    foreign.append(f"{folder}/{name}")
                elif not self._here.chunks.files.is_of_this_life(int(known[2])):
                    found.setdefault(bytes.fromhex(known[1]), set()).add(int(known[2]))
        return found, foreign

    def _not_found(self, rows: Mapping[bytes, ChunkRow], found: Found) -> list[tuple[bytes, ChunkRow]]:
        """The rows whose files are not among these; takes those of the others away."""
        missing: list[tuple[bytes, ChunkRow]] = []
        for chunk_hash, row in rows.items():
            serials = found.get(chunk_hash, set())
            if row.serial in serials:
                serials.remove(row.serial)
            elif row.serial is None or not self._here.chunks.files.is_of_this_life(row.serial):
                missing.append((chunk_hash, row))
        return missing

    async def _find_again(self, chunk_hash: bytes, row: ChunkRow, found: Found) -> bool:
        """Take another file of the same hash, if there is one, for that of a row, and find out whether it is good."""
        serials = found.get(chunk_hash)
        if not serials:
            return False
        serial = serials.pop()
        here = self._here
        if not await here.database.write(lambda: here.take_file(chunk_hash, row, serial)):
            serials.add(serial)
            return False
        await here.read_chunk(chunk_hash, here.chunks.verify)
        here.tell_changed()
        return True


def _names_of(found: Found) -> list[str]:
    return [chunk_file_name(chunk_hash, serial) for chunk_hash, serials in found.items() for serial in serials]
