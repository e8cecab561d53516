"""Which peers should hold which files, as members come and go, and the queue of missing copies that follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import trio

from peer.store.database import Database
from peer.store.members import rerank
from peer.world.env import Env, Work
from protocol.identity import Member, NodeId
from protocol.placement import PARTITIONS, Place, partition_of, rank_all, rank_places

BUDGET_OF_A_STEP = 256
"""Puts and partitions gone through in the first transaction, so that uploads get a turn in between."""
BUDGETS = (64, 1024)
"""The fewest and the most of a later one, which has as many as the one before could have had in `STEP_S`."""
STEP_S = 0.025
PAUSE_MAX_S = 0.1


class _Ranking:
    """The ranks that follow from some places, found out as they are asked for."""

    def __init__(self, places: tuple[Place, ...]) -> None:
        self.places = places
        self._ranks: dict[int, list[NodeId]] = {}

    def of(self, partition: int) -> list[NodeId]:
        found = self._ranks.get(partition)
        if found is None:
            found = self._ranks[partition] = rank_places(partition, self.places)
        return found


class Placement:
    """Which peers should hold which files: in memory at once when members change, in the queue a little later."""

    def __init__(self) -> None:
        self._ranking = _Ranking(())
        self.queued: list[list[NodeId]] = [[] for _ in range(PARTITIONS)]
        """The ranks by which the queue of missing copies was last made, as the database has them."""

    @property
    def places(self) -> tuple[Place, ...]:
        """Those that are chosen from."""
        return self._ranking.places

    def follow(self, members: Iterable[Member]) -> tuple[Place, ...]:
        """From now on these are the members; returns their places."""
        self._ranking = _Ranking(tuple(Place(member.node_id, member.zone) for member in members))
        return self._ranking.places

    def targets(self, partition: int, copies: int) -> Sequence[NodeId]:
        """The peers that should hold a partition's files (from any thread)."""
        return self._ranking.of(partition)[:copies]

    def targets_of(self, file_key: str, copies: int) -> Sequence[NodeId]:
        """The peers that should hold a file."""
        return self.targets(partition_of(file_key), copies)


async def requeue(
    env: Env,
    database: Database,
    placement: Placement,
    members: tuple[Member, ...],
    rest: Callable[[float], Awaitable[None]],
) -> None:
    """Bring placement, and the queue of missing copies, in line with the members.

    With a million files it takes minutes, or several times as long where clients are served: after each step it calls
    `rest` with the seconds that took. Ends early when placement follows other members by then, for whom somebody else
    does it. Raises StoreError; then the rest of the queue follows at the next change, or start.
    """
    places = placement.follow(members)
    # Off the event loop: with fifty members it takes about a second.
    ranks = await env.run_blocking(Work.HASH, rank_all, places)
    changed = [partition for partition in range(PARTITIONS) if placement.queued[partition] != ranks[partition]]
    todo = [(partition, ranks[partition]) for partition in changed]
    after, budget = 0, BUDGET_OF_A_STEP
    while todo and placement.places == places:
        began = env.clock.now()
        step = partial(rerank, database.store, todo[:budget], after, budget)
        done, after = await database.write(step, grows=True)
        for partition, ranked in todo[:done]:
            placement.queued[partition] = ranked
        del todo[:done]
        worked_s = env.clock.now() - began
        # Half of the time is for others.
        await trio.sleep(min(worked_s, PAUSE_MAX_S))
        await rest(worked_s)
        budget = _next_budget(budget, worked_s)


def _next_budget(budget: int, took_s: float) -> int:
    """How much to go through in a step after one that took so long; from one to the next it at most doubles."""
    fitting = int(budget * STEP_S / took_s) if took_s > 0 else 2 * budget
    least, most = BUDGETS
    return max(least, min(most, 2 * budget, fitting))
