"""A peer far behind catches up from one peer at a time, and nobody waits for it meanwhile."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, here, holders, in_world, missing_files, others, put, services

from peer.gossip.answer import Answering
from peer.gossip.catching_up import FAR_BEHIND_OPS, CatchingUp, is_far_behind
from peer.gossip.exchange import LEFT_ALONE_S, Exchanger, Link
from protocol.identity import NodeId, Origin, covers_all
from sim.world import World

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
FILES = 60


@pytest.fixture
def little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message has a few ops, and who lacks a few more than that is far behind."""
    monkeypatch.setattr("peer.gossip.exchange.OPS_BYTES_MAX", 1000)
    monkeypatch.setattr("peer.gossip.answer.OPS_BYTES_MAX", 1000)
    monkeypatch.setattr("peer.gossip.catching_up.FAR_BEHIND_OPS", 20)


def test_there_is_one_source_until_it_has_no_more_and_then_the_others_have_their_turn() -> None:
    catching_up = CatchingUp()
    assert catching_up.may_ask_more(A)
    assert catching_up.may_ask_more(A)
    assert not catching_up.may_ask_more(B)
    assert not catching_up.may_ask_more(C)
    assert catching_up.end(B) == []
    assert not catching_up.may_ask_more(C)
    assert catching_up.end(A) == [B, C]
    assert catching_up.end(A) == []
    assert catching_up.may_ask_more(B)
    assert catching_up.end(B) == []


def test_who_lacks_more_ops_than_so_many_in_all_is_far_behind_and_who_is_unknown_is_not() -> None:
    one, two = Origin(A, 1), Origin(B, 2)
    vv = {one: FAR_BEHIND_OPS, two: 5}
    assert not is_far_behind(None, vv)
    assert is_far_behind({}, vv)
    assert is_far_behind({one: 4}, vv)
    assert not is_far_behind({one: 5}, vv)
    assert not is_far_behind({one: FAR_BEHIND_OPS + 9, two: 5}, vv)
    # What it has more of one does not make up for what it lacks of another.
    assert is_far_behind({one: 9 * FAR_BEHIND_OPS}, {one: 1, two: FAR_BEHIND_OPS + 1})


@pytest.mark.usefixtures("little_at_a_time")
def test_uploads_do_not_wait_for_a_peer_that_is_far_behind_and_stand_ins_take_their_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        for name in ("node-1", "node-2", "node-3"):
            await world.start(name)
        await world.wait_until(lambda: len(others(world, "node-1").membership.reachable()) == 2, 10)
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        monkeypatch.setattr(Link, "_take_reply", slow_at("node-4", Link._take_reply))
        monkeypatch.setattr(Answering, "answer", slow_at("node-4", Answering.answer))
        world._nursery.start_soon(world.start, "node-4")
        await world.wait_until(lambda: services(world, "node-1").exchanger.link(NodeId("node-4")).is_far_behind(), 60)
        receipts = []
        for number in range(10):
            began = trio.current_time()
            response = await world.upload("node-1", f"new{number}", b"new")
            assert response.status_code == httpx.codes.OK
            assert trio.current_time() - began < 0.5
            receipts.append(response.json())
        assert services(world, "node-1").exchanger.link(NodeId("node-4")).is_far_behind()
        assert all(len(receipt["durable_copies"]) == 3 for receipt in receipts)
        details = [detail for receipt in receipts for detail in receipt["replication"]["details"]]
        refused = [detail for detail in details if detail["node"] == "node-4"]
        assert refused
        assert all("catching up" in detail["error"] for detail in refused)
        assert any(detail.get("instead_of") == "node-4" for detail in details)
        monkeypatch.undo()
        await converged(world, limit_s=400)
        for number in range(FILES):
            assert await everywhere(world, f"k{number}") == [b"%d" % number] * 4
        assert all("node-4" in holders(world, "node-4", detail_key(receipt)) for receipt in receipts if wants(receipt))

    in_world(scenario, start=False, peers=4, copies=3)


@pytest.mark.usefixtures("little_at_a_time")
def test_uploads_through_a_peer_that_catches_up_wait_for_one_round_of_that_and_not_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-4")
        await trio.sleep(10)
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        monkeypatch.setattr(Link, "_take_reply", slow_at("node-4", Link._take_reply))
        await world.start("node-4")
        await world.wait_until(lambda: any(link._goes_on for link in services(world, "node-4").exchanger.links()), 30)
        began = trio.current_time()
        receipt = await world.upload("node-4", "mine", b"mine")
        assert len(receipt.json()["durable_copies"]) == 3
        assert trio.current_time() - began < 4
        assert vv_of(world)("node-4") != vv_of(world)("node-1")
        monkeypatch.undo()
        await converged(world, limit_s=400)

    in_world(scenario, peers=4, copies=3)


@pytest.mark.usefixtures("little_at_a_time")
def test_everybody_knows_soon_that_a_peer_has_caught_up_whomever_it_caught_up_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Exchanger.step

    async def but_for_one(self: Exchanger) -> None:
        if self._here.me != "node-4":
            await step(self)

    async def scenario(world: World) -> None:
        await world.crash("node-4")
        await trio.sleep(10)
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"x")
        await world.start("node-4")
        await world.wait_until(lambda: vv_of(world)("node-4") == vv_of(world)("node-1"), 60)
        # As if it had not told the others, and did not.
        await trio.sleep(5)
        monkeypatch.setattr(Exchanger, "step", but_for_one)
        for name in ("node-2", "node-3"):
            services(world, name).exchanger.link(NodeId("node-4")).known_vv = {}
        await put(world, "node-1", "news", b"x")
        await world.wait_until(
            lambda: not any(far_behind(world, name) for name in ("node-2", "node-3")), 2 * LEFT_ALONE_S
        )

    in_world(scenario, peers=4, copies=3, heal_interval_s=1000.0)


@pytest.mark.usefixtures("little_at_a_time")
def test_a_peer_told_to_recover_hears_of_everything_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-4")
        await trio.sleep(10)
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"%d" % number)
        monkeypatch.setattr(Link, "_take_reply", slow_at("node-4", Link._take_reply))
        await world.start("node-4")
        await world.wait_until(lambda: any(link._goes_on for link in services(world, "node-4").exchanger.links()), 30)
        assert vv_of(world)("node-4") != vv_of(world)("node-1")
        recovered = await services(world, "node-4").repair.recover()
        mine, theirs = (here(world, name).database.committed.version_vector for name in ("node-4", "node-1"))
        assert covers_all(mine, theirs)
        assert recovered.failed == 0
        assert missing_files(world, "node-4") == []

    in_world(scenario, peers=4, copies=3, heal_interval_s=1000.0)


def far_behind(world: World, name: str) -> bool:
    """Whether a peer believes node-4 to be."""
    return services(world, name).exchanger.link(NodeId("node-4")).is_far_behind()


def slow_at(name: str, method: Any) -> Any:
    """A method of a peer's parts, at one peer a second later each time."""

    async def slow(self: Any, *args: Any) -> Any:
        if self._here.me == name:
            await trio.sleep(1)
        return await method(self, *args)

    return slow


def detail_key(receipt: dict[str, Any]) -> str:
    return str(receipt["file_id"])


def wants(receipt: dict[str, Any]) -> bool:
    """Whether node-4 is one of the targets of a file."""
    return any(detail["node"] == "node-4" for detail in receipt["replication"]["details"])


@pytest.mark.usefixtures("little_at_a_time")
def test_what_many_have_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-4")
        await trio.sleep(10)
        for number in range(FILES):
            await put(world, "node-1", f"k{number}", b"x")
        await world.wait_until(lambda: len(set(map(vv_of(world), ("node-1", "node-2", "node-3")))) == 1, 60)
        heard = 0
        take_reply = Link._take_reply

        async def counted(self: Link, request: Any, reply: Any, turn: Any) -> None:
            nonlocal heard
            heard += len(reply.ops) if self._here.me == "node-4" else 0
            await take_reply(self, request, reply, turn)

        monkeypatch.setattr(Link, "_take_reply", counted)
        # Others do not push what it fetches.
        monkeypatch.setattr(Exchanger, "step", nothing)
        await world.start("node-4")
        await world.wait_until(lambda: vv_of(world)("node-4") == vv_of(world)("node-1"), 60)
        ops = sum(1 for _ in services(world, "node-1").here.database.store.raw_log_after({}))
        # The first answers of those who are asked no more are over and above.
        assert heard < 1.5 * ops

    in_world(scenario, peers=4, copies=3)


async def nothing(self: Exchanger) -> None:
    """In place of a step."""


def vv_of(world: World) -> Any:
    return lambda name: tuple(sorted(services(world, name).here.database.committed.version_vector.items()))
