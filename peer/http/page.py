"""The web page at `/`, and what belongs to it: plain files in the package, nothing from elsewhere.

Without scripts it lists files and lets them be downloaded; its modules (`assets/*.js`) do the rest by the interface
that all clients use.
"""

from __future__ import annotations

import hashlib
import re
from html import escape
from importlib.resources import files as package_files
from typing import NamedTuple
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from peer.files.listing import BadCursor, cursor_of, parse_cursor
from peer.http.errors import HttpError
from peer.http.services import Services
from peer.http.times import rfc3339
from peer.store.lookups import FilesPage, ListedFile
from protocol.identity import NodeId

ROWS = 100
"""Files on the page as it is sent; its scripts show more."""
NAME_CHARS_MAX = 1024

TYPES = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class _Asset(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def _load() -> dict[str, _Asset]:
    """All files of the page, by name."""
    found: dict[str, _Asset] = {}
    for path in package_files("peer.http").joinpath("assets").iterdir():
        content = path.read_bytes()
        media_type = TYPES.get(path.name.rpartition(".")[2])
        if media_type is not None:
            found[path.name] = _Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


_ASSETS = _load()
_TEMPLATE = _ASSETS.pop("index.html").content.decode()
_PLACE = re.compile(r"\{\{(\w+)\}\}")


async def asset(request: Request) -> Response:
    """`GET /page/{name}`: a script, a style, a picture."""
    found = _ASSETS.get(request.path_params["name"])
    if found is None:
        raise HttpError(404, "the page has no such part")
    headers = {"etag": found.etag, "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


async def page(request: Request) -> Response:
    """`GET /`: the page."""
    services: Services | None = request.app.state.services()
    name = request.query_params.get("name", "")[:NAME_CHARS_MAX]
    addresses = () if services is None else tuple(member.address for member in services.others.membership.members())
    peers = tuple(f"http://{address}" for address in addresses if _is_plain(address))
    values = {
        "peers": " ".join(peers),
        "name": escape(name),
        "node": escape(request.app.state.config.node_id),
        "version": escape(request.app.state.version),
        "sentence": "This peer is still joining its cluster.",
        "shown": "",
        "rows": "",
        "next": "",
    }
    if services is not None:
        found = await _files(services, request, name)
        total = await services.listing.files(1, None, "") if name else found
        values["sentence"] = f"{total.total} files on {len(addresses)} nodes."
        values["shown"] = f"{len(found.files)} of {found.total} files" if found.total else "No files."
        values["rows"] = "".join(_row(file, holders) for file, holders in found.files)
        values["next"] = "" if found.end is None else _older(name, cursor_of(found.end))
    # In one pass: what is filled in may look like a place to be filled.
    content = _PLACE.sub(lambda match: values[match[1]], _TEMPLATE)
    return Response(content, media_type=TYPES["html"], headers=_headers(peers))


async def _files(services: Services, request: Request, name: str) -> FilesPage:
    after = request.query_params.get("after")
    try:
        return await services.listing.files(ROWS, None if after is None else parse_cursor(after), name)
    except BadCursor as error:
        raise HttpError(400, str(error)) from None


def _is_plain(address: str) -> bool:
    """Whether an address can stand in a header: whoever is a member says where it is."""
    return address.isascii() and all(char.isalnum() or char in ".-:[]_" for char in address)


def _headers(peers: tuple[str, ...]) -> dict[str, str]:
    policy = "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            " ".join(("connect-src 'self'", *peers)),
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    )
    return {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _row(file: ListedFile, holders: tuple[NodeId, ...]) -> str:
    link, name = escape(f"files/{quote(file.file_key, safe='')}"), escape(file.filename)
    cells = (
        f'<td class="name"><a href="{link}" download="{name}">{name}</a></td>',
        f'<td class="number">{file.size_bytes}</td>',
        f'<td class="time">{rfc3339(file.uploaded_at_ms)}</td>',
        f'<td class="copies">{escape(", ".join(holders))}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>\n"


def _older(name: str, cursor: str) -> str:
    query = urlencode({"after": cursor, **({"name": name} if name else {})})
    return f'<a href="?{escape(query)}">Older files</a>'
