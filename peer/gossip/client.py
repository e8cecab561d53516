"""What this peer asks of other peers over HTTP, and what can go wrong with it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import trio

from peer.config import ConfigError
from peer.gossip.requests import CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S, PeerRequests, said_in
from peer.world.env import RequestFailed
from protocol import codec, messages
from protocol.errors import ProtocolError
from protocol.identity import Dot, Member, NodeId
from protocol.keyring import MAC_BYTES, is_same
from protocol.messages import ExchangeReply, ExchangeRequest, Recovery, RepairAttempt
from protocol.ops import Chunk
from protocol.sessions import Proof

REQUESTS_PER_PEER_MAX = 32
HANDED_ON_MAX = 64
"""Clients' uploads on their way to other peers; apart from the requests of peers, for clients can be slow."""
RECEIPT_TIMEOUT_S = 60.0
"""Between the last byte of an upload that was handed on and its receipt."""

CLUSTER_HEADER = "x-minidfs-cluster"
MSGPACK = "application/msgpack"
FRAME_BYTES_MAX = codec.MESSAGE_BYTES_MAX


class PeerUnreachable(Exception):
    """A peer did not answer, or not as peers do; try another one, or later."""


class PeerRefused(PeerUnreachable):
    """A peer answered that it does not take such a request, or in a way that is not understood: later is no better."""


class PeerClient:
    """Speaks to the other peers of one cluster."""

    def __init__(self, requests: PeerRequests, cluster_id: str) -> None:
        self.cluster_id = cluster_id
        self._requests = requests
        self._headers = {CLUSTER_HEADER: cluster_id}
        self._handing_on = trio.CapacityLimiter(HANDED_ON_MAX)
        self._limiters: dict[NodeId, trio.CapacityLimiter] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._requests.aclose()

    def places_taken(self, node_id: NodeId) -> int:
        """How many requests to a peer are under way, of the REQUESTS_PER_PEER_MAX there may be."""
        return self._limiter(node_id).borrowed_tokens

    async def exchange(self, peer: Member, request: ExchangeRequest) -> ExchangeReply:
        """Swap log suffixes. Raises PeerUnreachable."""
        body = messages.encode_request(self.cluster_id, request)
        raw = await self._call(peer, "POST", "/peer/exchange", body)
        with _understood(peer):
            return messages.decode_reply(raw)

    async def fetch_small_chunks(self, peer: Member, hashes: Sequence[bytes]) -> Sequence[bytes | None]:
        """The contents of small chunks, None for those the peer has not. Raises PeerUnreachable."""
        raw = await self._call(peer, "POST", "/peer/chunks", messages.encode_hashes(hashes))
        with _understood(peer):
            return messages.decode_contents(raw)

    async def fetch_chunk(self, peer: Member, chunk: Chunk, put: Dot) -> bytes:
        """The bytes of one chunk, as the peer sent them: the caller verifies them. Raises PeerUnreachable.

        `put` says for which file: a peer that declared it held and lacks the chunk then takes that back.
        """
        content = bytearray()
        path = f"/peer/chunks/{chunk.hash.hex()}?put={messages.dot_as_text(put)}"
        async with self._stream(peer, "GET", path) as (response, _):
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > chunk.size:
                    break
        if len(content) != chunk.size:
            raise PeerUnreachable(f"{peer.node_id} sent {len(content)} bytes of a chunk of {chunk.size}")
        return bytes(content)

    async def push_chunk(self, peer: Member, chunk_hash: bytes, size: int, content: AsyncIterable[bytes]) -> None:
        """Stage a chunk at a peer; returns when it is synced there. Raises PeerUnreachable."""
        target = f"/peer/chunks/{chunk_hash.hex()}"
        if not self._requests.sessions.knows(peer.address):
            # Else the whole chunk could be sent in vain.
            await self.renew_chunks(peer, ())
        headers = {**self._headers, "content-length": str(size)}
        with translated(peer.node_id):
            async with self._limiter(peer.node_id):
                answer = await self._requests.send(peer.address, "PUT", target, chunk_hash, content, headers)
        _check_accepted(peer, *answer)

    async def renew_chunks(self, peer: Member, hashes: Sequence[bytes]) -> Sequence[bytes]:
        """Have a peer keep chunks staged there; returns those it does not have (any more). Raises PeerUnreachable."""
        raw = await self._call(peer, "POST", "/peer/chunks/renew", messages.encode_hashes(hashes))
        with _understood(peer):
            return messages.decode_hashes(raw)

    async def withdraw_chunks(self, peer: Member, hashes: Sequence[bytes]) -> None:
        """Have a peer let go of chunks staged there: their put will not come. Raises PeerUnreachable."""
        await self._call(peer, "POST", "/peer/chunks/withdraw", messages.encode_hashes(hashes))

    @asynccontextmanager
    async def snapshot(self, peer: Member) -> AsyncIterator[AsyncIterator[bytes]]:
        """The whole state of a peer, frame by frame. Raises PeerUnreachable."""
        async with self._stream(peer, "GET", "/peer/snapshot") as (response, proof):
            yield _frames(peer, response.aiter_raw(), proof)

    async def log_hashes(self, peer: Member, last: Dot) -> tuple[int, Sequence[bytes]]:
        """The running hashes of an origin's log at a peer, up to a dot or its end, and the seq of the first.

        Raises PeerUnreachable.
        """
        raw = await self._call(peer, "GET", f"/peer/log-hashes/{messages.dot_as_text(last)}", b"")
        with _understood(peer):
            return messages.decode_log_hashes(raw)

    async def recover(self, peer: Member) -> Recovery:
        """Make a peer fetch all it lacks, however long it takes; what came of it. Raises PeerUnreachable."""
        raw = await self._call(peer, "POST", "/peer/recover", b"", timeout_s=None)
        with _understood(peer):
            return messages.decode_recovery(raw)

    async def drain(self, peer: Member, *, leaves: bool) -> None:
        """Have a peer leave the cluster, or stay after all. Raises PeerUnreachable."""
        await self._call(peer, "POST", f"/peer/{'leave' if leaves else 'stay'}", b"")

    async def evict(self, peer: Member, node_id: NodeId) -> None:
        """Have a peer remember that a member has left; returns when it has it on disk. Raises PeerUnreachable."""
        await self._call(peer, "POST", f"/peer/evict/{node_id}", b"")

    async def repairs(self, peer: Member) -> Sequence[RepairAttempt]:
        """What only the peer knows of its repairs. Raises PeerUnreachable."""
        raw = await self._call(peer, "GET", "/peer/repairs", b"")
        with _understood(peer):
            return messages.decode_attempts(raw)

    async def health(self, address: str) -> None:
        """Ask whether a peer serves at all. Raises PeerUnreachable."""
        with translated(address):
            response = await self._requests.http.get(f"http://{address}/health")
        if response.status_code != httpx.codes.OK:
            raise PeerUnreachable(f"{address} answered {response.status_code}")

    async def is_ready(self, peer: Member) -> bool:
        """Whether a peer says that it takes files."""
        try:
            with translated(peer.node_id):
                url = f"http://{peer.address}/health/ready"
                response = await self._requests.http.get(url, timeout=CONNECT_TIMEOUT_S)
        except PeerUnreachable:
            return False
        return response.status_code == httpx.codes.OK

    async def upload(
        self, peer: Member, query: str, headers: dict[str, str], body: AsyncIterable[bytes]
    ) -> tuple[int, dict[str, Any]]:
        """Have another peer take a client's upload in; its answer. Raises PeerUnreachable, and what `body` raises."""
        url = f"http://{peer.address}/files?{query}"
        timeout = httpx.Timeout(RECEIPT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        with translated(peer.node_id):
            async with self._handing_on:
                response = await self._requests.http.post(
                    url, content=body, headers={**self._headers, **headers}, timeout=timeout
                )
        with _understood(peer):
            answer = response.json()
            if not isinstance(answer, dict):
                raise ProtocolError("an upload is answered with an object")
        return response.status_code, answer

    async def _call(
        self, peer: Member, method: str, target: str, body: bytes, timeout_s: float | None = SILENCE_TIMEOUT_S
    ) -> bytes:
        with translated(peer.node_id):
            async with self._limiter(peer.node_id):
                answer = await self._requests.ask(peer.address, method, target, body, self._headers, timeout_s)
        _check_accepted(peer, answer.status, answer.content)
        return answer.content

    @asynccontextmanager
    async def _stream(self, peer: Member, method: str, target: str) -> AsyncIterator[tuple[httpx.Response, Proof]]:
        with translated(peer.node_id):
            async with (
                self._limiter(peer.node_id),
                self._requests.stream(peer.address, method, target, self._headers) as (response, proof),
            ):
                if response.status_code != httpx.codes.OK:
                    raise PeerUnreachable(f"{peer.node_id} answered {response.status_code}")
                yield response, proof

    def _limiter(self, node_id: NodeId) -> trio.CapacityLimiter:
        limiter = self._limiters.get(node_id)
        if limiter is None:
            limiter = self._limiters[node_id] = trio.CapacityLimiter(REQUESTS_PER_PEER_MAX)
        return limiter


def _check_accepted(peer: Member, status: int, content: bytes) -> None:
    if status != httpx.codes.OK:
        kind = PeerRefused if httpx.codes.is_client_error(status) else PeerUnreachable
        raise kind(f"{peer.node_id} refused: {said_in(status, content)}")


def frame(raw: bytes, number: int, proof: Proof) -> bytes:
    """A piece of a stream, with its length in front and what proves it behind."""
    return len(raw).to_bytes(4, "big") + raw + proof.of_frame(number, raw)


async def _frames(peer: Member, pieces: AsyncIterator[bytes], proof: Proof) -> AsyncIterator[bytes]:
    """The pieces `frame` framed, put together again.

    Raises PeerUnreachable when the stream breaks off, or is not the one that was asked for.
    """
    waiting, numbers = bytearray(), itertools.count()
    async for piece in pieces:
        waiting += piece
        while len(waiting) >= 4:
            size = int.from_bytes(waiting[:4], "big")
            if size > FRAME_BYTES_MAX:
                raise PeerUnreachable(f"{peer.node_id} announced {size} bytes; the limit is {FRAME_BYTES_MAX}")
            end = 4 + size + MAC_BYTES
            if len(waiting) < end:
                break
            raw, code = bytes(waiting[4 : 4 + size]), bytes(waiting[4 + size : end])
            if not is_same(code, proof.of_frame(next(numbers), raw)):
                raise PeerUnreachable(f"what came from {peer.node_id} is not all its own")
            yield raw
            del waiting[:end]
    if waiting:
        raise PeerUnreachable(f"{peer.node_id} broke off in the middle of a frame")


@contextmanager
def translated(peer: str) -> Iterator[None]:
    """Errors of HTTP, and of the network under it, as ours; UnicodeError is what becomes of a name that can be none."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RequestFailed, ConfigError, UnicodeError) as error:
        raise PeerUnreachable(f"{peer} cannot be reached: {error or type(error).__name__}") from error


@contextmanager
def _understood(peer: Member) -> Iterator[None]:
    """An answer that is none counts as no answer."""
    try:
        yield
    except (ProtocolError, ValueError, TypeError) as error:
        raise PeerRefused(f"{peer.node_id} does not answer as a peer does: {error}") from None
