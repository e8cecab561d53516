"""Sixty virtual seconds of three peers: uploads, deletes, a crash and a return, told as one trace."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import click
import httpx
import trio

from sim.world import World, run_world

OPERATIONS_S = 60.0
CRASH_AT_S = 20.0
RETURN_AT_S = 35.0
SIZES = (0, 1, 200, 4096, 32 * 1024, 32 * 1024 + 1, 300_000)


class Workload:
    """A client that uploads, overwrites and deletes by chance, and remembers what was acknowledged."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = Random(f"{world.seed} workload")
        self.acknowledged: dict[str, bytes] = {}
        self.deleted: dict[str, None] = {}
        self.uncertain: dict[str, None] = {}
        """Keys whose last operation failed: either outcome is right."""
        self.operations = 0

    async def run(self, until_s: float) -> None:
        """Operate until a moment of virtual time."""
        while trio.current_time() < until_s:
            await trio.sleep(self._chance.uniform(0.05, 0.6))
            running = [name for name, machine in self._world.machines.items() if machine.node is not None]
            via = self._chance.choice(running)
            if self.acknowledged and self._chance.random() < 0.25:
                await self._delete(via, self._chance.choice(sorted(self.acknowledged)))
            else:
                await self._upload(via)

    async def _upload(self, via: str) -> None:
        key = f"file-{self._chance.randrange(40)}"
        content = self._chance.randbytes(self._chance.choice(SIZES))
        self.uncertain[key] = None
        try:
            response = await self._world.upload(via, f"{key}.bin", content, file_id=key)
        except httpx.HTTPError:
            return
        if response.status_code == httpx.codes.OK:
            self._settle(key)
            self.acknowledged[key] = content

    async def _delete(self, via: str, key: str) -> None:
        self.uncertain[key] = None
        try:
            response = await self._world.request(via, "DELETE", f"/files/{key}")
        except httpx.HTTPError:
            return
        if response.status_code == httpx.codes.OK:
            self._settle(key)
            self.deleted[key] = None

    def _settle(self, key: str) -> None:
        self.operations += 1
        for outcome in (self.acknowledged, self.deleted, self.uncertain):
            outcome.pop(key, None)

    async def check(self) -> None:
        """Every acknowledged file reads right from every peer, and nothing deleted is back."""
        for name in self._world.machines:
            for key, content in self.acknowledged.items():
                if key not in self.uncertain:
                    response = await self._world.request(name, "GET", f"/files/{key}")
                    assert response.status_code == httpx.codes.OK, f"{key} from {name}: {response.text}"
                    assert response.content == content, f"{key} from {name}: other bytes"
            for key in self.deleted:
                if key not in self.uncertain:
                    response = await self._world.request(name, "GET", f"/files/{key}")
                    assert response.status_code == httpx.codes.NOT_FOUND, f"{key} is back on {name}"


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
    """Run three simulated peers for a minute of virtual time; equal seeds give equal digests."""
    click.echo(f"trace {run_smoke(seed, click.echo if trace else None)}")
