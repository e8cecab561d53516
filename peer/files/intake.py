"""The bytes of one upload: cut into chunks, hashed and stored as they come."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import trio

from peer.config import Config
from peer.store.chunk_files import ChunkWriter, FreshChunk
from peer.store.chunks import ChunkStore
from peer.world.env import Env, Work
from protocol.ops import Chunk, Manifest

Offer = Callable[[FreshChunk], None]
"""Called with each chunk that is a file, as soon as it is written."""


class UploadRefused(Exception):
    """The upload breaks off or is not what its sender said; nothing of it stays."""


class UploadTooLarge(UploadRefused):
    """No file may be so large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """What a client says of the file it sends."""

    filename: str
    content_type: str
    file_key: str | None
    """None: a new one is drawn."""
    copies: int
    min_copies: int = 1
    """Fewer are a failure; at most `copies`."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of the whole content, by the name hashlib has for the algorithm; checked before anything is acknowledged."""

    def manifest(
        self, file_key: str, size_bytes: int, sha256: bytes, chunks: tuple[Chunk, ...], wall_ms: int
    ) -> Manifest:
        """The file, now that its content has come."""
        return Manifest(
            file_key=file_key,
            filename=self.filename,
            size_bytes=size_bytes,
            sha256=sha256,
            content_type=self.content_type,
            uploaded_at_ms=wall_ms,
            copies=self.copies,
            chunks=chunks,
        )


class Intake:
    """The bytes of one upload: cut into chunks, hashed and stored as they come."""

    def __init__(self, env: Env, config: Config, chunks: ChunkStore, digests: dict[str, bytes], offer: Offer) -> None:
        self._env = env
        self._config = config
        self._stored = chunks
        self._offer = offer
        self._sha256 = hashlib.sha256()
        self._expected = digests
        self._others = {name: hashlib.new(name, usedforsecurity=False) for name in digests if name != "sha256"}
        self._writer = ChunkWriter(chunks.files)
        self._size = 0
        self._chunks: list[Chunk] = []
        self.fresh: list[FreshChunk] = []

    async def receive(self, pieces: AsyncIterator[bytes]) -> None:
        """Take everything in. Raises UploadRefused, NoSpace or StoreError, and what `pieces` raises."""
        chunk_max = self._config.chunk_bytes_max
        async for piece in pieces:
            rest = memoryview(piece)
            while rest:
                part, rest = rest[: chunk_max - self._writer.size], rest[chunk_max - self._writer.size :]
                await self._absorb(part)
                if self._writer.size == chunk_max:
                    await self._finish_chunk()
        if self._writer.size:
            await self._finish_chunk()
        self._check_digests()

    async def _absorb(self, part: memoryview) -> None:
        self._size += len(part)
        if self._size > self._config.file_bytes_max:
            raise UploadTooLarge(f"the file is larger than {self._config.file_bytes_max} bytes")
        if self._size <= self._config.inline_bytes_max:
            # Microseconds, and no disk: cheaper here than on a thread.
            self._update(part)
        else:
            await self._env.run_blocking(Work.DISK, self._update, part)

    def _update(self, part: memoryview) -> None:
        self._sha256.update(part)
        for other in self._others.values():
            other.update(part)
        self._writer.write(part)

    async def _finish_chunk(self) -> None:
        writer = self._writer
        if writer.is_inline:
            chunk = writer.finish()
        else:
            chunk = await self._env.run_blocking(Work.DISK, writer.finish)
        self._writer = ChunkWriter(self._stored.files)
        self.fresh.append(chunk)
        self._chunks.append(Chunk(chunk.hash, chunk.size))
        if chunk.serial is not None:
            self._offer(chunk)

    def _check_digests(self) -> None:
        for name, expected in self._expected.items():
            actual = (self._sha256 if name == "sha256" else self._others[name]).digest()
            if actual != expected:
                raise UploadRefused(f"the content's {name} is {actual.hex()}, not the one sent with it; send it again")

    def manifest(self, new: NewFile, file_key: str, wall_ms: int) -> Manifest:
        """What was taken in."""
        return new.manifest(file_key, self._size, self._sha256.digest(), tuple(self._chunks), wall_ms)

    def adopted(self, chunks: Sequence[FreshChunk]) -> None:
        """These chunks exist now; they are no longer ours to discard."""
        kept = {id(chunk) for chunk in chunks}
        self.fresh = [chunk for chunk in self.fresh if id(chunk) not in kept]

    async def discard(self) -> None:
        """Remove whatever was stored and not adopted (cancelled or not)."""
        self._stored.discard(self.fresh)
        self.fresh = []
        if not self._writer.is_inline:
            with trio.CancelScope(shield=True):
                await self._env.run_blocking(Work.DISK, self._writer.abandon)
