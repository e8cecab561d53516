"""Taking a file in: hash and store it as it arrives, replicate it while the rest still comes, answer with a receipt.

The receipt is a promise: it names exactly the peers whose `hold` of this put was heard, and a hold is written only
after every byte was synced and verified.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import Exchanger
from peer.gossip.peers import PeerState
from peer.store.chunk_files import ChunkWriter, FreshChunk
from peer.store.chunks import READ_BYTES
from peer.store.staging import STAGED_FOR_S
from peer.tasks import helper_tasks
from peer.world.env import StoreError, Work
from protocol.identity import Dot, NodeId
from protocol.membership import Status
from protocol.messages import Member
from protocol.ops import Chunk, Manifest, Put

log = logging.getLogger("minidfs.uploads")

PATIENCE_MAX = 5
"""A target that gives signs of life may take this many times `target_timeout_s`."""

NAMES_MAX = 1024
"""Of staged chunks in one message that renews their leases, or says that they are not needed."""

RENEW_EVERY_S = STAGED_FOR_S / 4
"""So that a lease outlives a few renewals that got lost."""

SILENT_PROBES = 2.0
"""A target that answered within so many probe intervals gives signs of life: on a busy machine one may be late."""

Pieces = AsyncIterator[bytes]


class UploadRefused(Exception):
    """The upload breaks off or is not what its sender said; nothing of it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """What a client says of the file it sends."""

    filename: str
    content_type: str
    file_key: str | None
    """None: a new one is drawn."""
    copies: int
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of the whole content, by the name hashlib has for the algorithm; checked before anything is acknowledged."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How replication to one peer went."""

    node_id: NodeId
    error: str | None
    instead_of: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was stored, and where it is."""

    put: Put
    deliveries: tuple[Delivery, ...]
    durable_copies: tuple[NodeId, ...]
    """This peer, and those that said now that they have it."""


class Uploads:
    """Takes files in for one peer."""

    def __init__(self, state: PeerState, exchanger: Exchanger) -> None:
        self._state = state
        self._exchanger = exchanger
        self._ids = state.env.chance("file ids")

    def new_file_key(self) -> str:
        """A key no file has: a random UUID (RFC 9562, version 4)."""
        return str(UUID(int=self._ids.getrandbits(128), version=4))

    async def take_in(self, new: NewFile, pieces: Pieces) -> Receipt:
        """Store a file and replicate it.

        Raises UploadRefused, NoSpace or StoreError, and what `pieces` raises; then nothing of it stays.
        """
        self._state.space.check()
        file_key = new.file_key or self.new_file_key()
        targets = self._state.placement.targets_of(file_key, new.copies)
        async with helper_tasks() as nursery:
            pushers = {
                target: _Pusher(self._state, target)
                for target in targets
                if self._state.membership.status(target) is not Status.DOWN and target != self._state.me
            }
            for pusher in pushers.values():
                nursery.start_soon(pusher.run)
            intake = _Intake(self._state, new.digests)
            try:
                await intake.receive(pieces, list(pushers.values()))
                if new.file_key is not None:
                    await self.ask_targets(file_key)
                put = await self._commit(intake, new, file_key)
            except BaseException as error:
                await intake.discard()
                if isinstance(error, Exception):
                    await self._call_off(list(pushers.values()))
                raise
            deliveries = await self._deliver(put, targets, pushers)
        # Not whom the catalog has for holders: of a put that was there before, one may have lost its disk since.
        confirmed = [delivery.node_id for delivery in deliveries if delivery.error is None]
        return Receipt(put, tuple(deliveries), tuple(sorted([self._state.me, *confirmed])))

    async def _call_off(self, pushers: Sequence[_Pusher]) -> None:
        """Leave nothing of a broken-off upload at its targets; where that fails, their lease on it lapses."""
        with trio.move_on_after(self._state.config.target_timeout_s):
            async with trio.open_nursery() as nursery:
                for pusher in pushers:
                    nursery.start_soon(pusher.call_off)

    async def _commit(self, intake: _Intake, new: NewFile, file_key: str) -> Put:
        manifest = intake.manifest(new, file_key, self._state.wall_ms())
        fresh = {chunk.hash: chunk for chunk in intake.fresh}

        def step() -> tuple[Put, list[FreshChunk]]:
            put = self._same_as_shown(manifest) or self._state.replica.put(manifest, self._state.wall_ms())
            return put, self._state.take_hold(put.dot, fresh, {}, recovered=False)

        put, adopted = await self._state.database.write(step, grows=True)
        intake.adopted(adopted)
        await intake.discard()
        self._state.news.ring()
        return put

    def _same_as_shown(self, manifest: Manifest) -> Put | None:
        """A client that repeats an upload, because it did not hear the answer, gets the answer to the first."""
        versions = self._state.database.store.puts_of(manifest.file_key)
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
        return versions[-1] if is_same else None

    # --- replication ---

    async def _deliver(self, put: Put, targets: Sequence[NodeId], pushers: dict[NodeId, _Pusher]) -> list[Delivery]:
        """Bring the file to all targets at once; for one that fails, to the next peer that would be a target."""
        deliveries: dict[NodeId, Delivery] = {}

        async def deliver(target: NodeId) -> None:
            deliveries[target] = await self._deliver_to(target, put, pushers.get(target))

        # The put is written: from here on nothing may make it look as if it were not.

        async with trio.open_nursery() as nursery:
            for target in targets:
                if target != self._state.me:
                    nursery.start_soon(deliver, target)
        ordered = [deliveries[target] for target in targets if target in deliveries]
        return ordered + await self._stand_in(put, [delivery for delivery in ordered if delivery.error])

    async def _stand_in(self, put: Put, failed: Sequence[Delivery]) -> list[Delivery]:
        everyone = self._state.placement.targets_of(put.manifest.file_key, len(self._state.membership.members()))
        spare = [
            node_id
            for node_id in everyone[put.manifest.copies :]
            if node_id != self._state.me and self._state.membership.status(node_id) is not Status.DOWN
        ]
        stood_in: list[Delivery] = []
        for failure in failed:
            while spare:
                node_id = spare.pop(0)
                delivery = await self._deliver_whole(node_id, put)
                if delivery.error is None:
                    stood_in.append(Delivery(node_id, None, instead_of=failure.node_id))
                    break
        return stood_in

    async def _deliver_whole(self, node_id: NodeId, put: Put) -> Delivery:
        """Bring a file that is here to a peer that was not offered its chunks while they arrived."""
        pusher = _Pusher(self._state, node_id)
        try:
            for chunk in put.manifest.chunks or ():
                row = self._state.chunks.row(chunk.hash)
                if row is not None and row.serial is not None:
                    pusher.offer(FreshChunk(chunk.hash, chunk.size, row.serial, None))
        except StoreError as error:
            return Delivery(node_id, str(error))
        async with helper_tasks() as nursery:
            nursery.start_soon(pusher.run)
            return await self._deliver_to(node_id, put, pusher)

    async def _deliver_to(self, target: NodeId, put: Put, pusher: _Pusher | None) -> Delivery:
        if pusher is None:
            return Delivery(target, f"{target} is down; it gets the file when it is back")
        pusher.close()
        await pusher.done.wait()
        if pusher.error is not None:
            return Delivery(target, pusher.error)
        error = await self.exchange_patiently(target, put.dot)
        try:
            if error is None and target not in self._state.holders(put.dot):
                error = f"{target} has heard of the file and will fetch it"
        except StoreError as failure:
            error = str(failure)
        return Delivery(target, error)

    async def exchange_patiently(self, target: NodeId, hold: Dot | None = None) -> str | None:
        """Exchange logs with a peer for as long as it gives signs of life; what went wrong, or None."""
        patience = trio.CancelScope(deadline=self._state.env.clock.now() + self._state.config.target_timeout_s)
        async with helper_tasks() as nursery:
            nursery.start_soon(self._extend, patience, target)
            with patience:
                try:
                    await self._exchanger.exchange(target, hold)
                except (PeerUnreachable, StoreError) as error:
                    return str(error)
                return None
        return f"{target} did not answer in time; it gets the file as soon as it can"

    async def _extend(self, patience: trio.CancelScope, target: NodeId) -> None:
        """Give a busy peer that still answers probes more time than one that may be gone."""
        config, clock = self._state.config, self._state.env.clock
        limit = clock.now() + PATIENCE_MAX * config.target_timeout_s
        while True:
            await trio.sleep(config.target_timeout_s / 4)
            heard_at = self._state.membership.heard_at(target)
            if heard_at is not None and clock.now() - heard_at < config.probe_interval_s * SILENT_PROBES:
                patience.deadline = min(limit, clock.now() + config.target_timeout_s / 2)

    async def ask_targets(self, file_key: str) -> list[NodeId]:
        """Hear from the peers that should hold a key what they have of it, in one bounded round trip.

        Returns those that answered. Before a delete or a caller's id it keeps versions from being overlooked.
        """
        shown = self._state.shown(file_key)
        copies = shown.manifest.copies if shown else self._state.config.copies
        wanted = dict.fromkeys(self._state.placement.targets_of(file_key, copies))
        wanted.update(dict.fromkeys(self._state.holders(shown.dot) if shown else ()))
        answered: list[NodeId] = []

        async def ask(node_id: NodeId) -> None:
            if await self.exchange_patiently(node_id) is None:
                answered.append(node_id)

        async with trio.open_nursery() as nursery:
            for node_id in wanted:
                if node_id != self._state.me and self._state.membership.status(node_id) is not Status.DOWN:
                    nursery.start_soon(ask, node_id)
        return answered


class _Intake:
    """The bytes of one upload: cut into chunks, hashed and stored as they come."""

    def __init__(self, state: PeerState, digests: dict[str, bytes]) -> None:
        self._state = state
        self._sha256 = hashlib.sha256()
        self._expected = digests
        self._others = {name: hashlib.new(name, usedforsecurity=False) for name in digests if name != "sha256"}
        self._writer = ChunkWriter(state.chunks.files)
        self._size = 0
        self._chunks: list[Chunk] = []
        self.fresh: list[FreshChunk] = []

    async def receive(self, pieces: Pieces, pushers: Sequence[_Pusher]) -> None:
        """Take everything in, offering each finished chunk to the targets."""
        chunk_max = self._state.config.chunk_bytes_max
        async for piece in pieces:
            rest = memoryview(piece)
            while rest:
                part, rest = rest[: chunk_max - self._writer.size], rest[chunk_max - self._writer.size :]
                await self._absorb(part)
                if self._writer.size == chunk_max:
                    await self._finish_chunk(pushers)
        if self._writer.size:
            await self._finish_chunk(pushers)
        self._check_digests()

    async def _absorb(self, part: memoryview) -> None:
        self._size += len(part)
        if self._size > self._state.config.file_bytes_max:
            raise UploadRefused(f"the file is larger than {self._state.config.file_bytes_max} bytes")
        if self._size <= self._state.config.inline_bytes_max:
            # Microseconds, and no disk: cheaper here than on a thread.
            self._update(part)
        else:
            await self._state.env.run_blocking(Work.DISK, self._update, part)

    def _update(self, part: memoryview) -> None:
        self._sha256.update(part)
        for other in self._others.values():
            other.update(part)
        self._writer.write(part)

    async def _finish_chunk(self, pushers: Sequence[_Pusher]) -> None:
        writer = self._writer
        if writer.is_inline:
            chunk = writer.finish()
        else:
            chunk = await self._state.env.run_blocking(Work.DISK, writer.finish)
        self._writer = ChunkWriter(self._state.chunks.files)
        self.fresh.append(chunk)
        self._chunks.append(Chunk(chunk.hash, chunk.size))
        if chunk.serial is not None:
            for pusher in pushers:
                pusher.offer(chunk)

    def _check_digests(self) -> None:
        for name, expected in self._expected.items():
            actual = (self._sha256 if name == "sha256" else self._others[name]).digest()
            if actual != expected:
                raise UploadRefused(f"the content's {name} is {actual.hex()}, not the one sent with it; send it again")

    def manifest(self, new: NewFile, file_key: str, wall_ms: int) -> Manifest:
        """What was taken in."""
        return Manifest(
            file_key=file_key,
            filename=new.filename,
            size_bytes=self._size,
            sha256=self._sha256.digest(),
            content_type=new.content_type,
            uploaded_at_ms=wall_ms,
            copies=new.copies,
            chunks=tuple(self._chunks),
        )

    def adopted(self, chunks: Sequence[FreshChunk]) -> None:
        """These chunks exist now; they are no longer ours to discard."""
        kept = {id(chunk) for chunk in chunks}
        self.fresh = [chunk for chunk in self.fresh if id(chunk) not in kept]

    async def discard(self) -> None:
        """Remove whatever was stored and not adopted (cancelled or not)."""
        self._state.chunks.discard(self.fresh)
        self.fresh = []
        if not self._writer.is_inline:
            with trio.CancelScope(shield=True):
                await self._state.env.run_blocking(Work.DISK, self._writer.abandon)


class _Pusher:
    """Stages one upload's larger chunks at one target while the rest still arrives."""

    def __init__(self, state: PeerState, target: NodeId) -> None:
        self._state = state
        self._target = target
        # References only: the bytes are on the disk, and a file has a bounded number of chunks.
        self._send, self._receive = trio.open_memory_channel[FreshChunk](2**20)
        self.done = trio.Event()
        self.error: str | None = None
        self._offered: dict[bytes, None] = {}
        self._pushed: dict[bytes, FreshChunk] = {}
        self._is_off = False

    def offer(self, chunk: FreshChunk) -> None:
        """Have this chunk staged too; of equal ones one is enough."""
        if self.error is None and chunk.hash not in self._offered:
            self._offered[chunk.hash] = None
            self._send.send_nowait(chunk)

    def close(self) -> None:
        """Nothing more will be offered."""
        self._send.close()

    async def run(self) -> None:
        """Stage what is offered, and renew the leases on it, until closed or something fails."""
        try:
            async with helper_tasks() as nursery:
                nursery.start_soon(self._renew_leases)
                async for chunk in self._receive:
                    if self._is_off:
                        break
                    self._pushed[chunk.hash] = chunk
                    await self._push(chunk)
        except (PeerUnreachable, StoreError) as error:
            self.error = str(error)
        finally:
            self.done.set()

    async def _renew_leases(self) -> None:
        """Have the target keep what is staged there for as long as the upload lasts; what it lost is staged again."""
        while True:
            await trio.sleep(RENEW_EVERY_S)
            peer = self._state.membership.member(self._target)
            names = list(self._pushed)
            for start in range(0, len(names), NAMES_MAX):
                # One that does not answer is asked again long before a lease has lapsed.
                with suppress(PeerUnreachable):
                    if peer is not None:
                        for name in await self._state.client.renew_chunks(peer, names[start : start + NAMES_MAX]):
                            self._push_again(name)

    def _push_again(self, name: bytes) -> None:
        chunk = self._pushed.pop(name, None)
        with suppress(trio.ClosedResourceError):
            if chunk is not None:
                self._send.send_nowait(chunk)

    async def call_off(self) -> None:
        """Stage no more, and have the target let go of what was staged: the put will not come."""
        self._is_off = True
        self.close()
        await self.done.wait()
        peer = self._state.membership.member(self._target)
        names = list(self._pushed)
        for start in range(0, len(names), NAMES_MAX):
            with suppress(PeerUnreachable):
                if peer is not None:
                    await self._state.client.withdraw_chunks(peer, names[start : start + NAMES_MAX])

    async def _push(self, chunk: FreshChunk) -> None:
        peer = self._state.membership.member(self._target)
        if peer is None:
            raise PeerUnreachable(f"{self._target} is no member of this cluster")
        clock, timeout_s = self._state.env.clock, self._state.config.target_timeout_s
        with trio.CancelScope(deadline=clock.now() + timeout_s) as patience:
            await self._push_while(patience, peer, chunk)
        if patience.cancelled_caught:
            raise PeerUnreachable(f"{self._target} made no progress for {timeout_s:g} s; it will fetch the file itself")

    async def _push_while(self, patience: trio.CancelScope, peer: Member, chunk: FreshChunk) -> None:
        clock, timeout_s = self._state.env.clock, self._state.config.target_timeout_s
        assert chunk.serial is not None, "small chunks travel with the log"
        file = await self._state.chunks.open_fresh(chunk)

        async def content() -> AsyncIterator[bytes]:
            for offset in range(0, chunk.size, READ_BYTES):
                piece = await self._state.env.run_blocking(Work.DISK, file.read_at, offset, READ_BYTES)
                patience.deadline = clock.now() + timeout_s
                yield piece
            # All of it is there; now it is being synced.
            patience.deadline = clock.now() + PATIENCE_MAX * timeout_s

        try:
            await self._state.client.push_chunk(peer, chunk.hash, chunk.size, content())
        finally:
            file.close()
