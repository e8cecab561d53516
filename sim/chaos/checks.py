"""What must hold of real peers, looked at over HTTP, while faults come and after them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from typing import Any

import httpx
import trio

from sim.chaos.scene import SLACK_S, Scene, first_of, pause
from sim.model import FileModel, Promise, PromiseBroken

OPEN = ("PENDING", "IN_PROGRESS", "FAILED")
"""What items of the replication queue may be while copies are missing."""
COPIES = 3
READERS = 8
CHECKED_ALONG_THE_WAY = 60
PAGE = 1000


class Checks:
    """Looks at one cluster. All of it raises PromiseBroken."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._chance = random.Random(seed)

    def some_files(self) -> list[FileModel]:
        """Of the files nobody works on the newest, and a few of the others."""
        idle = [file for file in self._scene.files.values() if not file.busy]
        newest, others = idle[-CHECKED_ALONG_THE_WAY // 2 :], idle[: -CHECKED_ALONG_THE_WAY // 2]
        return newest + self._chance.sample(others, min(len(others), CHECKED_ALONG_THE_WAY // 2))

    async def check(self, files: Iterable[FileModel], *, all_up: bool) -> None:
        """Every one of these files reads as it must from every live peer, within a heal interval."""
        live = self._scene.live()
        reader_slots = trio.CapacityLimiter(READERS)
        broken: PromiseBroken | None = None

        async def check_one(file: FileModel) -> None:
            async with reader_slots:
                await self._scene.with_file(file, self._check_file, file, live, all_up)

        try:
            async with trio.open_nursery() as nursery:
                for file in list(files):
                    nursery.start_soon(check_one, file)
        except* PromiseBroken as group:
            broken = first_of(group)
        if broken is not None:
            raise broken

    async def _check_file(self, file: FileModel, live: frozenset[str], all_up: bool) -> None:
        for node_id in sorted(live):
            deadline = trio.current_time() + self._scene.heal_interval_s + SLACK_S
            while (objection := await self._read(file, node_id, live, all_up)) is not None:
                if trio.current_time() > deadline:
                    raise objection.at(f"{node_id}, with {sorted(live)} up")
                await pause()

    async def _read(self, file: FileModel, node_id: str, live: frozenset[str], all_up: bool) -> PromiseBroken | None:
        digest = hashlib.sha256()
        url = f"{self._scene.cluster.url_of(node_id)}/files/{file.file_key}"
        try:
            async with self._scene.client.stream("GET", url) as response:
                async for piece in response.aiter_raw():
                    digest.update(piece)
        except httpx.TransportError as error:
            return PromiseBroken(Promise.ACKNOWLEDGED, f"{file.file_key}: broke off: {error!r}")
        self._scene.report.reads += 1
        trusted = live - self._scene.spoiled.keys()
        return file.objection(response.status_code, digest.hexdigest(), trusted, all_up=all_up)

    async def wait_caught_up(self, node_id: str, before: set[str]) -> None:
        """A restarted peer lists all that had been acknowledged, and holds its copy of it."""
        started = trio.current_time()
        while missing := await self._missing_at(node_id, before):
            if trio.current_time() - started > self._scene.heal_interval_s + SLACK_S:
                shown = ", ".join(missing[:5])
                what = f"{node_id} has not caught up after a heal interval; {len(missing)} lack: {shown}"
                raise PromiseBroken(Promise.ALIKE, what)
            await pause()
        self._scene.report.catch_up_s.append(trio.current_time() - started)

    async def _missing_at(self, node_id: str, before: set[str]) -> list[str]:
        """Of the files acknowledged before and touched by nobody since, those a peer does not know or hold yet."""
        listed = {file["file_key"]: file for file in await self.listing(node_id)}
        trusted = self._scene.trusted()
        holds_all = len(self._scene.node_ids) <= COPIES
        return [
            file.file_key
            for key in sorted(before)
            if (file := self._scene.files[key]).must_exist
            and not file.busy
            and not file.retired
            and all(version is not None and version.is_live(trusted) for version in file.shown)
            and (key not in listed or (holds_all and node_id not in listed[key]["replicas"]))
        ]

    async def listing(self, node_id: str) -> list[dict[str, Any]]:
        """All files a peer lists."""
        files: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            params: dict[str, str | int] = {"limit": PAGE} | ({"after": cursor} if cursor else {})
            response = await self._scene.client.get(f"{self._scene.cluster.url_of(node_id)}/files", params=params)
            page = response.raise_for_status().json()
            files += page["files"]
            cursor = page["next"]
            if cursor is None:
                return files

    async def wait_alike(self, within_s: float) -> None:
        """All peers list the same files on the same holders, and no copy is missing."""
        deadline = trio.current_time() + within_s
        while (difference := await self._difference()) is not None:
            if trio.current_time() > deadline:
                raise PromiseBroken(Promise.ALIKE, f"after {within_s:g} s with all peers up: {difference}")
            await pause()

    async def nothing_is_missing(self) -> None:
        """What must exist is listed."""
        listed = {file["file_key"] for file in await self.listing(self._scene.node_ids[0])}
        files = self._scene.files.values()
        missing = [file.file_key for file in files if file.must_exist and file.file_key not in listed]
        if missing:
            raise PromiseBroken(Promise.ACKNOWLEDGED, f"not listed after a restart: {missing[:5]}")

    async def _difference(self) -> str | None:
        first, *others = self._scene.node_ids
        listed = {file["file_key"]: file for file in await self.listing(first)}
        for other in others:
            theirs = {file["file_key"]: file for file in await self.listing(other)}
            for key in sorted({*listed, *theirs}):
                if listed.get(key) != theirs.get(key):
                    return f"{first} lists {listed.get(key)}, {other} {theirs.get(key)}"
        for key, file in listed.items():
            if key not in self._scene.files and file["checksum_sha256"] not in self._scene.sent:
                return f"a file nobody sent is listed: {file}"
        for node_id in (first, *others):
            for status in OPEN:
                url = f"{self._scene.cluster.url_of(node_id)}/replication-queue?status={status}"
                items = (await self._scene.client.get(url)).json()["items"]
                if items:
                    return f"{node_id} still has {len(items)} items {status} in its queue, as {items[0]}"
        return None
