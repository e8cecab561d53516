"""The endpoints that take files in: as a form, as a raw body, and in the words of the naming service."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from peer.files.intake import NewFile
from peer.files.uploads import Receipt
from peer.gossip.client import PeerUnreachable
from peer.http.content import clean_filename, guess_content_type
from peer.http.errors import RETRY_AFTER, HttpError, error_response
from peer.http.multipart import open_file_part
from peer.http.nodes import latency_ms
from peer.http.requests import check_length, number_in, services_of
from peer.http.services import Services
from peer.http.times import rfc3339
from peer.world.env import Work
from protocol.identity import Member
from protocol.ops import COPIES_MAX, FILE_KEY_PATTERN, Put

LOOK_FOR_ROOM_BYTES = 16 * 1024 * 1024
"""An upload of less is not worth a look at the disk: if it does not fit, that is found out soon."""

FORM_BYTES_MAX = 1024 * 1024
"""What a form may have beside its file, when a body is refused for its length before it is read."""

HANDED_ON = ("content-type", "content-length", "repr-digest", "content-digest", "content-md5")
"""What goes along when an upload is handed on to another peer."""

# RFC 9530 names, and Content-MD5 (RFC 1864), as hashlib has them.
_DIGEST_NAMES = {"sha-256": "sha256", "sha-512": "sha512", "md5": "md5"}


async def upload(request: Request) -> JSONResponse:
    """`POST /files`: store a file and answer with its receipt."""
    services = services_of(request)
    return JSONResponse(receipt_json(services, await _take_form(services, request)))


async def upload_routed(request: Request) -> Response:
    """`POST /upload`: the same, in the words of the naming service.

    A peer that can takes the file in itself; one that is being stopped, or short of space, hands the upload on to the
    one that answers soonest of those that are ready.
    """
    services = services_of(request)
    chosen = await _choose(services, request)
    if chosen is None:
        status, answer = 200, receipt_json(services, await _take_form(services, request))
    else:
        status, answer = await _hand_on(services, request, chosen)
    node_id = services.others.me if chosen is None else chosen.node_id
    if status != 200:
        return error_response(status, str(answer.get("error", f"{node_id} refused it")), RETRY_AFTER)
    latency = latency_ms(services.others, node_id)
    routing = {"routed_via": "naming-service", "selected_node": node_id, "node_latency_ms": latency}
    return JSONResponse({**answer, **routing})


async def _choose(services: Services, request: Request) -> Member | None:
    """Another peer to store an upload; None for this one, also when nobody is better off."""
    is_going = services.draining.is_set() or services.others.membership.me.is_draining
    if not is_going and await _has_room(services, request):
        return None
    others = services.others
    for node_id in others.membership.reachable():
        member = others.membership.member(node_id)
        if member is not None and node_id != others.me and await others.client.is_ready(member):
            return member
    return None


async def _has_room(services: Services, request: Request) -> bool:
    space, declared = services.here.space, request.headers.get("content-length", "")
    if space.reason is not None:
        return False
    if not declared.isdecimal() or int(declared) < LOOK_FOR_ROOM_BYTES:
        return True
    return int(declared) < await services.env.run_blocking(Work.DISK, services.env.disk.free_bytes)


async def _hand_on(services: Services, request: Request, chosen: Member) -> tuple[int, dict[str, Any]]:
    headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
    try:
        return await services.others.client.upload(chosen, request.url.query, headers, request.stream())
    except PeerUnreachable as error:
        raise HttpError(503, f"this peer cannot take files now, and {error}; send it again", RETRY_AFTER) from None


async def _take_form(services: Services, request: Request) -> Receipt:
    wanted = request.query_params.get("file_id")
    file_key = None if wanted is None else _file_id(wanted)
    wishes = _wishes_in(services, request)
    part = await open_file_part(request)
    return await _take_in(services, part.pieces, part.filename, part.content_type, file_key, wishes)


async def upload_raw(request: Request) -> JSONResponse:
    """`PUT /files/{file_id}`: store the body as a file of this id, named by `filename` or by its id (`curl -T`)."""
    services = services_of(request)
    file_key = _file_id(request.path_params["file_id"])
    wishes = _wishes_in(services, request)
    filename = request.query_params.get("filename") or file_key
    content_type = request.headers.get("content-type", "")
    receipt = await _take_in(services, request.stream(), filename, content_type, file_key, wishes)
    return JSONResponse(receipt_json(services, receipt))


def _file_id(text: str) -> str:
    """An id a client chose. Raises HttpError 400."""
    if not FILE_KEY_PATTERN.fullmatch(text):
        raise HttpError(400, "file_id has 1 to 128 letters, digits, dots, dashes, underscores; the first two start it")
    return text


@dataclass(frozen=True, slots=True)
class _Wishes:
    """How many copies are wanted, how many at least, and the hashes the content must have."""

    copies: int
    min_copies: int
    digests: dict[str, bytes]


def _wishes_in(services: Services, request: Request) -> _Wishes:
    """What a client asks for beside storing its file. Raises HttpError 400, 413."""
    check_length(request, services.config.file_bytes_max + FORM_BYTES_MAX)
    min_copies = number_in(request, "min_copies", 1, COPIES_MAX, 1)
    copies = number_in(request, "copies", max(min_copies, services.config.copies), COPIES_MAX, 1)
    if copies < min_copies:
        raise HttpError(400, f"min_copies is at most copies, which is {copies}")
    return _Wishes(copies, min_copies, expected_digests(request))


async def _take_in(
    services: Services,
    pieces: AsyncIterator[bytes],
    filename: str,
    content_type: str,
    file_key: str | None,
    wishes: _Wishes,
) -> Receipt:
    name = clean_filename(filename)
    new = NewFile(
        filename=name,
        content_type=guess_content_type(name, content_type),
        file_key=file_key,
        copies=wishes.copies,
        min_copies=wishes.min_copies,
        digests=wishes.digests,
    )
    return await services.uploads.take_in(new, pieces)


def expected_digests(request: Request) -> dict[str, bytes]:
    """The hashes a client sent of its content. Raises HttpError 400 for one that is none."""
    found: dict[str, bytes] = {}
    for header in ("repr-digest", "content-digest"):
        for item in request.headers.get(header, "").split(","):
            name, _, value = item.strip().partition("=")
            if name.lower() in _DIGEST_NAMES:
                found[_DIGEST_NAMES[name.lower()]] = _decoded(header, value.strip().strip(":"))
    if "content-md5" in request.headers:
        found["md5"] = _decoded("content-md5", request.headers["content-md5"].strip())
    return found


def _decoded(header: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise HttpError(400, f"the value in {header} is no base64") from None


def receipt_json(services: Services, receipt: Receipt) -> dict[str, object]:
    """The receipt as clients of the old system know it, with the peers that hold the file durably."""
    manifest = receipt.put.manifest
    targets = [delivery for delivery in receipt.deliveries if delivery.instead_of is None]
    successful = sum(1 for delivery in targets if delivery.error is None)
    details: list[dict[str, object]] = []
    for delivery in receipt.deliveries:
        detail: dict[str, object] = {"node": delivery.node_id, "success": delivery.error is None}
        if delivery.error is not None:
            detail["error"] = delivery.error
        if delivery.instead_of is not None:
            detail["instead_of"] = delivery.instead_of
        details.append(detail)
    return {
        "success": True,
        "file_id": manifest.file_key,
        "file_key": manifest.file_key,
        "stored_name": stored_name(receipt.put),
        "original_filename": manifest.filename,
        "content_type": manifest.content_type,
        "size_bytes": manifest.size_bytes,
        "checksum_sha256": manifest.sha256.hex(),
        "uploaded_at": rfc3339(manifest.uploaded_at_ms),
        "node_id": services.others.me,
        "node": services.others.me,
        "replication": {
            "total_nodes": len(targets),
            "successful": successful,
            "failed": len(targets) - successful,
            "details": details,
        },
        "durable_copies": list(receipt.durable_copies),
        "durability": services.config.durability,
    }


def stored_name(put: Put) -> str:
    """The key with the extension of the name the file came under."""
    suffix = PurePosixPath(put.manifest.filename).suffix
    return put.manifest.file_key + (suffix if suffix.isascii() and suffix[1:].isalnum() else "")
