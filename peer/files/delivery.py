"""Bringing an upload to its targets: chunks ahead of it, then the exchange that declares it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from peer.config import Config
from peer.files.pushing import Pusher
from peer.gossip.exchange import PATIENCE_MAX, Exchanger
from peer.gossip.peers import Peers
from peer.store.chunk_files import FreshChunk
from peer.store.holding import Holding
from peer.tasks import helper_tasks
from peer.world.env import Env, StoreError
from protocol.identity import NodeId
from protocol.ops import Put


class TooFewCopies(Exception):
    """An upload cannot have, or does not have yet, as many copies as its client asked for at least."""


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

    def pusher(self, target: NodeId, nursery: trio.Nursery) -> Pusher:
        """What stages an upload's chunks at a target, by a task in this nursery."""
        return Pusher(self._env, self._config, self._here, self._others, target, nursery)

    async def stage(
        self,
        fresh: Iterable[FreshChunk],
        file_key: str,
        wanted: int,
        pushers: dict[NodeId, Pusher],
        nursery: trio.Nursery,
    ) -> None:
        """Have all of a file staged, synced, at `wanted` other peers before anything is written of it.

        Where too few of the targets can take it, those that would stand in for them are asked, and get pushers too.
        Raises TooFewCopies.
        """
        chunks = list(fresh)
        missing, asked = wanted, list(pushers.values())
        spare = [node_id for node_id in self._ranked(file_key) if node_id not in pushers]
        while True:
            for pusher in asked:
                for chunk in chunks:
                    pusher.offer(chunk)
            missing -= await _staged_at(asked, missing)
            if missing <= 0:
                return
            if not spare:
                why = "; ".join(pusher.error for pusher in pushers.values() if pusher.error)
                raise TooFewCopies(f"too few peers can take a copy, so nothing was stored; try again later ({why})")
            asked = [self.pusher(node_id, nursery) for node_id in spare[:missing]]
            del spare[:missing]
            pushers.update((pusher.target, pusher) for pusher in asked)

    def _ranked(self, file_key: str) -> list[NodeId]:
        """All other peers worth asking, in the order in which they would be targets."""
        everyone = self._others.placement.targets_of(file_key, len(self._others.membership.members()))
        return self._others.worth_asking(everyone)

    async def deliver(self, put: Put, targets: Sequence[NodeId], pushers: Mapping[NodeId, Pusher]) -> list[Delivery]:
        """Bring the file to all targets at once; for one that fails, to the next peer that would be a target.

        Never fails: the put is written, and nothing may make it look as if it were not.
        """
        if all(pusher.is_idle for pusher in pushers.values()):
            return await self.deliver_small(put, targets, pushers)
        deliveries = await self._deliver_large([target for target in targets if target != self._here.me], put, pushers)
        return await self._with_stand_ins(put, deliveries, pushers)

    async def deliver_small(self, put: Put, targets: Sequence[NodeId], asked: Collection[NodeId]) -> list[Delivery]:
        """`deliver` what goes along with the exchanges themselves, to those of the targets that are worth being asked.

        Where a target is known not to take it now, another peer is asked at the same time. A task for each of them
        would cost as much as the rest.
        """
        others = [target for target in targets if target != self._here.me]
        instead = self._instead_of([target for target in others if not self._takes_now(target, asked)], put)
        asking = [*(target for target in others if target in asked), *instead.values()]
        begun = [(node_id, self._exchanger.begin(node_id, put.dot)) for node_id in asking]
        outcomes = {node_id: await self._exchanger.outcome(wait) for node_id, wait in begun}
        deliveries = [Delivery(target, outcomes.get(target, _missed(target))) for target in others]
        deliveries += [
            Delivery(node_id, None, instead_of=target)
            for target, node_id in instead.items()
            if outcomes[node_id] is None
        ]
        return await self._with_stand_ins(put, deliveries, {}, without=instead.values())

    def _takes_now(self, target: NodeId, asked: Collection[NodeId]) -> bool:
        return target in asked and not self._exchanger.link(target).is_far_behind()

    def _instead_of(self, targets: Sequence[NodeId], put: Put) -> dict[NodeId, NodeId]:
        """For each of these targets, as far as there are enough, a peer that is none and takes the file now."""
        if not targets:
            return {}
        others = [one for one in self._spare(put) if not self._exchanger.link(one).is_far_behind()]
        return dict(zip(targets, others, strict=False))

    def _spare(self, put: Put) -> list[NodeId]:
        """The peers worth asking that are no targets of a file, in the order in which they would be."""
        targets = self._others.placement.targets_of(put.manifest.file_key, put.manifest.copies)
        return [node_id for node_id in self._ranked(put.manifest.file_key) if node_id not in targets]

    async def _with_stand_ins(
        self,
        put: Put,
        deliveries: list[Delivery],
        pushers: Mapping[NodeId, Pusher],
        without: Collection[NodeId] = (),
    ) -> list[Delivery]:
        stood_in = {delivery.instead_of for delivery in deliveries}
        failed = [delivery for delivery in deliveries if delivery.error and delivery.node_id not in stood_in]
        return deliveries + (await self._stand_in(put, failed, pushers, without) if failed else [])

    async def _deliver_large(
        self, targets: Sequence[NodeId], put: Put, pushers: Mapping[NodeId, Pusher]
    ) -> list[Delivery]:
        """Deliver what has chunks that were staged before."""
        deliveries: dict[NodeId, Delivery] = {}

        async def deliver(target: NodeId) -> None:
            deliveries[target] = await self._deliver_to(target, put, pushers.get(target))

        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(deliver, target)
        return [deliveries[target] for target in targets]

    async def _stand_in(
        self, put: Put, failed: Sequence[Delivery], pushers: Mapping[NodeId, Pusher], without: Collection[NodeId]
    ) -> list[Delivery]:
        spare = [node_id for node_id in self._spare(put) if node_id not in without]
        # First those that have it staged.
        spare.sort(key=lambda node_id: node_id not in pushers)
        stood_in: dict[NodeId, Delivery] = {}
        give_up_at = self._env.clock.now() + PATIENCE_MAX * self._config.target_timeout_s

        async def replace(failure: Delivery) -> None:
            while spare and self._env.clock.now() < give_up_at:
                node_id = spare.pop(0)
                delivery = await self._deliver_to_spare(node_id, put, pushers.get(node_id))
                if delivery.error is None:
                    stood_in[failure.node_id] = Delivery(node_id, None, instead_of=failure.node_id)
                    return

        async with trio.open_nursery() as nursery:
            for failure in failed:
                nursery.start_soon(replace, failure)
        return [stood_in[failure.node_id] for failure in failed if failure.node_id in stood_in]

    async def _deliver_to_spare(self, node_id: NodeId, put: Put, pusher: Pusher | None) -> Delivery:
        """Bring a file that is here to a peer that may not have been offered its chunks while they arrived."""
        if pusher is not None:
            return await self._deliver_to(node_id, put, pusher)
        async with helper_tasks() as nursery:
            pusher = self.pusher(node_id, nursery)
            try:
                for chunk in put.manifest.chunks or ():
                    row = self._here.chunks.row(chunk.hash)
                    if row is not None and row.serial is not None:
                        pusher.offer(FreshChunk(chunk.hash, chunk.size, row.serial, None))
            except StoreError as error:
                return Delivery(node_id, str(error))
            return await self._deliver_to(node_id, put, pusher)

    async def _deliver_to(self, target: NodeId, put: Put, pusher: Pusher | None) -> Delivery:
        if pusher is None:
            return Delivery(target, _missed(target))
        error = await pusher.finish()
        return Delivery(target, error or await self._exchanger.exchange_patiently(target, put.dot))


def _missed(target: NodeId) -> str:
    return f"{target} is down; it gets the file when it is back"


async def _staged_at(pushers: Iterable[Pusher], wanted: int) -> int:
    """Wait until so many targets have all that was offered to them staged; returns how many have."""
    staged = 0

    async def wait(pusher: Pusher) -> None:
        nonlocal staged
        if await pusher.staged() is None:
            staged += 1
            if staged >= wanted:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for pusher in pushers:
            nursery.start_soon(wait, pusher)
    return staged
