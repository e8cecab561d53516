"""The ASGI app of a peer: every route, on every port."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Scope

from peer.config import Config
from peer.http import events, files, health, metrics, nodes, openapi, page, peers, uploads
from peer.http.authentication import Authentication
from peer.http.callers import Callers
from peer.http.direct import Direct
from peer.http.errors import HANDLERS, on_bug
from peer.http.services import Services
from peer.http.traffic import Traffic
from peer.pace import Pace
from peer.world.env import Clock
from protocol.sessions import Sessions

CLIENT_ROUTES = (
    Route("/", page.page),
    Route("/page/{name}", page.asset),
    Route("/events", events.events),
    Route("/node", health.node),
    Route("/health", health.health),
    Route("/health/ready", health.ready),
    Route("/metrics", metrics.metrics),
    Route("/openapi.json", openapi.openapi),
    Route("/files", files.list_files, methods=["GET"]),
    Route("/files", uploads.upload, methods=["POST"]),
    Route("/files/register", files.register, methods=["POST"]),
    Route("/files/register-location", files.register_location, methods=["POST"]),
    Route("/files/{file_id}", files.download, methods=["GET"]),
    Route("/files/{file_id}", uploads.upload_raw, methods=["PUT"]),
    Route("/files/{file_id}", files.delete, methods=["DELETE"]),
    Route("/files/{file_id}/versions", files.versions, methods=["GET"]),
    Route("/upload", uploads.upload_routed, methods=["POST"]),
    Route("/download/{file_id}", files.download_routed, methods=["GET"]),
    Route("/nodes", nodes.nodes),
    Route("/nodes/check", nodes.check_nodes),
    Route("/nodes/{node_id}/recover", nodes.recover, methods=["POST"]),
    Route("/nodes/{node_id}/leave", nodes.leave, methods=["POST"]),
    Route("/nodes/{node_id}/evict", nodes.evict, methods=["POST"]),
    Route("/replication-queue", nodes.queue),
)
"""What clients may use; each has an endpoint function of its own."""

PEER_ROUTES = (
    Route("/peer/join", peers.join, methods=["POST"]),
    Route("/peer/exchange", peers.exchange, methods=["POST"]),
    Route("/peer/snapshot", peers.snapshot),
    Route("/peer/log-hashes/{dot}", peers.log_hashes),
    Route("/peer/chunks", peers.get_small_chunks, methods=["POST"]),
    Route("/peer/chunks/renew", peers.renew_chunks, methods=["POST"]),
    Route("/peer/chunks/withdraw", peers.withdraw_chunks, methods=["POST"]),
    Route("/peer/chunks/{hash}", peers.get_chunk, methods=["GET"]),
    Route("/peer/chunks/{hash}", peers.put_chunk, methods=["PUT"]),
    Route("/peer/leave", peers.leave, methods=["POST"]),
    Route("/peer/stay", peers.stay, methods=["POST"]),
    Route("/peer/evict/{node_id}", peers.evict, methods=["POST"]),
    Route("/peer/recover", peers.recover, methods=["POST"]),
    Route("/peer/repairs", peers.repairs),
)

_PATHS = {route.endpoint: route.path for route in (*CLIENT_ROUTES, *PEER_ROUTES)}


def make_app(
    config: Config,
    version: str,
    clock: Clock,
    services: Callable[[], Services | None],
    pace: Pace,
    sessions: Sessions,
) -> Traffic:
    """The app of one peer. `services` gives None as long as the peer has not joined its cluster."""
    routes = [*CLIENT_ROUTES, *PEER_ROUTES]
    app = Starlette(routes=routes, exception_handlers={**HANDLERS, Exception: on_bug})
    app.state.config, app.state.version, app.state.services = config, version, services
    usual = Callers(Authentication(app, sessions, clock.now), config, services)
    app.state.traffic = Traffic(Direct(usual, config, services), clock, _route_of, pace)
    return app.state.traffic  # type: ignore[no-any-return]


def _route_of(scope: Scope) -> str | None:
    return _PATHS.get(scope.get("endpoint"))  # type: ignore[arg-type]
