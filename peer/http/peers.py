"""What peers ask of each other under `/peer/`; other clients have no business here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from peer.gossip.client import CLUSTER_HEADER, MSGPACK, frame
from peer.http.authentication import PROOF
from peer.http.content import ChunkResponse
from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.requests import body_of, check_length, services_of
from peer.http.services import Services
from peer.store.chunk_files import ChunkWriter
from peer.store.holding import Holding
from peer.store.rows import ChunkRow, find_log_hashes
from peer.world.env import ReadableFile, Work
from protocol import codec, messages
from protocol.errors import WrongCluster
from protocol.identity import NodeId
from protocol.sessions import Proof

JOIN_BYTES_MAX = 1024 * 1024


def peer_services(request: Request) -> Services:
    """The peer's services, for a peer of the same cluster. Raises WrongCluster, HttpError 503."""
    services = services_of(request)
    theirs = request.headers.get(CLUSTER_HEADER)
    if theirs != services.others.cluster_id:
        raise WrongCluster("this peer belongs to another cluster")
    return services


async def join(request: Request) -> Response:
    """`POST /peer/join`: the cluster's id and members, for one who wants to become one."""
    services = services_of(request)
    cluster_id, members = messages.decode_join(await body_of(request, JOIN_BYTES_MAX))
    # Whoever brings members has to know which cluster they are of; only who brings none may ask for it.
    if cluster_id != services.others.cluster_id and (cluster_id or members):
        raise WrongCluster("this peer belongs to another cluster, or none was named")
    services.gossip.learn(messages.View.of(*members))
    return _packed(messages.encode_joined(services.others.cluster_id, services.others.membership.members()))


async def exchange(request: Request) -> Response:
    """`POST /peer/exchange`: swap log suffixes."""
    services = peer_services(request)
    raw = await body_of(request, codec.MESSAGE_BYTES_MAX)
    answering = services.answering
    reply = await answering.answer(answering.read(raw, request.headers.get("user-agent", "somebody")))
    return _packed(messages.encode_reply(reply))


async def snapshot(request: Request) -> Response:
    """`GET /peer/snapshot`: the whole live state, as of one moment."""
    services = peer_services(request)
    if not services.here.verified.is_set():
        raise HttpError(503, "this peer still looks over its rows; ask another one, or later", RETRY_AFTER)
    return StreamingResponse(_framed(services.whole_states.pages(), request.scope["state"][PROOF]), media_type=MSGPACK)


async def _framed(pages: AsyncGenerator[bytes, None], proof: Proof) -> AsyncIterator[bytes]:
    number = 0
    async with aclosing(pages):
        async for page in pages:
            yield frame(page, number, proof)
            number += 1


async def log_hashes(request: Request) -> Response:
    """`GET /peer/log-hashes/{dot}`: the running hashes of an origin's log up to a dot, to find where two fork."""
    database = peer_services(request).here.database
    last = messages.dot_of_text(request.path_params["dot"])
    first, found = await database.read(lambda reader: find_log_hashes(reader, last, messages.LOG_HASHES_MAX))
    return _packed(messages.encode_log_hashes(first, found))


async def get_small_chunks(request: Request) -> Response:
    """`POST /peer/chunks`: the contents of many small chunks."""
    services = peer_services(request)
    hashes = await _hashes_in(request)
    return _packed(messages.encode_contents([await _small_chunk(services.here, chunk_hash) for chunk_hash in hashes]))


async def _small_chunk(here: Holding, chunk_hash: bytes) -> bytes | None:
    row = here.chunks.row(chunk_hash)
    if row is None or row.content is None:
        return None
    return await here.read_chunk(chunk_hash, here.chunks.read_whole)


async def get_chunk(request: Request) -> ChunkResponse:
    """`GET /peer/chunks/{hash}`: one chunk's bytes, verified; `put` names the file it is asked for."""
    here = peer_services(request).here
    chunk_hash = _hash_in(request)
    text = request.query_params.get("put")
    put = None if text is None else messages.dot_of_text(text)
    opened = await here.read_chunk(chunk_hash, partial(_opened, here))
    if opened is None:
        if put is not None:
            await here.doubt_hold(put)
        raise HttpError(404, "that chunk is not here")
    return ChunkResponse(*opened)


async def _opened(here: Holding, chunk_hash: bytes, row: ChunkRow) -> tuple[bytes | ReadableFile, int]:
    return await here.chunks.open_verified(chunk_hash, row), row.size


async def put_chunk(request: Request) -> Response:
    """`PUT /peer/chunks/{hash}`: stage a chunk for a put to come; answered when it is synced."""
    services = peer_services(request)
    chunk_hash = _hash_in(request)
    env, chunks = services.env, services.here.chunks
    services.here.space.check()
    check_length(request, services.config.chunk_bytes_max)
    writer = ChunkWriter(chunks.files, inline=False)
    try:
        async for piece in _body_up_to(request, services.config.chunk_bytes_max):
            await env.run_blocking(Work.DISK, writer.write, piece)
        fresh = await env.run_blocking(Work.DISK, writer.finish)
    except BaseException:
        with trio.CancelScope(shield=True):
            await env.run_blocking(Work.DISK, writer.abandon)
        raise
    if fresh.hash != chunk_hash:
        chunks.discard([fresh])
        raise HttpError(400, "the bytes do not give the chunk's hash")
    chunks.staging.stage(fresh)
    return Response()


async def renew_chunks(request: Request) -> Response:
    """`POST /peer/chunks/renew`: an upload still arrives; keep what it staged. Answered with what is not here."""
    chunks = peer_services(request).here.chunks
    hashes = await _hashes_in(request)
    lapsed = [chunk_hash for chunk_hash in hashes if not chunks.staging.renew(chunk_hash)]
    lost = [chunk_hash for chunk_hash in lapsed if chunks.row(chunk_hash) is None]
    return _packed(messages.encode_hashes(lost))


async def withdraw_chunks(request: Request) -> Response:
    """`POST /peer/chunks/withdraw`: an upload was broken off, the chunks it staged here are of no use."""
    chunks = peer_services(request).here.chunks
    for chunk_hash in await _hashes_in(request):
        chunks.staging.withdraw(chunk_hash)
    return Response()


async def _hashes_in(request: Request) -> tuple[bytes, ...]:
    """The chunks' hashes in a body. Raises MalformedMessage."""
    return messages.decode_hashes(await body_of(request, JOIN_BYTES_MAX))


async def _body_up_to(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > bytes_max:
            raise HttpError(413, f"a chunk has at most {bytes_max} bytes")
        yield piece


async def recover(request: Request) -> Response:
    """`POST /peer/recover`: fetch all that is missing here, now."""
    return _packed(messages.encode_recovery(await peer_services(request).repair.recover()))


async def leave(request: Request) -> Response:
    """`POST /peer/leave`: leave the cluster, once others have what is here."""
    await peer_services(request).leaving.drain(leaves=True)
    return Response()


async def stay(request: Request) -> Response:
    """`POST /peer/stay`: do not leave after all."""
    await peer_services(request).leaving.drain(leaves=False)
    return Response()


async def evict(request: Request) -> Response:
    """`POST /peer/evict/{node_id}`: remember that a member has left."""
    await peer_services(request).gossip.evict(NodeId(request.path_params["node_id"]))
    return Response()


async def repairs(request: Request) -> Response:
    """`GET /peer/repairs`: what this peer alone knows of its repairs."""
    return _packed(messages.encode_attempts(peer_services(request).repair.known_attempts()))


def _hash_in(request: Request) -> bytes:
    text = request.path_params["hash"]
    try:
        chunk_hash = bytes.fromhex(text)
    except ValueError:
        chunk_hash = b""
    if len(chunk_hash) != codec.HASH_BYTES:
        raise HttpError(400, "a chunk's hash is 64 hexadecimal digits")
    return chunk_hash


def _packed(message: bytes) -> Response:
    return Response(message, media_type=MSGPACK)
