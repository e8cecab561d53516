"""The endpoints about this peer itself: whether it serves, and whether it should be sent requests."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.http.errors import RETRY_AFTER, error_response
from peer.http.facade import FACADE
from peer.http.requests import services_of
from peer.http.services import Services
from peer.store.lookups import totals
from peer.world.env import Work


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


async def node(request: Request) -> JSONResponse:
    """`GET /node`: what this peer knows of itself alone, and what its operator should know."""
    services = services_of(request)
    me, disk = services.others.me, services.env.disk
    counted = await services.here.database.read(lambda connection: totals(connection, me))
    return JSONResponse(
        {
            "id": me,
            "version": services.env.version,
            "files": counted.files,
            "copies": counted.copies,
            "missing": counted.missing.get(me, 0),
            "disk_free_bytes": await services.env.run_blocking(Work.DISK, disk.free_bytes),
            "disk_total_bytes": await services.env.run_blocking(Work.DISK, disk.total_bytes),
            "warnings": list(_warnings(services)),
        }
    )


def _warnings(services: Services) -> Iterator[str]:
    config, here = services.config, services.here
    if len(services.others.membership.members()) == 1:
        yield "this peer is alone: what is uploaded here has one copy"
    if here.space.reason is not None:
        yield here.space.reason
    if services.gossip.doubled_at is not None:
        yield f"another process went by the same id, at {services.gossip.doubled_at}; give one of the two another --id"
    if here.is_damaged:
        yield "rows of its database are damaged; it takes over those of another peer"
    if config.keyring.is_open:
        yield "it has no cluster key: every program of this machine can act as a peer"
    if not config.listen.is_loopback:
        yield f"whoever reaches {config.listen} can read, write and delete: clients are not authenticated"
    if config.durability == "os":
        yield "copies are told of before they are on the disk"
    for worker in services.workers:
        error = worker.status().error
        if error is not None:
            yield f"{worker.name} fails: {error}"


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
