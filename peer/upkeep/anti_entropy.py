"""Every heal interval: compare logs with one random peer, and tidy what time has made useless."""

from __future__ import annotations

import logging

from peer.config import Config
from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import Exchanger
from peer.gossip.peers import Peers
from peer.store.catalog import COMPLETED_SHOWN_MS
from peer.store.holding import Holding
from peer.upkeep.repair import Repair
from peer.worker import Worker
from peer.world.env import Env

log = logging.getLogger("minidfs.anti_entropy")

JITTER = 0.1
"""Rounds of different peers drift apart by up to this share of the interval."""


class AntiEntropy(Worker):
    """Keeps a peer converging and tidy."""

    name = "anti-entropy"

    def __init__(
        self, env: Env, config: Config, here: Holding, others: Peers, exchanger: Exchanger, repair: Repair
    ) -> None:
        super().__init__()
        self._config = config
        self._here = here
        self._others = others
        self._exchanger = exchanger
        self._repair = repair
        self._chance = env.chance("anti-entropy")

    def pace_s(self) -> float:
        return self._config.heal_interval_s * self._chance.uniform(1 - JITTER, 1 + JITTER)

    async def step(self) -> None:
        """Exchange logs with one random peer that is up, then tidy. Raises StoreError."""
        reachable = sorted(self._others.membership.reachable())
        if reachable:
            try:
                await self._exchanger.exchange(self._chance.choice(reachable))
            except PeerUnreachable as error:
                log.info("anti-entropy: %s", error)
            self._repair.wake()
        await self._tidy()

    async def _tidy(self) -> None:
        here = self._here
        here.chunks.staging.expire()
        shown_from = here.wall_ms() - COMPLETED_SHOWN_MS
        await here.database.write(lambda: here.database.store.forget_completed(shown_from))
