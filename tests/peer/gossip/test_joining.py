"""Which cluster a peer belongs to, from what its folder knows and what the peers it is told to join answer."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from worlds import in_world, services

from peer.complaints import REMIND_S
from peer.config import Address
from peer.gossip import joining
from peer.gossip.client import PeerUnreachable
from peer.world.env import StartError
from protocol.identity import Member, NodeId
from sim.world import World

A, B = Address("a", 1), Address("b", 2)
OURS, THEIRS = "aa" * 16, "bb" * 16
ME = Member(NodeId("node-1"), "c:3", 1)


class Others:
    """What peers at addresses answer who asks to join; None while they do not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[Address, str | None]) -> None:
        self.answers = answers
        self.asked = 0
        self.told: list[Member] = []
        monkeypatch.setattr(joining, "join", self.join)

    async def join(
        self, _requests: object, address: Address, cluster_id: str, me: Member | None
    ) -> tuple[str, tuple[Member, ...]]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        theirs = self.answers.get(address)
        if theirs is None:
            raise PeerUnreachable(f"{address} cannot be reached")
        if me is not None:
            assert cluster_id == theirs
            self.told.append(me)
        return theirs, (Member(NodeId("node-2"), str(address), 1),)


def in_time(main: Any) -> Any:
    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def as_they_are(address: Address) -> list[Address]:
    await trio.lowlevel.checkpoint()
    return [address]


def seeds(*addresses: Address) -> joining.Seeds:
    return joining.Seeds(as_they_are, addresses, ())


ASKING: Any = (None, SimpleNamespace(now=trio.current_time))
"""Requests, which nobody makes here, and a clock."""


def settle(others: Others, known: str | None, *, knows_others: bool = False, rejoin: bool = False) -> str | None:
    """The cluster, None when nobody says within ten minutes."""
    del others

    async def main() -> str | None:
        with trio.move_on_after(600):
            return await joining.settle_cluster(*ASKING, seeds(A, B), known, knows_others=knows_others, rejoin=rejoin)
        return None

    found: str | None = in_time(main)
    return found


@pytest.mark.parametrize(
    ("known", "answers", "options", "settled"),
    [
        (None, {A: THEIRS}, {}, THEIRS),
        (None, {B: THEIRS}, {}, THEIRS),
        (None, {}, {}, None),
        (OURS, {}, {}, OURS),
        (OURS, {A: OURS}, {}, OURS),
        (OURS, {A: THEIRS, B: OURS}, {}, OURS),
        (OURS, {}, {"knows_others": True, "rejoin": True}, OURS),
        (OURS, {A: THEIRS}, {"knows_others": True}, OURS),
        (OURS, {A: OURS}, {"rejoin": True}, OURS),
        (OURS, {B: THEIRS}, {"rejoin": True}, THEIRS),
        (OURS, {}, {"rejoin": True}, None),
    ],
)
def test_a_peer_belongs_where_its_folder_says_or_whom_it_joins(
    monkeypatch: pytest.MonkeyPatch,
    known: str | None,
    answers: dict[Address, str | None],
    options: dict[str, bool],
    settled: str | None,
) -> None:
    assert settle(Others(monkeypatch, answers), known, **options) == settled


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "add --rejoin to go over to that one with all files"),
        ({"knows_others": True, "rejoin": True}, "which has other members"),
    ],
)
def test_a_peer_does_not_leave_its_cluster_unasked_nor_its_fellows_at_all(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], words: str
) -> None:
    with pytest.raises(StartError) as refusal:
        settle(Others(monkeypatch, {B: THEIRS}), OURS, **options)
    assert words in str(refusal.value)
    assert "b:2" in str(refusal.value)
    assert THEIRS in str(refusal.value)


def test_who_waits_says_so_once_and_then_every_five_minutes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = Others(monkeypatch, {})

    async def main() -> None:
        with trio.move_on_after(2.5 * REMIND_S):
            await joining.settle_cluster(*ASKING, seeds(A), None, knows_others=False, rejoin=False)

    in_time(main)
    assert 2.5 * REMIND_S / joining.RETRY_S_MAX <= others.asked <= 2.5 * REMIND_S / joining.RETRY_S_MAX + 10
    assert caplog.messages == ["waiting for a cluster to join: a:1 cannot be reached"] * 3


def announced(others: Others, answers_later: dict[Address, str | None], *, ends: bool) -> list[StartError]:
    """What a lone peer of OURS ends with, that announces itself to A while answers change after a minute."""
    failures: list[StartError] = []
    membership = SimpleNamespace(me=ME, members=lambda: [ME, *others.told])
    peers: Any = SimpleNamespace(membership=membership, cluster_id=OURS)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                joining.announce, *ASKING, seeds(A), peers, lambda members: None, failures.append if ends else None
            )
            await trio.sleep(60)
            others.answers = answers_later
            await trio.sleep(60)
            nursery.cancel_scope.cancel()

    in_time(main)
    return failures


def test_a_lone_peer_tells_a_fellow_that_comes_late_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(monkeypatch, {})
    assert announced(others, {A: OURS}, ends=True) == []
    assert others.told == [ME]


def test_a_lone_peer_ends_when_whom_it_waits_for_turns_out_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(monkeypatch, {})
    (failure,) = announced(others, {A: THEIRS}, ends=True)
    assert "add --rejoin" in str(failure)
    assert others.told == []


def test_who_was_told_its_cluster_stays_with_it_and_complains(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = Others(monkeypatch, {})
    assert announced(others, {A: THEIRS}, ends=False) == []
    assert [(record.levelno, record.message) for record in caplog.records][1:] == [
        (logging.ERROR, f"a:1 belongs to another cluster ({THEIRS}) than this peer ({OURS}); take it out of --join")
    ]


def test_a_member_says_once_that_an_address_leads_to_a_stranger_and_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = Others(monkeypatch, {A: THEIRS})
    others.told = [ME]
    assert announced(others, {A: THEIRS}, ends=True) == []
    assert others.asked == 1
    (record,) = caplog.records
    assert record.message.startswith("a:1 belongs to another cluster")


def test_a_name_is_all_its_addresses_but_our_own_and_looked_up_anew_each_time() -> None:
    name, found = Address("peers.example", 1), {"peers.example": ["10.0.0.1", "10.0.0.2"]}

    async def resolve(address: Address) -> list[Address]:
        await trio.lowlevel.checkpoint()
        return [Address(host, address.port) for host in found.get(address.host, [address.host])]

    async def main() -> None:
        several = joining.Seeds(resolve, (name, A, Address("10.0.0.2", 1)), {Address("10.0.0.1", 1)})
        assert await several.addresses() == [Address("10.0.0.2", 1), A]
        found["peers.example"] = ["10.0.0.1", "10.0.0.3"]
        assert await several.addresses() == [Address("10.0.0.3", 1), A, Address("10.0.0.2", 1)]

    in_time(main)


def test_who_is_all_that_its_name_leads_to_waits_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with trio.move_on_after(60):
            alone = joining.Seeds(as_they_are, (A,), {A})
            await joining.settle_cluster(*ASKING, alone, None, knows_others=False, rejoin=False)

    in_time(main)
    assert caplog.messages == ["waiting for a cluster to join: --join leads to this peer alone"]


def test_peers_that_are_given_one_name_for_all_find_each_other() -> None:
    async def scenario(world: World) -> None:
        name = Address("peers.example", 9001)
        # As a name that stands for several machines: there, each listens on the same port.
        world.names[name] = [machine.address for machine in world.machines.values()]
        world.settings |= {"join": (name,), "cluster_id": None}
        async with trio.open_nursery() as nursery:
            world.settings["cluster_id"] = "ab" * 16
            nursery.start_soon(world.start, "node-1")
            await trio.sleep(0.1)
            world.settings["cluster_id"] = None
            nursery.start_soon(world.start, "node-2")
            await trio.sleep(3)
            nursery.start_soon(world.start, "node-3")
        await world.wait_until(world.all_met, 60)
        assert {services(world, name).others.cluster_id for name in world.machines} == {"ab" * 16}

    in_world(scenario, start=False)
