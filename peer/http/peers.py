"""What peers ask of each other under `/peer/`; other clients have no business here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from peer.gossip.client import CLUSTER_HEADER, MSGPACK
from peer.http.errors import HttpError
from peer.http.nodes import recover_here
from peer.http.requests import body_of, services_of
from peer.http.services import Services
from peer.store.chunk_files import ChunkWriter
from peer.world.env import Work
from protocol import codec, messages
from protocol.errors import MalformedMessage, WrongCluster
from protocol.identity import Dot

JOIN_BYTES_MAX = 1024 * 1024
HASHES_MAX = 1024


def peer_services(request: Request) -> Services:
    """The peer's services, for a peer of the same cluster. Raises WrongCluster, HttpError 503."""
    services = services_of(request)
    theirs = request.headers.get(CLUSTER_HEADER)
    if theirs != services.state.cluster_id:
        raise WrongCluster("this peer belongs to another cluster")
    return services


async def join(request: Request) -> Response:
    """`POST /peer/join`: the cluster's id and members, for one who wants to become one."""
    services = services_of(request)
    cluster_id, members = codec.read_list(codec.unpack(await body_of(request, JOIN_BYTES_MAX)), 2)
    if cluster_id not in ("", services.state.cluster_id):
        raise WrongCluster("this peer belongs to another cluster")
    services.gossip.learn(messages.read_members(members))
    known = messages.members_fields(services.state.membership.members())
    return _packed([services.state.cluster_id, known])


async def exchange(request: Request) -> Response:
    """`POST /peer/exchange`: swap log suffixes."""
    services = peer_services(request)
    raw = await body_of(request, codec.MESSAGE_BYTES_MAX)
    reply = await services.exchanger.answer(messages.decode_request(services.state.cluster_id, raw))
    return Response(messages.encode_reply(reply), media_type=MSGPACK)


async def snapshot(request: Request) -> Response:
    """`GET /peer/snapshot`: the whole live state, as of one moment."""
    services = peer_services(request)
    return StreamingResponse(services.exchanger.whole_states.frames(), media_type=MSGPACK)


async def get_small_chunks(request: Request) -> Response:
    """`POST /peer/chunks`: the contents of many small chunks."""
    services = peer_services(request)
    return _packed([await _small_chunk(services, name) for name in await _hashes_of(request)])


async def _small_chunk(services: Services, name: bytes) -> bytes | None:
    row = services.state.chunks.row(name)
    if row is None or row.content is None:
        return None
    return await services.state.read_chunk(name, services.state.chunks.read_whole)


async def get_chunk(request: Request) -> Response:
    """`GET /peer/chunks/{hash}`: one chunk's bytes, verified; `put` names the file it is asked for."""
    state = peer_services(request).state
    name = _hash_in(request)
    put = _dot_in(request)
    content = await state.read_chunk(name, state.chunks.read_whole)
    if content is None:
        if put is not None:
            await state.doubt_hold(put)
        raise HttpError(404, "that chunk is not here")
    return Response(content, media_type="application/octet-stream")


def _dot_in(request: Request) -> Dot | None:
    text = request.query_params.get("put")
    if text is None:
        return None
    try:
        return codec.read_dot(codec.unpack(bytes.fromhex(text)))
    except ValueError:
        raise HttpError(400, "put is no dot in hexadecimal digits") from None


async def put_chunk(request: Request) -> Response:
    """`PUT /peer/chunks/{hash}`: stage a chunk for a put to come; answered when it is synced."""
    services = peer_services(request)
    name = _hash_in(request)
    state = services.state
    state.space.check()
    writer = ChunkWriter(state.chunks.files)
    try:
        async for piece in _body_up_to(request, state.config.chunk_bytes_max):
            await state.env.run_blocking(Work.DISK, writer.write, piece)
        fresh = await state.env.run_blocking(Work.DISK, writer.finish)
    except BaseException:
        with trio.CancelScope(shield=True):
            await state.env.run_blocking(Work.DISK, writer.abandon)
        raise
    if fresh.hash != name:
        state.chunks.discard([fresh])
        raise HttpError(400, "the bytes do not give the chunk's hash")
    state.chunks.staging.stage(fresh)
    return Response()


async def renew_chunks(request: Request) -> Response:
    """`POST /peer/chunks/renew`: an upload still arrives; keep what it staged. Answered with what is not here."""
    state = peer_services(request).state
    names = await _hashes_of(request)
    return _packed([name for name in names if not state.chunks.staging.renew(name) and state.chunks.row(name) is None])


async def withdraw_chunks(request: Request) -> Response:
    """`POST /peer/chunks/withdraw`: an upload was broken off, the chunks it staged here are of no use."""
    state = peer_services(request).state
    for name in await _hashes_of(request):
        state.chunks.staging.withdraw(name)
    return Response()


async def _hashes_of(request: Request) -> list[bytes]:
    """The chunks' hashes in a body. Raises MalformedMessage, also for more than are looked up at a time."""
    fields = codec.read_list(codec.unpack(await body_of(request, JOIN_BYTES_MAX)))
    if len(fields) > HASHES_MAX:
        raise MalformedMessage(f"{len(fields)} chunks in one message; the limit is {HASHES_MAX}")
    return [codec.read_bytes(name, codec.HASH_BYTES) for name in fields]


async def _body_up_to(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > bytes_max:
            raise HttpError(413, f"a chunk has at most {bytes_max} bytes")
        yield piece


async def recover(request: Request) -> Response:
    """`POST /peer/recover`: fetch all that is missing here, now."""
    recovery = await recover_here(peer_services(request))
    return _packed({"total": recovery.total, "success": recovery.success, "failed": recovery.failed})


async def repairs(request: Request) -> Response:
    """`GET /peer/repairs`: what this peer alone knows of its repairs."""
    return _packed(peer_services(request).repair.known_attempts())


def _hash_in(request: Request) -> bytes:
    text = request.path_params["hash"]
    try:
        name = bytes.fromhex(text)
    except ValueError:
        name = b""
    if len(name) != codec.HASH_BYTES:
        raise HttpError(400, "a chunk's name is 64 hexadecimal digits")
    return name


def _packed(value: object) -> Response:
    return Response(codec.pack(value), media_type=MSGPACK)
