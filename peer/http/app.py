"""The ASGI app of a peer: every route, on every port."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from peer.config import Config
from peer.http import files, nodes, peers
from peer.http.callers import Callers
from peer.http.errors import HANDLERS, RETRY_AFTER, error_response, on_bug
from peer.http.facade import FACADE
from peer.http.services import Services


def make_app(config: Config, version: str, services: Callable[[], Services | None]) -> Callers:
    """The app of one peer. `services` gives None as long as the peer has not joined its cluster."""

    async def health(request: Request) -> JSONResponse:
        is_facade = request.scope.get("state", {}).get("listener") == FACADE
        running = services()
        return JSONResponse(
            {
                "status": "UP",
                "service": "naming-service" if is_facade else "storage-node",
                "node_id": config.node_id,
                "node": config.node_id,
                "hostname": config.hostname,
                "version": version,
                "cluster_id": running.others.cluster_id if running else None,
            }
        )

    async def ready(request: Request) -> JSONResponse:
        running = services()
        if running is None or not running.ready.is_set():
            return error_response(503, "joining: the peers of the cluster have not answered yet", RETRY_AFTER)
        if running.draining.is_set():
            return error_response(503, "draining: this peer is being stopped", RETRY_AFTER)
        if running.here.space.reason is not None:
            return error_response(503, f"read-only: {running.here.space.reason}", RETRY_AFTER)
        return JSONResponse({"status": "READY", "node_id": config.node_id})

    routes = [
        Route("/health", health),
        Route("/health/ready", ready),
        Route("/files", files.list_files, methods=["GET"]),
        Route("/files", files.upload, methods=["POST"]),
        Route("/files/register", files.register, methods=["POST"]),
        Route("/files/register-location", files.register_location, methods=["POST"]),
        Route("/files/{file_id}", files.download, methods=["GET"]),
        Route("/files/{file_id}", files.upload_raw, methods=["PUT"]),
        Route("/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/files/{file_id}/versions", files.versions, methods=["GET"]),
        Route("/upload", files.upload_routed, methods=["POST"]),
        Route("/download/{file_id}", files.download, methods=["GET"]),
        Route("/nodes", nodes.nodes),
        Route("/nodes/check", nodes.check_nodes),
        Route("/nodes/{node_id}/recover", nodes.recover, methods=["POST"]),
        Route("/replication-queue", nodes.queue),
        Route("/peer/join", peers.join, methods=["POST"]),
        Route("/peer/exchange", peers.exchange, methods=["POST"]),
        Route("/peer/snapshot", peers.snapshot),
        Route("/peer/chunks", peers.get_small_chunks, methods=["POST"]),
        Route("/peer/chunks/renew", peers.renew_chunks, methods=["POST"]),
        Route("/peer/chunks/withdraw", peers.withdraw_chunks, methods=["POST"]),
        Route("/peer/chunks/{hash}", peers.get_chunk, methods=["GET"]),
        Route("/peer/chunks/{hash}", peers.put_chunk, methods=["PUT"]),
        Route("/peer/recover", peers.recover, methods=["POST"]),
        Route("/peer/repairs", peers.repairs),
    ]
    app = Starlette(routes=routes, exception_handlers={**HANDLERS, Exception: on_bug})
    app.state.services = services
    return Callers(app, config, services)
