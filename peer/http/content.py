"""A file as an HTTP response: names, ranges and conditions (RFC 9110, RFC 6266, RFC 9530), and the bytes."""

from __future__ import annotations

import base64
import mimetypes
import re
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from unicodedata import category
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from peer.files.downloads import Downloads, FileSpan, Piece
from peer.http.errors import HttpError
from protocol.codec import FILENAME_CHARS_MAX, SIZE_MAX
from protocol.identity import NodeId
from protocol.ops import Manifest, Put

ZERO_COPY = "http.response.zerocopysend"
READ_BYTES = 1024 * 1024

# The types built in, and not what this machine's files add: every peer answers alike.
_TYPES = mimetypes.MimeTypes(filenames=())

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)

# What ends lines or cannot be written as UTF-8.
_CONTROLS = {"Cc", "Zl", "Zp", "Cs"}


def guess_content_type(filename: str, claimed: str) -> str:
    """What the client said, unless it said nothing useful and the name tells more."""
    if _MEDIA_TYPE.fullmatch(claimed) and claimed != "application/octet-stream":
        return claimed
    return _TYPES.guess_type(filename)[0] or "application/octet-stream"


def clean_filename(name: str) -> str:
    """The last part of what a client calls its file, which may be a whole path, without control characters.

    Nothing else is taken away: spaces of all kinds and joiners are part of names people have.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if category(char) not in _CONTROLS)[:FILENAME_CHARS_MAX]


def etag_of(manifest: Manifest) -> str:
    """A strong validator: the hash of the content."""
    return f'"{manifest.sha256.hex()}"'


def disposition_of(filename: str) -> str:
    """`Content-Disposition` that old and new clients save under a safe name."""
    if not filename.strip("."):
        # A name of dots would be a place, to a careless client.
        plain, encoded = "_" * len(filename) or "file", "%2E" * len(filename) or "file"
    else:
        plain = "".join(char if " " <= char <= "~" and char not in '"\\%/' else "_" for char in filename)
        encoded = quote(filename, safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


@dataclass(frozen=True, slots=True)
class Span:
    """Which bytes to send."""

    first: int
    count: int


def parse_range(header: str | None, size: int) -> Span | None:
    """The one range a request asks for; None for all of the file.

    A list of ranges gets the whole file, which RFC 9110 allows. Raises HttpError 416 for one that cannot be met.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first_text, last_text = match.groups()
    if not first_text:
        first = max(0, size - _number(last_text))
        last = size - 1
        satisfiable = _number(last_text) > 0 and size > 0
    else:
        first = _number(first_text)
        last = min(_number(last_text), size - 1) if last_text else size - 1
        if last_text and _number(last_text) < first:
            return None
        satisfiable = first < size
    if not satisfiable:
        raise HttpError(
            416, f"the file has {size} bytes; ask for a range of them", {"content-range": f"bytes */{size}"}
        )
    return Span(first, last - first + 1)


def _number(digits: str) -> int:
    """A place in a file; one beyond all files is as good as any other (and Python refuses to read very long ones)."""
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) <= len(str(SIZE_MAX)) else SIZE_MAX


def is_current(header: str | None, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags has this one (`If-Match`, `If-None-Match`); a weak one counts only if `weak`."""
    if header is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or etag in tags or (weak and f"W/{etag}" in tags)


def _modified_s(manifest: Manifest) -> int:
    """When a file came into being, in whole seconds since 1970."""
    return manifest.uploaded_at_ms // 1000


def _date_in(headers: Headers, name: str) -> float | None:
    """The date in a header field; None when there is none, or one nobody can read: it is ignored (RFC 9110, 13.1)."""
    try:
        date = parsedate_to_datetime(headers[name])
    except (KeyError, ValueError, OverflowError):
        return None
    # Without a zone it is taken for GMT, which all dates of HTTP are in.
    return date.replace(tzinfo=date.tzinfo or UTC).timestamp()


def _is_wanted(headers: Headers, manifest: Manifest, etag: str) -> bool:
    """`If-Match`, or without it `If-Unmodified-Since`: whether the file is still the one that is asked for."""
    if headers.get("if-match"):
        return is_current(headers["if-match"], etag, weak=False)
    since = _date_in(headers, "if-unmodified-since")
    return since is None or _modified_s(manifest) <= since


def _is_known(headers: Headers, manifest: Manifest, etag: str) -> bool:
    """`If-None-Match`, or without it `If-Modified-Since`: whether the client has the file already."""
    if "if-none-match" in headers:
        return is_current(headers["if-none-match"], etag, weak=True)
    since = _date_in(headers, "if-modified-since")
    return since is not None and _modified_s(manifest) <= since


class FileResponse:
    """One file, or a range of it, as an ASGI app."""

    def __init__(self, downloads: Downloads, put: Put, request_headers: Headers, source: tuple[NodeId, int]) -> None:
        self._downloads = downloads
        self._put = put
        manifest = put.manifest
        etag = etag_of(manifest)
        if not _is_wanted(request_headers, manifest, etag):
            raise HttpError(412, "the file has changed; read it again", {"etag": etag})
        self._unchanged = _is_known(request_headers, manifest, etag)
        asked = request_headers.get("range") if request_headers.get("if-range") in (None, etag) else None
        # A client whose copy is current is told so, whatever range it asks for (RFC 9110, 13.2.2).
        span = None if self._unchanged else parse_range(asked, manifest.size_bytes)
        self._span = span or Span(0, manifest.size_bytes)
        self._status = 304 if self._unchanged else 206 if span else 200
        self._headers = self._make_headers(manifest, etag, span, source)

    def _make_headers(
        self, manifest: Manifest, etag: str, span: Span | None, source: tuple[NodeId, int]
    ) -> dict[str, str]:
        headers = {
            "etag": etag,
            "last-modified": formatdate(_modified_s(manifest), usegmt=True),
            "accept-ranges": "bytes",
            "x-routed-from": source[0],
            "x-node-latency-ms": str(source[1]),
        }
        if self._unchanged:
            return headers
        headers |= {
            "content-type": manifest.content_type,
            "content-length": str(self._span.count),
            "content-disposition": disposition_of(manifest.filename),
            "x-content-type-options": "nosniff",
            "repr-digest": f"sha-256=:{base64.b64encode(manifest.sha256).decode()}:",
        }
        if span:
            headers["content-range"] = f"bytes {span.first}-{span.first + span.count - 1}/{manifest.size_bytes}"
        return headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the head leaves when the first piece is at hand, so that until then an error can be answered."""
        has_body = scope["method"] != "HEAD" and not self._unchanged and self._span.count > 0
        if not has_body:
            await self._start(send)
            await send({"type": "http.response.body", "body": b""})
            return
        zero_copy = ZERO_COPY in scope.get("extensions", {})
        remaining = self._span.count
        async with aclosing(self._downloads.pieces(self._put, self._span.first, remaining)) as pieces:
            async for piece in pieces:
                if remaining == self._span.count:
                    await self._start(send)
                remaining -= len(piece) if isinstance(piece, bytes) else piece.count
                await _send_piece(send, piece, zero_copy=zero_copy, more=remaining > 0)

    async def _start(self, send: Send) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": raw})


async def _send_piece(send: Send, piece: Piece, *, zero_copy: bool, more: bool) -> None:
    if isinstance(piece, bytes):
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        return
    handle = piece.file.handle()
    if zero_copy and handle is not None:
        message = {"type": ZERO_COPY, "file": handle, "offset": piece.offset, "count": piece.count, "more_body": more}
        await send(message)
        return
    await _send_read(send, piece, more=more)


async def _send_read(send: Send, span: FileSpan, *, more: bool) -> None:
    """For servers that cannot send a file by themselves; it was just verified, so it is in memory."""
    offset, end = span.offset, span.offset + span.count
    while offset < end:
        body = span.file.read_at(offset, min(READ_BYTES, end - offset))
        if not body:
            raise OSError("a chunk file became shorter while it was being sent")
        offset += len(body)
        await send({"type": "http.response.body", "body": body, "more_body": more or offset < end})
