"""What a peer makes of other peers' answers."""

from __future__ import annotations

from base64 import b64decode
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio

from peer.gossip.client import REQUESTS_PER_PEER_MAX, PeerClient, PeerUnreachable
from peer.gossip.requests import ANSWER_HEADER, PROOF_HEADER, SENTENCE_CHARS_MAX, PeerRequests, said_in
from peer.world.system import SystemEnv
from protocol.identity import Member, NodeId
from protocol.keyring import MAC_BYTES, OPEN
from protocol.sessions import Proof, Sessions, hash_of


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "the disk is full", "status": 507}', "the disk is full"),
        (b'{"error": "' + b"x" * 10_000 + b'"}', "x" * SENTENCE_CHARS_MAX),
        (b'{"error": "two\\nlines"}', "status 507"),
        (b'{"error": {"a": 1}}', "status 507"),
        (b'["error"]', "status 507"),
        (b"[" * 100_000, "status 507"),
        (b"\xff\xfe", "status 507"),
        (b"", "status 507"),
    ],
)
def test_a_refusal_is_told_in_its_own_sentence_or_by_its_status(body: bytes, said: str) -> None:
    assert said_in(507, body) == said


@pytest.mark.parametrize(
    "address", [f"{'a' * 64}.invalid:1", "a..invalid:1", "\xad:1", "[::1", ":1", "a b:1", "127.0.0.1:x"]
)
def test_an_address_that_can_be_none_is_unreachable_and_no_other_error(address: str, tmp_path: Path) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            client = client_of(tmp_path)
            with pytest.raises(PeerUnreachable):
                await client.health(address)
            with pytest.raises(PeerUnreachable):
                await client.withdraw_chunks(Member(NodeId("node-2"), address, 1), [])
            await client.aclose()

    trio.run(main)


def client_of(data: Path) -> PeerClient:
    """A peer's client, in the real world."""
    return PeerClient(PeerRequests(SystemEnv(data), Sessions(OPEN, Random()), {}), "0" * 32)


def proven_answer(request: bytes) -> bytes:
    """An empty answer, proven as peers do."""
    field = request.partition(f"{PROOF_HEADER}: ".encode())[2].partition(b"\r\n")[0].decode()
    proof = Proof(OPEN.keys[0], b64decode(field)[-MAC_BYTES:], field, hash_of(b""))
    return f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{ANSWER_HEADER}: {proof.of_answer(200, b'')}\r\n\r\n".encode()


CANCELLATIONS, CANCELLED_LATER_S = 30, 0.002


def test_cancelled_requests_cost_no_place_and_no_connection(tmp_path: Path) -> None:
    """Whenever it happens; the limit on requests is ours, for that of httpx's pool is off."""
    stalls = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while request := await stream.receive_some():
                if not stalls.is_set():
                    await stalls.wait()
                await stream.send_all(proven_answer(request))

    async def main() -> None:
        client = client_of(tmp_path)
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            peer = Member(NodeId("node-2"), f"127.0.0.1:{listener.socket.getsockname()[1]}", 1)
            for turn in range(CANCELLATIONS):
                # At every moment of a request; more than there are places, so that some wait for one.
                with trio.move_on_after(turn * CANCELLED_LATER_S):
                    async with trio.open_nursery() as crowd:
                        for _ in range(3 * REQUESTS_PER_PEER_MAX):
                            crowd.start_soon(client.withdraw_chunks, peer, [])
            stalls.set()
            with trio.fail_after(10):
                async with trio.open_nursery() as crowd:
                    for _ in range(3 * REQUESTS_PER_PEER_MAX):
                        crowd.start_soon(client.withdraw_chunks, peer, [])
            assert client.places_taken(peer.node_id) == 0
            await client.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
