"""Bringing an upload to its targets: larger chunks while the rest still arrives, then the exchange that declares it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from peer.config import Config
from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import PATIENCE_MAX, Exchanger
from peer.gossip.peers import Peers
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import READ_BYTES
from peer.store.holding import Holding
from peer.store.staging import STAGED_FOR_S
from peer.tasks import helper_tasks
from peer.world.env import Env, StoreError, Work
from protocol.identity import Member, NodeId
from protocol.messages import HASHES_MAX
from protocol.ops import Put

RENEW_EVERY_S = STAGED_FOR_S / 4
"""So that a lease outlives a few renewals that got lost."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How replication to one peer went."""

    node_id: NodeId
    error: str | None
    instead_of: NodeId | None = None


class Deliveries:
    """Brings files to their targets."""

    def __init__(self, env: Env, config: Config, here: Holding, others: Peers, exchanger: Exchanger) -> None:
        self._env = env
        self._config = config
        self._here = here
        self._others = others
        self._exchanger = exchanger

    def pusher(self, target: NodeId) -> Pusher:
        """What stages chunks at a target; to be run."""
        return Pusher(self._env, self._config, self._here, self._others, target)

    async def deliver(self, put: Put, targets: Sequence[NodeId], pushers: Mapping[NodeId, Pusher]) -> list[Delivery]:
        """Bring the file to all targets at once; for one that fails, to the next peer that would be a target.

        Never fails: the put is written, and nothing may make it look as if it were not.
        """
        deliveries: dict[NodeId, Delivery] = {}

        async def deliver(target: NodeId) -> None:
            deliveries[target] = await self._deliver_to(target, put, pushers.get(target))

        async with trio.open_nursery() as nursery:
            for target in targets:
                if target != self._here.me:
                    nursery.start_soon(deliver, target)
        ordered = [deliveries[target] for target in targets if target in deliveries]
        return ordered + await self._stand_in(put, [delivery for delivery in ordered if delivery.error])

    async def _stand_in(self, put: Put, failed: Sequence[Delivery]) -> list[Delivery]:
        everyone = self._others.placement.targets_of(put.manifest.file_key, len(self._others.membership.members()))
        spare = [
            node_id
            for node_id in everyone[put.manifest.copies :]
            if node_id != self._here.me and not self._others.is_down(node_id)
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
        pusher = self.pusher(node_id)
        try:
            for chunk in put.manifest.chunks or ():
                row = self._here.chunks.row(chunk.hash)
                if row is not None and row.serial is not None:
                    pusher.offer(FreshChunk(chunk.hash, chunk.size, row.serial, None))
        except StoreError as error:
            return Delivery(node_id, str(error))
        async with helper_tasks() as nursery:
            nursery.start_soon(pusher.run)
            return await self._deliver_to(node_id, put, pusher)

    async def _deliver_to(self, target: NodeId, put: Put, pusher: Pusher | None) -> Delivery:
        if pusher is None:
            return Delivery(target, f"{target} is down; it gets the file when it is back")
        pusher.close()
        await pusher.done.wait()
        if pusher.error is not None:
            return Delivery(target, pusher.error)
        error = await self._exchanger.exchange_patiently(target, put.dot)
        try:
            if error is None and target not in self._here.holders(put.dot):
                error = f"{target} has heard of the file and will fetch it"
        except StoreError as failure:
            error = str(failure)
        return Delivery(target, error)


class Pusher:
    """Stages one upload's larger chunks at one target while the rest still arrives."""

    def __init__(self, env: Env, config: Config, here: Holding, others: Peers, target: NodeId) -> None:
        self._env = env
        self._config = config
        self._here = here
        self._others = others
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
            peer = self._others.membership.member(self._target)
            hashes = list(self._pushed)
            for start in range(0, len(hashes), HASHES_MAX):
                # One that does not answer is asked again long before a lease has lapsed.
                with suppress(PeerUnreachable):
                    if peer is not None:
                        some = hashes[start : start + HASHES_MAX]
                        for chunk_hash in await self._others.client.renew_chunks(peer, some):
                            self._push_again(chunk_hash)

    def _push_again(self, chunk_hash: bytes) -> None:
        chunk = self._pushed.pop(chunk_hash, None)
        with suppress(trio.ClosedResourceError):
            if chunk is not None:
                self._send.send_nowait(chunk)

    async def call_off(self) -> None:
        """Stage no more, and have the target let go of what was staged: the put will not come."""
        self._is_off = True
        self.close()
        await self.done.wait()
        peer = self._others.membership.member(self._target)
        hashes = list(self._pushed)
        for start in range(0, len(hashes), HASHES_MAX):
            with suppress(PeerUnreachable):
                if peer is not None:
                    await self._others.client.withdraw_chunks(peer, hashes[start : start + HASHES_MAX])

    async def _push(self, chunk: FreshChunk) -> None:
        peer = self._others.membership.member(self._target)
        if peer is None:
            raise PeerUnreachable(f"{self._target} is no member of this cluster")
        clock, timeout_s = self._env.clock, self._config.target_timeout_s
        with trio.CancelScope(deadline=clock.now() + timeout_s) as patience:
            await self._push_while(patience, peer, chunk)
        if patience.cancelled_caught:
            raise PeerUnreachable(f"{self._target} made no progress for {timeout_s:g} s; it will fetch the file itself")

    async def _push_while(self, patience: trio.CancelScope, peer: Member, chunk: FreshChunk) -> None:
        clock, timeout_s = self._env.clock, self._config.target_timeout_s
        assert chunk.serial is not None, "small chunks travel with the log"
        file = await self._here.chunks.open_fresh(chunk)

        async def content() -> AsyncIterator[bytes]:
            for offset in range(0, chunk.size, READ_BYTES):
                piece = await self._env.run_blocking(Work.DISK, file.read_at, offset, READ_BYTES)
                patience.deadline = clock.now() + timeout_s
                yield piece
            # All of it is there; now it is being synced.
            patience.deadline = clock.now() + PATIENCE_MAX * timeout_s

        try:
            await self._others.client.push_chunk(peer, chunk.hash, chunk.size, content())
        finally:
            file.close()
