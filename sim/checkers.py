"""What must hold, apart from whoever makes it hold: each checker looks at disks and answers, and says what is wrong.

A checker is named after its promise; what it finds is a PromiseBroken.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

import httpx
from blake3 import blake3

from sim.looks import chunks_on, gaps_on, holders_on, holds, lacking_on, logs_on, unnamed_chunks_on
from sim.model import FileModel, Promise, PromiseBroken
from sim.sometimes import SIBLINGS
from sim.world import World

Dot = tuple[str, int, int]

# --- at any moment ---


def receipt_is_true(
    world: World, file_key: str, holders: Iterable[str], harmed_at: Mapping[str, float], began: float
) -> None:
    """Whoever a receipt names has a version of the file on its disk, unless its disk was harmed meanwhile."""
    for name in holders:
        platter = world.machines[name].platter
        if harmed_at.get(name, -1.0) >= began or platter.faults is not None:
            continue
        if not holds(platter, file_key):
            raise PromiseBroken(Promise.RECEIPTS, f"the receipt for {file_key} names {name}, which does not have it")
    world.kept[Promise.RECEIPTS] += 1


def no_log_has_a_gap(world: World) -> None:
    """A version vector never passes a gap."""
    for name, machine in world.machines.items():
        gaps = gaps_on(machine.platter)
        if gaps:
            raise PromiseBroken(Promise.LOGS, f"{name} has gaps in the logs of {gaps}")


# --- when all is well again ---


def still_missing(world: World) -> list[str]:
    """What has not converged: peers that differ from the first, and copies that are missing."""
    roots = {node.config.node_id: _root(node) for node in world.live_nodes()}
    missing = [
        f"{name} differs from {next(iter(roots))}" for name in roots if roots[name] != next(iter(roots.values()))
    ]
    for name, machine in world.machines.items():
        lacking = [
            f"{target} lacks {key}"
            for database in machine.platter.databases.values()
            for key, target in database.execute(
                "SELECT file_key, target_node_id FROM replication_queue WHERE status = 'PENDING' ORDER BY 1, 2"
            )
        ]
        missing += [f"{name} says that {what}" for what in lacking[:3]]
    return missing


def _root(node: object) -> bytes:
    services = node.services  # type: ignore[attr-defined]
    return bytes(services.here.replica.root()) if services is not None else b""


async def answers_are_right(
    world: World, files: Mapping[str, FileModel], registered: Mapping[str, None]
) -> AsyncIterator[str]:
    """Every peer serves what was acknowledged; gives the name of each promise found kept. Raises PromiseBroken.

    Reading finds rot, which is healed then.
    """
    for name in world.machines:
        for file in list(files.values()):
            await _check_file(world, name, file, file.file_key in registered)
    yield "acknowledged uploads are there byte for byte, and deleted ones are not"
    for name in world.machines:
        await _check_listed(world, name)
    yield "what is listed is what is served, in all versions"


def is_tidy(world: World) -> bool:
    """Whether no request runs any more, no work waits, and no chunk file is there that nothing needs."""
    return not any(_left_over(world))


def nothing_is_left(world: World) -> None:
    """See `is_tidy`. Raises PromiseBroken."""
    for what in _left_over(world):
        raise PromiseBroken(Promise.TIDY, what)
    world.kept[Promise.TIDY] += len(world.machines)


WITHOUT_END = ("push", "repair")
"""Workers that have a backlog also when all is well: news is told on, and what was only registered has no content."""


def _left_over(world: World) -> Iterator[str]:
    for node in world.live_nodes():
        name, services = node.config.node_id, node.services
        assert services is not None
        listener = world.network.server_at(world.machines[name].address.port)
        if listener is not None and listener.running:
            yield f"{name} still answers {listener.running} requests"
        waits = [worker.status() for worker in services.workers if worker.name not in WITHOUT_END]
        yield from (f"{status.backlog} of {status.name} wait at {name}" for status in waits if status.backlog)
        machine, staged = world.machines[name], services.here.chunks.staging.has
        litter = [chunk for chunk in unnamed_chunks_on(machine.platter) if not staged(chunk)]
        if litter and machine.flawed_life != machine.lives:
            yield f"{name} keeps {len(litter)} chunk files that nothing names"


class CopiesWatch:
    """Looks, now and then, whether a peer gave up a copy of a live file while there were too few of it."""

    def __init__(self, world: World, wanted: int) -> None:
        self._world = world
        self._wanted = wanted
        self._before: dict[Dot, set[str]] = {}

    def look(self, *, harmed: bool) -> None:
        """Look again; where disks were `harmed` nothing can be said any more. Raises PromiseBroken."""
        if harmed:
            return
        live = {name: lacking_on(machine.platter) for name, machine in self._world.machines.items()}
        holders: dict[Dot, set[str]] = {}
        for name, lacking in live.items():
            declared = holders_on(self._world.machines[name].platter)
            for dot, missing in lacking.items():
                # What is there for another file's sake may go with that.
                if not missing and name in declared.get(dot, ()):
                    holders.setdefault(dot, set()).add(name)
        for dot, before in self._before.items():
            gone = {name for name in before - holders.get(dot, set()) if dot in live[name]}
            if gone and len(holders.get(dot, ())) < self._wanted:
                raise PromiseBroken(Promise.KEPT, f"{sorted(gone)} gave up {dot}, which {holders.get(dot)} have")
        self._before = holders
        self._world.kept[Promise.KEPT] += len(holders)


def disks_are_right(world: World, wanted_copies: int) -> None:
    """What the disks have is what was promised and said, after all rot was found and healed. Raises PromiseBroken."""
    no_log_has_a_gap(world)
    looks: dict[Promise, Iterator[str]] = {
        Promise.LOGS: _dots_used_twice(world),
        Promise.CLAIMS: _false_claims(world),
        Promise.COPIES: _too_few(world, wanted_copies),
        Promise.ROT: _rot(world),
    }
    for promise, problems in looks.items():
        for problem in problems:
            raise PromiseBroken(promise, problem)
        world.kept[promise] += len(world.machines)


async def _check_file(world: World, name: str, file: FileModel, is_registered: bool) -> None:
    response = await world.request(name, "GET", f"/files/{file.file_key}")
    said = response.status_code == httpx.codes.SERVICE_UNAVAILABLE and is_registered and None in file.shown
    digest = hashlib.sha256(response.content).hexdigest()
    objection = None if said else file.objection(response.status_code, digest, frozenset(world.machines), all_up=True)
    if objection is not None and not file.retired:
        raise objection.at(name)
    world.kept.update((Promise.ACKNOWLEDGED, Promise.BYTES) if file.must_exist else (Promise.DELETED,))


async def _check_listed(world: World, name: str) -> None:
    """Whatever a peer lists gives the bytes it says, in all versions: also uploads whose client heard no answer."""
    listed = (await world.request(name, "GET", "/files?limit=1000")).json()["files"]
    for key in [file["file_key"] for file in listed]:
        versions = (await world.request(name, "GET", f"/files/{key}/versions")).json()["versions"]
        world.seen[SIBLINGS] += len(versions) > 1
        for version in [version for version in versions if version["replicas"]]:
            response = await world.request(name, "GET", f"/files/{key}", params={"version": version["dot"]})
            digest = hashlib.sha256(response.content).hexdigest()
            if response.status_code != httpx.codes.OK or digest != version["checksum_sha256"]:
                what = f"{name} answers {response.status_code} for {key}, version {version['dot']}"
                raise PromiseBroken(Promise.LISTED, what)
            world.kept[Promise.LISTED] += 1


def _dots_used_twice(world: World) -> Iterator[str]:
    """Two peers that logged different ops under one dot."""
    seen: dict[tuple[str, int, int], tuple[str, bytes]] = {}
    for name, machine in world.machines.items():
        for dot, op in logs_on(machine.platter).items():
            other, theirs = seen.setdefault(dot, (name, op))
            if theirs != op:
                yield f"{other} and {name} have different ops {dot}"


def _false_claims(world: World) -> Iterator[str]:
    """A peer that is said to hold what its disk does not have, or says it more than once."""
    platters = {name: machine.platter for name, machine in world.machines.items()}
    lacking = {name: lacking_on(platter) for name, platter in platters.items()}
    for dot, holders in holders_on(next(iter(platters.values()))).items():
        for holder in holders:
            if holders.count(holder) > 1:
                yield f"{holder} declared {dot} held more than once"
            if lacking[holder].get(dot, 1):
                yield f"{holder} declared {dot} held and lacks {lacking[holder].get(dot, 'the put')}"


def _too_few(world: World, wanted: int) -> Iterator[str]:
    """A live file with content on fewer peers than it should be on."""
    (name, *_), platter = list(world.machines), next(iter(world.machines.values())).platter
    holders = holders_on(platter)
    for dot in lacking_on(platter):
        if len(set(holders.get(dot, ()))) < min(wanted, len(world.machines)):
            yield f"{name} knows {dot} on {holders.get(dot, [])} only"


def _rot(world: World) -> Iterator[str]:
    """A chunk that is there and no longer gives its hash."""
    for name, machine in world.machines.items():
        rotten = [chunk for chunk, content in chunks_on(machine.platter) if blake3(content).digest() != chunk]
        if rotten:
            yield f"{name} holds {len(rotten)} chunks that no longer give their hash"
