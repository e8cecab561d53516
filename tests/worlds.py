"""Simulated clusters for tests: made quickly, looked into directly, with disks that can be swapped and copied."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import httpx
import trio

from peer.gossip.client import CLUSTER_HEADER
from peer.gossip.peers import Peers
from peer.gossip.requests import PROOF_HEADER
from peer.http.services import Services
from peer.store.holding import Holding
from protocol.keyring import OPEN, Keyring
from protocol.messages import ExchangeReply, ExchangeRequest
from protocol.sessions import Sessions, hash_of
from sim.disk import Platter
from sim.world import World, few_partitions, run_world

Scenario = Callable[[World], Awaitable[None]]


def in_world(scenario: Scenario, *, seed: int = 1, limit_s: float = 3600, start: bool = True, **settings: Any) -> str:
    """Run a scenario in a world whose peers have met; virtual time that runs out is a failure. Returns the digest."""

    async def whole(world: World) -> None:
        with trio.fail_after(limit_s):
            if start:
                await world.start_all()
            await scenario(world)

    with few_partitions():
        digest, _ = run_world(seed, whole, **settings)
    return digest


def services(world: World, name: str) -> Services:
    """The services of a running peer."""
    node = world.machines[name].node
    assert node is not None, f"{name} does not run"
    assert node.services is not None, f"{name} has not joined"
    return node.services


def here(world: World, name: str) -> Holding:
    """What a running peer holds."""
    return services(world, name).here


def others(world: World, name: str) -> Peers:
    """What a running peer knows of the others."""
    return services(world, name).others


_STRANGERS = itertools.count()


def stranger(world: World, name: str, keyring: Keyring) -> Sessions:
    """Somebody who has this key, and knows the session of a running peer."""
    sessions = Sessions(keyring, Random(next(_STRANGERS)))
    sessions.note(name, services(world, name).sessions._session)
    return sessions


async def peer_asks(
    world: World, name: str, method: str, target: str, body: bytes = b"", *, keyring: Keyring = OPEN, **headers: str
) -> httpx.Response:
    """What a peer that has this key is answered; `headers` with underscores, the cluster is named unless they do."""
    proof = stranger(world, name, keyring).prove(name, method, target, hash_of(body))
    fields = {CLUSTER_HEADER: others(world, name).cluster_id, PROOF_HEADER: proof.field}
    fields |= {field.replace("_", "-"): value for field, value in headers.items()}
    return await world.request(name, method, target, content=body, headers=fields)


def sealed(world: World, name: str, body: bytes) -> bytes:
    """A datagram of a peer of the cluster, fresh."""
    return stranger(world, name, services(world, name).config.keyring).seal(name, body)


def rows(world: World, name: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What a peer's database has, also of one that is down."""
    (database,) = world.machines[name].platter.databases.values()
    return database.execute(query, values).fetchall()


def really_holds(world: World, name: str, file_key: str) -> bool:
    """Whether a peer's own disk, rows and files, backs the shown version of a file."""
    found = rows(world, name, "SELECT held, chunks FROM puts WHERE file_key = ? AND shown", file_key)
    if not found or not found[0][0]:
        return False
    return not missing_files(world, name)


def missing_files(world: World, name: str) -> list[str]:
    """Chunk files that a peer's rows name and its disk has not."""
    named = rows(world, name, "SELECT hash, serial FROM chunks WHERE serial IS NOT NULL")
    paths = [f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}" for chunk, serial in named]
    return [path for path in paths if path not in world.machines[name].platter.files]


def orphans(world: World, name: str) -> list[str]:
    """Files on a peer's disk that no row names."""
    named = rows(world, name, "SELECT hash, serial FROM chunks WHERE serial IS NOT NULL")
    paths = {f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}" for chunk, serial in named}
    return sorted(path for path in world.machines[name].platter.files if path not in paths)


def holders(world: World, name: str, file_key: str) -> list[str]:
    """The holders of the shown version of a file, as a peer has it."""
    query = "SELECT node_id FROM file_locations WHERE file_key = ? ORDER BY node_id"
    return [node_id for (node_id,) in rows(world, name, query, file_key)]


def versions(world: World, name: str, file_key: str) -> int:
    """How many live versions of a file a peer knows."""
    return int(rows(world, name, "SELECT count(*) FROM puts WHERE file_key = ?", file_key)[0][0])


def pending(world: World, name: str) -> list[tuple[str, str]]:
    """Key and target of each missing copy, as a peer sees it."""
    query = "SELECT file_key, target_node_id FROM replication_queue WHERE status = 'PENDING' ORDER BY 1, 2"
    return [(file_key, target) for file_key, target in rows(world, name, query)]


async def put(world: World, name: str, file_key: str, content: bytes) -> dict[str, Any]:
    """Upload a file; its receipt."""
    response = await world.upload(name, f"{file_key}.bin", content, file_id=file_key)
    assert response.status_code == httpx.codes.OK, response.text
    receipt: dict[str, Any] = response.json()
    return receipt


async def get(world: World, name: str, file_key: str) -> bytes | int:
    """The content of a file, or the status when there is none."""
    response = await world.request(name, "GET", f"/files/{file_key}")
    return response.content if response.status_code == httpx.codes.OK else response.status_code


async def everywhere(world: World, file_key: str) -> list[bytes | int]:
    """What each running peer answers for a file."""
    return [await get(world, name, file_key) for name, machine in world.machines.items() if machine.node is not None]


async def converged(world: World, limit_s: float = 200) -> None:
    """Wait until all running peers agree and nobody lacks a copy."""
    await world.wait_until(world.have_converged, limit_s)
    for name, machine in world.machines.items():
        if machine.node is not None:
            assert not missing_files(world, name), f"{name} names files it has not"


def count_exchanges(world: World) -> Counter[str]:
    """How often each peer is asked for an exchange from now on."""
    asked: Counter[str] = Counter()
    for name in world.machines:
        answering = services(world, name).answering

        async def count(request: ExchangeRequest, name: str = name, right: Any = answering.answer) -> ExchangeReply:
            asked[name] += 1
            reply: ExchangeReply = await right(request)
            return reply

        answering.answer = count  # type: ignore[method-assign]
    return asked


def part(world: World, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Cut two groups of peers from each other."""
    for one in ours:
        for other in theirs:
            world.network.cut(one, other)
            world.network.cut(other, one)


def heal(world: World) -> None:
    """Mend all links."""
    for one in world.machines:
        for other in world.machines:
            world.network.restore(one, other)


def lose_disk(world: World, name: str) -> None:
    """Give a peer that is down an empty disk."""
    world.machines[name].platter = Platter()


def spoil_files(world: World, name: str) -> int:
    """Turn one bit in the middle of each chunk file of a peer, behind its back; returns how many there were."""
    files = [file for path, file in world.machines[name].platter.files.items() if path.startswith("chunks/")]
    for file in files:
        file.content[len(file.content) // 2] ^= 1
        file.changes += 1
    return len(files)


def spoil_chunk(world: World, name: str, chunk: bytes) -> None:
    """Turn one bit of a chunk of a peer, behind its back: in its row, or in its file."""
    platter = world.machines[name].platter
    (database,) = platter.databases.values()
    serial, content = database.execute("SELECT serial, content FROM chunks WHERE hash = ?", (chunk,)).fetchone()
    if serial is None:
        spoiled = bytes([content[0] ^ 1]) + content[1:]
        database.execute("UPDATE chunks SET content = ? WHERE hash = ?", (spoiled, chunk))
    else:
        file = platter.files[f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}"]
        file.content[len(file.content) // 2] ^= 1
        file.changes += 1
