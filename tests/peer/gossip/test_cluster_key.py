"""Peers with a key: who has not got it is told nothing and believed nothing, and neither is who repeats them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, get, here, in_world, others, peer_asks, put, services, stranger

import sim.network
from peer.config import Address, Config
from peer.gossip.client import PeerUnreachable
from peer.gossip.requests import ANSWER_HEADER, HEAD_HEADER
from peer.gossip.whole_state import Reason
from peer.http import peers
from peer.http.app import PEER_ROUTES
from peer.http.authentication import _Answer
from peer.node import Node
from peer.world.env import StartError
from peer.world.system import SystemEnv
from protocol.datagrams import Ping, encode_datagram
from protocol.identity import Member, NodeId
from protocol.keyring import OPEN, Keyring
from sim.network import Network, VirtualDatagrams, _Sent
from sim.world import World

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KEYED = {"keyring": Keyring((KEY,))}
SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}
NOBODY = Address("127.0.0.1", 9)


def test_peers_with_a_key_work_as_ever() -> None:
    async def scenario(world: World) -> None:
        for number in range(4):
            await put(world, f"node-{number % 3 + 1}", f"k{number}", b"%d" % number * 3000)
        await world.crash("node-2")
        await put(world, "node-1", "later", b"later" * 1000)
        await world.start("node-2")
        await converged(world)
        assert await everywhere(world, "later") == [b"later" * 1000] * 3
        assert not services(world, "node-1").sessions.refused["forged"]

    in_world(scenario, **KEYED, **SMALL)


@pytest.mark.parametrize("keyring", [OPEN, Keyring((OTHER_KEY,))])
def test_who_has_not_the_key_gets_nothing_from_any_address_of_peers(keyring: Keyring) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"secret" * 2000)
        vv = here(world, "node-1").database.committed.version_vector
        hashes = {"hash": "0" * 64, "dot": "93a66e6f64652d3101cc01"}
        for route in PEER_ROUTES:
            path = route.path
            for name, value in hashes.items():
                path = path.replace(f"{{{name}}}", value)
            for method in route.methods or ():
                answer = await peer_asks(world, "node-1", method, path, keyring=keyring)
                assert answer.status_code == httpx.codes.UNAUTHORIZED, path
                assert answer.headers["www-authenticate"]
                assert not {ANSWER_HEADER, HEAD_HEADER} & set(answer.headers)
                assert b"secret" not in answer.content
                assert b"node-2" not in answer.content
        assert here(world, "node-1").database.committed.version_vector == vv
        assert await everywhere(world, "k") == [b"secret" * 2000] * 2

    in_world(scenario, peers=2, **KEYED, **SMALL)


def test_a_peer_with_another_key_neither_joins_nor_is_joined(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        world.settings["keyring"] = Keyring((OTHER_KEY,))
        name = world.add()
        await world.start(name)
        await trio.sleep(30)
        assert [member.node_id for member in others(world, name).membership.members()] == [name]
        assert [member.node_id for member in others(world, "node-1").membership.members()] == ["node-1", "node-2"]
        assert await get(world, name, "k") == httpx.codes.NOT_FOUND
        assert "only peers of this cluster may ask this: a peer needs its --cluster-key-file" in caplog.text
        assert "a request from 127.0.0.1 was refused" in caplog.text

    in_world(scenario, peers=2, **KEYED)


def test_made_up_datagrams_are_counted_and_named_once_and_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        gossip = services(world, "node-1").gossip
        cluster_id = others(world, "node-1").cluster_id
        ping = encode_datagram(cluster_id, Ping(1, Member(NodeId("node-9"), "127.0.0.1:9", 1), None))
        nobody = stranger(world, "node-1", OPEN)
        dropped, said = gossip.datagrams_dropped, len(caplog.records)
        for raw in (ping, nobody.seal("node-1", ping), nobody.seal("elsewhere", ping)) * 5:
            assert not gossip._hear(raw, NOBODY)
        assert gossip.datagrams_dropped == dropped + 15
        assert others(world, "node-1").membership.member(NodeId("node-9")) is None
        (line,) = [record.message for record in caplog.records[said:]]
        assert line == "a datagram from 127.0.0.1:9 was refused: a datagram that is not sealed"

    in_world(scenario, peers=2, **KEYED)


class Recorded:
    """All that goes over a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[_Sent] = []
        self.datagrams: list[tuple[bytes, Address]] = []
        ask, send = sim.network._ask, Network.send_datagram

        async def record(network: Network, name: str, sent: _Sent) -> Any:
            self.requests.append(sent)
            return await ask(network, name, sent)

        def record_datagram(network: Network, sender: VirtualDatagrams, payload: bytes, to: Address) -> None:
            self.datagrams.append((payload, to))
            send(network, sender, payload, to)

        monkeypatch.setattr(sim.network, "_ask", record)
        monkeypatch.setattr(Network, "send_datagram", record_datagram)


async def say_again(world: World, sent: _Sent, port: int) -> httpx.Response:
    headers = [(name, value) for name, value in sent.headers if name != b"content-length"]
    target = sent.raw_path.decode()
    assert isinstance(sent.body, bytes)
    return await world.client.request(
        sent.method, f"http://127.0.0.1:{port}{target}", content=sent.body, headers=headers
    )


def test_what_was_recorded_does_nothing_whoever_it_is_said_to_and_whenever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        recorded = Recorded(monkeypatch)
        await put(world, "node-1", "k", b"before")
        await converged(world)
        requests = [sent for sent in recorded.requests if sent.raw_path.startswith(b"/peer/") and sent.body]
        assert len(requests) >= 2
        heard = list[object]()
        for restarts in (False, True):
            if restarts:
                await world.crash("node-2")
                await world.start("node-2")
                await converged(world)
            for sent in requests:
                for name in ("node-1", "node-2", "node-3"):
                    answer = await say_again(world, sent, world.machines[name].address.port)
                    assert answer.status_code == httpx.codes.UNAUTHORIZED, sent
        gossip = services(world, "node-3").gossip
        monkeypatch.setattr(gossip, "_handle", heard.append)
        for payload, _ in list(recorded.datagrams):
            gossip._hear(payload, NOBODY)
        assert not heard
        assert services(world, "node-3").sessions.refused["repeated"]

    in_world(scenario, **KEYED)


def test_a_request_whose_body_is_another_on_its_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        ask, changed = sim.network._ask, []

        async def change(network: Network, name: str, sent: _Sent) -> Any:
            if name == "node-1" and sent.raw_path == b"/peer/exchange" and isinstance(sent.body, bytes):
                changed.append(sent)
                sent = replace(sent, body=sent.body[:-1] + bytes([sent.body[-1] ^ 1]))
            return await ask(network, name, sent)

        with monkeypatch.context() as patched:
            patched.setattr(sim.network, "_ask", change)
            with pytest.raises(PeerUnreachable, match="the body is not the one that was sent"):
                await services(world, "node-1").exchanger.exchange(NodeId("node-2"))
            assert changed
        await services(world, "node-1").exchanger.exchange(NodeId("node-2"))

    in_world(scenario, peers=2, **KEYED)


def test_an_answer_that_is_not_proven_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        node_1 = services(world, "node-1")
        await put(world, "node-2", "k", b"x" * 3000)
        await converged(world)
        prove = _Answer._proofs
        for lie in ("status", "none", "old"):
            kept: list[Any] = []

            def proofs(self: _Answer, status: int, first: Any, lie: str = lie, kept: list[Any] = kept) -> Any:
                found = list(prove(self, status + (lie == "status"), first))
                kept.append(found)
                return {"status": found, "none": [], "old": kept[0]}[lie]

            with monkeypatch.context() as patched:
                patched.setattr(_Answer, "_proofs", proofs)
                if lie == "old":
                    await node_1.exchanger.exchange(NodeId("node-2"))
                with pytest.raises(PeerUnreachable, match="its answer is not that of a peer of this cluster"):
                    await node_1.exchanger.exchange(NodeId("node-2"))
                with pytest.raises(PeerUnreachable, match="its answer is not that of a peer of this cluster"):
                    await node_1.whole_states.fetch(NodeId("node-2"), Reason.DISAGREEMENT)
        await node_1.exchanger.exchange(NodeId("node-2"))

    in_world(scenario, peers=2, **KEYED, **SMALL)


def test_a_whole_state_of_which_a_frame_is_another_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-2", "k", b"x" * 3000)
        await converged(world)
        node_1, make = services(world, "node-1"), peers.frame
        root = node_1.here.replica.root()
        for lie in (lambda raw, number: (raw[:-1] + b"\x01", number), lambda raw, number: (raw, number + 1)):

            def frame(raw: bytes, number: int, proof: Any, lie: Any = lie) -> bytes:
                changed, another = lie(raw, number)
                honest = make(raw, another, proof)
                return honest[:4] + changed + honest[4 + len(raw) :]

            with monkeypatch.context() as patched:
                patched.setattr(peers, "frame", frame)
                with pytest.raises(PeerUnreachable, match="is not all its own"):
                    await node_1.whole_states.fetch(NodeId("node-2"), Reason.BEHIND)
        assert node_1.here.replica.root() == root
        await node_1.whole_states.fetch(NodeId("node-2"), Reason.BEHIND)

    in_world(scenario, peers=2, **KEYED, **SMALL)


def test_a_key_takes_the_place_of_another_while_peers_restart_one_by_one() -> None:
    async def scenario(world: World) -> None:
        rings = [Keyring((KEY, OTHER_KEY)), Keyring((OTHER_KEY, KEY)), Keyring((OTHER_KEY,))]
        for turn, ring in enumerate(rings):
            world.settings["keyring"] = ring
            for name in list(world.machines):
                await world.stop(name)
                await world.start(name)
                receipt = await put(world, "node-1", f"{turn} {name}".replace(" ", "-"), name.encode() * 2000)
                assert len(receipt["durable_copies"]) == 3
        await converged(world)
        assert all(services(world, name).sessions.refused["forged"] == 0 for name in world.machines)
        assert await everywhere(world, "2-node-3") == [b"node-3" * 2000] * 3

    in_world(scenario, **KEYED, **SMALL)


def test_a_peer_that_started_again_is_sent_large_chunks_at_once() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await world.start("node-2")
        receipt = await put(world, "node-1", "large", bytes(range(256)) * 100)
        assert receipt["durable_copies"] == ["node-1", "node-2"]

    in_world(scenario, peers=2, **KEYED, **SMALL)


@pytest.mark.parametrize(
    "elsewhere",
    [{"listen": Address("10.0.0.1", 1)}, {"facade": Address("10.0.0.1", 1)}, {"listen": Address("box.example", 1)}],
)
def test_who_can_be_reached_from_elsewhere_needs_a_key(elsewhere: dict[str, Address], tmp_path: Path) -> None:
    at_home: dict[str, Any] = {"node_id": "node-1", "listen": Address("127.0.0.1", 1), "data": tmp_path, **elsewhere}

    async def main() -> None:
        with pytest.raises(StartError, match=r"minidfs keygen FILE.*--cluster-key-file FILE"):
            await Node(Config(**at_home), SystemEnv(tmp_path)).run()

    trio.run(main)
    assert list(tmp_path.iterdir()) == []
