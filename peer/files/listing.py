"""The list of files, read a page at a time."""

from __future__ import annotations

import base64

from peer.store.database import Database
from peer.store.lookups import FilesPage, PageEnd, files_page
from protocol import codec
from protocol.errors import MalformedMessage


class BadCursor(ValueError):
    """A cursor that no list of ours gave out."""


def cursor_of(end: PageEnd) -> str:
    """The end of a page as clients hand it back."""
    return base64.urlsafe_b64encode(f"{end.uploaded_at_ms}:{end.file_key}".encode()).decode().rstrip("=")


def parse_cursor(text: str) -> PageEnd:
    """Read what `cursor_of` wrote. Raises BadCursor."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
        uploaded_at_ms, _, file_key = raw.partition(":")
        return PageEnd(codec.read_int(int(uploaded_at_ms), codec.MS_MAX), codec.read_file_key(file_key))
    except (ValueError, MalformedMessage):
        raise BadCursor("the cursor is none of ours; take `next` from the page before") from None


class Listing:
    """Lists the files of one peer's catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def files(self, limit: int, after: PageEnd | None, name_prefix: str) -> FilesPage:
        """A page of files. Raises StoreError."""
        return await self._database.read(lambda connection: files_page(connection, limit, after, name_prefix))
