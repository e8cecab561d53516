"""Leaving the cluster for good: first others hold what this peer holds, then it is removed, and ends."""

from __future__ import annotations

import logging
import math

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import Exchanger
from peer.gossip.membership import Gossip
from peer.gossip.peers import Peers
from peer.store.holding import Holding
from peer.store.lookups import lacks_copies_of_held
from peer.worker import Worker
from peer.world.env import StoreError
from protocol.identity import NodeId

log = logging.getLogger("minidfs.leaving")

LOOK_S = 2.0
"""Between two looks whether others have all of it."""


class Leaving(Worker):
    """Lets a peer go that was told to leave, once it holds nothing that anybody else still lacks."""

    name = "leaving"

    def __init__(self, here: Holding, others: Peers, exchanger: Exchanger, gossip: Gossip) -> None:
        super().__init__()
        self._here = here
        self._others = others
        self._exchanger = exchanger
        self._gossip = gossip

    def pace_s(self) -> float:
        return LOOK_S if self._is_draining else math.inf

    @property
    def _is_draining(self) -> bool:
        return self._others.membership.me.is_draining

    async def drain(self, *, leaves: bool) -> None:
        """Have others hold what this peer holds, and then leave; or stay after all.

        Raises StoreError, also when it is too late to stay.
        """
        if self._here.is_closed and not leaves:
            raise StoreError("this peer is saying farewell to the others, and cannot stay any more")
        if leaves is not self._is_draining:
            log.info("this peer %s", "is to leave the cluster" if leaves else "stays in the cluster after all")
        await self._gossip.drain(leaves=leaves)
        self.wake()

    async def step(self) -> None:
        """Leave, if others have everything. Raises StoreError."""
        if not self._is_draining or not self._gossip.is_queued:
            return
        # At first beside the writer, which with many files it would hold up.
        if await self._here.database.read(lacks_copies_of_held) or not await self._here.close_if(self._may_go):
            return
        is_heard = False
        try:
            is_heard = await self._say_farewell()
        finally:
            # Whatever went wrong: a peer that stays takes files again.
            self._here.is_closed = is_heard
        if is_heard:
            log.info("others have all that this peer held: it leaves the cluster")
            await self._gossip.evict(self._others.me)

    def _may_go(self) -> bool:
        """A step's part: whether nobody lacks anything that is here, and nobody has thought better of it."""
        return self._is_draining and not lacks_copies_of_held(self._here.database.store.connection)

    async def _say_farewell(self) -> bool:
        """Tell all others the last of what was done here, and that this peer is gone; whether anybody heard it."""
        others = [node_id for node_id in self._others.membership.reachable() if node_id in self._staying()]
        heard: list[NodeId] = []

        async def tell(node_id: NodeId) -> None:
            peer = self._others.membership.member(node_id)
            try:
                if peer is not None and await self._exchanger.exchange(node_id):
                    await self._others.client.evict(peer, self._others.me)
                    heard.append(node_id)
            except PeerUnreachable as error:
                log.info("cannot say farewell: %s", error)

        async with trio.open_nursery() as nursery:
            for node_id in others:
                nursery.start_soon(tell, node_id)
        return bool(heard)

    def _staying(self) -> list[NodeId]:
        return [member.node_id for member in self._others.membership.placed() if member.node_id != self._others.me]
