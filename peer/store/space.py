"""Room on the disk: a reserve for the day when there is none, and whether this peer takes content.

A file of some megabytes is set aside. When the disk is full it is given up, so that the log and the catalog have room
for what frees space, deletions, and for what others did; content is refused until there is room again.
"""

from __future__ import annotations

import logging

from peer.events import Events
from peer.worker import Worker
from peer.world.env import Env, NoSpace, StoreError, Work

log = logging.getLogger("minidfs.space")

RESERVE = "reserve"
LOOK_EVERY_S = 5.0
ROOM_IN_RESERVES = 1.5
"""Free space, in reserves, at which content is taken again: one is set aside anew, the rest is to be used."""


class Space(Worker):
    """Knows whether the disk is full."""

    name = "space"

    def __init__(self, env: Env, reserve_bytes: int, events: Events) -> None:
        super().__init__()
        self._events = events
        self._env = env
        self._reserve_bytes = reserve_bytes
        self.reason: str | None = None
        """Why no content is taken, for clients; None when it is."""

    def check(self) -> None:
        """Raises NoSpace while no content is taken."""
        if self.reason is not None:
            raise NoSpace(self.reason)

    def note_full(self) -> None:
        """The disk is full: take no content, and give up the reserve (from any thread but the event loop's; blocks)."""
        if self.reason is not None:
            return
        self.reason = "the disk is full: this peer is read-only but for deletions; make room, or add a peer"
        log.error("%s", self.reason)
        self._events.tell("disk full")
        try:
            self._env.disk.remove(RESERVE)
        except StoreError as error:
            log.error("the reserve cannot be given up: %s", error)

    async def set_aside(self) -> None:
        """Have the reserve, if there is room for it; without it the peer runs all the same."""
        try:
            await self._env.run_blocking(Work.DISK, self._set_aside)
        except StoreError as error:
            log.warning("no space can be set aside: %s", error)

    def _set_aside(self) -> None:
        disk = self._env.disk
        if self._reserve_bytes and dict(disk.list_files("")).get(RESERVE) != self._reserve_bytes:
            disk.remove(RESERVE)
            disk.allocate(RESERVE, self._reserve_bytes)

    def pace_s(self) -> float:
        return LOOK_EVERY_S

    async def step(self) -> None:
        """Look for room, if the disk is full."""
        if self.reason is None:
            return
        try:
            if await self._env.run_blocking(Work.DISK, self._has_room):
                await self._env.run_blocking(Work.DISK, self._set_aside)
                self.reason = None
                log.warning("there is room on the disk again; this peer takes content")
                self._events.tell("disk has room")
        except StoreError as error:
            log.debug("looking for room: %s", error)

    def _has_room(self) -> bool:
        return self._env.disk.free_bytes() > self._reserve_bytes * ROOM_IN_RESERVES
