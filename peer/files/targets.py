"""Who should be asked about a key: its targets, and those that hold what is shown of it."""

from __future__ import annotations

import trio

from peer.config import Config
from peer.gossip.exchange import Exchanger
from peer.gossip.peers import Peers
from peer.store.holding import Holding
from protocol.identity import NodeId


class Targets:
    """The peers that matter for a key, as this peer sees them."""

    def __init__(self, config: Config, here: Holding, others: Peers, exchanger: Exchanger) -> None:
        self._config = config
        self._here = here
        self._others = others
        self._exchanger = exchanger

    async def ask(self, file_key: str) -> list[NodeId]:
        """Hear from the peers that should hold a key what they have of it, in one bounded round trip.

        Returns those that answered. Before a delete or a caller's id it keeps versions from being overlooked.
        """
        shown = self._here.shown(file_key)
        copies = shown.manifest.copies if shown else self._config.copies
        wanted = [*self._others.placement.targets_of(file_key, copies)]
        wanted += self._here.holders(shown.dot) if shown else ()
        answered: list[NodeId] = []

        async def ask(node_id: NodeId) -> None:
            if await self._exchanger.exchange_patiently(node_id) is None:
                answered.append(node_id)

        async with trio.open_nursery() as nursery:
            for node_id in self._others.worth_asking(wanted):
                nursery.start_soon(ask, node_id)
        return answered

    def has_others(self, file_key: str) -> bool:
        """Whether a peer other than this one should know of a key that this one does not know."""
        targets = self._others.placement.targets_of(file_key, self._config.copies)
        return any(target != self._here.me for target in targets)
