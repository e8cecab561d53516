"""What a peer lacks comes in pages: each file once, and those with the fewest copies first."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from worlds import converged, here, in_world, missing_files, others, put, rows, services

from peer.upkeep.deficits import Deficits
from peer.upkeep.repair import Repair
from protocol.identity import NodeId
from protocol.ops import Put, item_id
from sim.world import World

FILES = 24


@pytest.mark.parametrize("page", [1, 2, 5, 1000])
def test_each_file_comes_once_and_none_before_one_with_fewer_copies(page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.store.lookups.DEFICITS_MAX", page)
    monkeypatch.setattr("peer.upkeep.deficits.DEFICITS_MAX", page)

    async def scenario(world: World) -> None:
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        await converged(world)
        # As if node-4 had lost everything, and node-2 and node-3 some of it.
        database, store = here(world, "node-1").database, here(world, "node-1").database.store
        copies: dict[str, int] = {}

        def forget() -> None:
            for number in range(FILES):
                (live,) = store.puts_of(f"k{number}")
                gone = ["node-4", *(["node-2"] if number % 2 else []), *(["node-3"] if number % 3 else [])]
                for hold in store.holds_of(live.dot):
                    if hold.holder in gone:
                        store.remove(hold)
                copies[f"k{number}"] = len(store.holds_of(live.dot))

        await database.write(forget)
        up = tuple(map(NodeId, ("node-1", "node-2", "node-3")))
        deficits = Deficits(database, NodeId("node-4"), lambda: up)
        seen: list[str] = []
        while found := await deficits.page():
            assert len(found) <= page
            seen += [one.manifest.file_key for one in found]
        assert Counter(seen) == Counter(f"k{number}" for number in range(FILES))
        assert [copies[key] for key in seen] == sorted(copies.values())
        assert len(set(copies.values())) == 3

    in_world(scenario, peers=4, copies=4)


def test_a_new_peer_fetches_page_after_page_until_it_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.store.lookups.DEFICITS_MAX", 4)
    monkeypatch.setattr("peer.upkeep.deficits.DEFICITS_MAX", 4)

    async def scenario(world: World) -> None:
        await world.crash("node-2")
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        await world.start("node-2")
        await converged(world)
        assert missing_files(world, "node-2") == []
        assert services(world, "node-2").repair.copies_made == FILES
        assert services(world, "node-2").repair.attempts == {}

    in_world(scenario, peers=2)


def test_a_round_ends_after_its_time_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peer.store.lookups.DEFICITS_MAX", 1)
    monkeypatch.setattr("peer.upkeep.deficits.DEFICITS_MAX", 1)
    fetch_all = Repair._fetch_all
    rounds = 0
    heal = Repair.heal

    async def slow(self: Repair, puts: list[Put]) -> None:
        await trio.sleep(25)
        await fetch_all(self, puts)

    async def counted(self: Repair, *, all_of_it: bool = False) -> object:
        nonlocal rounds
        rounds += 1
        return await heal(self, all_of_it=all_of_it)

    async def scenario(world: World) -> None:
        await world.crash("node-2")
        for number in range(9):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        monkeypatch.setattr(Repair, "_fetch_all", slow)
        monkeypatch.setattr(Repair, "heal", counted)
        await world.start("node-2")
        began = trio.current_time()
        await world.wait_until(lambda: others(world, "node-2").membership.reachable() and not lacking(world), 400)
        # Nine files, one every 25 s, three in each round: no round waited for the next heal interval.
        assert trio.current_time() - began < 9 * 25 + 35
        assert rounds >= 3

    in_world(scenario, peers=2)


def lacking(world: World) -> bool:
    return services(world, "node-2").repair.copies_made < 9


async def in_vain(self: Repair, puts: list[Put]) -> None:
    """In place of `Repair._fetch_all`: nobody has them."""
    for one in puts:
        self._fail(one.dot, "nobody has it")


def test_attempts_at_what_is_not_lacking_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await put(world, "node-1", "other", b"content")
        repair, database = services(world, "node-1").repair, here(world, "node-1").database

        def forget_holds() -> None:
            for key in ("k", "other"):
                (live,) = database.store.puts_of(key)
                for hold in database.store.holds_of(live.dot):
                    database.store.remove(hold)

        await database.write(forget_holds)
        monkeypatch.setattr(Repair, "_fetch_all", in_vain)
        await repair.heal(all_of_it=True)
        assert len(repair.attempts) == 2
        await world.request("node-1", "DELETE", "/files/k")
        await repair.heal(all_of_it=True)
        (left,) = repair.attempts
        assert rows(world, "node-1", "SELECT status FROM queue WHERE id = ?", item_id(left, NodeId("node-1")))

    in_world(scenario, peers=1)
