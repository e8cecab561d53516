"""Members on disk, and the queue of missing copies that follows from them."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from worlds import few_partitions, in_world, others, pending, put, rows, services

from peer.gossip.membership import FULL_PAUSE_S
from peer.gossip.placement import BUDGETS, PAUSE_MAX_S, STEP_S, _next_budget, requeue
from peer.pace import RESTS
from peer.store.members import load_members, load_ranks
from peer.world.env import NoSpace
from protocol.identity import Member, NodeId
from protocol.messages import View
from protocol.placement import Place, rank_all
from sim.world import World


def steps_of(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a change of members goes through so many puts and partitions."""
    monkeypatch.setattr("peer.gossip.placement.BUDGET_OF_A_STEP", budget)
    monkeypatch.setattr("peer.gossip.placement.BUDGETS", (budget, budget))


@pytest.mark.parametrize(
    ("budget", "took_s", "expected"),
    [(256, STEP_S, 256), (256, 2 * STEP_S, 128), (256, STEP_S / 1.5, 384), (256, 0.0, 512), (256, STEP_S / 100, 512),
     (800, 0.0, BUDGETS[1]), (70, 9 * STEP_S, BUDGETS[0])],
)  # fmt: skip
def test_the_next_step_has_as_much_as_the_last_one_could_have_had_in_its_time(
    budget: int, took_s: float, expected: int
) -> None:
    assert _next_budget(budget, took_s) == expected


def test_members_and_ranks_are_there_again_after_a_restart() -> None:
    async def scenario(world: World) -> None:
        members, ranks = others(world, "node-1").membership.members(), list(others(world, "node-1").placement.queued)
        await world.crash("node-1")
        await world.crash("node-2")
        await world.start("node-1")
        peer = services(world, "node-1")
        known = {member.node_id: member.address for member in peer.others.membership.members()}
        assert known == {member.node_id: member.address for member in members}
        assert peer.others.placement.queued == ranks
        assert peer.here.database.look_up(load_ranks) == ranks
        lives = {member.node_id: member.incarnation for member in peer.here.database.look_up(load_members)}
        assert lives["node-1"] > 1

    in_world(scenario, peers=2)


def test_a_new_member_queues_exactly_the_files_it_should_have() -> None:
    async def scenario(world: World) -> None:
        for name in ("node-1", "node-2"):
            await world.start(name)
        await world.wait_until(lambda: len(others(world, "node-1").membership.reachable()) == 1, 10)
        for number in range(40):
            await put(world, "node-1", f"k{number}", b"x")
        assert pending(world, "node-1") == []
        peer = services(world, "node-1")
        newcomer = Member(NodeId("node-3"), "127.0.0.1:1", 1)
        members = (*peer.others.membership.members(), newcomer)
        await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
        targets_of = peer.others.placement.targets_of
        expected = [f"k{number}" for number in range(40) if newcomer.node_id in targets_of(f"k{number}", 2)]
        assert 10 < len(expected) < 40
        assert pending(world, "node-1") == [(key, "node-3") for key in sorted(expected)]

    in_world(scenario, start=False, peers=3, copies=2)


def test_a_placement_that_could_not_be_written_is_tried_again() -> None:
    """Memory must not run ahead of the queue, or what is missing would never be known to be."""

    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x")
        peer = services(world, "node-1")
        members = (*peer.others.membership.members(), Member(NodeId("node-2"), "127.0.0.1:1", 1))
        before = list(peer.others.placement.queued)
        write = peer.here.database.write

        async def fails_behind_the_step(step: Any, **options: Any) -> Any:
            def full() -> None:
                step()
                raise NoSpace("the disk is full")

            return await write(full, **options)

        peer.here.database.write = fails_behind_the_step  # type: ignore[method-assign]
        with pytest.raises(NoSpace):
            await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
        assert peer.others.placement.queued == before
        peer.here.database.write = write  # type: ignore[method-assign]
        await world.wait_until(lambda: peer.here.space.reason is None, 30)
        await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
        assert peer.others.placement.queued == rank_all([Place(member.node_id) for member in members])
        assert pending(world, "node-1") == [("k", "node-2")]
        assert rows(world, "node-1", "SELECT count(*) FROM placement") == [(2 * len(before),)]

    in_world(scenario, peers=1, copies=2)


def test_a_data_folder_of_another_peer_or_cluster_is_refused() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-1")
        await world.crash("node-2")
        machines = world.machines
        machines["node-1"].platter, machines["node-2"].platter = machines["node-2"].platter, machines["node-1"].platter
        with trio.move_on_after(5):
            await world.start("node-1")

    with few_partitions(), pytest.raises(ExceptionGroup) as caught:
        in_world(scenario, peers=2)
    assert "belongs to node-2" in "".join(str(error) for error in leaves(caught.value))


def leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for error in group.exceptions for leaf in leaves(error)]
    return [group]


def test_an_upload_counts_on_a_new_member_before_the_queue_has_caught_up_with_it() -> None:
    async def scenario(world: World) -> None:
        peer = services(world, "node-1")
        peer.others.placement.follow((*peer.others.membership.members(), Member(NodeId("node-2"), "127.0.0.1:1", 1)))
        assert sorted(peer.others.placement.targets_of("k", 2)) == ["node-1", "node-2"]
        await put(world, "node-1", "k", b"x")
        assert pending(world, "node-1") == [("k", "node-2")]

    in_world(scenario, peers=1, copies=2)


@pytest.mark.parametrize("budget", [1, 2, 7, 10_000])
def test_members_change_the_queue_alike_in_steps_of_any_size(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of(budget, monkeypatch)

    async def scenario(world: World) -> None:
        peer = services(world, "node-1")
        for number in range(30):
            await put(world, "node-1", f"k{number}", b"x")
        steps = 0
        write = peer.here.database.write

        async def counted(step: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            return await write(step, **options)

        peer.here.database.write = counted  # type: ignore[method-assign]
        mine = peer.others.membership.members()
        newcomers = [Member(NodeId(f"node-{number}"), "127.0.0.1:1", 1) for number in (2, 3)]
        targets_of = peer.others.placement.targets_of
        # One comes, another comes, the first one goes: what it lacked nobody lacks any more.
        for members in ((*mine, newcomers[0]), (*mine, *newcomers), (*mine, newcomers[1])):
            steps = 0
            await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
            wanted = [(f"k{n}", target) for n in range(30) for target in targets_of(f"k{n}", 2) if target != "node-1"]
            assert pending(world, "node-1") == sorted(wanted)
            assert len(wanted) > 10
            assert steps >= 30 / budget
        assert peer.here.database.look_up(load_ranks) == peer.others.placement.queued

    in_world(scenario, peers=1, copies=2)


def test_a_requeue_that_was_overtaken_by_other_members_leaves_the_rest_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps_of(3, monkeypatch)

    async def scenario(world: World) -> None:
        peer = services(world, "node-1")
        for number in range(30):
            await put(world, "node-1", f"k{number}", b"x")
        placement, database = peer.others.placement, peer.here.database
        mine = peer.others.membership.members()
        first, second = ((*mine, Member(NodeId(f"node-{number}"), "127.0.0.1:1", 1)) for number in (2, 3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requeue, peer.env, database, placement, first, peer.others.rest)
            await world.wait_until(lambda: bool(pending(world, "node-1")), 10)
            placement.follow(second)
        assert len(pending(world, "node-1")) < 30
        await requeue(peer.env, database, placement, second, peer.others.rest)
        assert pending(world, "node-1") == [(f"k{n}", "node-3") for n in sorted(range(30), key=lambda n: f"k{n}")]

    in_world(scenario, peers=1, copies=2)


def test_a_peer_serves_before_it_has_gone_through_its_files_after_a_change_of_members(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def endless(*args: object) -> None:
        await trio.sleep_forever()

    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x")
        await world.crash("node-1")
        monkeypatch.setattr("peer.gossip.membership.requeue", endless)
        with trio.fail_after(10):
            await world.start("node-1")
            await services(world, "node-1").ready.wait()
        await put(world, "node-1", "n", b"x")

    in_world(scenario, peers=2)


def test_a_change_of_members_gives_way_to_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of(10, monkeypatch)

    async def scenario(world: World) -> None:
        peer = services(world, "node-1")
        for number in range(30):
            await put(world, "node-1", f"k{number}", b"x")
        write = peer.here.database.write

        async def slow(step: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            await trio.sleep(0.2)
            if is_serving:
                peer.others.pace.serve()
            return await write(step, **options)

        peer.here.database.write = slow  # type: ignore[method-assign]
        mine, took = peer.others.membership.members(), []
        for number in (2, 3):
            steps, is_serving = 0, number == 3
            members = (*mine, Member(NodeId(f"node-{number}"), "127.0.0.1:1", 1))
            await trio.sleep(2)
            began = trio.current_time()
            await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
            took.append((trio.current_time() - began) / steps)
        assert took[0] == pytest.approx(0.2 + PAUSE_MAX_S, abs=0.01)
        assert took[1] == pytest.approx(0.2 + PAUSE_MAX_S + RESTS * 0.2, abs=0.01)

    in_world(scenario, peers=1, copies=2)


def test_a_change_of_members_waits_for_room_on_a_full_disk_and_leaves_what_there_is_to_deletions() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x")
        peer = services(world, "node-1")
        members = (*peer.others.membership.members(), Member(NodeId("node-2"), "127.0.0.1:1", 1))
        check_space = peer.here.database.check_space

        def full() -> None:
            raise NoSpace("the disk is full")

        peer.here.database.check_space = full
        with pytest.raises(NoSpace):
            await requeue(peer.env, peer.here.database, peer.others.placement, members, peer.others.rest)
        assert pending(world, "node-1") == []
        peer.gossip.learn(View.of(*members))
        await trio.sleep(60)
        assert pending(world, "node-1") == []
        peer.here.database.check_space = check_space
        await world.wait_until(lambda: pending(world, "node-1") == [("k", "node-2")], 2 * FULL_PAUSE_S)

    in_world(scenario, peers=1, copies=2)
