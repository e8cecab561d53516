"""What simulated clients do, and what they may expect to find after what they were told.

They upload, overwrite, repeat, delete, register, list and read, ranges too, through any peer. What was acknowledged is
kept in a model (`sim.model`); an answer that contradicts it is a broken promise at once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from random import Random
from typing import Any

import httpx
import trio

from sim.looks import holds, rivals_of
from sim.model import FileModel, Promise, PromiseBroken, Version, content_of
from sim.scenarios import Life
from sim.sometimes import LESS_THAN_ALL, NO_ANSWER, NO_ROOM, SHORT, SIBLINGS, WITHOUT_COPY
from sim.world import World

SIZES = (0, 1, 300, 1000, 1001, 4000, 9000)
CONTENTS = 6
"""Contents that are sent again and again, under several keys."""

Receipt = Callable[[str, frozenset[str], float], None]
"""Looks at a receipt when it comes: of which file, who was said to have it, and when the upload began."""


class Workload:
    """The clients of one world."""

    def __init__(
        self,
        world: World,
        life: Life,
        done: Counter[str],
        on_receipt: Receipt,
        only: Collection[str] | None = None,
    ) -> None:
        """With `only` these operations are done, by the names they get in `begun`, and the others are left out."""
        self._only = only
        self.begun: list[str] = []
        """Which client's which operation, as `2.17`."""
        self._world = world
        self._life = life
        self._done = done
        self._on_receipt = on_receipt
        self.files: dict[str, FileModel] = {}
        self.registered: dict[str, None] = {}
        self._sent: dict[str, set[str]] = {}
        """By key, the checksums of all that was ever sent under it."""
        self._numbers = itertools.count()
        self._own = [f"ours-{next(self._numbers)}" for _ in range(life.keys)]

    async def run(self, over: trio.Event) -> None:
        """Operate until it is over, and the last operations have ended."""
        async with trio.open_nursery() as nursery:
            for client in range(self._life.clients):
                nursery.start_soon(self._operate, client, over)

    async def _operate(self, client: int, over: trio.Event) -> None:
        operations: list[tuple[float, Callable[[Random, str], Any]]] = [
            (0.22, self._upload_new),
            (0.50, partial(self._on_own, self._upload)),
            (0.58, partial(self._on_own, self._upload_wrong)),
            (0.72, partial(self._on_own, self._delete)),
            (0.77, partial(self._on_own, self._register)),
            (0.90, partial(self._on_own, self._read)),
            (0.96, partial(self._on_own, self._read_range)),
            (1.00, self._list),
        ]
        for number in itertools.count():
            # Each operation has its own stream: what one draws does not depend on what became of those before it.
            chance = Random(f"{self._world.seed} client {client} operation {number}")
            with trio.move_on_after(chance.uniform(0.02, self._life.client_pause_s)):
                await over.wait()
            if over.is_set():
                return
            running = [name for name, machine in self._world.machines.items() if machine.is_up]
            draw, name = chance.random(), f"{client}.{number}"
            if running and (self._only is None or name in self._only):
                self.begun.append(name)
                via = chance.choice(running)
                await next(operation for up_to, operation in operations if draw <= up_to)(chance, via)

    async def _on_own(self, operation: Callable[[Random, str, FileModel], Any], chance: Random, via: str) -> None:
        file = self._own_file(chance.choice(self._own))
        if file.busy:
            # Where there are few files, clients would mostly wait.
            free = [file for file in map(self._own_file, self._own) if not file.busy]
            if not free:
                return
            file = chance.choice(free)
        file.busy = True
        await operation(chance, via, file)
        file.busy = False
        if file.retired:
            # Nothing can be expected of it any more: another one takes its place, or clients would run out of keys.
            self._own[self._own.index(file.file_key)] = f"ours-{next(self._numbers)}"

    def _own_file(self, key: str) -> FileModel:
        return self.files.setdefault(key, FileModel(key))

    @staticmethod
    def _content(chance: Random) -> tuple[Version, bytes]:
        seed = chance.choice([chance.getrandbits(48), chance.randrange(CONTENTS)])
        size = SIZES[seed % len(SIZES)]
        content = content_of(seed, size)
        return Version(seed, size, hashlib.sha256(content).hexdigest()), content

    async def _upload_new(self, chance: Random, via: str) -> None:
        version, content = self._content(chance)
        began = trio.current_time()
        response = await self._send("POST", via, "/files", content=content)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            key = response.json()["file_id"]
            self._acknowledge(self.files.setdefault(key, FileModel(key)), via, version, response, began)

    async def _upload(self, chance: Random, via: str, file: FileModel) -> None:
        version, content = self._content(chance)
        self._sent.setdefault(file.file_key, set()).add(version.sha256)
        began = trio.current_time()
        if version.seed % 2:
            response = await self._send("PUT", via, f"/files/{file.file_key}", content=content)
        else:
            response = await self._send("POST", via, f"/files?file_id={file.file_key}", content=content)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            self._acknowledge(file, via, version, response, began)
        elif response is not None:
            self._world.seen[NO_ROOM] += _is_refused_for_room(response)
            self._world.seen[NO_ANSWER] += not isinstance(response, httpx.Response)
            # Also one that was refused may have been written: a commit that failed can come back.
            file.uncertain_put(version)
            file.retired = isinstance(response, httpx.TimeoutException)

    def _acknowledge(self, file: FileModel, via: str, version: Version, response: httpx.Response, began: float) -> None:
        receipt = response.json()
        if receipt["checksum_sha256"] != version.sha256 or via not in receipt["durable_copies"]:
            raise PromiseBroken(Promise.RECEIPTS, f"{via} acknowledged {version} with {receipt}")
        self._sent.setdefault(file.file_key, set()).add(version.sha256)
        holders = frozenset(receipt["durable_copies"])
        platters = {name: machine.platter for name, machine in self._world.machines.items()}
        rivals = rivals_of(platters[via], platters.values(), file.file_key, version.sha256)
        self._world.seen[SIBLINGS] += bool(rivals)
        file.acknowledged_put(Version(version.seed, version.size, version.sha256, holders), via, rivals)
        self._done["uploads"] += 1
        self._world.seen[SHORT] += len(holders) < self._life.settings["copies"]
        self._world.seen[LESS_THAN_ALL] += len(self._world.live_nodes()) < len(self._world.machines)
        self._on_receipt(file.file_key, holders, began)

    async def _upload_wrong(self, chance: Random, via: str, file: FileModel) -> None:
        _, content = self._content(chance)
        wrong = {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        response = await self._send("POST", via, f"/files?file_id={file.file_key}", content=content, headers=wrong)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            raise PromiseBroken(Promise.REFUSED, f"{via} took content with another checksum than was sent with it")
        self._world.kept[Promise.REFUSED] += 1
        self._done["refused uploads"] += 1

    async def _delete(self, _chance: Random, via: str, file: FileModel) -> None:
        response = await self._send("DELETE", via, f"/files/{file.file_key}")
        if response is None:
            return
        if not isinstance(response, httpx.Response) or response.status_code >= 500:
            file.uncertain_delete()
            file.retired = isinstance(response, httpx.TimeoutException)
        elif response.status_code == httpx.codes.OK:
            file.acknowledged_delete(via)
            self._done["deletes"] += 1
        elif not file.may_be_unknown_to(via):
            raise PromiseBroken(Promise.ACKNOWLEDGED, f"{via} does not know {file.file_key}, which it holds")

    async def _register(self, _chance: Random, via: str, file: FileModel) -> None:
        self.registered[file.file_key] = None
        body = {
            "file_key": file.file_key, "original_filename": "said.bin", "size_bytes": 4,
            "checksum_sha256": hashlib.sha256(b"said").hexdigest(), "node_id": via,
        }  # fmt: skip
        await self._send("POST", via, "/files/register", json=body)

    async def _read(self, _chance: Random, via: str, file: FileModel) -> None:
        response = await self._send("GET", via, f"/files/{file.file_key}")
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            if hashlib.sha256(response.content).hexdigest() not in self._sent.get(file.file_key, ()):
                raise PromiseBroken(Promise.BYTES, f"{via} served other bytes for {file.file_key} than were ever sent")
            self._world.kept[Promise.BYTES] += 1
            self._done["reads"] += 1
            self._world.seen[WITHOUT_COPY] += not holds(self._world.machines[via].platter, file.file_key)

    async def _read_range(self, chance: Random, via: str, file: FileModel) -> None:
        """A part, and then the whole under the same hash: the part must be one of it."""
        first = chance.randrange(5000)
        part = await self._send(
            "GET", via, f"/files/{file.file_key}", headers={"range": f"bytes={first}-{first + 999}"}
        )
        if not isinstance(part, httpx.Response) or part.status_code != httpx.codes.PARTIAL_CONTENT:
            return
        same = {"if-match": part.headers["etag"]}
        whole = await self._send("GET", via, f"/files/{file.file_key}", headers=same)
        if isinstance(whole, httpx.Response) and whole.status_code == httpx.codes.OK:
            if whole.content[first : first + 1000] != part.content:
                raise PromiseBroken(Promise.BYTES, f"{via} served a range of {file.file_key} that is no part of it")
            self._world.kept[Promise.BYTES] += 1
            self._done["ranges"] += 1

    async def _list(self, _chance: Random, via: str) -> None:
        response = await self._send("GET", via, "/files?limit=1000")
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            keys = [file["file_key"] for file in response.json()["files"]]
            if len(keys) != len(set(keys)):
                raise PromiseBroken(Promise.LISTED, f"{via} lists a file twice")
            self._world.kept[Promise.LISTED] += 1
            self._done["lists"] += 1

    async def _send(self, method: str, via: str, path: str, **more: Any) -> httpx.Response | httpx.HTTPError | None:
        """An answer, what went wrong, or None when nobody listened."""
        self._world.trace("client", f"{method} {path}", f"via {via}")
        content = more.pop("content", None)
        try:
            if content is not None and method == "POST":
                return await self._world.post_file(via, path, "a.bin", content, more.get("headers", {}))
            return await self._world.request(via, method, path, content=content, **more)
        except httpx.ConnectError:
            return None
        except httpx.HTTPError as error:
            return error


def _is_refused_for_room(response: httpx.Response | httpx.HTTPError) -> bool:
    return isinstance(response, httpx.Response) and response.status_code == httpx.codes.INSUFFICIENT_STORAGE
