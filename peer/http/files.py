"""The endpoints about files that are there: download, delete, list, register."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.files.listing import BadCursor, cursor_of, parse_cursor
from peer.http.content import FileResponse, clean_filename, guess_content_type
from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.nodes import latency_ms
from peer.http.requests import file_key_in, json_object_of, number_in, services_of
from peer.http.services import Services
from peer.http.times import rfc3339
from peer.store.lookups import ListedFile
from protocol.codec import SIZE_MAX
from protocol.errors import MalformedMessage
from protocol.identity import NODE_ID_PATTERN, Dot, NodeId
from protocol.ops import FILE_KEY_PATTERN, Manifest, Put

FILES_LIMIT = 100
FILES_LIMIT_MAX = 1000

EMPTY_SHA256 = hashlib.sha256().digest()

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")

# RFC 9530 names, and Content-MD5 (RFC 1864), as hashlib has them.
_DIGEST_NAMES = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


async def download(request: Request) -> FileResponse:
    """`GET` and `HEAD /files/{file_id}`: the content, from wherever it is."""
    services = services_of(request)
    put = await _asked_for(services, request)
    if put.manifest.chunks is None:
        reason = "it is registered and has no content; upload it with this file_id"
        raise HttpError(503, f"the file cannot be read now: {reason}", {"retry-after": "5"})
    source = services.fetching.source_of(put)
    if source is None:
        if request.method == "HEAD" and put.manifest.size_bytes:
            raise HttpError(503, "the file cannot be read now: no holder can be reached; try again later", RETRY_AFTER)
        # Its chunks may be there all the same, here and elsewhere; of an empty file there is nothing to look for.
        source = services.others.me
    return FileResponse(services.downloads, put, request.headers, (source, latency_ms(services.others, source)))


async def download_routed(request: Request) -> FileResponse:
    """`GET` and `HEAD /download/{file_id}`: the same, in the words of the naming service."""
    return await download(request)


async def _asked_for(services: Services, request: Request) -> Put:
    """The version of a file in a request's path and query. Raises HttpError 400, 404."""
    file_key, version = file_key_in(request), request.query_params.get("version")
    if version is None:
        put = await services.keys.find(file_key)
        if put is None:
            raise HttpError(404, "no file has this id; GET /files lists them")
        return put
    try:
        dot = Dot.parse(version)
    except MalformedMessage:
        raise HttpError(400, f"version is no dot; GET /files/{file_key}/versions lists them") from None
    put = await services.keys.find_version(file_key, dot)
    if put is None:
        raise HttpError(404, "the file has no such version; it may have been replaced or deleted")
    return put


async def versions(request: Request) -> JSONResponse:
    """`GET /files/{file_id}/versions`: the versions that were written without knowing of each other."""
    services = services_of(request)
    file_key = file_key_in(request)
    found = await services.keys.versions(file_key)
    if not found:
        raise HttpError(404, "no file has this id; GET /files lists them")
    listed = [
        {**file_json(put.manifest, services.here.holders(put.dot)), "dot": str(put.dot), "shown": number == 0}
        for number, put in enumerate(found)
    ]
    return JSONResponse({"file_id": file_key, "file_key": file_key, "versions": listed, "count": len(listed)})


async def delete(request: Request) -> JSONResponse:
    """`DELETE /files/{file_id}`: remove a file everywhere, for ever."""
    services = services_of(request)
    file_key = file_key_in(request)
    deletion = await services.keys.delete(file_key)
    if deletion is None:
        raise HttpError(404, "no file has this id; it may have been deleted already")
    deleted, total = len(deletion.deleted), len(deletion.nodes)
    missing = total - deleted
    return JSONResponse(
        {
            "success": True,
            "file_id": file_key,
            "file_key": file_key,
            "deleted_from": deleted,
            "failed": missing,
            "total_nodes": total,
            "deleted_nodes": list(deletion.deleted),
            "message": f"deleted from {deleted} of {total} nodes"
            + ("; the others follow when back" if missing else ""),
        }
    )


async def list_files(request: Request) -> JSONResponse:
    """`GET /files`: the files, newest first, a page at a time."""
    services = services_of(request)
    limit = number_in(request, "limit", FILES_LIMIT, FILES_LIMIT_MAX, 1)
    after = request.query_params.get("after")
    try:
        behind = parse_cursor(after) if after else None
    except BadCursor as error:
        raise HttpError(400, str(error)) from None
    page = await services.listing.files(limit, behind, request.query_params.get("name", ""))
    listed = [file_json(file, holders) for file, holders in page.files]
    return JSONResponse(
        {"files": listed, "count": len(listed), "total": page.total, "next": cursor_of(page.end) if page.end else None}
    )


def file_json(file: Manifest | ListedFile, holders: tuple[NodeId, ...]) -> dict[str, object]:
    """A file in a list."""
    return {
        "file_key": file.file_key,
        "original_filename": file.filename,
        "size_bytes": file.size_bytes,
        "checksum_sha256": file.sha256.hex(),
        "content_type": file.content_type,
        "uploaded_at": rfc3339(file.uploaded_at_ms),
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
    verified = await services.keys.register(_manifest_in(services, body), holder)
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
        uploaded_at_ms=services.here.wall_ms(),
        copies=services.config.copies,
        # There is nothing more to know of an empty file.
        chunks=None if size_bytes else (),
        registered=True,
    )


def _member_in(services: Services, node_id: object, field: str) -> NodeId:
    if not isinstance(node_id, str) or not NODE_ID_PATTERN.fullmatch(node_id):
        raise HttpError(400, f"{field} is missing or no node id")
    if services.others.membership.member(NodeId(node_id)) is None:
        raise HttpError(400, f"{field} names {node_id}, which is no node of this cluster; see GET /nodes")
    return NodeId(node_id)


async def register_location(request: Request) -> JSONResponse:
    """`POST /files/register-location`: a node is said to have a file that is known; it counts once it proves that."""
    services = services_of(request)
    body = await json_object_of(request)
    file_key = body.get("file_key")
    if not isinstance(file_key, str) or not FILE_KEY_PATTERN.fullmatch(file_key):
        raise HttpError(400, "file_key is missing or no file id")
    holder = _member_in(services, body.get("node_id"), "node_id")
    put = await services.keys.find(file_key)
    if put is None:
        raise HttpError(404, "no file has this id; POST /files/register makes it known")
    return JSONResponse({"success": True, "verified": await services.keys.verify_holder(put, holder)})
