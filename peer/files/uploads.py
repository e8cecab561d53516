"""Taking a file in: hash and store it as it arrives, replicate it while the rest still comes, answer with a receipt.

The receipt is a promise: it names exactly the peers whose `hold` of this put was heard, and a hold is written only
after every byte was synced and verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

import trio
from blake3 import blake3

from peer.config import Config
from peer.files.delivery import Deliveries, Delivery, TooFewCopies
from peer.files.intake import Intake, NewFile
from peer.files.pushing import Pusher
from peer.files.targets import Targets
from peer.gossip.peers import Peers
from peer.store.chunk_files import FreshChunk
from peer.store.holding import Holding
from peer.tasks import helper_tasks
from peer.world.env import Env, NoSpace
from protocol.identity import NodeId
from protocol.ops import Chunk, Manifest, Put

FILE_IDS = "file ids"
"""The random stream of the ids of files whose clients name none."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was stored, and where it is."""

    put: Put
    deliveries: tuple[Delivery, ...]
    durable_copies: tuple[NodeId, ...]
    """This peer, and those that said now that they have it."""


class Uploads:
    """Takes files in for one peer."""

    def __init__(
        self, env: Env, config: Config, here: Holding, others: Peers, targets: Targets, deliveries: Deliveries
    ) -> None:
        self._env = env
        self._config = config
        self._here = here
        self._others = others
        self._targets = targets
        self._deliveries = deliveries
        self._ids = env.chance(FILE_IDS)

    def new_file_key(self) -> str:
        """A key no file has: a random UUID (RFC 9562, version 4)."""
        return str(UUID(int=self._ids.getrandbits(128), version=4))

    async def take_in(self, new: NewFile, pieces: AsyncIterator[bytes]) -> Receipt:
        """Store a file and replicate it.

        Raises UploadRefused, NoSpace or StoreError, and what `pieces` raises; then nothing of it stays. Raises
        TooFewCopies, also when a peer that had promised a copy is gone a moment later; only then the file stays.
        """
        self._here.space.check()
        self._check_reachable(new.min_copies)
        file_key = new.file_key or self.new_file_key()
        targets = self._others.placement.targets_of(file_key, new.copies)
        async with helper_tasks() as nursery:
            pushers = {
                target: self._deliveries.pusher(target, nursery) for target in self._others.worth_asking(targets)
            }
            put = await self._store(new, file_key, pieces, pushers, nursery)
            deliveries = await self._deliveries.deliver(put, targets, pushers)
        receipt = self._receipt(put, deliveries)
        if len(receipt.durable_copies) < new.min_copies:
            raise TooFewCopies(
                f"{put.manifest.file_key} is stored, with {len(receipt.durable_copies)} of {new.min_copies} copies so"
                " far, for a peer failed just now; send it again under this file_id until it has them"
            )
        return receipt

    def _receipt(self, put: Put, deliveries: Iterable[Delivery]) -> Receipt:
        # Not whom the catalog has for holders: of a put that was there before, one may have lost its disk since.
        confirmed = [delivery.node_id for delivery in deliveries if delivery.error is None]
        durable = sorted([self._here.me, *confirmed])
        self._here.tell_put(put, durable_copies=list(durable))
        return Receipt(put, tuple(deliveries), tuple(durable))

    def is_small(self, size: int) -> bool:
        """Whether `take_in_small` takes a content of this many bytes."""
        config = self._config
        return 0 < size <= min(config.inline_bytes_max, config.chunk_bytes_max, config.file_bytes_max)

    async def take_in_small(self, new: NewFile, content: bytes) -> Receipt:
        """`take_in` of a content that is at hand, goes into the database, and to others in an exchange.

        No task, no thread and no file is needed before the one commit. At least one copy may be asked for.
        """
        self._here.space.check()
        file_key = new.file_key or self.new_file_key()
        targets = self._others.placement.targets_of(file_key, new.copies)
        chunk = FreshChunk(blake3(content).digest(), len(content), None, content)
        sha256 = hashlib.sha256(content).digest()
        if new.file_key is not None:
            await self._targets.ask(file_key)
        chunks = (Chunk(chunk.hash, chunk.size),)
        manifest = new.manifest(file_key, len(content), sha256, chunks, self._here.wall_ms())
        try:
            put, _ = await self._write(manifest, {chunk.hash: chunk})
        except NoSpace:
            await self._here.database.use_last_room()
            raise
        deliveries = await self._deliveries.deliver_small(put, targets, self._others.worth_asking(targets))
        return self._receipt(put, deliveries)

    def _check_reachable(self, min_copies: int) -> None:
        reachable = 1 + len(self._others.worth_asking(member.node_id for member in self._others.membership.members()))
        if reachable < min_copies:
            raise TooFewCopies(
                f"{min_copies} copies were asked for and {reachable} peers can be reached; ask for fewer, or later"
            )

    async def _store(
        self,
        new: NewFile,
        file_key: str,
        pieces: AsyncIterator[bytes],
        pushers: dict[NodeId, Pusher],
        nursery: trio.Nursery,
    ) -> Put:
        """Have the file on this disk and in the log, its larger chunks offered to the targets on the way."""

        def offer(chunk: FreshChunk) -> None:
            for pusher in pushers.values():
                pusher.offer(chunk)

        intake = Intake(self._env, self._config, self._here.chunks, new.digests, offer)
        try:
            await intake.receive(pieces)
            if new.min_copies > 1:
                await self._deliveries.stage(intake.fresh, file_key, new.min_copies - 1, pushers, nursery)
            if new.file_key is not None:
                await self._targets.ask(file_key)
            return await self._commit(intake, new, file_key)
        except BaseException as error:
            await intake.discard()
            if isinstance(error, NoSpace):
                await self._here.database.use_last_room()
            if isinstance(error, Exception):
                await self._call_off(pushers.values())
            raise

    async def _call_off(self, pushers: Iterable[Pusher]) -> None:
        """Leave nothing of a broken-off upload at its targets; where that fails, their lease on it lapses."""
        with trio.move_on_after(self._config.target_timeout_s):
            async with trio.open_nursery() as nursery:
                for pusher in pushers:
                    nursery.start_soon(pusher.call_off)

    async def _commit(self, intake: Intake, new: NewFile, file_key: str) -> Put:
        manifest = intake.manifest(new, file_key, self._here.wall_ms())
        put, adopted = await self._write(manifest, {chunk.hash: chunk for chunk in intake.fresh})
        intake.adopted(adopted)
        await intake.discard()
        return put

    async def _write(self, manifest: Manifest, fresh: Mapping[bytes, FreshChunk]) -> tuple[Put, list[FreshChunk]]:
        """Commit a file of which all chunks are fresh, here and in the log; returns which of them were adopted."""

        def step() -> tuple[Put, list[FreshChunk]]:
            self._here.check_open()
            known = self._same_as_shown(manifest)
            # Not `known` itself: others may have removed it, and this peer not heard of that.
            written = manifest if known is None else _sent_again(known)
            put = self._here.replica.put(written, self._here.wall_ms(), is_held=True)
            adopted = self._here.take_content(put.dot, fresh, {})
            assert adopted is not None, "all that was taken in is fresh"
            return put, adopted

        put, adopted = await self._here.database.write(step, grows=True)
        if all(chunk.content is not None for chunk in fresh.values()):
            self._here.recent.remember(put.dot, {chunk.hash: chunk.content or b"" for chunk in fresh.values()})
        self._here.tell_changed()
        return put, adopted

    def _same_as_shown(self, manifest: Manifest) -> Manifest | None:
        """A client that repeats an upload, because it did not hear the answer, gets the answer to the first."""
        versions = self._here.database.store.puts_of(manifest.file_key)
        if not versions or not versions[-1].manifest.is_upload:
            return None
        shown = versions[-1].manifest
        is_same = (shown.sha256, shown.size_bytes, shown.filename, shown.content_type, shown.chunks) == (
            manifest.sha256,
            manifest.size_bytes,
            manifest.filename,
            manifest.content_type,
            manifest.chunks,
        )
        return shown if is_same else None


def _sent_again(manifest: Manifest) -> Manifest:
    """An upload that came again, of the same second, and yet to be told from the first: that may have been removed."""
    second, ms = divmod(manifest.uploaded_at_ms, 1000)
    return replace(manifest, uploaded_at_ms=1000 * second + (ms + 1) % 1000)
