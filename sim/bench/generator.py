"""The built-in load generator, a process of its own: reads a job as JSON, and writes what came of it."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import trio

from peer.config import Address
from peer.world.env import HttpAnswer, HttpRequest, RequestFailed
from peer.world.outgoing import SystemRequests
from sim.bench.loads import BOUNDARY, PAGE, Place, Workload

TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 1 << 31
DELETED_AFTER = 1000
"""Requests after it was written."""
_HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
).encode("ascii")
_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode("ascii")


Fields = tuple[tuple[str, str], ...]

FORM: Fields = (("content-type", f"multipart/form-data; boundary={BOUNDARY}"),)
"""The header fields of a form."""
CONTENT: Fields = (("content-type", "application/octet-stream"),)
"""The header fields of a content as it is."""


def form_of(content: bytes) -> bytes:
    """A form with one file."""
    return b"".join((_HEAD, content, _TAIL))


def last_of(page: Any, field: str) -> str:
    """Which file the last one of a page is; empty when that was the last page. See `Place.last_field`."""
    for step in field.split("."):
        try:
            page = page[int(step) if isinstance(page, list) else step]
        except LookupError:
            return ""
    return str(page or "")


def request_of(method: str, target: str, headers: Fields = (), body: bytes = b"") -> HttpRequest:
    """A request that may take as long as a system under load does."""
    return HttpRequest(
        method=method,
        target=target,
        headers=headers,
        body=body,
        connect_timeout_s=TIMEOUT_S,
        silence_timeout_s=TIMEOUT_S,
        answer_bytes_max=ANSWER_BYTES_MAX,
    )


@dataclass
class _Load:
    """A load that runs, and what has come of it."""

    place: Place
    workload: Workload
    ends_at: float
    paths: list[str]
    count: int | None
    requests: SystemRequests = field(default_factory=SystemRequests)
    took_s: list[float] = field(default_factory=list)
    errors: int = 0
    begun: int = 0
    stored: list[str] = field(default_factory=list)
    written: deque[tuple[str, int]] = field(default_factory=deque)
    """Paths to be deleted later, and which request wrote them."""
    last: str = ""
    """The last file of the page before."""

    async def lane(self) -> None:
        """Ask again and again."""
        seed = os.urandom(4).hex()
        base = os.urandom(self.workload.size)
        url = urlsplit(self.place.url)
        address = Address(url.hostname or "", url.port or 80)
        while not self._is_over():
            self.begun += 1
            name = f"{seed}-{self.begun}"
            started = time.monotonic()
            try:
                answer = await self.requests.request(address, self._request(name, base))
            except RequestFailed:
                self.errors += 1
                # A walk ends here, for it knows no next page.
                self.last = ""
                continue
            self.took_s.append(time.monotonic() - started)
            self._note(name, answer)

    def _is_over(self) -> bool:
        if self.workload.kind == "walk" and self.begun:
            # To the end, whatever the time.
            return self.last == ""
        return time.monotonic() >= self.ends_at or (self.count is not None and self.begun >= self.count)

    def _request(self, name: str, base: bytes) -> HttpRequest:
        content = (name.encode("ascii") + base)[: self.workload.size]
        headers: Fields = ()
        body = b""
        if self.workload.kind == "put":
            target = self.place.put_path.replace("{name}", name)
            method, headers, body = "PUT", CONTENT, content
            if self.place.takes_forms:
                method, headers, body = "POST", FORM, form_of(content)
        elif self.workload.kind == "list":
            method, target, headers = "GET", self.place.list_path, (("accept", "application/json"),)
        elif self.workload.kind == "walk":
            path = self.place.next_path.replace("{last}", quote(self.last, safe="")) if self.last else None
            method, target, headers = "GET", path or self.place.list_path, (("accept", "application/json"),)
        elif self.workload.kind == "mixed":
            method, target = self._mixed(name)
            body = content if method == "PUT" else b""
        else:
            method, target = "GET", random.choice(self.paths)
        return request_of(method, target, headers, body)

    def _mixed(self, name: str) -> tuple[str, str]:
        """See `Workload.kind`; a file is deleted long after it was written, and others are read."""
        dice, path = random.randrange(100), random.choice(self.paths)
        if dice < 15:
            self.written.append((self.place.raw_path.replace("{name}", name), self.begun))
            return "PUT", self.written[-1][0]
        if dice < 25 and self.written and self.written[0][1] + DELETED_AFTER < self.begun:
            return "DELETE", self.written.popleft()[0]
        return "GET", path + self.place.stat_suffix if dice < 55 else path

    def _note(self, name: str, answer: HttpAnswer) -> None:
        if not 200 <= answer.status < 300:
            self.errors += 1
            self.last = ""
        elif self.workload.kind == "walk":
            self._note_page(answer)
        elif self.workload.kind == "put":
            # Where the system draws the ids of files, its answer says which.
            path = self.place.put_path.replace("{name}", name).partition("?")[0]
            with suppress(ValueError, KeyError, TypeError):
                path = f"{path}/{json.loads(answer.content)['file_id']}"
            self.stored.append(path)

    def _note_page(self, answer: HttpAnswer) -> None:
        self.last = last_of(json.loads(answer.content), self.place.last_field)
        if self.begun * PAGE >= (self.workload.files or 0):
            self.last = ""
        elif not self.last:
            # Some are missing from the list.
            self.errors += 1

    async def run(self) -> dict[str, Any]:
        """All lanes, to the end."""
        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(self.workload.connections):
                nursery.start_soon(self.lane)
        took_ms = sorted(1000 * one for one in self.took_s) or [0.0]
        return {
            "requests": len(self.took_s),
            "seconds": time.monotonic() - started,
            "p50_ms": took_ms[len(took_ms) // 2],
            "p99_ms": took_ms[min(len(took_ms) - 1, len(took_ms) * 99 // 100)],
            "errors": self.errors,
            "paths": self.stored,
        }


def main() -> None:
    """Read the job, do it, and say what came of it."""
    job = json.load(sys.stdin)
    place, workload = Place(**job["place"]), Workload(**job["workload"])
    load = _Load(place, workload, time.monotonic() + job["seconds"], job["paths"], job["count"])
    json.dump(trio.run(load.run), sys.stdout)


if __name__ == "__main__":
    main()
