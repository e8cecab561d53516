"""The simulated world itself: crashes, cuts, lossy links, and that what goes wrong in it comes out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, heal, in_world, missing_files, others, part, put, services

from peer.files.uploads import FILE_IDS
from peer.store.chunk_files import SERIALS
from peer.world.env import StartError
from sim.looks import rivals_of
from sim.network import Weather
from sim.world import VirtualClock, VirtualEnv, World, run_world


def test_what_was_acknowledged_survives_power_cuts_at_any_moment() -> None:
    async def scenario(world: World) -> None:
        acknowledged: dict[str, bytes] = {}

        async def upload(key: str, content: bytes) -> None:
            try:
                response = await world.upload("node-1", "a", content, file_id=key)
            except httpx.HTTPError:
                return
            if response.status_code == httpx.codes.OK:
                acknowledged[key] = content

        for number in range(25):
            async with trio.open_nursery() as nursery:
                for file in range(3):
                    nursery.start_soon(upload, f"k{number}-{file}", world.chance.randbytes(700 * file))
                await trio.sleep(world.chance.uniform(0, 0.012))
                await world.crash("node-1")
            await world.start("node-1")
            assert missing_files(world, "node-1") == []
        assert 5 < len(acknowledged) < 75
        for key, content in acknowledged.items():
            assert await get(world, "node-1", key) == content, key

    in_world(scenario, peers=1, inline_bytes_max=500, chunk_bytes_max=600)


def test_nothing_is_written_after_the_power_is_cut() -> None:
    async def scenario(world: World) -> None:
        for step in range(15):
            async with trio.open_nursery() as nursery:

                async def upload(key: str) -> None:
                    try:
                        await world.upload("node-1", "a", b"x" * 5000, file_id=key)
                    except httpx.HTTPError:
                        return

                nursery.start_soon(upload, f"k{step}")
                await trio.sleep(0.001 * step)
                machine = world.machines["node-1"]
                assert machine.env is not None
                platter = machine.platter
                (database,) = platter.databases.values()
                machine.env.fence()
                platter.crash()
                before = database.serialize(), sorted(platter.files)
                await world.crash("node-1")
                assert (database.serialize(), sorted(platter.files)) == before, f"after {step} ms"
            await world.start("node-1")

    in_world(scenario, peers=1, inline_bytes_max=500, chunk_bytes_max=600)


def test_a_crashed_peer_refuses_connections_and_a_cut_one_says_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        with pytest.raises(httpx.ConnectError):
            await get(world, "node-2", "k")
        world.network.owner_of[9001] = "node-1"
        world.network.cut("client", "node-1")
        before = trio.current_time()
        with pytest.raises(httpx.ConnectTimeout):
            await world.client.get("http://127.0.0.1:9001/health", timeout=7)
        assert trio.current_time() - before == pytest.approx(7, abs=0.1)
        world.network.restore("client", "node-1")
        world.network.cut("node-1", "client")
        with pytest.raises(httpx.ReadTimeout):
            await world.client.get("http://127.0.0.1:9001/health", timeout=7)

    in_world(scenario, peers=2)


def test_a_link_cut_in_one_direction_only_makes_both_ends_see_a_peer_that_is_down() -> None:
    async def scenario(world: World) -> None:
        world.network.cut("node-1", "node-2")
        await trio.sleep(10)
        assert others(world, "node-1").membership.reachable() == []
        assert others(world, "node-2").membership.reachable() == []
        heal(world)
        await trio.sleep(3)
        assert others(world, "node-1").membership.reachable() == ["node-2"]

    in_world(scenario, peers=2)


def test_peers_converge_though_a_third_of_all_datagrams_is_lost() -> None:
    async def scenario(world: World) -> None:
        world.network.weather = Weather(lost=0.33)
        for number in range(15):
            await put(world, f"node-{number % 3 + 1}", f"k{number}", b"%d" % number * 100)
        await converged(world)
        assert await everywhere(world, "k7") == [b"7" * 100] * 3

    in_world(scenario)


def test_a_peer_whose_clock_is_wrong_loses_no_file() -> None:
    async def scenario(world: World) -> None:
        env = world.machines["node-2"].env
        assert env is not None
        env.clock.offset_ms = 10**10  # type: ignore[attr-defined]
        await put(world, "node-2", "k", b"far ahead")
        await put(world, "node-1", "k", b"after it")
        assert await everywhere(world, "k") == [b"after it"] * 3
        part(world, ("node-1",), ("node-2", "node-3"))
        await trio.sleep(5)
        env.clock.offset_ms = -(10**12)  # type: ignore[attr-defined]
        await put(world, "node-2", "k", b"far behind")
        assert await get(world, "node-3", "k") == b"far behind"
        heal(world)
        await converged(world)

    in_world(scenario)


def test_a_copied_disk_has_what_the_disk_had() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x" * 50_000)
        machine = world.machines["node-1"]
        image = machine.platter.copy()
        await put(world, "node-1", "later", b"x")
        await world.crash("node-1")
        machine.platter = image
        await world.start("node-1")
        assert await get(world, "node-1", "k") == b"x" * 50_000
        assert await get(world, "node-1", "later") == httpx.codes.NOT_FOUND

    in_world(scenario, peers=1)


def test_what_goes_wrong_in_a_peer_comes_out_of_the_world() -> None:
    async def scenario(world: World) -> None:
        def fails(*_: object) -> None:
            raise ZeroDivisionError

        services(world, "node-1").gossip._membership.handle = fails  # type: ignore[assignment, method-assign]
        await trio.sleep(10)

    with pytest.raises(ExceptionGroup) as caught:
        in_world(scenario, peers=1)
    assert caught.group_contains(AssertionError, match="tasks of node-1 failed.*gossip")


def test_a_peer_cannot_start_twice_on_one_disk() -> None:
    async def scenario(world: World) -> None:
        machine = world.machines["node-1"]
        assert machine.env is not None
        with pytest.raises(StartError), machine.env.disk.lock():
            pass

    in_world(scenario, peers=1)


# --- pauses ---


def test_a_paused_peer_does_nothing_until_it_is_resumed_and_then_what_came_meanwhile() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"before")
        await converged(world)
        events = world.events = []
        world.pause("node-2")
        world.pause("node-3")
        with pytest.raises(httpx.ReadTimeout):
            await world.request("node-2", "GET", "/files/k", timeout=5)
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await world.request("node-2", "GET", "/files/k")).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(15)
            assert answers == []
            assert not any(event.split()[1:2] == ["node-2"] for event in events if "pauses" not in event)
            assert others(world, "node-1").membership.reachable() == []
            world.resume("node-2")
        assert answers == [200]
        assert others(world, "node-2").is_down("node-3")
        world.resume("node-3")
        await world.wait_until(lambda: len(others(world, "node-1").membership.reachable()) == 2, 10)
        assert await everywhere(world, "k") == [b"before"] * 3

    in_world(scenario)


def test_a_paused_peer_can_lose_its_power() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"kept")
        world.pause("node-1")
        await trio.sleep(3)
        await world.crash("node-1")
        await world.start("node-1")
        assert await get(world, "node-1", "k") == b"kept"

    in_world(scenario)


def test_a_peer_whose_uploads_were_under_way_when_it_was_paused_ends_them_afterwards() -> None:
    async def scenario(world: World) -> None:
        answers: list[int] = []

        async def upload(number: int) -> None:
            await trio.sleep(number / 1000)
            response = await world.upload("node-1", "a", b"x" * 3000, file_id=f"k{number}")
            answers.append(response.status_code)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(upload, number)
            await trio.sleep(0.010)
            world.pause("node-1")
            at_once = len(answers)
            await trio.sleep(10)
            assert len(answers) == at_once
            world.resume("node-1")
        assert answers == [200] * 20

    in_world(scenario, inline_bytes_max=500)


def test_a_world_that_fails_while_a_peer_is_paused_comes_to_its_end() -> None:
    async def scenario(world: World) -> None:
        world.pause("node-1")
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        in_world(scenario)
    assert caught.group_contains(ZeroDivisionError)


def test_rivals_are_versions_nobody_told_the_writer_of_and_whose_stamps_are_later() -> None:
    async def scenario(world: World) -> None:
        def rivals(name: str, receipt: dict[str, Any]) -> set[str]:
            platters = {machine: world.machines[machine].platter for machine in world.machines}
            return rivals_of(platters[name], platters.values(), "k", receipt["checksum_sha256"])

        clock = world.machines["node-1"].env.clock  # type: ignore[union-attr]
        assert isinstance(clock, VirtualClock)
        part(world, ("node-1",), ("node-2",))
        await trio.sleep(5)
        clock.offset_ms = 60_000
        ahead = await put(world, "node-1", "k", b"ahead")
        behind = await put(world, "node-2", "k", b"behind")
        assert rivals("node-2", behind) == {ahead["checksum_sha256"]}
        assert rivals("node-1", ahead) == set()
        heal(world)
        await converged(world)
        assert await everywhere(world, "k") == [b"ahead"] * 2
        assert rivals("node-2", await put(world, "node-2", "k", b"heard of both")) == set()

    in_world(scenario, peers=2)


def test_a_resumed_machine_draws_its_epoch_again_and_other_ids_for_files() -> None:
    async def scenario(world: World) -> None:
        await trio.lowlevel.checkpoint()
        platter = world.machines["node-1"].platter
        first, resumed = VirtualEnv(world, "node-1", platter, 1), VirtualEnv(world, "node-1", platter, 2, 1)
        assert first.chance("epochs").random() == resumed.chance("epochs").random()
        for stream in (FILE_IDS, SERIALS):
            assert first.chance(stream).random() != resumed.chance(stream).random()

    run_world(1, scenario, peers=1)
