"""HTTP/1.1 as bytes (RFC 9112): how requests are read and responses framed, without a socket.

httptools (llhttp) judges the syntax of a head. Where a head or a body ends is decided here, because llhttp runs on
into the next request and does not say where that begins: it is fed one head only, and we count bodies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

Headers = list[tuple[bytes, bytes]]

CHUNK_LINE_BYTES_MAX = 4096
"""For one chunk size with its extensions, or one trailer: nobody honest comes near."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class RequestError(Exception):
    """A request the server answers in place of the app, with this status, before it closes the connection."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class CountedBody:
    """A body of so many bytes; zero for a request without one."""

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def finished(self) -> bool:
        return self.left == 0

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Part what was received into a piece of the body, maybe empty, and what lies behind the body's end."""
        # A slice of everything is the same object: a large upload is not copied here.
        piece = received[: self.left]
        self.left -= len(piece)
        return piece, received[len(piece) :]


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1), read strictly: leniency here lets requests be smuggled past a proxy."""

    def __init__(self) -> None:
        self.finished = False
        self._chunk_left = 0
        self._behind_chunk = False
        self._in_trailer = False
        self._line_begun = b""

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Part what was received into a piece of the body, maybe empty, and what lies behind the body's end."""
        received = self._line_begun + received
        pieces, at = [], 0
        while not self.finished:
            if self._chunk_left:
                pieces.append(received[at : at + self._chunk_left])
                at += len(pieces[-1])
                self._chunk_left -= len(pieces[-1])
            end = -1 if self._chunk_left else received.find(b"\r\n", at)
            if end == -1:
                break
            self._on_line(received[at:end])
            at = end + 2
        rest = received[at:]
        if self.finished:
            return b"".join(pieces), rest
        if len(rest) > CHUNK_LINE_BYTES_MAX:
            raise RequestError(400, f"a line of the chunked body is over {CHUNK_LINE_BYTES_MAX} bytes")
        self._line_begun = rest
        return b"".join(pieces), b""

    def _on_line(self, line: bytes) -> None:
        if self._in_trailer:
            if b"\n" in line or b"\r" in line or b"\0" in line:
                raise RequestError(400, "malformed trailer")
            self.finished = not line
        elif self._behind_chunk:
            if line:
                raise RequestError(400, "a chunk is longer than it says")
            self._behind_chunk = False
        elif size := _CHUNK_SIZE.fullmatch(line):
            self._chunk_left = int(size[1], 16)
            self._behind_chunk = self._chunk_left > 0
            self._in_trailer = not self._behind_chunk
        else:
            raise RequestError(400, f"malformed chunk size {line[:40]!r}")


@dataclass(slots=True, eq=False)
class Request:
    """A request we can serve: its head, and its body, still to be read."""

    method: str
    http_version: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: Headers
    body: CountedBody | ChunkedBody
    keep_alive: bool
    expects_continue: bool

    @property
    def is_simple(self) -> bool:
        """Whether there is nothing to read behind its head, and its answer is framed by a length alone."""
        return self.keep_alive and self.http_version == "1.1" and self.body.finished


class HeadReader:
    """Reads the head of one request from the pieces in which it arrives."""

    def __init__(self, bytes_max: int, count_max: int) -> None:
        self.rest = b""
        """What arrived behind the head, once that is complete."""
        self._bytes_max = bytes_max
        self._count_max = count_max
        self._received = b""
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._version = ""
        self._keep_alive = False

    @property
    def begun(self) -> bool:
        return bool(self._received)

    def feed(self, received: bytes) -> Request | None:
        """Return the request once its head is complete. Raises RequestError as soon as it cannot become one."""
        if not self._received:
            received = received.lstrip(b"\r\n")  # RFC 9112, 2.2: some clients end a body with an empty line
        fed = len(self._received)
        self._received += received
        end = self._received.find(b"\r\n\r\n", max(0, fed - 3))
        size = len(self._received) if end == -1 else end + 4
        if size > self._bytes_max:
            raise RequestError(431, f"the head of the request is over {self._bytes_max} bytes")
        try:
            self._parser.feed_data(self._received[fed:size])
        except HttpParserUpgrade:
            pass  # we speak nothing else, so the request is answered as if it had not asked
        except HttpParserError as error:
            raise RequestError(400, f"malformed request: {error}") from None
        if len(self._headers) > self._count_max:
            raise RequestError(431, f"the request has over {self._count_max} header fields")
        if end == -1:
            return None
        self.rest = self._received[size:]
        return self._request()

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        # llhttp forgets both when it goes on to the next message.
        self._version = self._parser.get_http_version()
        self._keep_alive = self._parser.should_keep_alive()

    def _request(self) -> Request:
        method = self._parser.get_method().decode("ascii")
        if not self._version:
            raise RequestError(400, "malformed request: this is not HTTP/1.1")
        if self._version not in {"1.0", "1.1"}:
            raise RequestError(505, f"HTTP/{self._version} is not spoken here; use HTTP/1.1")
        if method == "CONNECT":
            raise RequestError(501, "CONNECT is not supported: this is no proxy")
        if self._version == "1.1" and len(self._all(b"host")) != 1:
            raise RequestError(400, "an HTTP/1.1 request needs one Host header")
        raw_path, query_string = _split_target(method, self._target)
        path, body = _decode_path(raw_path), self._body()
        expects_continue = self._expects_continue() and not body.finished
        return Request(
            method, self._version, path, raw_path, query_string, self._headers, body, self._keep_alive, expects_continue
        )

    def _body(self) -> CountedBody | ChunkedBody:
        # llhttp has refused most of this already; where a request ends is too important to rest on one opinion.
        lengths, encodings = self._all(b"content-length"), self._all(b"transfer-encoding")
        if encodings and (lengths or self._version == "1.0"):
            raise RequestError(400, "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0")
        if encodings and [encoding.lower() for encoding in encodings] != [b"chunked"]:
            raise RequestError(501, "the only supported Transfer-Encoding is chunked")
        if encodings:
            return ChunkedBody()
        if lengths and (len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18):
            raise RequestError(400, "Content-Length must be given once, as a decimal number")
        return CountedBody(int(lengths[0]) if lengths else 0)

    def _expects_continue(self) -> bool:
        expectations = self._all(b"expect")
        if any(expectation.lower() != b"100-continue" for expectation in expectations):
            raise RequestError(417, "the only supported expectation is 100-continue")
        return bool(expectations) and self._version == "1.1"

    def _all(self, wanted: bytes) -> list[bytes]:
        return [value for name, value in self._headers if name == wanted]


def _split_target(method: str, target: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request target in any of its forms (RFC 9112, 3.2)."""
    path, _, query = target.partition(b"?")
    if b"#" in target:
        raise RequestError(400, "the request target must not have a fragment; write # as %23")
    if b"://" in path and not path.startswith(b"/"):
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    if not path.startswith(b"/") and (method, path) != ("OPTIONS", b"*"):
        raise RequestError(400, "the request target must start with a slash")
    return path, query


def _decode_path(raw_path: bytes) -> str:
    path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
    if b"\0" in path or _BAD_ESCAPE.search(raw_path):
        raise RequestError(400, "the path has a malformed % escape or a NUL")
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise RequestError(400, "the path is not UTF-8 behind its % escapes") from None


class Response:
    """How a response is framed: by a Content-Length, in chunks or, for HTTP/1.0, by the end of the connection."""

    def __init__(self, request: Request) -> None:
        self.closing = not request.keep_alive
        """The connection ends with this response."""
        self.bodiless = request.method == "HEAD"
        self.complete = False
        self._http_version = request.http_version
        self._head: bytes | None = None
        """Held back, to leave with the first piece of the body; then b""."""
        self._left: int | None = None
        """Bytes to come of a body with a Content-Length."""
        self._chunked = False

    def start(self, status: int, app_headers: Iterable[tuple[bytes, bytes]], date: bytes, closing: bool) -> None:
        """Settle the framing; the connection's own header fields are ours to write, whatever the app says of them."""
        if self._head is not None:
            raise RuntimeError("the app started its response twice")
        self._left = None  # an app whose first try was refused may try again
        headers = [(name, value) for name, value in app_headers if not self._is_ours(name.lower(), value, status)]
        if not any(name.lower() == b"date" for name, _ in headers):
            headers.append((b"date", date))
        self.bodiless = self.bodiless or status in {204, 304}
        if self._left is None and not self.bodiless:
            self._chunked = self._http_version == "1.1"
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            else:
                closing = True
        self.closing = self.closing or closing
        if self.closing:
            headers.append((b"connection", b"close"))
        elif self._http_version == "1.0":
            headers.append((b"connection", b"keep-alive"))
        self._head = format_head(status, headers)

    def _is_ours(self, name: bytes, value: bytes, status: int) -> bool:
        if name == b"content-length":
            if self._left is not None or not value.isdigit():
                raise ValueError(f"the app's Content-Length {value!r} is malformed or not its first")
            self._left = int(value)
            return status == 204  # RFC 9110, 8.6 forbids it there
        if name == b"connection":
            self.closing = self.closing or value.lower() == b"close"
            return True
        return name == b"transfer-encoding"

    def frame(self, size: int, more: bool) -> tuple[bytes, bytes]:
        """What goes before and behind the next piece of the body: the head if held back, the marks of a chunk."""
        if self._head is None:
            raise RuntimeError("the app sent a body before it started its response")
        before, after = self._head, b""
        if self._chunked:
            if size:
                before, after = before + b"%x\r\n" % size, b"\r\n"
            if not more:
                after += b"0\r\n\r\n"
        elif self._left is not None and not self.bodiless:
            if size > self._left or (size < self._left and not more):
                raise RuntimeError(f"the app sent {size} bytes where its Content-Length leaves {self._left}")
            self._left -= size
        self._head = b""
        return before, after


def format_whole(headers: Sequence[tuple[bytes, bytes]], size: int) -> bytes:
    """The head of a whole response of status 200, up to its date; ValueError if it does not give this size."""
    if (b"content-length", b"%d" % size) not in headers:
        raise ValueError(f"a whole answer of {size} bytes has to give that as its content-length")
    return format_head(200, headers).removesuffix(b"\r\n")


def format_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Format a status line and header fields; ValueError if a field holds what would end it early."""
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise ValueError("a response header contains CR, LF or NUL")
    return head
