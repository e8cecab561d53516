"""Messages with valid framing and absurd contents: refused or harmless, and nothing grows with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import msgpack
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import BLOBS, DATAGRAMS, JUNK, REQUESTS
from worlds import converged, everywhere, get, here, in_world, others, peer_asks, put, sealed, services

from peer.config import Address
from protocol import codec, messages
from protocol.datagrams import Datagram, Ping, encode_datagram
from protocol.identity import Eviction, Member, NodeId
from protocol.member_list import MEMBERS_MAX
from protocol.messages import ExchangeRequest, View
from sim.world import World

PATHS = ["/peer/exchange", "/peer/join", "/peer/chunks", "/peer/chunks/renew", "/peer/chunks/withdraw"]
few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


async def post(world: World, path: str, body: bytes) -> int:
    status = (await peer_asks(world, "node-1", "POST", path, body)).status_code
    assert status in (200, 400, 403, 413, 503), status
    return status


async def assert_well(world: World) -> None:
    """It works as before, and remembers nothing of what it was told."""
    assert await everywhere(world, "kept") == [b"content"] * 2
    await put(world, "node-2", "new", b"new")
    await converged(world, limit_s=400)
    assert await get(world, "node-1", "new") == b"new"
    assert len(here(world, "node-1").database.committed.version_vector) < 50
    assert not here(world, "node-1").chunks.staging.has_any


@few
@given(st.lists(st.tuples(st.sampled_from(PATHS), JUNK | st.lists(JUNK, min_size=7, max_size=12)), max_size=40))
def test_plain_values_of_any_kind_are_no_message(bodies: list[tuple[str, Any]]) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "kept", b"content")
        for path, value in bodies:
            status = await post(world, path, bytes(msgpack.packb(value)))
            # An empty list names no chunks, which is no nonsense.
            assert status == httpx.codes.BAD_REQUEST or value in ([], ()), value
        await assert_well(world)

    in_world(scenario, peers=2)


@few
@given(st.lists(st.tuples(REQUESTS, st.booleans(), st.booleans()), max_size=15))
def test_exchanges_that_say_absurd_things_do_no_harm(requests: list[tuple[ExchangeRequest, bool, bool]]) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "kept", b"content")
        cluster_id = others(world, "node-1").cluster_id
        mine, theirs = (others(world, name).membership.me for name in ("node-1", "node-2"))
        for request, is_from_peer, is_empty in requests:
            # Of a real peer, of one nobody knows, or of the receiver itself.
            sender = theirs if is_from_peer else replace(request.sender, node_id=mine.node_id)
            said = replace(request, sender=sender, view=View(), ops=() if is_empty else request.ops)
            await post(world, "/peer/exchange", messages.encode_request(cluster_id, said))
        await assert_well(world)

    in_world(scenario, peers=2)


NOBODY = Address("127.0.0.1", 9)


@few
@given(st.lists(DATAGRAMS, max_size=40), BLOBS)
def test_datagrams_that_say_absurd_things_do_no_harm(datagrams: list[Datagram], blobs: tuple[bytes, ...]) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "kept", b"content")
        membership = others(world, "node-1").membership
        for datagram in datagrams:
            for node_id in ("node-1", "node-2"):
                # Numbers and addresses of nobody, under the names of everybody.
                sender = replace(datagram.sender, node_id=NodeId(node_id), incarnation=0)
                # Whoever may write datagrams may remove members: that is no harm by mistake.
                rumors = tuple(
                    replace(rumor, node_id=NodeId(node_id))
                    for rumor in datagram.rumors
                    if not isinstance(rumor, Eviction)
                )
                said = replace(datagram, sender=sender, rumors=rumors)
                raw = encode_datagram(others(world, "node-1").cluster_id, said)
                gossip = services(world, "node-1").gossip
                assert not gossip._hear(sealed(world, "node-1", raw), NOBODY)
        for blob in blobs:
            assert not services(world, "node-1").gossip._hear(blob, NOBODY)
            assert not services(world, "node-1").gossip._hear(sealed(world, "node-1", blob), NOBODY)
        await trio.sleep(5)
        assert [member.node_id for member in membership.members()] == ["node-1", "node-2"]
        await assert_well(world)

    in_world(scenario, peers=2)


def test_made_up_members_are_known_up_to_a_limit() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "kept", b"content")
        gossip, known = services(world, "node-1").gossip, others(world, "node-1").membership
        gossip._carry_out = lambda effects: None  # type: ignore[method-assign]
        for number in range(0, 2 * MEMBERS_MAX, 500):
            gossip.learn(View.of(*(Member(NodeId(f"m{number + more}"), "127.0.0.1:1", 1) for more in range(500))))
        assert len(known.members()) == MEMBERS_MAX

    in_world(scenario, peers=2)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            encode_datagram("ff" * 16, Ping(1, Member(NodeId("x"), "127.0.0.1:9", 1), None)),
            "from cluster ffff",
        ),
        (codec.pack([0, 0, "00" * 16, 1, []]), "its datagrams have version 0, and this release's 3; upgrade it"),
    ],
)
def test_who_cannot_be_understood_is_named_once(caplog: pytest.LogCaptureFixture, raw: bytes, said: str) -> None:
    async def scenario(world: World) -> None:
        before = len(caplog.records)
        for _ in range(5):
            services(world, "node-1").gossip._hear(sealed(world, "node-1", raw), NOBODY)
        (record,) = caplog.records[before:]
        assert record.message.startswith("127.0.0.1:9 is not understood: ")
        assert said in record.message

    in_world(scenario, peers=2)


def of_version_1(raw: bytes) -> bytes:
    return bytes(msgpack.packb([1, *msgpack.unpackb(raw)[1:]]))


def test_a_peer_of_another_wire_version_is_refused_with_one_line_on_both_sides(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(world: World) -> None:
        await converged(world)
        caplog.clear()
        newer, older = others(world, "node-1"), others(world, "node-2")
        encode, decode = messages.encode_request, messages.decode_reply

        def encode_as_before(cluster_id: str, request: ExchangeRequest) -> bytes:
            raw = encode(cluster_id, request)
            return of_version_1(raw) if request.sender == older.membership.me else raw

        monkeypatch.setattr(messages, "encode_request", encode_as_before)
        for _ in range(3):
            await services(world, "node-2").exchanger.exchange_patiently(newer.membership.me.node_id)
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
            f"an exchange with 'minidfs/simulated (node-2)' was refused: {SENTENCE}",
            f"exchange with node-1 failed: node-1 refused: {SENTENCE}",
        ]
        monkeypatch.setattr(messages, "decode_reply", lambda raw: decode(of_version_1(raw)))
        caplog.clear()
        for _ in range(3):
            await services(world, "node-1").exchanger.exchange_patiently(older.membership.me.node_id)
        (record,) = caplog.records
        assert record.message == f"exchange with node-2 failed: node-2 does not answer as a peer does: {SENTENCE}"

    in_world(scenario, peers=2)


SENTENCE = "the sender speaks wire version 1 and the receiver 4; upgrade the one with the lower"
