"""Forms as clients send them, and what the parser makes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio
from starlette.requests import Request

from peer.http.multipart import open_file_part

BOUNDARY = "----boundary"
KIND = f"multipart/form-data; boundary={BOUNDARY}"


def field(name: str, content: bytes, filename: str | None = None, *lines: str) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = [f'Content-Disposition: form-data; name="{name}"{named}', *lines, "", ""]
    return f"--{BOUNDARY}\r\n".encode() + "\r\n".join(head).encode() + content + b"\r\n"


def form(*fields: bytes) -> bytes:
    return b"".join(fields) + f"--{BOUNDARY}--\r\n".encode()


def parse(pieces: list[bytes], kind: str | None = KIND, *, breaks_off: bool = False) -> tuple[str, str, bytes]:
    """Filename, type and content of the file field."""

    async def messages() -> AsyncIterator[dict[str, Any]]:
        for piece in pieces:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.disconnect"} if breaks_off else {"type": "http.request", "body": b"", "more_body": False}

    async def main() -> tuple[str, str, bytes]:
        stream = messages()
        headers = [(b"content-type", kind.encode("latin-1"))] if kind is not None else []
        request = Request({"type": "http", "method": "POST", "path": "/files", "headers": headers}, stream.__anext__)
        part = await open_file_part(request)
        content = b"".join([piece async for piece in part.pieces])
        return part.filename, part.content_type, content

    return trio.run(main)
