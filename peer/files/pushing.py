"""Staging the chunks of one upload at one target while the rest still arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import trio

from peer.config import Config
from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import PATIENCE_MAX
from peer.gossip.peers import Peers
from peer.store.chunk_files import FreshChunk
from peer.store.chunks import READ_BYTES
from peer.store.holding import Holding
from peer.store.staging import STAGED_FOR_S
from peer.tasks import helper_tasks
from peer.world.env import Env, StoreError, Work
from protocol.identity import Member, NodeId
from protocol.messages import HASHES_MAX

_Channel = tuple[trio.MemorySendChannel[FreshChunk | trio.Event], trio.MemoryReceiveChannel[FreshChunk | trio.Event]]

RENEW_EVERY_S = STAGED_FOR_S / 4
"""So that a lease outlives a few renewals that got lost."""


class Pusher:
    """Stages chunks of one upload at one target, in the order in which they are offered.

    Its task, in the upload's nursery, begins with the first of them: most uploads are small, and have none.
    """

    def __init__(
        self, env: Env, config: Config, here: Holding, others: Peers, target: NodeId, nursery: trio.Nursery
    ) -> None:
        self._env = env
        self._config = config
        self._here = here
        self._others = others
        self.target = target
        self._nursery = nursery
        self._channel: _Channel | None = None
        self._marks: list[trio.Event] = []
        self._done = trio.Event()
        self.error: str | None = None
        self._offered: dict[bytes, None] = {}
        self._pushed: dict[bytes, FreshChunk] = {}
        self._is_off = False

    def offer(self, chunk: FreshChunk) -> None:
        """Have this chunk staged too; of equal ones one is enough."""
        if self.error is None and chunk.hash not in self._offered:
            self._offered[chunk.hash] = None
            self._line.send_nowait(chunk)

    @property
    def _line(self) -> trio.MemorySendChannel[FreshChunk | trio.Event]:
        """What waits to be staged; the task that stages it is started with it."""
        if self._channel is None:
            # References only: the bytes are on the disk, and a file has a bounded number of chunks.
            self._channel = trio.open_memory_channel[FreshChunk | trio.Event](2**20)
            self._nursery.start_soon(self._run, self._channel[1])
        return self._channel[0]

    @property
    def is_idle(self) -> bool:
        """Whether nothing was ever offered."""
        return self._channel is None

    async def finish(self) -> str | None:
        """Offer nothing more, and wait until all is staged; what went wrong, or None."""
        if self._channel is not None:
            self._channel[0].close()
            await self._done.wait()
        return self.error

    async def staged(self) -> str | None:
        """Wait until the target has all that was offered, synced, and says so now; what went wrong, or None."""
        mark = trio.Event()
        self._marks.append(mark)
        if self.error is None:
            self._line.send_nowait(mark)
            await mark.wait()
        if self.error is None:
            with trio.move_on_after(PATIENCE_MAX * self._config.target_timeout_s) as patience:
                await self._ask_again()
            if patience.cancelled_caught:
                self.error = f"{self.target} did not answer in time"
        return self.error

    async def _ask_again(self) -> None:
        try:
            if await self._renew():
                self.error = f"{self.target} lost what was staged there"
        except PeerUnreachable as error:
            self.error = str(error)

    async def _run(self, line: trio.MemoryReceiveChannel[FreshChunk | trio.Event]) -> None:
        """Stage what is offered, and renew the leases on it, until closed or something fails."""
        try:
            async with helper_tasks() as nursery:
                nursery.start_soon(self._renew_leases)
                async for item in line:
                    if self._is_off:
                        break
                    if isinstance(item, trio.Event):
                        item.set()
                    else:
                        self._pushed[item.hash] = item
                        await self._push(item)
        except (PeerUnreachable, StoreError) as error:
            self.error = str(error)
        finally:
            self._done.set()
            for mark in self._marks:
                mark.set()

    async def _renew_leases(self) -> None:
        """Have the target keep what is staged there for as long as the upload lasts; what it lost is staged again."""
        while True:
            await trio.sleep(RENEW_EVERY_S)
            # One that does not answer is asked again long before a lease has lapsed.
            with suppress(PeerUnreachable):
                for chunk_hash in await self._renew():
                    self._push_again(chunk_hash)

    async def _renew(self) -> list[bytes]:
        """Renew the leases on what was pushed; returns what the target has not. Raises PeerUnreachable."""
        peer, hashes = self._peer(), list(self._pushed)
        lost: list[bytes] = []
        for start in range(0, max(1, len(hashes)), HASHES_MAX):
            lost += await self._others.client.renew_chunks(peer, hashes[start : start + HASHES_MAX])
        return lost

    def _peer(self) -> Member:
        peer = self._others.membership.member(self.target)
        if peer is None:
            raise PeerUnreachable(f"{self.target} is no member of this cluster")
        return peer

    def _push_again(self, chunk_hash: bytes) -> None:
        chunk = self._pushed.pop(chunk_hash, None)
        with suppress(trio.ClosedResourceError):
            if chunk is not None:
                self._line.send_nowait(chunk)

    async def call_off(self) -> None:
        """Stage no more, and have the target let go of what was staged: the put will not come."""
        self._is_off = True
        await self.finish()
        hashes = list(self._pushed)
        for start in range(0, len(hashes), HASHES_MAX):
            with suppress(PeerUnreachable):
                await self._others.client.withdraw_chunks(self._peer(), hashes[start : start + HASHES_MAX])

    async def _push(self, chunk: FreshChunk) -> None:
        peer = self._peer()
        clock, timeout_s = self._env.clock, self._config.target_timeout_s
        with trio.CancelScope(deadline=clock.now() + timeout_s) as patience:
            await self._push_while(patience, peer, chunk)
        if patience.cancelled_caught:
            raise PeerUnreachable(f"{self.target} made no progress for {timeout_s:g} s; it will fetch the file itself")

    async def _push_while(self, patience: trio.CancelScope, peer: Member, chunk: FreshChunk) -> None:
        clock, timeout_s = self._env.clock, self._config.target_timeout_s

        async def content() -> AsyncGenerator[bytes, None]:
            async with aclosing(self._content(chunk)) as pieces:
                async for piece in pieces:
                    patience.deadline = clock.now() + timeout_s
                    yield piece
            # All of it is there; now it is being synced.
            patience.deadline = clock.now() + PATIENCE_MAX * timeout_s

        async with aclosing(content()) as pieces:
            await self._others.client.push_chunk(peer, chunk.hash, chunk.size, pieces)

    async def _content(self, chunk: FreshChunk) -> AsyncGenerator[bytes, None]:
        if chunk.content is not None:
            yield chunk.content
            return
        file = await self._here.chunks.open_fresh(chunk)
        try:
            for offset in range(0, chunk.size, READ_BYTES):
                yield await self._env.run_blocking(Work.DISK, file.read_at, offset, READ_BYTES)
        finally:
            file.close()
