"""The `file` field of a multipart/form-data upload (RFC 7578), as a stream that never holds more than a piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from multipart import MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import Request

from peer.http.errors import HttpError

FIELD = "file"
SEGMENTS_MAX = 100
OTHER_FIELD_BYTES_MAX = 64 * 1024
"""Fields beside the file are read over; one larger than this is refused."""


@dataclass(slots=True)
class FilePart:
    """The `file` field: what the client says of it, and its content, which must be read to its end."""

    filename: str
    content_type: str
    pieces: AsyncIterator[bytes]


async def open_file_part(request: Request) -> FilePart:
    """Read up to the content of the `file` field.

    Raises HttpError 400 or 415 when there is none, and MultipartError for what is no multipart body; the pieces raise
    these too, for they end only when the whole form was read and had one `file` field.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != "multipart/form-data":
        raise HttpError(
            415, f"send the file as multipart/form-data with a field named {FIELD!r}: curl -F {FIELD}=@NAME"
        )
    boundary = options.get("boundary")
    if not boundary or len(boundary) > 1024:
        raise HttpError(400, "the multipart boundary is missing from Content-Type")
    form = _Form(request, boundary)
    segment = await form.find_file()
    if segment.filename == "":
        raise HttpError(400, f"no file was chosen; send one: curl -F {FIELD}=@NAME")
    return FilePart(
        filename=_as_people_wrote(segment.filename or ""),
        content_type=segment.content_type or "",
        pieces=form.content(),
    )


def _as_people_wrote(name: str) -> str:
    """A name whose bytes were read as Latin-1, in the encoding it came in: UTF-8 when it is that, else Windows' own."""
    raw = name.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


class _Form:
    """One form being parsed; events are handed on one at a time."""

    def __init__(self, request: Request, boundary: str) -> None:
        self._parser = PushMultipartParser(boundary, max_segment_count=SEGMENTS_MAX, header_charset="latin-1")
        self._events = self._parse(request)

    async def _parse(self, request: Request) -> AsyncIterator[MultipartSegment | bytes | None]:
        async for piece in request.stream():
            if piece and not self._parser.closed:
                for event in self._parser.parse(piece):
                    yield bytes(event) if isinstance(event, bytearray | memoryview) else event
        self._parser.close()

    async def find_file(self) -> MultipartSegment:
        async for event in self._events:
            if isinstance(event, MultipartSegment):
                if event.name == FIELD:
                    return event
                self._limit(event)
            elif event is not None:
                self._limit(None, len(event))
        raise HttpError(400, f"the form has no field named {FIELD!r}; send one: curl -F {FIELD}=@NAME")

    async def content(self) -> AsyncIterator[bytes]:
        in_file = True
        async for event in self._events:
            if isinstance(event, MultipartSegment):
                if event.name == FIELD:
                    raise HttpError(400, f"the form has two fields named {FIELD!r}; send one file a request")
                self._limit(event)
            elif event is None:
                in_file = False
            elif in_file:
                yield event
            else:
                self._limit(None, len(event))

    def _limit(self, segment: MultipartSegment | None, size: int = 0) -> None:
        """Count what comes in fields nobody asked for."""
        self._other_size = 0 if segment is not None else self._other_size + size
        if self._other_size > OTHER_FIELD_BYTES_MAX:
            raise HttpError(413, f"a field beside the file is larger than {OTHER_FIELD_BYTES_MAX} bytes")

    _other_size = 0
