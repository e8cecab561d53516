"""A file as an HTTP response: names, ranges and conditions (RFC 9110, RFC 6266, RFC 9530), and the bytes."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Protocol
from unicodedata import category
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from peer.files.downloads import Downloads, FileSpan, Piece
from peer.http.errors import HttpError
from peer.world.env import ReadableFile
from protocol.codec import FILENAME_CHARS_MAX, SIZE_MAX
from protocol.identity import NodeId
from protocol.ops import Manifest, Put

ZERO_COPY = "http.response.zerocopysend"
READ_BYTES = 1024 * 1024
RANGES_MAX = 32
"""In one request; who asks for more gets the whole file, which is less work."""

# The types built in, and not what this machine's files add: every peer answers alike.
_TYPES = mimetypes.MimeTypes(filenames=())

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}")
_RANGE = re.compile(r"(?=-?\d)(\d*)-(\d*)", re.ASCII)

# What ends lines or cannot be written as UTF-8.
_CONTROLS = {"Cc", "Zl", "Zp", "Cs"}


def guess_content_type(filename: str, claimed: str) -> str:
    """What the client said, unless it said nothing useful and the name tells more."""
    if _MEDIA_TYPE.fullmatch(claimed) and claimed != "application/octet-stream":
        return claimed
    return _TYPES.guess_type(filename)[0] or "application/octet-stream"


def _type_of(content_type: str) -> str:
    """As it may stand in a head: another peer may have put anything into its manifest."""
    return content_type if _MEDIA_TYPE.fullmatch(content_type) else "application/octet-stream"


def clean_filename(name: str) -> str:
    """The last part of what a client calls its file, which may be a whole path, without control characters.

    Nothing else is taken away: spaces of all kinds and joiners are part of names people have.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if category(char) not in _CONTROLS)[:FILENAME_CHARS_MAX]


def etag_of(file: Described) -> str:
    """A strong validator: the hash of the content."""
    return f'"{file.sha256.hex()}"'


def disposition_of(filename: str) -> str:
    """`Content-Disposition` that old and new clients save under a safe name."""
    if not filename.strip("."):
        # A name of dots would be a place, to a careless client.
        plain, encoded = "_" * len(filename) or "file", "%2E" * len(filename) or "file"
    else:
        plain = "".join(char if " " <= char <= "~" and char not in '"\\%/' else "_" for char in filename)
        encoded = quote(filename, safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


class Described(Protocol):
    """What the head of a response says of a file; a manifest, for one."""

    @property
    def filename(self) -> str:
        """Its name."""

    @property
    def content_type(self) -> str:
        """Its media type."""

    @property
    def size_bytes(self) -> int:
        """Its length."""

    @property
    def sha256(self) -> bytes:
        """The hash of its content."""

    @property
    def uploaded_at_ms(self) -> int:
        """When it came, in milliseconds since 1970."""


def head_of(file: Described, source: tuple[NodeId, int]) -> dict[str, str]:
    """The header fields of a whole file, with the peer it is read from and how far that is in milliseconds."""
    return {
        **_validators_of(file, source),
        "content-type": _type_of(file.content_type),
        "content-length": str(file.size_bytes),
        "content-disposition": disposition_of(file.filename),
        "x-content-type-options": "nosniff",
        "repr-digest": f"sha-256=:{base64.b64encode(file.sha256).decode()}:",
    }


def _validators_of(file: Described, source: tuple[NodeId, int]) -> dict[str, str]:
    return {
        "etag": etag_of(file),
        "last-modified": formatdate(_modified_s(file), usegmt=True),
        "accept-ranges": "bytes",
        "x-routed-from": source[0],
        "x-node-latency-ms": str(source[1]),
    }


@dataclass(frozen=True, slots=True)
class Span:
    """Which bytes to send."""

    first: int
    count: int


def parse_ranges(header: str | None, size: int) -> tuple[Span, ...]:
    """The ranges a request asks for; empty for all of the file.

    That also is the answer to what is no list of byte ranges, and to a list that is absurd: too long, or of more bytes
    than the file has (RFC 9110, 14.2). Raises HttpError 416 when none of them can be met.
    """
    unit, _, listed = (header or "").strip().partition("=")
    specs = [spec.strip() for spec in listed.split(",") if spec.strip()]
    matches = [match for spec in specs[: RANGES_MAX + 1] if (match := _RANGE.fullmatch(spec))]
    if unit != "bytes" or len(specs) > RANGES_MAX or len(matches) < len(specs):
        return ()
    try:
        found = [_span(match[1], match[2], size) for match in matches]
    except _ReversedRange:
        return ()
    spans = tuple(span for span in found if span.count > 0)
    if found and not spans:
        raise HttpError(
            416, f"the file has {size} bytes; ask for a range of them", {"content-range": f"bytes */{size}"}
        )
    return spans if sum(span.count for span in spans) <= size else ()


class _ReversedRange(Exception):
    """A range that ends before it begins makes its whole list invalid."""


def _span(first_text: str, last_text: str, size: int) -> Span:
    """The part of a file a range means; of no bytes if it has none of them. Raises _ReversedRange."""
    if not first_text:
        first = max(0, size - _number(last_text))
        return Span(first, size - first)
    first, last = _number(first_text), _number(last_text) if last_text else SIZE_MAX
    if last < first:
        raise _ReversedRange
    return Span(first, max(0, min(last, size - 1) - first + 1))


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


def _modified_s(file: Described) -> int:
    """When a file came into being, in whole seconds since 1970."""
    return file.uploaded_at_ms // 1000


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
        ranges = () if self._unchanged else parse_ranges(asked, manifest.size_bytes)
        self._spans = ranges or (Span(0, manifest.size_bytes),)
        # The hash of a content is not in it, so that no line of it ends a part.
        self._boundary = manifest.sha256.hex() if len(ranges) > 1 else None
        self._length = sum(len(self._preface(span)) + span.count for span in self._spans) + len(self._end())
        self._status = 304 if self._unchanged else 206 if ranges else 200
        self._headers = self._make_headers(manifest, source)

    def _make_headers(self, manifest: Manifest, source: tuple[NodeId, int]) -> dict[str, str]:
        if self._unchanged:
            return _validators_of(manifest, source)
        headers = {**head_of(manifest, source), "content-length": str(self._length)}
        if self._boundary is not None:
            headers["content-type"] = f"multipart/byteranges; boundary={self._boundary}"
        elif self._status == 206:
            headers["content-range"] = self._content_range(self._spans[0])
        return headers

    def _content_range(self, span: Span) -> str:
        return f"bytes {span.first}-{span.first + span.count - 1}/{self._put.manifest.size_bytes}"

    def _preface(self, span: Span) -> bytes:
        """What stands in front of one of several ranges (RFC 9110, 14.6)."""
        if self._boundary is None:
            return b""
        lines = ["", f"--{self._boundary}", f"content-type: {_type_of(self._put.manifest.content_type)}"]
        return "\r\n".join([*lines, f"content-range: {self._content_range(span)}", "", ""]).encode()

    def _end(self) -> bytes:
        return b"" if self._boundary is None else f"\r\n--{self._boundary}--\r\n".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the head leaves when the first piece is at hand, so that until then an error can be answered."""
        has_body = scope["method"] != "HEAD" and not self._unchanged and self._length > 0
        if not has_body:
            await self._start(send)
            await send({"type": "http.response.body", "body": b""})
            return
        zero_copy = ZERO_COPY in scope.get("extensions", {})
        remaining = self._length
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if remaining == self._length:
                    await self._start(send)
                remaining -= len(piece) if isinstance(piece, bytes) else piece.count
                await _send_piece(send, piece, zero_copy=zero_copy, more=remaining > 0)

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        """The body; nothing of it before there is something of the content."""
        for span in self._spans:
            preface = self._preface(span)
            async with aclosing(self._downloads.pieces(self._put, span.first, span.count)) as pieces:
                async for piece in pieces:
                    if preface:
                        yield preface
                        preface = b""
                    yield piece
        if end := self._end():
            yield end

    async def _start(self, send: Send) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        await send({"type": "http.response.start", "status": self._status, "headers": raw})


class ChunkResponse:
    """A chunk for another peer, as an ASGI app: bytes, or a file, which is closed afterwards and never read whole."""

    def __init__(self, content: bytes | ReadableFile, size: int) -> None:
        self._content = content
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = self._content
        raw = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % self._size)]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            piece = content if isinstance(content, bytes) else FileSpan(content, 0, self._size)
            await _send_piece(send, piece, zero_copy=ZERO_COPY in scope.get("extensions", {}), more=False)
        finally:
            if not isinstance(content, bytes):
                content.close()


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
