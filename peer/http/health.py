"""The endpoints about this peer itself: whether it serves, and whether it should be sent requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.http.errors import RETRY_AFTER, error_response
from peer.http.facade import FACADE


async def health(request: Request) -> JSONResponse:
    """`GET /health`: this process serves."""
    state = request.app.state
    is_facade = request.scope.get("state", {}).get("listener") == FACADE
    running = state.services()
    return JSONResponse(
        {
            "status": "UP",
            "service": "naming-service" if is_facade else "storage-node",
            "node_id": state.config.node_id,
            "node": state.config.node_id,
            "hostname": state.config.hostname,
            "version": state.version,
            "cluster_id": running.others.cluster_id if running else None,
        }
    )


async def ready(request: Request) -> JSONResponse:
    """`GET /health/ready`: send requests here, or not, and why not."""
    running = request.app.state.services()
    if running is None or not running.ready.is_set():
        return error_response(503, "joining: the peers of the cluster have not answered yet", RETRY_AFTER)
    if running.draining.is_set():
        return error_response(503, "draining: this peer is being stopped", RETRY_AFTER)
    if running.others.membership.me.is_draining:
        return error_response(503, "leaving: this peer is on its way out of the cluster", RETRY_AFTER)
    if running.here.space.reason is not None:
        return error_response(503, f"read-only: {running.here.space.reason}", RETRY_AFTER)
    node_id, here = request.app.state.config.node_id, running.here
    looked_over = {"verified": here.verified.is_set(), "inventoried": here.inventoried.is_set()}
    return JSONResponse({"status": "READY", "node_id": node_id, **looked_over})
