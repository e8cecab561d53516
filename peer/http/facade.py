"""The shared port of the naming service: every peer of a machine listens there, and any of them answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

import trio

from peer.config import Address
from peer.gossip.client import PeerUnreachable
from peer.gossip.joining import cluster_at
from peer.http.services import Services
from peer.world.env import Env, HttpServer, Listener, StartError

log = logging.getLogger("minidfs.facade")

FACADE = "facade"
"""The name of the listener that stands for the naming service."""

STALL_LIMIT_S = 2.0
"""A peer whose event loop stands still for this long lets the facade's connections go to the others."""

RETRY_S = 1.0
CHECK_TIMEOUT_S = 2.0


async def check_facade(env: Env, server: HttpServer, facade: Address, cluster_id: str) -> None:
    """Make sure, before this peer founds or joins anything, that it can serve the port, with peers of its cluster only.

    Raises StartError.
    """
    with trio.move_on_after(CHECK_TIMEOUT_S), suppress(PeerUnreachable):
        if await cluster_at(env, facade) not in (None, cluster_id):
            raise StartError(f"port {facade.port} serves another cluster; choose another with --facade")
    if env.shares_ports:
        await server.check(facade, shared=True)


async def serve_facade(
    server: HttpServer,
    facade: Address,
    services: Services,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the shared port; take it again after a stall, or, where ports are not shared, from a peer that died.

    Raises StartError when something else has it.
    """
    is_started = False
    while True:
        try:
            listeners = await server.listen(facade, name=FACADE, shared=True)
        except StartError:
            if services.env.shares_ports and not is_started:
                raise
            listeners = []
        if not is_started:
            is_started = True
            task_status.started()
        if not listeners:
            await trio.sleep(RETRY_S)
            continue
        with services.env.watch_stalls(STALL_LIMIT_S, lambda listeners=listeners: _close_all(listeners)):  # type: ignore[misc]
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(listener.serve)
        if services.draining.is_set():
            return
        log.warning("stopped serving %s; taking it again", facade)
        await trio.sleep(RETRY_S)


def _close_all(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
