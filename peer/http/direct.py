"""The direct way of the requests that come by the thousand: reading and storing small files.

It answers what the usual way (`peer/http/callers.py`, then the routes of `peer/http/app.py`) would answer, after the
same checks, and hands on to it whatever is not plain: other header fields that mean something, a query, a file that
is not found, or neither here whole nor small, a form with more in it than one file. What the usual way costs a request
before anything is done for it, in routing, middleware, form parsing and tasks, is more than the work itself: with it a
peer serves less than half as many files of 4 KiB a second, and takes in up to a tenth fewer (measured:
docs/decisions.md).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peer.config import Config
from peer.files.downloads import is_good
from peer.files.intake import NewFile
from peer.http import files, uploads
from peer.http.callers import Callers
from peer.http.content import clean_filename, guess_content_type, head_of
from peer.http.errors import STATUS_OF, on_bug, on_known_error
from peer.http.nodes import latency_ms
from peer.http.services import Services
from peer.store.database import Committed
from peer.store.lookups import SmallFile
from peer.world.env import WholeAnswer
from protocol.identity import NodeId
from protocol.ops import FILE_KEY_PATTERN

FIELDS_OF_READS = frozenset(
    {b"origin", b"range", b"if-range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"}
)
"""Header fields that make the answer to a read another one."""
NOT_HERE = "minidfs.not_here"
"""In the scope of a read that could not be answered at once, for it not to be looked up again."""
METHODS_OF_READS = frozenset({"GET", "HEAD"})
FIELDS_OF_WRITES = frozenset(
    {b"origin", b"expect", b"transfer-encoding", b"repr-digest", b"content-digest", b"content-md5"}
)
HOSTS_MAX = 64
"""Remembered as names of this peer."""
FOUND_MAX = 4096
FOUND_BYTES_MAX = 16 * 1024 * 1024
"""Of files that were looked up since the last commit: beyond one of the two the earliest make room."""
PLAIN_FORM_BYTES_MAX = 1024
"""What a form may have beside the content of its file, to be plain."""

_READS: dict[str, Callable[..., object]] = {"/files/": files.download, "/download/": files.download_routed}
_FORM_TYPE = re.compile(rb"multipart/form-data; ?boundary=([A-Za-z0-9'()+_,./:=?-]{1,70})")
# One part, named by plain characters that every parser reads alike; the type without parameters, or none.
_PART_HEAD = re.compile(
    rb'(?i:content-disposition): form-data; name="file"; filename="([ !#$&-.0-\[\]-~]{1,255})"\r\n'
    rb"(?:(?i:content-type): ([a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*)\r\n)?"
)


class _Sent(NamedTuple):
    """A file as a client sent it."""

    filename: str
    content_type: str
    content: bytes


class _Asked(NamedTuple):
    """A file, and the route by which it is asked for."""

    endpoint: Callable[..., object]
    file_key: str


class _Found(NamedTuple):
    """A file as it lies here, and the answer with it."""

    file: SmallFile
    whole: WholeAnswer


_Way = Callable[[Services, Scope, Receive, Send], Awaitable[Receive | None]]
"""Answers a request, or gives what the usual way is to receive of it."""


class Direct:
    """The app: the direct way where it leads anywhere, and the usual one."""

    def __init__(self, usual: Callers, config: Config, services: Callable[[], Services | None]) -> None:
        self._usual: ASGIApp = usual
        self._names_us = usual.names_us
        self._config = config
        self._services = services
        self._hosts: set[tuple[bytes, object]] = set()
        self._recent: dict[str, _Found] = {}
        self._recent_bytes = 0
        self._found_as_of: Committed | None = None
        self._ways: dict[str, _Way] = {
            "GET": self._read,
            "HEAD": self._read,
            "POST": self._take_form,
            "PUT": self._take_raw,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        way = self._ways.get(scope["method"]) if scope["type"] == "http" and not scope["query_string"] else None
        services = None if way is None else self._services()
        if way is None or services is None:
            await self._usual(scope, receive, send)
            return
        try:
            unread = await way(services, scope, receive, send)
        except tuple(STATUS_OF) as error:
            await (await on_known_error(Request(scope), error))(scope, receive, send)
        except OSError:
            # The client is gone.
            raise
        except Exception as error:
            await (await on_bug(Request(scope), error))(scope, receive, send)
            raise
        else:
            if unread is not None:
                await self._usual(scope, unread, send)

    def _is_plain(self, scope: Scope, unusual: frozenset[bytes]) -> bool:
        """Whether a request has no field that is not for the direct way, and names this peer."""
        host: bytes | None = None
        for name, value in scope["headers"]:
            if name in unusual:
                return False
            if name == b"host":
                host = value
        return host is not None and self._is_ours(scope, host)

    def _is_ours(self, scope: Scope, host: bytes) -> bool:
        known = host, scope["server"]
        if known in self._hosts:
            return True
        if not host.isascii() or not self._names_us(scope, host.decode("ascii")):
            return False
        if len(self._hosts) < HOSTS_MAX:
            self._hosts.add(known)
        return True

    # --- reading ---

    def at_once(self, scope: Scope) -> WholeAnswer | None:
        """A small file that is here, read and verified: most reads end here, without a turn of any task."""
        services = self._services() if scope["method"] in METHODS_OF_READS and not scope["query_string"] else None
        asked = None if services is None else self._asked(scope)
        if services is None or asked is None:
            return None
        found = self._found(services, asked.file_key)
        if found is None:
            scope[NOT_HERE] = True
            return None
        scope["endpoint"] = asked.endpoint
        return found.whole

    async def _read(self, services: Services, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Send a small file that is here or with another peer, read and verified, in one piece."""
        asked = self._asked(scope)
        if asked is None:
            return receive
        found = None if NOT_HERE in scope else self._found(services, asked.file_key)
        if found is None and scope["method"] == "GET":
            found = await self._found_elsewhere(services, asked.file_key)
        if found is None:
            return receive
        scope["endpoint"] = asked.endpoint
        await send({"type": "http.response.start", "status": 200, "headers": found.whole.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else found.file.content})
        return None

    def _asked(self, scope: Scope) -> _Asked | None:
        """What a plain read is for; None for one that is for the usual way."""
        before, _, file_key = scope["path"].rpartition("/")
        endpoint = _READS.get(f"{before}/")
        if endpoint is None or not FILE_KEY_PATTERN.fullmatch(file_key) or not self._is_plain(scope, FIELDS_OF_READS):
            return None
        return _Asked(endpoint, file_key)

    def _found(self, services: Services, file_key: str) -> _Found | None:
        """A small file that is here: looked up once between two commits, and verified each time."""
        committed = services.here.database.committed
        if committed is not self._found_as_of:
            self._recent.clear()
            self._found_as_of, self._recent_bytes = committed, 0
        known = self._recent.get(file_key)
        if known is not None and is_good(known.file):
            return known
        file = services.downloads.small(file_key)
        if file is None:
            return None
        found = _found_at(services, file, services.others.me)
        self._remember(file_key, found)
        return found

    async def _found_elsewhere(self, services: Services, file_key: str) -> _Found | None:
        """A small file that another peer has: that costs both of them, so it is remembered as one that is here."""
        as_of = services.here.database.committed
        read = await services.downloads.small_elsewhere(file_key, self._config.inline_bytes_max)
        if read is None:
            return None
        found = _found_at(services, *read)
        # What was looked up before a commit may have been replaced by it.
        if self._found_as_of is as_of:
            self._remember(file_key, found)
        return found

    def _remember(self, file_key: str, found: _Found) -> None:
        self._forget(file_key)
        self._recent[file_key] = found
        self._recent_bytes += len(found.file.content)
        while len(self._recent) > FOUND_MAX or self._recent_bytes > FOUND_BYTES_MAX:
            self._forget(next(iter(self._recent)))

    def _forget(self, file_key: str) -> None:
        known = self._recent.pop(file_key, None)
        self._recent_bytes -= len(known.file.content) if known is not None else 0

    # --- storing ---

    async def _take_form(self, services: Services, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Store the one file of a small form."""
        if scope["path"] != "/files" or not self._is_plain(scope, FIELDS_OF_WRITES):
            return receive
        boundary = _FORM_TYPE.fullmatch(_field(scope, b"content-type") or b"")
        if boundary is None or not self._is_small(scope, PLAIN_FORM_BYTES_MAX):
            return receive
        body = await _Body.read(receive)
        sent = _sent_in(body.content, boundary[1]) if body.is_whole else None
        if sent is None:
            return body.again
        scope["endpoint"] = uploads.upload
        return await self._store(services, sent, None, body, (scope, send))

    async def _take_raw(self, services: Services, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """Store a small body."""
        before, _, file_key = scope["path"].rpartition("/")
        if before != "/files" or not FILE_KEY_PATTERN.fullmatch(file_key) or not self._is_small(scope, 0):
            return receive
        content_type = _field(scope, b"content-type")
        if content_type is None or not self._is_plain(scope, FIELDS_OF_WRITES):
            return receive
        body = await _Body.read(receive)
        if not body.is_whole:
            return body.again
        scope["endpoint"] = uploads.upload_raw
        sent = _Sent(file_key, content_type.decode("latin-1"), body.content)
        return await self._store(services, sent, file_key, body, (scope, send))

    def _is_small(self, scope: Scope, more: int) -> bool:
        """Whether a body of that length may be kept in memory and in the database."""
        length = _field(scope, b"content-length") or b""
        return length.isdigit() and len(length) < 10 and 0 < int(length) <= self._config.inline_bytes_max + more

    async def _store(
        self, services: Services, sent: _Sent, file_key: str | None, body: _Body, to: tuple[Scope, Send]
    ) -> Receive | None:
        if not services.uploads.is_small(len(sent.content)):
            return body.again
        name = clean_filename(sent.filename)
        new = NewFile(
            filename=name,
            content_type=guess_content_type(name, sent.content_type),
            file_key=file_key,
            copies=max(1, services.config.copies),
        )
        receipt = await services.uploads.take_in_small(new, sent.content)
        scope, send = to
        await JSONResponse(uploads.receipt_json(services, receipt))(scope, body.again, send)
        return None


def _found_at(services: Services, file: SmallFile, source: NodeId) -> _Found:
    head = head_of(file, (source, latency_ms(services.others, source)))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
    return _Found(file, WholeAnswer(headers, file.content))


class _Body:
    """A body that was received, for the usual way to receive it again if need be."""

    def __init__(self, receive: Receive, messages: list[Message], *, is_whole: bool) -> None:
        self._receive = receive
        self._messages = messages
        self.is_whole = is_whole
        self.content = _joined(messages) if is_whole else b""

    @classmethod
    async def read(cls, receive: Receive) -> _Body:
        """Receive it, to its end or to where it breaks off."""
        messages: list[Message] = []
        while True:
            message = await receive()
            messages.append(message)
            if message["type"] != "http.request":
                return cls(receive, messages, is_whole=False)
            if not message.get("more_body", False):
                return cls(receive, messages, is_whole=True)

    async def again(self) -> Message:
        """ASGI's `receive`: what came, and then what comes."""
        return self._messages.pop(0) if self._messages else await self._receive()


def _joined(messages: Iterable[Message]) -> bytes:
    pieces = [message.get("body", b"") for message in messages]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _field(scope: Scope, wanted: bytes) -> bytes | None:
    """A header field's value; empty without one, and None with several, which is for the usual way to judge."""
    values = [value for name, value in scope["headers"] if name == wanted]
    if len(values) > 1:
        return None
    return values[0] if values else b""


def _sent_in(body: bytes, boundary: bytes) -> _Sent | None:
    """The file in a form that has one part and nothing else; None for any other form."""
    opening, closing = b"--" + boundary + b"\r\n", b"\r\n--" + boundary
    head = _PART_HEAD.match(body, len(opening)) if body.startswith(opening) else None
    if head is None or not body.startswith(b"\r\n", head.end()):
        return None
    begin = head.end() + 2
    end = body.find(closing, begin)
    if end == -1 or body[end:] not in (closing + b"--\r\n", closing + b"--"):
        return None
    return _Sent(head[1].decode("ascii"), (head[2] or b"").decode("ascii"), body[begin:end])
