"""What peers know of each other's files after partitions, crashes, lost and restored disks, and truncated logs."""

from __future__ import annotations

import httpx
import pytest
import trio
from worlds import (
    converged,
    count_exchanges,
    everywhere,
    get,
    heal,
    here,
    holders,
    in_world,
    lose_disk,
    others,
    part,
    pending,
    put,
    really_holds,
    rows,
    services,
    versions,
)

from peer.gossip.client import PeerUnreachable
from protocol.identity import Dot, NodeId, Origin
from protocol.ops import Drop
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}


async def delete(world: World, name: str, file_key: str) -> None:
    response = await world.request(name, "DELETE", f"/files/{file_key}")
    assert response.status_code == httpx.codes.OK, response.text


async def truncate(world: World, *names: str) -> None:
    """Have peers forget the logs of all they have applied."""
    for name in names:
        peer = here(world, name)
        await peer.database.write(lambda peer=peer: peer.replica.truncate(peer.database.store.version_vector()))


# --- overwrites and deletes ---


def test_overwriting_a_callers_id_replaces_every_older_version_everywhere() -> None:
    async def scenario(world: World) -> None:
        for number in range(6):
            content = f"version {number}".encode() * 400
            await put(world, f"node-{number % 3 + 1}", "k", content)
            assert await everywhere(world, "k") == [content] * 3
            assert [versions(world, name, "k") for name in world.machines] == [1, 1, 1]
        await converged(world)
        assert [rows(world, name, "SELECT count(*), min(refs) FROM chunks") for name in world.machines] == [
            [(1, 1)]
        ] * 3

    in_world(scenario, **SMALL)


def test_writes_on_both_sides_of_a_partition_both_live_and_one_is_shown_everywhere() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"before")
        part(world, ("node-1",), ("node-2", "node-3"))
        await trio.sleep(5)
        ours = await put(world, "node-1", "k", b"ours")
        theirs = await put(world, "node-2", "k", b"theirs" * 500)
        assert ours["durable_copies"] == ["node-1"]
        assert theirs["durable_copies"] == ["node-2", "node-3"]
        assert await everywhere(world, "k") == [b"ours", b"theirs" * 500, b"theirs" * 500]
        heal(world)
        await converged(world)
        assert [versions(world, name, "k") for name in world.machines] == [2, 2, 2]
        assert await everywhere(world, "k") == [b"theirs" * 500] * 3
        # Both versions are on every disk, so nothing acknowledged hangs by one peer.
        for name in world.machines:
            assert rows(world, name, "SELECT held FROM puts WHERE file_key = 'k'") == [(1,), (1,)]
        await put(world, "node-3", "k", b"after")
        await converged(world)
        assert [versions(world, name, "k") for name in world.machines] == [1, 1, 1]

    in_world(scenario, **SMALL)


def test_a_delete_removes_what_it_had_heard_of_and_a_concurrent_write_survives() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"before")
        await put(world, "node-1", "gone", b"before" * 1000)
        part(world, ("node-1",), ("node-2", "node-3"))
        await trio.sleep(5)
        await put(world, "node-1", "k", b"written aside")
        await delete(world, "node-2", "k")
        await delete(world, "node-3", "gone")
        assert await everywhere(world, "k") == [b"written aside", 404, 404]
        heal(world)
        await converged(world)
        assert await everywhere(world, "k") == [b"written aside"] * 3
        assert await everywhere(world, "gone") == [404] * 3
        assert [versions(world, name, "k") for name in world.machines] == [1, 1, 1]

    in_world(scenario, **SMALL)


def test_a_file_deleted_while_a_holder_is_down_stays_deleted_when_that_one_returns() -> None:
    async def scenario(world: World) -> None:
        for key in ("a", "b", "c"):
            await put(world, "node-3", key, key.encode() * 5000)
        await world.crash("node-3")
        await trio.sleep(5)
        await delete(world, "node-1", "a")
        response = await world.request("node-2", "DELETE", "/files/b")
        assert response.json()["deleted_nodes"] == ["node-1", "node-2"]
        assert response.json()["failed"] == 1
        for name in ("node-1", "node-2"):
            await world.stop(name)
        await world.start("node-3")
        await trio.sleep(60)
        assert await get(world, "node-3", "a") == b"a" * 5000
        await world.start("node-1")
        await world.start("node-2")
        await world.wait_until(
            lambda: all(len(others(world, name).membership.reachable()) == 2 for name in world.machines), 30
        )
        await converged(world)
        assert await everywhere(world, "a") == [404] * 3
        assert await everywhere(world, "b") == [404] * 3
        assert await everywhere(world, "c") == [b"c" * 5000] * 3

    in_world(scenario, **SMALL)


def test_a_write_through_one_peer_is_superseded_by_a_write_through_another_at_once() -> None:
    """The targets are asked first, so that two clients who take turns never make siblings."""

    async def scenario(world: World) -> None:
        for number in range(30):
            await put(world, f"node-{number % 3 + 1}", "k", b"%d" % number)
        assert [versions(world, name, "k") for name in world.machines] == [1, 1, 1]

    in_world(scenario)


# --- disks that were lost, or are older than they were ---


def test_a_lost_disk_takes_its_holds_back_and_then_everything_returns() -> None:
    async def scenario(world: World) -> None:
        contents = {f"k{number}": world.chance.randbytes(number * 997) for number in range(12)}
        for key, content in contents.items():
            await put(world, "node-2", key, content)
        await world.crash("node-2")
        lose_disk(world, "node-2")
        await world.start("node-2")
        with trio.fail_after(200):
            while not world.have_converged():
                for key in contents:
                    if "node-2" in holders(world, "node-2", key):
                        assert really_holds(world, "node-2", key)
                await trio.sleep(0.001)
        await converged(world)
        database = here(world, "node-1").database
        heard = await database.write(lambda: list(database.store.log_after({})))
        drops = [op for op in heard if isinstance(op, Drop) and op.dot.origin.node_id == "node-2"]
        assert sum(len(op.supersedes) for op in drops) == len(contents)
        assert {key: await get(world, "node-2", key) for key in contents} == contents
        assert all(really_holds(world, "node-2", key) for key in contents)

    in_world(scenario, **SMALL)


def test_a_restored_older_disk_converges_and_brings_nothing_back() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-2", "stays", b"stays" * 1000)
        await put(world, "node-2", "deleted", b"deleted" * 1000)
        await put(world, "node-2", "overwritten", b"old" * 2000)
        await world.crash("node-2")
        image = world.machines["node-2"].platter.copy()
        await world.start("node-2")
        await put(world, "node-2", "later", b"later" * 1000)
        await delete(world, "node-2", "deleted")
        await put(world, "node-2", "overwritten", b"new" * 2000)
        await converged(world)
        await world.crash("node-2")
        world.machines["node-2"].platter = image
        await world.start("node-2")
        await put(world, "node-2", "after", b"after" * 1000)
        await converged(world)
        assert await everywhere(world, "stays") == [b"stays" * 1000] * 3
        assert await everywhere(world, "deleted") == [404] * 3
        assert await everywhere(world, "overwritten") == [b"new" * 2000] * 3
        assert await everywhere(world, "later") == [b"later" * 1000] * 3
        assert await everywhere(world, "after") == [b"after" * 1000] * 3
        assert services(world, "node-1").whole_states.disagreements == 0

    in_world(scenario, **SMALL)


def test_all_disks_restored_to_different_days_still_converge() -> None:
    async def scenario(world: World) -> None:
        images = {}
        for number, name in enumerate(world.machines):
            await put(world, name, f"k{number}", b"%d" % number * 3000)
            await put(world, name, "k", b"%d" % number)
            images[name] = world.machines[name].platter.copy()
        await delete(world, "node-1", "k0")
        for name in world.machines:
            await world.crash(name)
            world.machines[name].platter = images[name]
        for name in world.machines:
            await world.start(name)
        await put(world, "node-1", "new", b"new")
        await converged(world)
        # The last image had all of it; the delete was on no disk any more.
        assert await everywhere(world, "k") == [b"2"] * 3
        assert await everywhere(world, "k2") == [b"2" * 3000] * 3
        assert await everywhere(world, "new") == [b"new"] * 3
        assert all(services(world, name).whole_states.disagreements == 0 for name in world.machines)

    in_world(scenario, **SMALL)


# --- whole states ---


@pytest.mark.parametrize("seed", range(4))
def test_a_peer_that_was_away_beyond_the_logs_takes_over_the_whole_state(seed: int) -> None:
    async def scenario(world: World) -> None:
        for key in ("stays", "deleted", "overwritten"):
            await put(world, "node-1", key, key.encode() * 1000)
        part(world, ("node-3",), ("node-1", "node-2"))
        await trio.sleep(5)
        await put(world, "node-3", "aside", b"aside" * 1000)
        await put(world, "node-3", "overwritten", b"aside too")
        await world.crash("node-3")
        await delete(world, "node-1", "deleted")
        await put(world, "node-2", "overwritten", b"new" * 1000)
        await put(world, "node-2", "later", b"later" * 1000)
        await trio.sleep(2)
        await truncate(world, "node-1", "node-2")
        heal(world)
        await world.start("node-3")
        if seed % 2:
            await truncate(world, "node-3")
        await converged(world)
        assert await everywhere(world, "stays") == [b"stays" * 1000] * 3
        assert await everywhere(world, "deleted") == [404] * 3
        assert await everywhere(world, "later") == [b"later" * 1000] * 3
        assert await everywhere(world, "aside") == [b"aside" * 1000] * 3
        assert [versions(world, name, "overwritten") for name in world.machines] == [2, 2, 2]
        assert here(world, "node-3").database.store.floors() != {}
        assert all(services(world, name).whole_states.disagreements == 0 for name in world.machines)
        # Afterwards suffixes do again.
        await put(world, "node-3", "overwritten", b"last")
        await converged(world)
        assert await everywhere(world, "overwritten") == [b"last"] * 3

    in_world(scenario, seed=seed, **SMALL)


def test_a_crash_in_the_middle_of_taking_over_a_whole_state_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        for number in range(8):
            await put(world, "node-1", f"k{number}", b"%d" % number * 2000)
        await world.crash("node-2")
        await trio.sleep(5)
        for number in range(0, 8, 2):
            await delete(world, "node-1", f"k{number}")
        await truncate(world, "node-1")
        for step in range(6):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.start, "node-2")
                with trio.fail_after(60):
                    while rows(world, "node-2", "SELECT count(*) FROM incoming") == [(0,)]:  # noqa: ASYNC110  (a row, not a task, is waited for)
                        await trio.sleep(0.00002)
                await trio.sleep(0.001 * step)
                nursery.cancel_scope.cancel()
            await world.crash("node-2")
            if step == 0:
                assert rows(world, "node-2", "SELECT count(*) FROM incoming") != [(0,)], "it crashed too late"
            if versions(world, "node-2", "k0") == 0:
                break
        await world.start("node-2")
        await converged(world)
        assert rows(world, "node-2", "SELECT count(*) FROM incoming") == [(0,)]
        for number in range(8):
            expected = b"%d" % number * 2000 if number % 2 else 404
            assert await everywhere(world, f"k{number}") == [expected] * 2, number

    in_world(scenario, peers=2, copies=2, **SMALL)


def damage(world: World, name: str, *queries: str) -> None:
    """Change a peer's database behind its back, while it is down."""
    (database,) = world.machines[name].platter.databases.values()
    for query in queries:
        database.execute(query)


LOSE_A = (
    "DELETE FROM holds WHERE put IN (SELECT id FROM puts WHERE file_key = 'a')",
    "DELETE FROM puts WHERE file_key = 'a'",
)
ALTER_B = ("UPDATE puts SET filename = 'other', sha256 = zeroblob(32) WHERE file_key = 'b'",)


SPOIL_B = ("UPDATE puts SET chunks = x'c1' WHERE file_key = 'b'",)
RETYPE_B = (
    "UPDATE puts SET filename = x'00ff', uploaded_at_ms = 'noon' WHERE file_key = 'b'",
    "UPDATE holds SET stamp = 'noon' WHERE put IN (SELECT id FROM puts WHERE file_key = 'a')",
)


@pytest.mark.parametrize(
    "queries",
    [LOSE_A, ALTER_B, (*LOSE_A, *ALTER_B), SPOIL_B, RETYPE_B],
    ids=["lost", "altered", "both", "unreadable", "of other types"],
)
def test_damaged_rows_are_replaced_by_another_peers_and_what_only_this_one_has_stays(queries: tuple[str, ...]) -> None:
    async def scenario(world: World) -> None:
        for key in ("a", "b", "empty"):
            await put(world, "node-1", key, b"" if key == "empty" else key.encode() * 3000)
        await converged(world)
        part(world, ("node-2",), ("node-1", "node-3"))
        await trio.sleep(10)
        await put(world, "node-2", "c", b"c" * 3000)
        await delete(world, "node-1", "empty")
        await put(world, "node-3", "d", b"d" * 3000)
        await world.crash("node-2")
        damage(world, "node-2", *queries)
        heal(world)
        await world.start("node-2")
        await converged(world)
        await trio.sleep(60)
        damaged = services(world, "node-2")
        assert not damaged.here.is_damaged
        for key in "abcd":
            assert await everywhere(world, key) == [key.encode() * 3000] * 3
            listed = (await world.request("node-2", "GET", f"/files?name={key}")).json()["files"]
            assert [file["original_filename"] for file in listed] == [f"{key}.bin"]
        assert await everywhere(world, "empty") == [404] * 3
        assert damaged.repair.copies_made == 1, "only what it never had; its content stayed"
        before = [services(world, name).whole_states.disagreements for name in world.machines]
        await trio.sleep(120)
        assert before == [services(world, name).whole_states.disagreements for name in world.machines], "it is over"

    in_world(scenario, **SMALL)


def test_a_damaged_peer_alone_serves_on_remembers_it_and_gives_its_state_to_nobody() -> None:
    async def scenario(world: World) -> None:
        for key in ("a", "b"):
            await put(world, "node-1", key, key.encode() * 3000)
        await converged(world)
        await truncate(world, *world.machines)
        for name in world.machines:
            await world.crash(name)
        damage(world, "node-2", *LOSE_A)
        for number in range(2):
            await world.start("node-2")
            await here(world, "node-2").verified.wait()
            assert here(world, "node-2").is_damaged
            assert await get(world, "node-2", "b") == b"b" * 3000
            await put(world, "node-2", f"c{number}", b"c" * 3000)
            await world.crash("node-2")
        # Who has lost everything cannot take what is left here for all there was.
        lose_disk(world, "node-3")
        await world.start("node-2")
        await world.start("node-3")
        await trio.sleep(60)
        assert versions(world, "node-3", "b") == 0
        await world.start("node-1")
        await converged(world, limit_s=400)
        assert not any(here(world, name).is_damaged for name in world.machines)
        for key in ("a", "b", "c0", "c1"):
            assert await everywhere(world, key) == [key[0].encode() * 3000] * 3

    in_world(scenario, **SMALL)


# --- peers that are asked what they cannot know ---


def test_an_unknown_file_is_404_when_somebody_could_be_asked_and_503_when_nobody_could() -> None:
    async def scenario(world: World) -> None:
        assert await everywhere(world, "unknown") == [404] * 3
        await put(world, "node-1", "k", b"k")
        for name in ("node-2", "node-3"):
            await world.crash(name)
        await trio.sleep(5)
        response = await world.request("node-1", "GET", "/files/unknown")
        assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert response.headers["retry-after"]
        assert await get(world, "node-1", "k") == b"k"

    in_world(scenario)


def test_an_unknown_file_is_404_on_the_only_peer_that_should_have_it() -> None:
    async def scenario(world: World) -> None:
        for number in range(6):
            assert await everywhere(world, f"unknown-{number}") == [404, 404]

    in_world(scenario, peers=2, copies=1)


def test_a_file_just_written_elsewhere_is_found_by_asking() -> None:
    async def scenario(world: World) -> None:
        names = list(world.machines)
        for number in range(10):
            via = names[number % 5]
            await put(world, via, f"k{number}", b"%d" % number)
            assert await everywhere(world, f"k{number}") == [b"%d" % number] * 5

    in_world(scenario, peers=5, copies=2)


# --- stopping ---


def test_a_peer_that_stops_finishes_the_requests_that_run() -> None:
    async def scenario(world: World) -> None:
        answers: list[int] = []

        async def upload(number: int) -> None:
            response = await world.upload("node-1", "a.bin", b"%d" % number * 4000, file_id=f"k{number}")
            answers.append(response.status_code)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(upload, number)
            await trio.sleep(0.005)
            await world.stop("node-1")
        assert answers == [200] * 10
        with pytest.raises(httpx.ConnectError):
            await get(world, "node-1", "k0")
        for number in range(10):
            assert await get(world, "node-2", f"k{number}") == b"%d" % number * 4000
        await world.start("node-1")
        await converged(world)
        assert pending(world, "node-1") == []

    in_world(scenario, **SMALL)


def test_a_stopped_peer_says_so_before_it_is_gone() -> None:
    async def scenario(world: World) -> None:
        assert (await world.request("node-1", "GET", "/health/ready")).status_code == httpx.codes.OK
        services(world, "node-1").draining.set()
        response = await world.request("node-1", "GET", "/health/ready")
        assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert "draining" in response.json()["error"]

    in_world(scenario, peers=1)


@pytest.mark.parametrize("loser", ["node-1", "node-2"])
def test_a_lost_row_of_a_log_is_healed_by_a_whole_state_and_does_not_make_peers_spin(
    loser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Little fits a message, so that there is always more.
    monkeypatch.setattr("peer.gossip.exchange.OPS_BYTES_MAX", 300)
    monkeypatch.setattr("peer.gossip.answer.OPS_BYTES_MAX", 300)

    async def scenario(world: World) -> None:
        part(world, ("node-1",), ("node-2",))
        await trio.sleep(10)
        for number in range(5):
            await put(world, "node-1", f"a{number}", b"content")
            await put(world, "node-2", f"b{number}", b"content")
        epoch = here(world, loser).replica.origin.epoch
        await world.crash(loser)
        rows(world, loser, "DELETE FROM log WHERE seq = 3 AND origin = (SELECT id FROM origins WHERE epoch = ?)", epoch)
        await world.start(loser)
        asked, fetches = count_exchanges(world), {name: services(world, name).whole_states for name in world.machines}
        rights = {name: whole_states.fetch for name, whole_states in fetches.items()}

        async def cannot(*_: object) -> None:
            raise PeerUnreachable("no whole state comes through")

        for whole_states in fetches.values():
            whole_states.fetch = cannot  # type: ignore[assignment, method-assign]
        heal(world)
        await trio.sleep(10)
        assert sum(asked.values()) < 60
        for name, whole_states in fetches.items():
            whole_states.fetch = rights[name]  # type: ignore[method-assign]
        await converged(world)
        for number in range(5):
            assert await everywhere(world, f"a{number}") == await everywhere(world, f"b{number}") == [b"content"] * 2

    in_world(scenario, peers=2)


def test_ops_a_peer_has_by_now_prove_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    """What it is thought to know may be older than what it has: an earlier request of its own was answered late."""

    async def scenario(world: World) -> None:
        exchanger = services(world, "node-1").exchanger
        link = exchanger.link(NodeId("node-2"))
        await exchanger.exchange(NodeId("node-2"))
        older = link.known_vv
        await put(world, "node-1", "k", b"content")
        await converged(world)
        await exchanger.exchange(NodeId("node-2"))
        link.known_vv, link._left_at = older, link.known_vv
        await exchanger.exchange(NodeId("node-2"))
        assert link.known_vv == link._here.database.committed.version_vector
        assert "rows of the log are lost" not in caplog.text

    in_world(scenario, peers=2)


def test_whether_a_peer_could_be_asked_to_hold_a_file_is_told() -> None:
    """One that is behind our log takes over a whole state first; what the catalog has of it is from before."""

    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        await converged(world)
        exchanger = services(world, "node-1").exchanger
        await exchanger.exchange(NodeId("node-2"))
        await truncate(world, "node-1")
        (origin,) = rows(
            world,
            "node-1",
            "SELECT node_id, epoch, puts.seq FROM puts JOIN origins ON origins.id = puts.origin"
            " JOIN nodes ON nodes.id = origins.node",
        )
        dot = Dot(Origin(origin[0], origin[1]), origin[2])
        assert await exchanger.exchange("node-2", dot)
        # As it says itself when its disk was lost.
        exchanger.link("node-2").known_vv = {}
        assert not await exchanger.exchange("node-2", dot)
        await converged(world)
        assert await exchanger.exchange("node-2", dot)

    in_world(scenario)
