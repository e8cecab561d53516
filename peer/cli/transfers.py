"""Moving a file to a cluster and back: in pieces, with its checksum verified both ways, going on at another peer."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote

import click
import httpx

from peer.cli.progress import Advance
from peer.cli.remote import (
    CONNECT_TIMEOUT_S,
    ELSEWHERE,
    Refused,
    Remote,
    Unreachable,
    checked,
    file_path,
    streamed,
)

PIECE_BYTES = 1024 * 1024
ACCEPT_TIMEOUT_S = 60.0
"""Without a peer taking any more of an upload: longer than a busy disk stands still."""
RECEIPT_TIMEOUT_S = 120.0
"""Between the last byte of an upload and its receipt: that waits until other peers have it on disk."""

ROUNDS_IN_VAIN_MAX = 2


# --- up ---


def hash_of(file: IO[bytes], advance: Advance) -> bytes:
    """The SHA-256 of a file from where it stands, which is where it stands again afterwards."""
    start = file.tell()
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        advance(len(piece))
    file.seek(start)
    return digest.digest()


def upload_file(
    remote: Remote, file: IO[bytes], size: int, digest: bytes, key: str, query: dict[str, str], advance: Advance
) -> Any:
    """Upload a file that can be read again; its receipt.

    Its hash (see `hash_of`) is sent ahead, so that a peer that gets other bytes acknowledges nothing. Raises Refused,
    Unreachable.
    """
    headers = {"content-length": str(size), "repr-digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}

    def put(url: str) -> Any:
        file.seek(0)
        sent = _Sent(advance)
        try:
            return _put(remote, url + file_path(key), query, headers, sent.pieces(file, size))
        except Exception:
            sent.take_back()
            raise

    return remote.first_answer(put)


def upload_stream(remote: Remote, file: IO[bytes], key: str, query: dict[str, str], advance: Advance) -> Any:
    """Upload what comes once only, from a pipe; its receipt. Raises Refused, Unreachable.

    What has been read cannot be sent to another peer again. Other bytes than those sent are deleted again.
    """
    digest = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            advance(len(piece))
            yield piece

    url = remote.urls()[0]
    try:
        receipt = _put(remote, url + file_path(key), query, {}, pieces())
    except httpx.TransportError as error:
        raise Unreachable(f"{url} stopped answering ({error}); a pipe cannot be sent again by itself") from error
    if receipt["checksum_sha256"] != digest.hexdigest():
        remote.json("DELETE", file_path(key))
        raise click.ClickException("the peer received other bytes than were sent, and deleted them again; try again")
    return receipt


def _put(remote: Remote, url: str, query: dict[str, str], headers: dict[str, str], pieces: Iterator[bytes]) -> Any:
    timeout = httpx.Timeout(RECEIPT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, write=ACCEPT_TIMEOUT_S)
    return checked(remote.http.put(url, params=query, headers=headers, content=pieces, timeout=timeout)).json()


class _Sent:
    """The pieces of one try, counted, so that a failed one can be taken back."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._count = 0

    def pieces(self, file: IO[bytes], size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise click.ClickException("the file became shorter while it was sent; try again")
            left -= len(piece)
            yield piece
            self._count += len(piece)
            self._advance(len(piece))

    def take_back(self) -> None:
        self._advance(-self._count)


# --- down ---


class _Failure(NamedTuple):
    reason: click.ClickException
    received: int


class Download:
    """A file on its way here. What has arrived stays when the way breaks off, and is not fetched again."""

    def __init__(self, remote: Remote, key: str) -> None:
        self._remote = remote
        self._key = key
        self._digest = hashlib.sha256()
        self.received = 0
        self.sha256 = ""
        self.size = 0
        self.filename = ""

    def look(self) -> None:
        """Learn what there is to fetch. Raises Refused, Unreachable."""

        def head(url: str) -> httpx.Response:
            response = self._remote.http.head(url + file_path(self._key))
            if response.is_success:
                return response
            # Only the answer to a GET says in words what is wrong.
            return checked(self._remote.http.get(url + file_path(self._key), headers={"range": "bytes=0-0"}))

        response = self._remote.first_answer(head)
        self.sha256 = response.headers.get("etag", "").strip('"')
        self.size = int(response.headers.get("content-length", 0))
        self.filename = filename_of(response.headers.get("content-disposition", "")) or self._key

    def go_on_from(self, part: IO[bytes], advance: Advance) -> None:
        """Count what an earlier try left: `part` then stands at its end."""
        part.seek(0)
        while piece := part.read(PIECE_BYTES):
            self._digest.update(piece)
            self.received += len(piece)
            advance(len(piece))

    def fetch(self, to: IO[bytes], advance: Advance) -> None:
        """Fetch what is lacking, from one peer after the other, and verify all of it.

        Raises Refused, Unreachable, and ChecksumWrong when the bytes are not those of the file.
        """
        in_vain = 0
        while self.received < self.size and (failure := self._fetch_once(to, advance)) is not None:
            in_vain = 0 if failure.received else in_vain + 1
            if in_vain == ROUNDS_IN_VAIN_MAX:
                raise failure.reason
        if self._digest.hexdigest() != self.sha256:
            raise ChecksumWrong("the bytes that arrived are not those of the file, by its checksum; try again")

    def _fetch_once(self, to: IO[bytes], advance: Advance) -> _Failure | None:
        """Ask every peer in turn until one gave the rest; what went wrong, and how much arrived, when none did."""
        before = self.received
        reason: click.ClickException | None = None
        for url in self._remote.urls():
            try:
                self._fetch_from(url, to, advance)
            except Refused as error:
                if error.status not in ELSEWHERE:
                    raise
                reason = error
            except httpx.TransportError as error:
                reason = Unreachable(f"{url} stopped answering ({error}); run the command again to go on")
            else:
                return None
        assert reason is not None
        return _Failure(reason, self.received - before)

    def _fetch_from(self, url: str, to: IO[bytes], advance: Advance) -> None:
        headers = {"if-match": f'"{self.sha256}"'}
        if self.received:
            headers["range"] = f"bytes={self.received}-"
        with streamed(self._remote, url + file_path(self._key), headers) as response:
            if self.received and response.status_code != httpx.codes.PARTIAL_CONTENT:
                raise Refused(response.status_code, f"{url} does not send parts of files")
            for piece in response.iter_raw():
                to.write(piece)
                self._digest.update(piece)
                self.received += len(piece)
                advance(len(piece))


class ChecksumWrong(click.ClickException):
    """What arrived is not what was asked for."""


_FILENAME = re.compile(r"filename\*=UTF-8''([^;]+)", re.IGNORECASE)


def filename_of(disposition: str) -> str:
    """The name to save a file under, from `Content-Disposition`; empty when there is none that is safe here."""
    match = _FILENAME.search(disposition)
    name = unquote(match[1]) if match else ""
    last = re.split(r"[/\\:]", name)[-1]
    safe = "".join(char for char in last if char.isprintable())
    return "" if safe.strip(". ") == "" or safe.startswith("-") else safe


def part_of(target: Path, sha256: str) -> Path:
    """Where a download is kept until it is whole; another content of the file has another one."""
    return target.with_name(f".{target.name[:80]}.{sha256[:16]}.part")


def forget_part(part: Path) -> None:
    """Remove what is of no use."""
    with suppress(OSError):
        part.unlink(missing_ok=True)
