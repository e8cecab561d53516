"""Small files that only other peers have: readers share requests, get the right bytes, and never those of before."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import pytest
import trio
from worlds import converged, get, in_world, put, services

from peer.files.small_reads import CHUNKS_MAX, PATIENCE_S, SmallReads
from peer.gossip.client import PeerClient
from peer.http.direct import Direct
from protocol.identity import Member, NodeId
from protocol.ops import Chunk
from sim.world import World

FILES = {f"f{number}": b"content %d" % number for number in range(3 * CHUNKS_MAX)}
FEW = dict(list(FILES.items())[:12])


class Requests:
    """Counts the requests for small chunks, and may alter what comes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.spoil = False
        fetch = PeerClient.fetch_small_chunks

        async def fetch_small_chunks(
            client: PeerClient, peer: Member, hashes: Sequence[bytes]
        ) -> Sequence[bytes | None]:
            self.sizes.append(len(hashes))
            contents = await fetch(client, peer, hashes)
            return [b"wrong" for _ in contents] if self.spoil else contents

        monkeypatch.setattr(PeerClient, "fetch_small_chunks", fetch_small_chunks)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


async def put_elsewhere(world: World, files: dict[str, bytes]) -> None:
    """Files of which the first peer knows and has no copy."""
    for file_key, content in files.items():
        await world.request("node-2", "PUT", f"/files/{file_key}?copies=1", content=content)
    # One copy each, where they were placed: the first peer's are read from its own disk.
    await converged(world)


def elsewhere(world: World, files: dict[str, bytes]) -> dict[str, bytes]:
    downloads = services(world, "node-1").downloads
    return {file_key: content for file_key, content in files.items() if downloads.small(file_key) is None}


async def get_all(world: World, files: dict[str, bytes]) -> dict[str, bytes | int]:
    answers: dict[str, bytes | int] = {}

    async def read(file_key: str) -> None:
        answers[file_key] = await get(world, "node-1", file_key)

    async with trio.open_nursery() as nursery:
        for file_key in files:
            nursery.start_soon(read, file_key)
    return answers


def test_readers_of_one_moment_share_requests(requests: Requests) -> None:
    async def scenario(world: World) -> None:
        await put_elsewhere(world, FILES)
        there = elsewhere(world, FILES)
        assert len(there) > CHUNKS_MAX
        began = trio.current_time()
        assert await get_all(world, there) == there
        assert trio.current_time() - began < PATIENCE_S / 4
        assert sum(requests.sizes) == len(there)
        assert len(requests.sizes) < len(there) / 4
        assert max(requests.sizes) <= CHUNKS_MAX

    in_world(scenario, peers=3)


def test_the_answer_is_that_of_the_usual_way(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await put_elsewhere(world, FEW)
        there = elsewhere(world, FEW)
        direct = [await world.request("node-1", "GET", f"/files/{file_key}") for file_key in there]
        assert len(requests.sizes) == len(there)
        monkeypatch.setattr(Direct, "_is_plain", lambda *_: False)
        for file_key, answer in zip(there, direct, strict=True):
            usual = await world.request("node-1", "GET", f"/files/{file_key}")
            assert (answer.status_code, answer.content) == (usual.status_code, usual.content)
            assert answer.headers == usual.headers
            assert answer.headers["x-routed-from"] != "node-1"

    in_world(scenario, peers=3)


def test_a_file_that_was_read_is_not_asked_for_again_until_it_changes(requests: Requests) -> None:
    async def scenario(world: World) -> None:
        await put_elsewhere(world, FEW)
        file_key, content = next(iter(elsewhere(world, FEW).items()))
        for _ in range(3):
            assert await get(world, "node-1", file_key) == content
            await put(world, "node-1", "another", b"a commit in between")
        assert requests.sizes == [1]
        await world.request("node-2", "PUT", f"/files/{file_key}?copies=1", content=b"new")
        await converged(world)
        assert await get(world, "node-1", file_key) == b"new"
        await world.request("node-2", "DELETE", f"/files/{file_key}")
        await converged(world)
        assert await get(world, "node-1", file_key) == httpx.codes.NOT_FOUND

    in_world(scenario, peers=3)


def test_what_a_peer_sends_in_place_of_a_chunk_never_reaches_a_reader(requests: Requests) -> None:
    async def scenario(world: World) -> None:
        await put_elsewhere(world, FILES)
        there = elsewhere(world, FILES)
        requests.spoil = True
        assert await get_all(world, there) == there
        assert requests.sizes

    in_world(scenario, peers=3)


def test_a_holder_that_does_not_answer_holds_readers_up_for_seconds_only(requests: Requests) -> None:
    async def scenario(world: World) -> None:
        for number in range(12):
            await world.request("node-2", "PUT", f"/files/k{number}?copies=2", content=b"%d" % number)
        await converged(world)
        there = elsewhere(world, {f"k{number}": b"%d" % number for number in range(12)})
        assert there
        source = services(world, "node-1").others.membership.reachable()[0]
        world.network.cut("node-1", source)
        began = trio.current_time()
        assert await get_all(world, there) == there
        assert trio.current_time() - began < 3 * PATIENCE_S + 2
        assert requests.sizes

    in_world(scenario, peers=3, copies=2)


def test_a_file_replaced_while_it_is_read_is_not_remembered_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    read = SmallReads.read

    async def scenario(world: World) -> None:
        await put(world, "node-1", "here", b"here")
        await put_elsewhere(world, FEW)
        file_key, content = next(iter(elsewhere(world, FEW).items()))

        async def read_slowly(reads: SmallReads, node_id: NodeId, chunk: Chunk) -> bytes | None:
            found = await read(reads, node_id, chunk)
            monkeypatch.setattr(SmallReads, "read", read)
            await world.request("node-2", "PUT", f"/files/{file_key}?copies=1", content=b"new")
            await converged(world)
            # Another reader looks into the catalog as it is now.
            assert await get(world, "node-1", "here") == b"here"
            return found

        monkeypatch.setattr(SmallReads, "read", read_slowly)
        assert await get(world, "node-1", file_key) == content
        assert await get(world, "node-1", file_key) == b"new"

    in_world(scenario, peers=3)


def test_a_reader_that_leaves_takes_nothing_from_the_others() -> None:
    async def scenario(world: World) -> None:
        await put_elsewhere(world, FILES)
        there = elsewhere(world, FILES)
        first, *rest = there
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, world, "node-1", first)
                await trio.sleep(0.002)
                leaving.cancel()
        assert await get_all(world, {file_key: there[file_key] for file_key in rest}) == {
            file_key: there[file_key] for file_key in rest
        }

    in_world(scenario, peers=3)


def test_without_the_task_that_asks_nobody_waits() -> None:
    async def scenario(world: World) -> None:
        reads = SmallReads(services(world, "node-1").fetching)
        began = trio.current_time()
        assert await reads.read(NodeId("node-2"), Chunk(bytes(32), 1)) is None
        assert trio.current_time() == began

    in_world(scenario, peers=2)
