"""The app under another ASGI server, Hypercorn: nothing in it hangs on ours."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import hypercorn
import hypercorn.trio
import pytest
import trio

from peer.config import Address, Config
from peer.node import Node
from peer.world.env import HttpServer, Listener
from peer.world.sockets import bound
from peer.world.system import SystemEnv

CONTENT = bytes(range(256)) * 8000
"""More than a small chunk, so that it lies in a file, and more than one piece of it."""


class HypercornListener:
    def __init__(self, app: Any, sock: trio.socket.SocketType, closed: trio.Event) -> None:
        self._app = app
        self._socket = sock
        self._closed = closed

    @property
    def address(self) -> Address:
        return Address(*self._socket.getsockname()[:2])

    async def serve(self) -> None:
        config = hypercorn.Config()
        config.bind = [f"fd://{self._socket.detach()}"]
        await hypercorn.trio.serve(self._app, config, shutdown_trigger=self._closed.wait)

    def close(self) -> None:
        self._closed.set()


class HypercornServer:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._closed = trio.Event()

    async def listen(self, address: Address, *, name: str, shared: bool) -> Sequence[Listener]:
        sock = await bound(address, socket.SOCK_STREAM, shared=shared)
        sock.listen()
        return [HypercornListener(self._app, sock, self._closed)]

    async def shut_down(self, grace_s: float) -> None:
        self._closed.set()


class HypercornEnv(SystemEnv):
    def http_server(self, app: Any) -> HttpServer:
        return HypercornServer(app)


@asynccontextmanager
async def peer_on_hypercorn(data: Path) -> AsyncIterator[httpx.AsyncClient]:
    config = Config(node_id="node-1", listen=Address("127.0.0.1", 0), data=data, reserve_bytes=0)
    node = Node(config, HypercornEnv(data))
    async with trio.open_nursery() as nursery:
        address = await nursery.start(node.run)
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False, timeout=10) as client:
            while (await client.get("/health/ready")).status_code != httpx.codes.OK:  # noqa: ASYNC110
                await trio.sleep(0.02)  # it is another server than ours that we ask
            yield client
        node.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_peer_serves_the_same_under_hypercorn(tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with peer_on_hypercorn(tmp_path) as client:
                await _use(client)

    trio.run(main)


async def _use(client: httpx.AsyncClient) -> None:
    stored = await client.post("/files?file_id=k", files={"file": ("a.bin", CONTENT)})
    assert (stored.status_code, stored.json()["durable_copies"]) == (httpx.codes.OK, ["node-1"])
    assert (await client.put("/files/raw", content=b"x" * 100)).status_code == httpx.codes.OK
    whole = await client.get("/files/k")
    assert (whole.status_code, whole.content) == (httpx.codes.OK, CONTENT)
    part = await client.get("/files/k", headers={"range": "bytes=70000-1999999"})
    assert (part.status_code, part.content) == (httpx.codes.PARTIAL_CONTENT, CONTENT[70_000:2_000_000])
    head = await client.head("/files/k")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(CONTENT)), b"")
    unchanged = await client.get("/files/k", headers={"if-none-match": whole.headers["etag"]})
    assert unchanged.status_code == httpx.codes.NOT_MODIFIED
    assert [file["file_key"] for file in (await client.get("/files")).json()["files"]] == ["raw", "k"]
    assert 'route="/files/{file_id}"' in (await client.get("/metrics")).text
    assert (await client.get("/files/unknown")).status_code == httpx.codes.NOT_FOUND
    assert (await client.post("/files", content=b"x")).status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE
    refused = await client.get("/health", headers={"host": "elsewhere.example"})
    assert refused.status_code == httpx.codes.MISDIRECTED_REQUEST
    assert (await client.delete("/files/k")).json()["deleted_nodes"] == ["node-1"]
    assert (await client.get("/files/k")).status_code == httpx.codes.NOT_FOUND
