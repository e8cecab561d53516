"""The naming endpoints: nodes, the list of files, registration, the replication queue, recovery."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.files.listing import BadCursor, Cursor
from peer.gossip.client import PeerUnreachable
from peer.http.content import clean_filename, guess_content_type
from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.requests import json_object_of, number_in, services_of
from peer.http.services import Services
from peer.http.times import rfc3339
from peer.upkeep.repair import ItemStatus, Recovery
from protocol.codec import SIZE_MAX
from protocol.identity import NODE_ID_PATTERN, NodeId
from protocol.membership import Status
from protocol.ops import FILE_KEY_PATTERN, Manifest, Put

FILES_LIMIT = 100
FILES_LIMIT_MAX = 1000
QUEUE_LIMIT = 1000
QUEUE_LIMIT_MAX = 10_000

EMPTY_SHA256 = hashlib.sha256().digest()

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


async def nodes(request: Request) -> JSONResponse:
    """`GET /nodes`: every member and what is believed of it."""
    return JSONResponse(services_of(request).listing.nodes())


async def check_nodes(request: Request) -> JSONResponse:
    """`GET /nodes/check`: ask every node now."""
    services = services_of(request)
    checked = await services.listing.check_nodes()
    return JSONResponse({"checked_at": rfc3339(services.state.wall_ms()), "nodes": checked})


async def files(request: Request) -> JSONResponse:
    """`GET /files`: the files, newest first, a page at a time."""
    services = services_of(request)
    limit = number_in(request, "limit", FILES_LIMIT, FILES_LIMIT_MAX, 1)
    after = request.query_params.get("after")
    try:
        cursor = Cursor.parse(after) if after else None
    except BadCursor as error:
        raise HttpError(400, str(error)) from None
    page = await services.listing.files(limit, cursor, request.query_params.get("name", ""))
    listed = [file_json(put, holders) for put, holders in page.files]
    return JSONResponse(
        {"files": listed, "count": len(listed), "total": page.total, "next": str(page.next) if page.next else None}
    )


def file_json(put: Put, holders: tuple[NodeId, ...]) -> dict[str, object]:
    """A file in a list."""
    manifest = put.manifest
    return {
        "file_key": manifest.file_key,
        "original_filename": manifest.filename,
        "size_bytes": manifest.size_bytes,
        "checksum_sha256": manifest.sha256.hex(),
        "content_type": manifest.content_type,
        "uploaded_at": rfc3339(manifest.uploaded_at_ms),
        "replicas": list(holders),
    }


async def register(request: Request) -> JSONResponse:
    """`POST /files/register`: make a file known that a peer is said to have."""
    services = services_of(request)
    body = await json_object_of(request)
    holder = _member_in(services, body.get("node_id"), "node_id")
    failed = body.get("failed_nodes") or []
    if not isinstance(failed, list):
        raise HttpError(400, "failed_nodes is a list of node ids")
    for node_id in failed:
        _member_in(services, node_id, "failed_nodes")
    verified = await services.files.register(_manifest_in(services, body), holder)
    return JSONResponse({"success": True, "message": "file metadata registered", "verified": verified})


def _manifest_in(services: Services, body: dict[str, Any]) -> Manifest:
    file_key, size_bytes, checksum = body.get("file_key"), body.get("size_bytes"), body.get("checksum_sha256")
    filename = body.get("original_filename")
    if not isinstance(file_key, str) or not FILE_KEY_PATTERN.fullmatch(file_key):
        raise HttpError(400, "file_key is missing or no file id")
    if not isinstance(filename, str):
        raise HttpError(400, "original_filename is missing or no text")
    if type(size_bytes) is not int or not 0 <= size_bytes <= SIZE_MAX:
        raise HttpError(400, "size_bytes is missing or no whole number of bytes")
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        raise HttpError(400, "checksum_sha256 is missing or not 64 hexadecimal digits")
    if (size_bytes == 0) != (bytes.fromhex(checksum) == EMPTY_SHA256):
        raise HttpError(400, "size_bytes and checksum_sha256 contradict each other: one says that the file is empty")
    name = clean_filename(filename)
    claimed = body.get("content_type")
    return Manifest(
        file_key=file_key,
        filename=name,
        size_bytes=size_bytes,
        sha256=bytes.fromhex(checksum),
        content_type=guess_content_type(name, claimed if isinstance(claimed, str) else ""),
        uploaded_at_ms=services.state.wall_ms(),
        copies=services.state.config.copies,
        # There is nothing more to know of an empty file.
        chunks=None if size_bytes else (),
        registered=True,
    )


def _member_in(services: Services, node_id: object, field: str) -> NodeId:
    if not isinstance(node_id, str) or not NODE_ID_PATTERN.fullmatch(node_id):
        raise HttpError(400, f"{field} is missing or no node id")
    if services.state.membership.member(NodeId(node_id)) is None:
        raise HttpError(400, f"{field} names {node_id}, which is no node of this cluster; see GET /nodes")
    return NodeId(node_id)


async def queue(request: Request) -> JSONResponse:
    """`GET /replication-queue`: which copies are missing, and which came back."""
    services = services_of(request)
    limit = number_in(request, "limit", QUEUE_LIMIT, QUEUE_LIMIT_MAX, 1)
    status = request.query_params.get("status")
    if status is not None and status not in ItemStatus.__members__:
        raise HttpError(400, f"status is one of {', '.join(ItemStatus.__members__)}")
    node_id = request.query_params.get("node_id")
    items = await services.listing.queue(
        limit, NodeId(node_id) if node_id is not None else None, ItemStatus(status) if status is not None else None
    )
    return JSONResponse({"items": items, "count": len(items)})


async def recover(request: Request) -> JSONResponse:
    """`POST /nodes/{id}/recover`: make a node fetch all it lacks, now."""
    services = services_of(request)
    node_id = NodeId(request.path_params["node_id"])
    peer = services.state.membership.member(node_id)
    if peer is None:
        raise HttpError(404, f"{node_id} is no node of this cluster; see GET /nodes")
    if node_id == services.state.me:
        recovery = await recover_here(services)
    elif services.state.membership.status(node_id) is Status.DOWN:
        raise await _is_down(services, node_id)
    else:
        try:
            recovery = recovery_of(await services.state.client.recover(peer))
        except PeerUnreachable:
            raise await _is_down(services, node_id) from None
        await services.uploads.exchange_patiently(node_id)
    return JSONResponse(await _recovered_json(services, node_id, recovery))


async def recover_here(services: Services) -> Recovery:
    """Hear what others have, then fetch all that is missing here."""
    for other in services.state.membership.reachable():
        await services.uploads.exchange_patiently(other)
    return await services.repair.heal(all_of_it=True)


def recovery_of(fields: dict[str, object]) -> Recovery:
    """What another peer said of its recovery. Raises PeerUnreachable when it is none."""
    counts = [fields.get(name) for name in ("total", "success", "failed")]
    if not all(type(count) is int for count in counts):
        raise PeerUnreachable("a recovery without its counts")
    total, success, failed = (int(str(count)) for count in counts)
    return Recovery(total, success, failed)


async def _recovered_json(services: Services, node_id: NodeId, recovery: Recovery) -> dict[str, object]:
    counts: dict[str, object] = {"total": recovery.total, "success": recovery.success, "failed": recovery.failed}
    if recovery.total == 0:
        return {"message": "no pending replications", "count": 0, **counts}
    return {"message": "recovery completed", **counts, "pending_items": await _pending(services, node_id)}


async def _pending(services: Services, node_id: NodeId) -> list[dict[str, object]]:
    items = await services.listing.queue(QUEUE_LIMIT, node_id)
    return [item for item in items if item["status"] != "COMPLETED"]


async def _is_down(services: Services, node_id: NodeId) -> HttpError:
    pending = await _pending(services, node_id)
    counts = {"total": len(pending), "success": 0, "failed": len(pending), "pending_items": pending}
    return HttpError(503, f"{node_id} is down; it recovers by itself when it is back", RETRY_AFTER, counts)
