"""Many short lives of three peers, each decided by its seed, under everything a disk, a network and a crash can do.

Clients upload, overwrite, repeat, delete, register and read while disks fail at any call and at commits, bits flip in
chunk files and rows, disks fill up, links are cut and the power goes. Then all faults end, and what the peers
acknowledged must be what they have. A bit is flipped only while another peer's disk has the chunk whole: that every
byte is lost nobody can heal.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from random import Random
from typing import Any

import click
import httpx
import trio
from blake3 import blake3

from sim.disk import TOTAL_BYTES, Faults
from sim.model import FileModel, PromiseBroken, Version, content_of
from sim.network import FAIR, Weather
from sim.world import VirtualClock, World, few_partitions, run_world

PEERS = 3
STORM_S = 30.0
HEAL_S = 400.0
"""Of virtual time, for everything to be well again."""
CLIENTS = 2
KEYS = 10
SIZES = (0, 1, 300, 1000, 1001, 4000, 9000)
SETTINGS: dict[str, Any] = {
    "inline_bytes_max": 1000, "chunk_bytes_max": 4000, "heal_interval_s": 10.0, "reserve_bytes": 6 * 1024 * 1024
}  # fmt: skip
CONTENTS = 6
"""Contents that are sent again and again, under several keys."""

EIO = 0.002
EIO_AT_COMMIT = 0.05
DAMAGED_ROWS = 0.3
"""How often a peer whose power was cut finds a row of its catalog gone, or not what it was."""


@dataclass(slots=True)
class Tally:
    """What a seed, or many, came to."""

    done: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))


class Storm:
    """The clients and the faults of one world."""

    def __init__(self, world: World, tally: Tally) -> None:
        self._world = world
        self._chance = Random(f"{world.seed} clients")
        self._faults = Random(f"{world.seed} faults")
        self._tally = tally.done
        self._files: dict[str, FileModel] = {}
        self._sent: dict[str, set[str]] = {}
        """By key, the checksums of all that was ever sent under it."""
        self._registered: dict[str, None] = {}
        self._own = [f"ours-{number}" for number in range(KEYS)]

    async def run(self) -> None:
        """Storm, heal, and check. Raises PromiseBroken."""
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._operate, over)
            nursery.start_soon(self._harm, over)
            await trio.sleep(STORM_S)
            over.set()
        await self._heal()
        await self._check()

    # --- clients ---

    def _running(self) -> list[str]:
        return [name for name, machine in self._world.machines.items() if machine.is_up]

    async def _operate(self, over: trio.Event) -> None:
        operations: list[tuple[float, Callable[[str], Any]]] = [
            (0.25, self._upload_new),
            (0.55, partial(self._on_own, self._upload)),
            (0.65, partial(self._on_own, self._upload_wrong)),
            (0.80, partial(self._on_own, self._delete)),
            (0.85, partial(self._on_own, self._register)),
            (1.00, partial(self._on_own, self._read)),
        ]
        while not over.is_set():
            await trio.sleep(self._chance.uniform(0.02, 0.4))
            running = self._running()
            if running:
                via, draw = self._chance.choice(running), self._chance.random()
                await next(operation for up_to, operation in operations if draw <= up_to)(via)

    async def _on_own(self, operation: Callable[[str, FileModel], Any], via: str) -> None:
        file = self._files.setdefault(key := self._chance.choice(self._own), FileModel(key))
        if not file.busy and not file.retired:
            file.busy = True
            await operation(via, file)
            file.busy = False

    def _content(self) -> tuple[Version, bytes]:
        seed = self._chance.choice([self._chance.getrandbits(48), self._chance.randrange(CONTENTS)])
        size = SIZES[seed % len(SIZES)]
        content = content_of(seed, size)
        return Version(seed, size, hashlib.sha256(content).hexdigest()), content

    async def _upload_new(self, via: str) -> None:
        version, content = self._content()
        response = await self._send("POST", via, "/files", content=content)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            key = response.json()["file_id"]
            self._acknowledge(self._files.setdefault(key, FileModel(key)), via, version, response)

    async def _upload(self, via: str, file: FileModel) -> None:
        version, content = self._content()
        self._sent.setdefault(file.file_key, set()).add(version.sha256)
        response = await self._send("POST", via, f"/files?file_id={file.file_key}", content=content)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            self._acknowledge(file, via, version, response)
        elif response is not None:
            # Also one that was refused may have been written: a commit that failed can come back.
            file.uncertain_put(version)
            file.retired = isinstance(response, httpx.TimeoutException)

    def _acknowledge(self, file: FileModel, via: str, version: Version, response: httpx.Response) -> None:
        receipt = response.json()
        if receipt["checksum_sha256"] != version.sha256 or via not in receipt["durable_copies"]:
            raise PromiseBroken(f"{via} acknowledged {version} with {receipt}")
        self._sent.setdefault(file.file_key, set()).add(version.sha256)
        known = Version(version.seed, version.size, version.sha256, frozenset(receipt["durable_copies"]))
        file.acknowledged_put(known, via)
        self._tally["uploads"] += 1

    async def _upload_wrong(self, via: str, file: FileModel) -> None:
        _, content = self._content()
        wrong = {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        response = await self._send("POST", via, f"/files?file_id={file.file_key}", content=content, headers=wrong)
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            raise PromiseBroken(f"{via} took content with another checksum than was sent with it")
        self._tally["refused uploads"] += 1

    async def _delete(self, via: str, file: FileModel) -> None:
        response = await self._send("DELETE", via, f"/files/{file.file_key}")
        if response is None:
            return
        if not isinstance(response, httpx.Response) or response.status_code >= 500:
            file.uncertain_delete()
            file.retired = isinstance(response, httpx.TimeoutException)
        elif response.status_code == httpx.codes.OK:
            file.acknowledged_delete(via)
            self._tally["deletes"] += 1
        elif not file.may_be_unknown_to(via):
            raise PromiseBroken(f"{via} does not know {file.file_key}, which it holds")

    async def _register(self, via: str, file: FileModel) -> None:
        self._registered[file.file_key] = None
        body = {
            "file_key": file.file_key, "original_filename": "said.bin", "size_bytes": 4,
            "checksum_sha256": hashlib.sha256(b"said").hexdigest(), "node_id": via,
        }  # fmt: skip
        await self._send("POST", via, "/files/register", json=body)

    async def _read(self, via: str, file: FileModel) -> None:
        response = await self._send("GET", via, f"/files/{file.file_key}")
        if isinstance(response, httpx.Response) and response.status_code == httpx.codes.OK:
            if hashlib.sha256(response.content).hexdigest() not in self._sent.get(file.file_key, ()):
                raise PromiseBroken(f"{via} served other bytes for {file.file_key} than were ever sent")
            self._tally["reads"] += 1

    async def _send(self, method: str, via: str, path: str, **more: Any) -> httpx.Response | httpx.HTTPError | None:
        """An answer, what went wrong, or None when nobody listened."""
        content = more.pop("content", None)
        try:
            if content is not None:
                return await self._world.post_file(via, path, "a.bin", content, more.get("headers", {}))
            return await self._world.request(via, method, path, **more)
        except httpx.ConnectError:
            return None
        except httpx.HTTPError as error:
            return error

    # --- faults ---

    async def _harm(self, over: trio.Event) -> None:
        harms = (self._crash, self._fail, self._flip, self._flip, self._fill, self._cut, self._blow, self._set_clock)
        while not over.is_set():
            await trio.sleep(self._faults.uniform(0.2, 2.0))
            await self._faults.choice(harms)(self._faults.choice(sorted(self._world.machines)))

    async def _crash(self, name: str) -> None:
        machine = self._world.machines[name]
        if machine.is_up:
            self._tally["power cuts"] += 1
            await self._world.crash(name)
            await trio.sleep(self._faults.uniform(0.0, 8.0))
        if self._faults.random() < DAMAGED_ROWS and machine.node is None:
            self._damage_row(name)
        machine.platter.faults = None
        await self._world.try_start(name)

    def _damage_row(self, name: str) -> None:
        """A put's row goes, or changes, while another peer's catalog has it as it was."""
        here = self._puts(name)
        elsewhere = {put for other in self._world.machines if other != name for put in self._puts(other)}
        common = sorted(here.keys() & elsewhere)
        if not common:
            return
        self._tally["damaged rows"] += 1
        row_id = here[self._faults.choice(common)]
        (database,) = self._world.machines[name].platter.databases.values()
        if self._faults.random() < 0.5:
            database.execute("DELETE FROM holds WHERE put = ?", (row_id,))
            database.execute("DELETE FROM puts WHERE id = ?", (row_id,))
        else:
            database.execute("UPDATE puts SET filename = 'damaged', sha256 = zeroblob(32) WHERE id = ?", (row_id,))

    def _puts(self, name: str) -> dict[tuple[str, int, int], int]:
        """The row id of each live put of a peer, by its dot."""
        for database in self._world.machines[name].platter.databases.values():
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'puts'").fetchone() is not None:
                rows = database.execute(
                    "SELECT nodes.node_id, origins.epoch, puts.seq, puts.id FROM puts"
                    " JOIN origins ON origins.id = puts.origin JOIN nodes ON nodes.id = origins.node"
                )
                return {(node_id, epoch, seq): row_id for node_id, epoch, seq, row_id in rows}
        return {}

    async def _fail(self, name: str) -> None:
        self._tally["failing disks"] += 1
        platter = self._world.machines[name].platter
        chance = Random(self._faults.getrandbits(64))
        platter.faults = Faults(chance, EIO * self._faults.choice((0, 1, 5)), EIO_AT_COMMIT)
        await trio.sleep(self._faults.uniform(0.5, 3.0))
        if self._faults.random() < 0.5:
            platter.faults = None

    async def _fill(self, name: str) -> None:
        self._tally["full disks"] += 1
        platter = self._world.machines[name].platter
        platter.capacity_bytes = platter.used_bytes()
        await trio.sleep(self._faults.uniform(0.5, 6.0))
        platter.capacity_bytes = TOTAL_BYTES

    async def _cut(self, name: str) -> None:
        self._tally["cut links"] += 1
        other = self._faults.choice(sorted({*self._world.machines} - {name}))
        self._world.network.cut(name, other)
        if self._faults.random() < 0.7:
            self._world.network.cut(other, name)
        await trio.sleep(self._faults.uniform(0.5, 8.0))
        self._mend(name, other)

    async def _blow(self, _name: str) -> None:
        """Bad weather on all links, clients' too."""
        self._tally["bad weathers"] += 1
        draw = self._faults.random
        self._world.network.weather = Weather(
            lost=draw() / 2, doubled=draw() / 4, slow=draw() / 4, slow_max_s=draw() * 3, broken=draw() / 5
        )
        await trio.sleep(self._faults.uniform(0.5, 8.0))
        self._world.network.weather = FAIR

    async def _set_clock(self, name: str) -> None:
        """A peer's clock jumps, by anything from milliseconds to weeks, and stays where it is."""
        await trio.lowlevel.checkpoint()
        machine = self._world.machines[name]
        if machine.env is not None and isinstance(clock := machine.env.clock, VirtualClock):
            self._tally["clock steps"] += 1
            clock.offset_ms = self._faults.randrange(-1, 2) * int(10 ** self._faults.uniform(0, 9.3))

    def _mend(self, one: str, other: str) -> None:
        self._world.network.restore(one, other)
        self._world.network.restore(other, one)

    async def _flip(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        elsewhere = {
            chunk
            for other in self._world.machines
            if other != name
            for chunk, content in self._chunks(other)
            if blake3(content).digest() == chunk
        }
        here = [chunk for chunk, content in self._chunks(name) if chunk in elsewhere and content]
        if here:
            self._tally["flipped bits"] += 1
            self._spoil(name, self._faults.choice(here))

    def _chunks(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Hash and bytes of every chunk that rows on a disk name."""
        platter = self._world.machines[name].platter
        for database in platter.databases.values():
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchone() is None:
                return
            for chunk, serial, content in database.execute("SELECT hash, serial, content FROM chunks ORDER BY hash"):
                file = platter.files.get(f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{serial}")
                yield chunk, content or (bytes(file.content) if file is not None else b"")

    def _spoil(self, name: str, chunk: bytes) -> None:
        platter = self._world.machines[name].platter
        for database in platter.databases.values():
            row = database.execute("SELECT serial, content FROM chunks WHERE hash = ?", (chunk,)).fetchone()
            bit = 1 << self._faults.randrange(8)
            if row[0] is None:
                spoiled = bytearray(row[1])
                spoiled[self._faults.randrange(len(spoiled))] ^= bit
                database.execute("UPDATE chunks SET content = ? WHERE hash = ?", (bytes(spoiled), chunk))
            else:
                file = platter.files[f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{row[0]}"]
                file.content[self._faults.randrange(len(file.content))] ^= bit
                file.changes += 1

    # --- the end ---

    async def _heal(self) -> None:
        self._world.network.weather = FAIR
        for name, machine in self._world.machines.items():
            machine.platter.faults = None
            machine.platter.capacity_bytes = TOTAL_BYTES
            for other in self._world.machines:
                self._mend(name, other)
        for name, machine in self._world.machines.items():
            if not machine.is_up and not await self._world.try_start(name):
                raise PromiseBroken(f"{name} cannot start on a disk that is well again")
        await self._wait_converged()

    async def _wait_converged(self) -> None:
        try:
            await self._world.wait_until(self._world.have_converged, HEAL_S)
        except trio.TooSlowError:
            raise PromiseBroken(f"the peers are not alike {HEAL_S:g} s after the last fault") from None

    async def _check(self) -> None:
        # The first look may find rot, which is healed; the second must find none.
        for _ in range(2):
            for name in self._world.machines:
                for file in list(self._files.values()):
                    await self._check_file(name, file)
                await self._check_listed(name)
            await self._wait_converged()
        for name in self._world.machines:
            rotten = [chunk for chunk, content in self._chunks(name) if blake3(content).digest() != chunk]
            if rotten:
                raise PromiseBroken(f"{name} holds {len(rotten)} chunks that no longer give their hash")

    async def _check_listed(self, name: str) -> None:
        """Whatever a peer lists gives the bytes it says, in all versions: also uploads whose client heard no answer."""
        listed = (await self._world.request(name, "GET", "/files?limit=1000")).json()["files"]
        for key in [file["file_key"] for file in listed]:
            versions = (await self._world.request(name, "GET", f"/files/{key}/versions")).json()["versions"]
            for version in [version for version in versions if version["replicas"]]:
                response = await self._world.request(name, "GET", f"/files/{key}", params={"version": version["dot"]})
                digest = hashlib.sha256(response.content).hexdigest()
                if response.status_code != httpx.codes.OK or digest != version["checksum_sha256"]:
                    raise PromiseBroken(f"{name} answers {response.status_code} for {key}, version {version['dot']}")

    async def _check_file(self, name: str, file: FileModel) -> None:
        response = await self._world.request(name, "GET", f"/files/{file.file_key}")
        live = frozenset(self._world.machines)
        said = response.status_code == 503 and file.file_key in self._registered and None in file.shown
        digest = hashlib.sha256(response.content).hexdigest()
        objection = None if said else file.objection(response.status_code, digest, live, all_up=True)
        if objection is not None and not file.retired:
            raise PromiseBroken(f"{name}: {objection}")


def run_seed(seed: int) -> tuple[Tally, str | None]:
    """One seed's life; what it came to, and the promise it broke, if any."""
    tally = Tally()

    async def scenario(world: World) -> None:
        for machine in world.machines.values():
            machine.platter.loses = Random(f"{seed} {machine.name} crashes")
        await world.start_all()
        await Storm(world, tally).run()

    try:
        with few_partitions():
            run_world(seed, scenario, peers=PEERS, copies=PEERS, **SETTINGS)
    # Whatever ends a simulated run early is a finding, an assertion of ours as well as a broken promise.
    except Exception as error:  # noqa: BLE001
        return tally, _told(error)
    return tally, None


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def parse_seeds(text: str) -> range:
    """The seeds `A..B`, both included, or the one seed `A`. Raises click.BadParameter."""
    first, dots, last = text.partition("..")
    if not (first.isdecimal() and (last.isdecimal() if dots else True)) or (dots and int(last) < int(first)):
        raise click.BadParameter(f"{text!r} is no range of seeds; write A..B, for example 1..100")
    return range(int(first), int(last if dots else first) + 1)


def _seeds(_ctx: click.Context, _param: click.Parameter, value: str) -> range:
    return parse_seeds(value)


@click.command()
@click.option(
    "--seeds",
    default="1..20",
    show_default=True,
    metavar="A..B",
    callback=_seeds,
    help="The seeds, both ends included.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=os.cpu_count() or 1,
    show_default=True,
    help="How many to run at a time; as many as there are processors, unless said.",
)
def run(seeds: range, jobs: int) -> None:
    """Run simulated peers through storms of faults, one a seed.

    Three peers; what was promised is checked. Exit code 1 when a promise was broken; the seed replays it.
    """
    started = time.monotonic()
    total, broken = Tally(), 0
    # What the peers have to say is part of the trace of one seed, not of the verdict on many.
    with ProcessPoolExecutor(jobs, get_context("spawn"), logging.disable, (logging.CRITICAL,)) as pool:
        for seed, (tally, objection) in zip(seeds, pool.map(run_seed, seeds), strict=True):
            total.done += tally.done
            if objection is not None:
                broken += 1
                click.echo(f"seed {seed}: {objection}")
    took_s = time.monotonic() - started
    click.echo(f"{len(seeds)} seeds, {broken} broke a promise; {total}; {took_s:.0f} s")
    if broken:
        raise click.exceptions.Exit(1)
