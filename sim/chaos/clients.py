"""The clients of a chaos run: uploads as curl sends them, overwrites, deletes, reads and ranges, through any peer."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from sim.chaos.scene import Scene, pause, version_of
from sim.model import FileModel, Promise, PromiseBroken, Version

SIZES = (0, 1, 4096, 256 * 1024, 256 * 1024 + 1, 1024 * 1024, 9 * 1024 * 1024)
WEIGHTS = (1, 2, 6, 4, 4, 4, 1)
"""Of the sizes: at the edges of what lies in the database and of a chunk; few large ones, which are mostly waiting."""

WORKERS = 6
SHARE_OF_EQUALS = 0.4
EQUALS = 14
"""Bodies that are sent again and again."""
KEYS_OF_OUR_OWN = 12
"""File ids that are overwritten and deleted again and again."""
PART_BYTES = 1000


@dataclass(frozen=True, slots=True)
class _NoAnswer:
    how: str
    may_have_happened: bool
    may_happen_yet: bool


def expect(is_so: bool, promise: Promise, otherwise: str) -> None:
    """Raises PromiseBroken."""
    if not is_so:
        raise PromiseBroken(promise, otherwise)


class Clients:
    """All clients of a run."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._chance = random.Random(seed)
        self._own = [f"ours-{number}" for number in range(KEYS_OF_OUR_OWN)]

    async def run(self, over: trio.Event) -> None:
        """Work until it is over and the last operations have ended."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work, over)

    async def _work(self, over: trio.Event) -> None:
        scene, chance = self._scene, self._chance
        while not over.is_set():
            live = sorted(scene.live())
            if not live:
                await pause()
                continue
            via = chance.choice(live)
            draw = chance.random()
            started = trio.current_time()
            if draw < 0.35:
                await self._upload(via, None)
            elif draw < 0.42:
                await self._upload_wrong(via)
            elif draw < 0.66:
                own = scene.files.setdefault(key := chance.choice(self._own), FileModel(key))
                await scene.with_file(own, self._upload, via, own)
            else:
                known = [file for file in scene.files.values() if not file.busy and file.must_exist]
                if known:
                    operation = chance.choice((self._delete, self._delete, self._read, self._read_range))
                    file = chance.choice(known)
                    await scene.with_file(file, operation, via, file)
            scene.report.slowest_s = max(scene.report.slowest_s, trio.current_time() - started)
            await trio.lowlevel.checkpoint()

    def _content(self) -> tuple[Version, bytes]:
        """A body of its own, or one of those that are sent again and again, under the same ids and others."""
        if self._chance.random() < SHARE_OF_EQUALS:
            seed = self._chance.randrange(EQUALS)
            size = SIZES[seed % len(SIZES)]
        else:
            seed = self._chance.getrandbits(48)
            (size,) = self._chance.choices(SIZES, WEIGHTS)
        return version_of(seed, size)

    async def _upload_wrong(self, via: str) -> None:
        """Content that is not what its checksum says, half of it content that is stored under other ids."""
        version, body = self._content()
        wrong = {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        response = await self._send(
            "refused upload", "POST", via, "/files", files={"file": ("wrong.bin", body)}, headers=wrong
        )
        if isinstance(response, httpx.Response):
            taken = response.status_code == httpx.codes.OK
            expect(not taken, Promise.REFUSED, f"{via} took {version} with another checksum")
            self._scene.report.wrong += 1

    async def _upload(self, via: str, file: FileModel | None) -> None:
        version, body = self._content()
        seed, size = version.seed, version.size
        self._scene.sent[version.sha256] = version
        response = await self._send(
            "upload",
            "POST",
            via,
            "/files",
            params={"file_id": file.file_key} if file else {},
            files={"file": (f"{seed}.bin", body, "application/octet-stream")},
        )
        if isinstance(response, _NoAnswer):
            if file is not None and response.may_have_happened:
                file.uncertain_put(version)
                file.retired = file.retired or response.may_happen_yet
            return
        if response.status_code != httpx.codes.OK:
            if file is not None and _may_come_back(response):
                file.uncertain_put(version)
            self._note_refusal(response)
            return
        receipt = response.json()
        acknowledged = Version(seed, size, version.sha256, frozenset(receipt["durable_copies"]))
        is_of_it = receipt["checksum_sha256"] == version.sha256
        expect(is_of_it, Promise.RECEIPTS, f"a receipt for other content: {receipt}")
        is_here = via in acknowledged.holders
        expect(is_here, Promise.RECEIPTS, f"{via} acknowledged what it does not hold: {receipt}")
        self._scene.report.uploads += 1
        self._scene.report.uploaded_bytes += size
        key = receipt["file_id"]
        (file or self._scene.files.setdefault(key, FileModel(key))).acknowledged_put(acknowledged, via)

    async def _delete(self, via: str, file: FileModel) -> None:
        response = await self._send("delete", "DELETE", via, f"/files/{file.file_key}")
        if isinstance(response, _NoAnswer):
            if response.may_have_happened:
                file.uncertain_delete()
                file.retired = file.retired or response.may_happen_yet
        elif response.status_code == httpx.codes.OK:
            self._scene.report.deletes += 1
            file.acknowledged_delete(via)
        elif response.status_code == httpx.codes.NOT_FOUND:
            what = f"{via} does not know {file.file_key}, which it holds"
            expect(file.may_be_unknown_to(via), Promise.ACKNOWLEDGED, what)
        else:
            if _may_come_back(response):
                file.uncertain_delete()
            self._note_refusal(response)

    async def _read(self, via: str, file: FileModel) -> None:
        """What is served must be something that was sent; whether it is the newest is checked when all are well."""
        async with self._scene.reading():
            response = await self._send("read", "GET", via, f"/files/{file.file_key}")
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            was_sent = hashlib.sha256(response.content).hexdigest() in self._scene.sent
            expect(was_sent, Promise.BYTES, f"{via} served bytes for {file.file_key} that were never sent")
            self._scene.report.reads += 1

    async def _read_range(self, via: str, file: FileModel) -> None:
        """A part, and then the whole under the same hash: the part must be one of it."""
        first = self._chance.randrange(40_000)
        part = {"range": f"bytes={first}-{first + PART_BYTES - 1}"}
        async with self._scene.reading():
            response = await self._send("range", "GET", via, f"/files/{file.file_key}", headers=part)
        if not isinstance(response, httpx.Response) or response.status_code != httpx.codes.PARTIAL_CONTENT:
            return
        same = {"if-match": response.headers["etag"]}
        async with self._scene.reading():
            whole = await self._send("read", "GET", via, f"/files/{file.file_key}", headers=same)
        if isinstance(whole, httpx.Response) and whole.status_code == httpx.codes.OK:
            is_part = whole.content[first : first + PART_BYTES] == response.content
            expect(is_part, Promise.BYTES, f"{via} served a range of {file.file_key} that is no part of it")
            self._scene.report.reads += 1

    def _note_refusal(self, response: httpx.Response) -> None:
        what = f"{response.request.method} {response.status_code} {response.json()['error']}"
        self._scene.report.refused[what] += 1

    async def _send(self, kind: str, method: str, via: str, path: str, **content: Any) -> httpx.Response | _NoAnswer:
        started = trio.current_time()
        answer = await self._ask(method, via, path, **content)
        # What is right for one kind of request is wrong for another, and unavailable is what answers 5xx or not at all.
        if isinstance(answer, _NoAnswer):
            outcome = answer.how
        else:
            failed = answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
            outcome = str(answer.status_code) if failed else "ok"
        self._scene.journal.operation(kind, via, outcome, trio.current_time() - started)
        return answer

    async def _ask(self, method: str, via: str, path: str, **content: Any) -> httpx.Response | _NoAnswer:
        try:
            return await self._scene.client.request(method, self._scene.cluster.url_of(via) + path, **content)
        except httpx.ConnectError:
            return _NoAnswer("refused", may_have_happened=False, may_happen_yet=False)
        except httpx.TimeoutException:
            self._scene.report.timeouts += 1
            return _NoAnswer("timed out", may_have_happened=True, may_happen_yet=True)
        except httpx.TransportError:
            self._scene.report.uncertain += 1
            return _NoAnswer("broke off", may_have_happened=True, may_happen_yet=False)


def _may_come_back(response: httpx.Response) -> bool:
    """Whether what was refused may have happened: a commit that failed can come back, but not on a full disk."""
    failed = response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    return failed and response.status_code != httpx.codes.INSUFFICIENT_STORAGE
