"""The endpoints about nodes: who they are and how they are, what they lack, recovery, and eviction."""

from __future__ import annotations

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.gossip.client import PeerUnreachable
from peer.gossip.peers import Peers
from peer.http.errors import RETRY_AFTER, HttpError
from peer.http.requests import number_in, services_of
from peer.http.services import Services
from peer.http.times import rfc3339
from peer.store.lookups import Filling, QueueItem, held_alone_by
from protocol.identity import Member, NodeId, Status
from protocol.messages import ItemStatus, Recovery

QUEUE_LIMIT = 1000
QUEUE_LIMIT_MAX = 10_000
UNREACHABLE_LATENCY_MS = 9999
CHECK_TIMEOUT_S = 2.0


# --- nodes ---


async def nodes(request: Request) -> JSONResponse:
    """`GET /nodes`: every member and what is believed of it."""
    services = services_of(request)
    return JSONResponse([_node_json(services, member) for member in services.others.membership.members()])


def _node_json(services: Services, member: Member) -> dict[str, object]:
    status = services.others.membership.status(member.node_id)
    return {
        "id": member.node_id,
        "address": f"http://{member.address}",
        "status": "DOWN" if status is Status.DOWN else "UP",
        "role": "PEER",
        "last_heartbeat": rfc3339(_heartbeat_ms(services, member.node_id)),
        "latency_ms": latency_ms(services.others, member.node_id),
        "zone": member.zone,
        "state": status.value,
        "down_since": rfc3339(_down_since_ms(services, member.node_id)),
        "membership": services.others.membership.place_of(member),
    }


def _heartbeat_ms(services: Services, node_id: NodeId) -> int | None:
    wall_ms = services.here.wall_ms()
    if node_id == services.others.me:
        return wall_ms
    heard_at = services.others.membership.heard_at(node_id)
    return None if heard_at is None else wall_ms - int((services.env.clock.now() - heard_at) * 1000)


def _down_since_ms(services: Services, node_id: NodeId) -> int | None:
    since = services.others.membership.down_since(node_id)
    return None if since is None else services.here.wall_ms() - int((services.env.clock.now() - since) * 1000)


def latency_ms(others: Peers, node_id: NodeId) -> int:
    """The mean round trip to a peer, whole as old clients read it; 9999 when it cannot be reached."""
    latency_s = others.membership.latency_s(node_id)
    if latency_s is None or others.is_down(node_id):
        return UNREACHABLE_LATENCY_MS
    return round(latency_s * 1000)


async def check_nodes(request: Request) -> JSONResponse:
    """`GET /nodes/check`: ask every node for its health now, all at once."""
    services = services_of(request)
    round_trips_s: dict[NodeId, float | None] = {}

    async def check(member: Member) -> None:
        round_trips_s[member.node_id] = await _round_trip_s(services, member)

    members = services.others.membership.members()
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(check, member)
    checked = [_checked_json(member, round_trips_s[member.node_id]) for member in members]
    return JSONResponse({"checked_at": rfc3339(services.here.wall_ms()), "nodes": checked})


def _checked_json(member: Member, round_trip_s: float | None) -> dict[str, object]:
    return {
        "id": member.node_id,
        "address": f"http://{member.address}",
        "status": "DOWN" if round_trip_s is None else "UP",
        "latency_ms": UNREACHABLE_LATENCY_MS if round_trip_s is None else round(round_trip_s * 1000),
    }


async def _round_trip_s(services: Services, member: Member) -> float | None:
    if member.node_id == services.others.me:
        return 0.0
    clock = services.env.clock
    started = clock.now()
    with trio.move_on_after(CHECK_TIMEOUT_S):
        try:
            await services.others.client.health(member.address)
        except PeerUnreachable:
            return None
        return clock.now() - started
    return None


# --- what they lack ---


async def queue(request: Request) -> JSONResponse:
    """`GET /replication-queue`: which copies are missing, and which came back."""
    services = services_of(request)
    limit = number_in(request, "limit", QUEUE_LIMIT, QUEUE_LIMIT_MAX, 1)
    status = request.query_params.get("status")
    if status is not None and status not in ItemStatus.__members__:
        raise HttpError(400, f"status is one of {', '.join(ItemStatus.__members__)}")
    named = request.query_params.get("node_id")
    node_id = NodeId(named) if named is not None else None
    items = await services.queue.items(limit, node_id, ItemStatus(status) if status is not None else None)
    targets = await services.queue.filling(node_id)
    left = [one.seconds_left for one in targets]
    return JSONResponse(
        {
            "items": [_item_json(item) for item in items],
            "count": len(items),
            "missing": sum(one.missing for one in targets),
            "seconds_left": None if None in left else max(filter(None, left), default=0),
            "targets": [_filling_json(one) for one in targets],
        }
    )


def _filling_json(target: Filling) -> dict[str, object]:
    return {
        "node_id": target.target,
        "missing": target.missing,
        "missing_bytes": target.missing_bytes,
        "copies_per_s": round(target.copies_per_s, 1),
        "seconds_left": target.seconds_left,
    }


def _item_json(item: QueueItem) -> dict[str, object]:
    return {
        "id": item.item_id,
        "file_key": item.file_key,
        "target_node_id": item.target,
        "source_node_id": item.source,
        "status": item.status.value,
        "retry_count": item.retry_count,
        "last_attempt": rfc3339(item.last_attempt_ms),
        "next_attempt": rfc3339(item.next_attempt_ms),
        "created_at": rfc3339(item.created_at_ms),
        "error_message": item.error,
    }


async def recover(request: Request) -> JSONResponse:
    """`POST /nodes/{id}/recover`: make a node fetch all it lacks, now."""
    services = services_of(request)
    node_id = NodeId(request.path_params["node_id"])
    peer = services.others.membership.member(node_id)
    if peer is None:
        raise HttpError(404, f"{node_id} is no node of this cluster; see GET /nodes")
    if node_id == services.others.me:
        recovery = await services.repair.recover()
    else:
        # Believed down or not: one that has just come back is, for a moment.
        try:
            recovery = await services.others.client.recover(peer)
        except PeerUnreachable:
            raise await _is_down(services, node_id) from None
        await services.exchanger.exchange_patiently(node_id)
    return JSONResponse(await _recovered_json(services, node_id, recovery))


async def leave(request: Request) -> JSONResponse:
    """`POST /nodes/{id}/leave`: let a node leave once others hold what it holds; `undo=true` lets it stay after all."""
    services = services_of(request)
    node_id = NodeId(request.path_params["node_id"])
    membership = services.others.membership
    peer = membership.member(node_id)
    if peer is None:
        raise HttpError(404, f"{node_id} is no node of this cluster; see GET /nodes")
    undo = request.query_params.get("undo", "false")
    if undo not in ("true", "false"):
        raise HttpError(400, f"undo is {undo[:20]!r}; it must be true or false")
    leaves = undo == "false"
    if leaves and all(member.node_id == node_id or member.is_draining for member in membership.members()):
        raise HttpError(409, f"{node_id} cannot leave: no other node stays that could hold its files")
    if node_id == services.others.me:
        await services.leaving.drain(leaves=leaves)
    else:
        try:
            await services.others.client.drain(peer, leaves=leaves)
        except PeerUnreachable as error:
            message = f"{error}; one that is down for good can be removed with POST /nodes/{node_id}/evict"
            raise HttpError(503, message, RETRY_AFTER) from None
    message = f"{node_id} leaves once others have what it holds" if leaves else f"{node_id} stays"
    return JSONResponse({"message": message, "node_id": node_id})


async def evict(request: Request) -> JSONResponse:
    """`POST /nodes/{id}/evict`: remove a node for good; 409 while files are on it alone, unless `force=true`."""
    services = services_of(request)
    node_id = NodeId(request.path_params["node_id"])
    if services.others.membership.member(node_id) is None:
        raise HttpError(404, f"{node_id} is no node of this cluster; see GET /nodes")
    if node_id == services.others.me:
        raise HttpError(409, f"{node_id} cannot remove itself; ask another node")
    force = request.query_params.get("force", "false")
    if force not in ("true", "false"):
        raise HttpError(400, f"force is {force[:20]!r}; it must be true or false")
    alone = await services.here.database.read(lambda connection: held_alone_by(connection, node_id))
    if alone and force == "false":
        raise HttpError(
            409,
            f"{alone} versions of files are on {node_id} alone; wait until others have them, or give them up with "
            "?force=true",
        )
    await services.gossip.evict(node_id)
    return JSONResponse({"message": f"{node_id} was removed", "node_id": node_id, "given_up": alone})


async def _recovered_json(services: Services, node_id: NodeId, recovery: Recovery) -> dict[str, object]:
    counts: dict[str, object] = {"total": recovery.total, "success": recovery.success, "failed": recovery.failed}
    if recovery.total == 0:
        return {"message": "no pending replications", "count": 0, **counts}
    return {"message": "recovery completed", **counts, "pending_items": await _pending(services, node_id)}


async def _pending(services: Services, node_id: NodeId) -> list[dict[str, object]]:
    return [_item_json(item) for item in await services.queue.missing(QUEUE_LIMIT, node_id)]


async def _is_down(services: Services, node_id: NodeId) -> HttpError:
    pending = await _pending(services, node_id)
    counts = {"total": len(pending), "success": 0, "failed": len(pending), "pending_items": pending}
    return HttpError(503, f"{node_id} is down; it recovers by itself when it is back", RETRY_AFTER, counts)
