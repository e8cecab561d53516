"""Sixty virtual seconds of three peers: uploads, deletes, a crash and a return, told as one trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from random import Random

import click
import httpx
import trio

from sim.model import FileModel, Promise, PromiseBroken, Version, content_of
from sim.world import World, run_world

OPERATIONS_S = 60.0
CRASH_AT_S = 20.0
RETURN_AT_S = 35.0
SIZES = (0, 1, 200, 4096, 256 * 1024, 256 * 1024 + 1, 300_000)


class Workload:
    """A client that uploads, overwrites and deletes by chance; models of its files say what may be read."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = Random(f"{world.seed} workload")
        self._files: dict[str, FileModel] = {}
        self.operations = 0

    async def run(self, until_s: float) -> None:
        """Operate until a moment of virtual time."""
        while trio.current_time() < until_s:
            await trio.sleep(self._chance.uniform(0.05, 0.6))
            running = [name for name, machine in self._world.machines.items() if machine.is_up]
            via = self._chance.choice(running)
            existing = [file for file in self._files.values() if file.must_exist]
            if existing and self._chance.random() < 0.25:
                await self._delete(via, self._chance.choice(existing))
            else:
                await self._upload(via)

    async def _upload(self, via: str) -> None:
        key = f"file-{self._chance.randrange(40)}"
        file = self._files.setdefault(key, FileModel(key))
        seed, size = self._chance.getrandbits(48), self._chance.choice(SIZES)
        content = content_of(seed, size)
        version = Version(seed, size, sha256(content).hexdigest())
        try:
            response = await self._world.upload(via, f"{key}.bin", content, file_id=key)
        except httpx.HTTPError:
            file.uncertain_put(version)
            return
        assert response.status_code == httpx.codes.OK, response.text
        file.acknowledged_put(replace(version, holders=frozenset(response.json()["durable_copies"])), via)
        self.operations += 1

    async def _delete(self, via: str, file: FileModel) -> None:
        try:
            response = await self._world.request(via, "DELETE", f"/files/{file.file_key}")
        except httpx.HTTPError:
            file.uncertain_delete()
            return
        if response.status_code == httpx.codes.OK:
            file.acknowledged_delete(via)
            self.operations += 1
        elif not file.may_be_unknown_to(via):
            what = f"{file.file_key}: {via} has it and answers {response.status_code} to its deletion"
            raise PromiseBroken(Promise.ACKNOWLEDGED, what)

    async def check(self) -> None:
        """Every acknowledged file reads right from every peer, and nothing deleted is back. Raises PromiseBroken."""
        everybody = frozenset(self._world.machines)
        for name in self._world.machines:
            for file in self._files.values():
                response = await self._world.request(name, "GET", f"/files/{file.file_key}")
                content_hash = sha256(response.content).hexdigest()
                objection = file.objection(response.status_code, content_hash, everybody, all_up=True)
                if objection is not None:
                    raise objection.at(name)


async def scenario(world: World) -> None:
    """The whole minute, then convergence and the checks."""
    await world.start_all()
    workload = Workload(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(workload.run, OPERATIONS_S)
        await trio.sleep_until(CRASH_AT_S)
        await world.crash("node-2")
        await trio.sleep_until(RETURN_AT_S)
        await world.start("node-2")
    await world.wait_until(world.have_converged, 120)
    await workload.check()
    world.trace("workload", "acknowledged", str(workload.operations))


def run_smoke(seed: int, tell: Callable[[str], None] | None = None) -> str:
    """Run it; returns the digest of the trace, whose lines `tell` is given."""
    digest, events = run_world(seed, scenario, keep_events=tell is not None)
    if tell is not None:
        for line in events:
            tell(line)
    return digest


@click.command()
@click.argument("seed", type=int, default=1)
@click.option("--trace", is_flag=True, help="Print every event, with its virtual time.")
def smoke(seed: int, *, trace: bool) -> None:
    """Run simulated peers for a minute of virtual time.

    Equal seeds give equal digests.
    """
    click.echo(f"trace {run_smoke(seed, click.echo if trace else None)}")
