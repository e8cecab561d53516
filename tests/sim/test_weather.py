"""What the simulated network does to requests and datagrams in bad weather."""

from __future__ import annotations

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, here, in_world, put, versions

from sim.network import FAIR, Fate, Weather
from sim.world import World

CONTENT = b"x" * 50_000
SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}


@pytest.mark.parametrize(
    ("fate", "error", "is_stored"),
    [
        (Fate.RESET, httpx.WriteError, False),
        (Fate.UNANSWERED, httpx.ReadError, True),
        (Fate.CUT_OFF, httpx.ReadError, True),
        (Fate.SILENT, httpx.ReadTimeout, True),
    ],
)
def test_a_request_meets_its_fate(fate: Fate, error: type[httpx.HTTPError], is_stored: bool) -> None:
    async def scenario(world: World) -> None:
        right, world.network.fate = world.network.fate, lambda: fate  # type: ignore[method-assign]
        # The first piece of the answer is the one that does not come.
        world.network.draw = lambda _: 0  # type: ignore[method-assign]
        with pytest.raises(error):
            await world.upload("node-1", "a.bin", CONTENT, file_id="k")
        world.network.fate = right  # type: ignore[method-assign]
        assert versions(world, "node-1", "k") == is_stored

    in_world(scenario, peers=1, **SMALL)


def test_an_answer_that_is_cut_off_is_never_taken_for_a_whole_one() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        world.network.weather = Weather(broken=1.0, silent=0.0)
        ended: dict[str, int] = {}
        for _ in range(60):
            try:
                answer = await get(world, "node-1", "k")
            except httpx.HTTPError as error:
                ended[type(error).__name__] = ended.get(type(error).__name__, 0) + 1
            else:
                assert answer == CONTENT
        assert ended["WriteError"] > 5
        assert ended["ReadError"] > 10

    in_world(scenario, peers=1, **SMALL)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_acknowledged_is_lost_in_the_worst_of_weathers(seed: int) -> None:
    async def scenario(world: World) -> None:
        world.network.weather = Weather(lost=0.4, doubled=0.3, slow=0.3, slow_max_s=2.0, broken=0.3)
        acknowledged: dict[str, bytes] = {}
        for number in range(40):
            key, content = f"k{number}", world.chance.randbytes(world.chance.choice([10, 5000, 20_000]))
            name = world.chance.choice(list(world.machines))
            try:
                response = await world.upload(name, "a.bin", content, file_id=key)
            except httpx.HTTPError:
                continue
            if response.status_code == httpx.codes.OK:
                acknowledged[key] = content
        assert len(acknowledged) > 10
        world.network.weather = FAIR
        await converged(world, limit_s=400)
        for key, content in acknowledged.items():
            assert await everywhere(world, key) == [content] * 3
        assert all(here(world, name).replica.epochs_left == 0 for name in world.machines)

    in_world(scenario, seed=seed, limit_s=20_000, **SMALL)


def test_datagrams_come_late_twice_or_never() -> None:
    async def scenario(world: World) -> None:
        arrivals: list[float] = []
        right = world.network._mailboxes[world.machines["node-2"].address.port].put

        def put_down(payload: bytes, sender: object) -> None:
            arrivals.append(trio.current_time())
            right(payload, sender)  # type: ignore[arg-type]

        world.network._mailboxes[world.machines["node-2"].address.port].put = put_down  # type: ignore[method-assign,assignment]

        async def arrived_in_a_minute(weather: Weather) -> int:
            world.network.weather = weather
            arrivals.clear()
            await trio.sleep(60)
            return len(arrivals)

        usual = await arrived_in_a_minute(FAIR)
        assert usual > 60
        assert await arrived_in_a_minute(Weather(lost=1.0)) <= 2
        assert await arrived_in_a_minute(Weather(doubled=1.0)) > usual * 1.6

    in_world(scenario, peers=2)


def test_a_link_of_little_bandwidth_carries_one_thing_after_the_other() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        took_s: list[float] = []

        async def read() -> None:
            before = trio.current_time()
            assert await get(world, "node-1", "k") == CONTENT
            took_s.append(trio.current_time() - before)

        await read()
        world.network.weather = Weather(bytes_per_s=len(CONTENT) / 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
        alone, first, second = sorted(took_s)
        assert alone < 0.5
        # Two of them share the link: both are there after four seconds, of which each needs two.
        assert 2 <= first <= second == pytest.approx(4, abs=0.2)
        before = trio.current_time()
        await put(world, "node-1", "other", CONTENT)
        assert trio.current_time() - before == pytest.approx(2, abs=0.2)

    in_world(scenario, peers=1, **SMALL)
