"""Work in the background gives way to clients, here and wherever it costs them something: it works less than it rests.

Peers tell each other in their exchanges whether clients are being served. It matters on this machine, for processes
share its cores and its disk, and at the peer that is asked for content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import trio

from protocol.identity import NodeId

SERVING_S = 1.0
"""After a client was served others may follow for so long."""
HEARD_S = 3.0
"""What a peer said of itself counts for so long."""
RESTS = 4.0
"""Times as long as a piece of work took it is rested afterwards: a fifth of the time is what clients may lose."""
RESTS_CATCHING_UP = 1.0
"""The same of hearing what others did: until that is done no copy can be brought here."""
REST_MAX_S = 2.0


class Pace:
    """Of one peer's work in the background, by the clock `now`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._served_at = -math.inf
        self._others: dict[NodeId, float] = {}

    def serve(self) -> None:
        """A client is being served (from the event loop)."""
        self._served_at = self.now()

    def is_serving(self) -> bool:
        """Whether clients are being served here (from any thread)."""
        return self.now() - self._served_at < SERVING_S

    def heard(self, node_id: NodeId, *, is_serving: bool) -> None:
        """Another peer says whether it serves clients."""
        if is_serving:
            self._others[node_id] = self.now()
        else:
            self._others.pop(node_id, None)

    async def rest(self, worked_s: float, node_ids: Iterable[NodeId], rests: float = RESTS) -> None:
        """Rest after a piece of work, `rests` times as long, if clients are being served here or by these peers."""
        now = self.now()
        if self.is_serving() or any(now - self._others.get(one, -math.inf) < HEARD_S for one in node_ids):
            await trio.sleep(min(REST_MAX_S, rests * worked_s))
