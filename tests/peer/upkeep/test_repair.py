"""Copies that are missing, rotten or on their way twice, and how peers restore them."""

from __future__ import annotations

import httpx
import pytest
import trio
from worlds import (
    converged,
    everywhere,
    get,
    heal,
    here,
    holders,
    in_world,
    missing_files,
    orphans,
    part,
    pending,
    put,
    really_holds,
    rows,
    services,
    spoil_files,
)

from protocol.identity import NodeId
from protocol.messages import ItemStatus
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}
QUIET = {"probe_interval_s": 10, "down_after_s": 30, "heal_interval_s": 100}


@pytest.mark.parametrize("size", [500, 10_000])
def test_a_rotten_copy_is_never_served_and_is_repaired(size: int) -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(size)
        await put(world, "node-1", "k", content)
        await converged(world)
        await trio.sleep(700)
        spoil_files(world, "node-2")
        (database,) = world.machines["node-2"].platter.databases.values()
        database.execute("UPDATE chunks SET content = zeroblob(size) WHERE content IS NOT NULL")
        assert await get(world, "node-2", "k") == content
        await world.wait_until(lambda: holders(world, "node-1", "k") == ["node-1", "node-3"], 30)
        await converged(world)
        assert really_holds(world, "node-2", "k")
        await world.stop("node-1")
        await world.stop("node-3")
        assert await get(world, "node-2", "k") == content
        assert orphans(world, "node-2") == []

    in_world(scenario, **SMALL, **QUIET)


def test_other_peers_never_get_rotten_bytes_from_a_holder() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(10_000)
        await put(world, "node-1", "k", content)
        await world.crash("node-3")
        spoil_files(world, "node-1")
        spoil_files(world, "node-3")
        await world.start("node-3")
        here(world, "node-1").chunks._verified.clear()
        assert await everywhere(world, "k") == [content] * 3
        await converged(world)
        assert await everywhere(world, "k") == [content] * 3
        assert [really_holds(world, name, "k") for name in world.machines] == [True] * 3

    in_world(scenario, **SMALL)


def test_files_that_vanish_from_a_disk_are_missed_at_the_next_start() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(10_000)
        await put(world, "node-1", "k", content)
        await put(world, "node-1", "small", b"small")
        await world.crash("node-2")
        platter = world.machines["node-2"].platter
        for path in list(platter.files)[:1]:
            del platter.files[path]
        # Else it could have it again at once.
        part(world, ("node-2",), ("node-1", "node-3"))
        await world.start("node-2")
        assert "node-2" not in holders(world, "node-2", "k")
        assert "node-2" in holders(world, "node-2", "small")
        heal(world)
        await converged(world)
        assert really_holds(world, "node-2", "k")
        assert orphans(world, "node-2") == []

    in_world(scenario, **SMALL)


def test_content_that_no_peer_has_any_more_is_503_and_comes_back_with_a_peer_that_has_it() -> None:
    async def scenario(world: World) -> None:
        content = world.chance.randbytes(10_000)
        part(world, ("node-3",), ("node-1", "node-2"))
        await trio.sleep(5)
        await put(world, "node-3", "k", content)
        assert await get(world, "node-3", "k") == content
        for one, other in [("node-3", "node-1"), ("node-1", "node-3"), ("node-2", "node-3"), ("node-3", "node-2")]:
            world.network.restore(one, other)
        await trio.sleep(0.9)
        await services(world, "node-1").exchanger.exchange(NodeId("node-3"))
        await world.crash("node-3")
        response = await world.request("node-1", "GET", "/files/k")
        if response.status_code != httpx.codes.OK:
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert response.headers["retry-after"]
        await trio.sleep(60)
        await world.start("node-3")
        await converged(world)
        assert await everywhere(world, "k") == [content] * 3

    in_world(scenario, **SMALL)


def test_a_repair_and_an_upload_that_bring_the_same_chunks_at_once_leave_them_whole() -> None:
    """Chunks staged by the upload are adopted by whichever comes first, and not removed by the other."""

    async def scenario(world: World) -> None:
        one, other = services(world, "node-1"), services(world, "node-2")
        peer = one.others.membership.member(NodeId("node-2"))
        assert peer is not None
        # It repairs when we say so.
        other.repair.wake = lambda: None  # type: ignore[method-assign]
        for step in range(24):
            key = f"k{step}"
            part(world, ("node-1",), ("node-2",))
            receipt = await put(world, "node-1", key, world.chance.randbytes(3 * 4096))
            assert receipt["durable_copies"] == ["node-1"]
            world.network.restore("node-1", "node-2")
            world.network.restore("node-2", "node-1")
            found = one.here.shown(key)
            assert found is not None
            for chunk in found.manifest.chunks or ():
                row = one.here.chunks.row(chunk.hash)
                assert row is not None
                content = await one.here.chunks.read_whole(chunk.hash, row)

                async def pieces(content: bytes = content):
                    yield content

                await one.others.client.push_chunk(peer, chunk.hash, chunk.size, pieces())
            await services(world, "node-2").exchanger.exchange(NodeId("node-1"))
            await trio.sleep(3)
            assert other.here.holders(found.dot) == ("node-1",)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(services(world, "node-1").exchanger.exchange, NodeId("node-2"), found.dot)
                await trio.sleep(0.00025 * step)
                nursery.start_soon(lambda: services(world, "node-2").repair.heal(all_of_it=True))
            assert missing_files(world, "node-2") == [], f"{0.25 * step} ms apart"
            assert other.here.holders(found.dot) == ("node-1", "node-2")
        assert orphans(world, "node-2") == []

    in_world(
        scenario,
        peers=2,
        copies=2,
        target_timeout_s=0.2,
        heal_interval_s=1e6,
        probe_interval_s=10,
        down_after_s=30,
        **SMALL,
    )


def test_files_of_the_same_bytes_that_are_repaired_side_by_side_do_not_make_each_other_wait() -> None:
    """One fetches the chunk the other has just found here, and the file it was in goes."""

    async def scenario(world: World) -> None:
        repair = services(world, "node-2").repair
        repair.wake = lambda: None  # type: ignore[method-assign]
        part(world, ("node-1",), ("node-2",))
        content = world.chance.randbytes(3 * 4096)
        keys = [f"k{number}" for number in range(24)]
        for key in keys:
            await put(world, "node-1", key, content)
        heal(world)
        await services(world, "node-2").exchanger.exchange(NodeId("node-1"))
        assert all(holders(world, "node-2", key) == ["node-1"] for key in keys)
        await repair.heal()
        failed = [attempt for attempt in repair.attempts.values() if attempt.status is ItemStatus.FAILED]
        assert all(attempt.not_before <= services(world, "node-2").env.clock.now() for attempt in failed)
        await repair.heal()
        assert all(holders(world, "node-2", key) == ["node-1", "node-2"] for key in keys)

    in_world(scenario, peers=2, copies=2, target_timeout_s=0.2, **SMALL, **QUIET)


def test_a_repair_that_takes_longer_than_a_lease_keeps_the_chunks_it_has() -> None:
    async def scenario(world: World) -> None:
        part(world, ("node-1",), ("node-2",))
        await trio.sleep(5)
        content = world.chance.randbytes(6 * 4096)
        await put(world, "node-1", "k", content)
        fetching = services(world, "node-2").fetching
        fetch = fetching.fetch

        async def fetch_slowly(put, chunk):
            await trio.sleep(150)
            return await fetch(put, chunk)

        fetching.fetch = fetch_slowly  # type: ignore[method-assign]
        world.network.restore("node-1", "node-2")
        world.network.restore("node-2", "node-1")
        await converged(world, 2000)
        assert await get(world, "node-2", "k") == content
        await trio.sleep(700)
        assert missing_files(world, "node-2") == []

    in_world(scenario, peers=2, copies=2, **SMALL, **QUIET)


def test_a_repair_broken_off_goes_on_with_the_chunks_it_has() -> None:
    async def scenario(world: World) -> None:
        part(world, ("node-1",), ("node-2",))
        await trio.sleep(5)
        content = world.chance.randbytes(6 * 4096)
        await put(world, "node-1", "k", content)
        fetching = services(world, "node-2").fetching
        fetch = fetching.fetch
        fetched: list[bytes] = []

        async def fetch_three_at_most(put, chunk):
            if len(fetched) == 3:
                world.network.cut("node-2", "node-1")
            body = await fetch(put, chunk)
            fetched.append(chunk.hash)
            return body

        fetching.fetch = fetch_three_at_most  # type: ignore[method-assign]
        world.network.restore("node-1", "node-2")
        world.network.restore("node-2", "node-1")
        await world.wait_until(lambda: bool(services(world, "node-2").repair.attempts), 60)
        (attempt,) = services(world, "node-2").repair.attempts.values()
        await world.wait_until(lambda: attempt.status is ItemStatus.FAILED, 60)
        queue = (await world.request("node-2", "GET", "/replication-queue?status=FAILED")).json()["items"]
        assert [(item["file_key"], item["target_node_id"], item["retry_count"]) for item in queue] == [
            ("k", "node-2", 1)
        ]
        assert queue[0]["error_message"]
        fetching.fetch = fetch  # type: ignore[method-assign]
        fetched_again: list[bytes] = []

        async def count(put, chunk):
            fetched_again.append(chunk.hash)
            return await fetch(put, chunk)

        fetching.fetch = count  # type: ignore[method-assign]
        world.network.restore("node-2", "node-1")
        await converged(world)
        assert len(fetched_again) == 3
        assert await get(world, "node-2", "k") == content

    in_world(scenario, peers=2, copies=2, **SMALL)


def test_many_small_files_come_back_in_batches() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await trio.sleep(5)
        contents = {f"k{number}": b"%d" % number * 30 for number in range(150)}
        for key, content in contents.items():
            await put(world, "node-1", key, content)
        assert len(pending(world, "node-1")) == 150
        await world.start("node-2")
        await converged(world)
        assert pending(world, "node-1") == []
        for key, content in contents.items():
            assert await get(world, "node-2", key) == content
        assert rows(world, "node-2", "SELECT count(*) FROM queue WHERE status = 'COMPLETED'") == [(150,)]

    in_world(scenario, peers=2, copies=2)


def test_a_file_deleted_while_it_is_being_repaired_is_forgotten() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await put(world, "node-1", "k", world.chance.randbytes(20 * 4096))
        await world.start("node-2")
        await world.wait_until(lambda: bool(services(world, "node-2").repair.attempts), 60)
        assert (await world.request("node-1", "DELETE", "/files/k")).status_code == httpx.codes.OK
        await converged(world)
        await trio.sleep(60)
        assert services(world, "node-2").repair.attempts == {}
        await trio.sleep(700)
        assert all(machine.platter.files == {} for machine in world.machines.values())

    in_world(scenario, peers=2, copies=2, **SMALL)


def test_recover_makes_a_peer_fetch_all_it_lacks_now() -> None:
    async def scenario(world: World) -> None:
        async def recover(via: str, name: str) -> httpx.Response:
            return await world.request(via, "POST", f"/nodes/{name}/recover")

        nothing = {"message": "no pending replications", "count": 0, "total": 0, "success": 0, "failed": 0}
        assert (await recover("node-1", "node-2")).json() == nothing
        assert (await recover("node-1", "node-1")).json() == nothing
        assert (await recover("node-1", "nobody")).status_code == httpx.codes.NOT_FOUND
        await world.crash("node-2")
        await trio.sleep(5)
        await put(world, "node-1", "k", b"k" * 5000)
        down = await recover("node-1", "node-2")
        assert down.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert {**down.json(), "error": "", "detail": ""}.items() >= {"total": 1, "success": 0, "failed": 1}.items()
        assert [item["file_key"] for item in down.json()["pending_items"]] == ["k"]
        await world.start("node-2")
        # Whatever the others believe of it at this moment.
        answer = await recover("node-3", "node-2")
        assert answer.status_code == httpx.codes.OK
        assert answer.json()["failed"] == 0
        assert really_holds(world, "node-2", "k")

    in_world(scenario, **SMALL)
