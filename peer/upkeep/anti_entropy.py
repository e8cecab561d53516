"""The background loops of a peer: anti-entropy, and tidying what time has made useless."""

from __future__ import annotations

import logging

import trio

from peer.gossip.client import PeerUnreachable
from peer.gossip.exchange import Exchanger
from peer.gossip.peers import PeerState
from peer.store.catalog import COMPLETED_SHOWN_MS
from peer.upkeep.repair import Repair
from peer.world.env import StoreError

log = logging.getLogger("minidfs.upkeep")

JITTER = 0.1
"""Rounds of different peers drift apart by up to this share of the interval."""


class Upkeep:
    """Keeps a peer converging and tidy."""

    def __init__(self, state: PeerState, exchanger: Exchanger, repair: Repair) -> None:
        self._state = state
        self._exchanger = exchanger
        self._repair = repair
        self._chance = state.env.chance("anti-entropy")
        self.rounds = 0

    async def run(self) -> None:
        """One round each heal interval, until cancelled."""
        while True:
            await trio.sleep(self._state.config.heal_interval_s * self._chance.uniform(1 - JITTER, 1 + JITTER))
            try:
                await self.step()
            except StoreError as error:
                log.error("a round of upkeep failed: %s", error)

    async def step(self) -> None:
        """Exchange logs with one random peer that is up, then tidy. Raises StoreError."""
        self.rounds += 1
        reachable = sorted(self._state.membership.reachable())
        if reachable:
            try:
                await self._exchanger.exchange(self._chance.choice(reachable))
            except PeerUnreachable as error:
                log.info("anti-entropy: %s", error)
            self._repair.kick()
        await self._tidy()

    async def _tidy(self) -> None:
        state = self._state
        state.chunks.staging.expire()
        shown_from = state.wall_ms() - COMPLETED_SHOWN_MS
        await state.database.write(lambda: state.database.store.forget_completed(shown_from))
