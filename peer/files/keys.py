"""What can be done with a file besides reading and writing its content: find, delete, register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from peer.files.targets import Targets
from peer.gossip.exchange import Exchanger
from peer.gossip.peers import Peers
from peer.store.holding import Holding
from protocol.identity import Dot, NodeId
from protocol.ops import Delete, Manifest, Put


class NobodyToAsk(Exception):
    """A key is not known here, and no peer that might know it can be reached."""


class Conflict(Exception):
    """The key belongs to other content."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of a delete."""

    nodes: tuple[NodeId, ...]
    """All that had the file or should have had it."""
    deleted: tuple[NodeId, ...]
    """Those of them that have committed the deletion."""


class Keys:
    """Finds, deletes and registers files for one peer."""

    def __init__(self, here: Holding, others: Peers, exchanger: Exchanger, targets: Targets) -> None:
        self._here = here
        self._others = others
        self._exchanger = exchanger
        self._targets = targets

    async def find(self, file_key: str) -> Put | None:
        """The version of a file to serve; a key not known here is asked of its targets.

        Raises NobodyToAsk when it would take one of them to know, and none answers.
        """
        found = self._here.shown(file_key)
        return found if found is not None else await self._find_elsewhere(file_key)

    async def find_version(self, file_key: str, dot: Dot) -> Put | None:
        """One version of a file; None when it is none, or was replaced or deleted. Raises NobodyToAsk, StoreError."""
        if self._here.put_at(dot) is None:
            await self._find_elsewhere(file_key)
        found = self._here.put_at(dot)
        return found if found is not None and found.manifest.file_key == file_key else None

    async def versions(self, file_key: str) -> list[Put]:
        """All versions of a file, the one that is listed and served first. Raises NobodyToAsk, StoreError."""
        await self.find(file_key)
        return self._here.versions(file_key)

    async def _find_elsewhere(self, file_key: str) -> Put | None:
        answered = await self._targets.ask(file_key)
        found = self._here.shown(file_key)
        if found is None and not answered and self._targets.has_others(file_key):
            raise NobodyToAsk(f"{file_key} is not known here, and no other peer can be asked now; try again")
        return found

    async def delete(self, file_key: str) -> Deletion | None:
        """Remove every version of a file that this peer or, asked first, its targets have heard of.

        None when there is none. Raises NobodyToAsk when it would take another peer to know, and none answers, and
        StoreError.
        """
        if await self._find_elsewhere(file_key) is None:
            return None

        def step() -> tuple[Delete, list[NodeId]] | None:
            here, placement = self._here, self._others.placement
            here.check_open()
            versions = here.database.store.puts_of(file_key)
            nodes = {hold.holder: None for put in versions for hold in here.database.store.holds_of(put.dot)}
            for put in versions:
                nodes.update(dict.fromkeys(placement.targets_of(file_key, put.manifest.copies)))
            deleted = here.replica.delete(file_key, here.wall_ms())
            return (deleted, sorted({**nodes, here.me: None})) if deleted else None

        written = await self._here.database.write(step)
        if written is None:
            return None
        self._here.tell_changed()
        delete, nodes = written
        self._here.events.tell("deleted", file_key=file_key, node=self._here.me)
        return Deletion(tuple(nodes), tuple(await self._spread(delete.dot, nodes)))

    async def _spread(self, dot: Dot, nodes: Sequence[NodeId]) -> list[NodeId]:
        """Bring an op to these peers; returns those that have applied it."""
        async with trio.open_nursery() as nursery:
            for node_id in self._others.worth_asking(nodes):
                nursery.start_soon(self._exchanger.exchange_patiently, node_id)
        return [
            node_id for node_id in nodes if node_id == self._here.me or self._exchanger.link(node_id).has_applied(dot)
        ]

    async def register(self, manifest: Manifest, holder: NodeId) -> bool:
        """Make a file known that a client says `holder` has; returns whether that peer has proved it.

        It never replaces content: the same checksum changes nothing. Raises Conflict when the key has another one,
        NobodyToAsk when it would take another peer to know, and none answers, and StoreError. `manifest.chunks` is None
        unless the file is empty; if any peer holds equal content under another key, its chunks are used.
        """
        await self._find_elsewhere(manifest.file_key)

        def step() -> Put | None:
            here = self._here
            here.check_open()
            versions = here.database.store.puts_of(manifest.file_key)
            if not versions:
                return here.replica.put(self._with_known_chunks(manifest), here.wall_ms())
            shown = versions[-1]
            return shown if _same_content(shown.manifest, manifest) else None

        put = await self._here.database.write(step, grows=True)
        if put is None:
            raise Conflict(f"{manifest.file_key} has other content already; register it under another key")
        self._here.tell_changed()
        return await self.verify_holder(put, holder)

    async def verify_holder(self, put: Put, holder: NodeId) -> bool:
        """Whether a peer holds a put, after asking it to if it can. Raises StoreError."""
        if holder not in self._here.holders(put.dot):
            if holder != self._here.me:
                if not self._others.is_down(holder):
                    await self._exchanger.exchange_patiently(holder, put.dot)
            elif put.manifest.chunks is not None:
                await self._here.hold_verified(put)
        return holder in self._here.holders(put.dot)

    def _with_known_chunks(self, manifest: Manifest) -> Manifest:
        """A step's part: the manifest with the chunks of equal content that somebody holds."""
        store = self._here.database.store
        if manifest.chunks is not None:
            return manifest
        for put in store.puts_with(manifest.sha256):
            if put.manifest.size_bytes == manifest.size_bytes and store.holds_of(put.dot):
                return replace(manifest, chunks=put.manifest.chunks)
        return manifest


def _same_content(one: Manifest, other: Manifest) -> bool:
    return (one.sha256, one.size_bytes) == (other.sha256, other.size_bytes)
