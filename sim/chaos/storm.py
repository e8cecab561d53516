"""One chaos run: clients and faults at once, then everything is mended and looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from peer.cluster import LocalCluster
from sim.chaos.checks import Checks
from sim.chaos.clients import Clients
from sim.chaos.faults import FaultMaker, Means
from sim.chaos.journal import Journal
from sim.chaos.scene import SLACK_S, Report, Scene, first_of, new_client
from sim.model import PromiseBroken

SAMPLE_EACH_S = 1.0

Watch = Callable[[Scene], Awaitable[None]]
"""Looks at a run while it lasts, until cancelled."""


class Chaos:
    """Clients and faults against one cluster of real processes; `run` it once."""

    def __init__(
        self,
        cluster: LocalCluster,
        seed: int,
        heal_interval_s: float,
        *,
        kinds: Sequence[str] = ("kill",),
        means: Means | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.scene = Scene(cluster, new_client(), heal_interval_s, Report(seed), journal or Journal())
        self._checks = Checks(self.scene, seed + 2)
        self._clients = Clients(self.scene, seed)
        self._faults = FaultMaker(self.scene, self._checks, seed + 1, kinds, means or Means())

    async def run(self, seconds: float, watch: Watch | None = None) -> Report:
        """Storm for so long, then let everything heal and check it all. Raises PromiseBroken."""
        scene = self.scene
        broken: PromiseBroken | None = None
        scene.journal.began = trio.current_time()
        async with scene.client, trio.open_nursery() as watching:
            for look in (sample, watch):
                if look is not None:
                    watching.start_soon(look, scene)
            try:
                await self._storm(seconds)
                await self._heal()
            except PromiseBroken as error:
                broken = error
                scene.journal.note("broken", promise=error.promise.value, what=str(error))
            watching.cancel_scope.cancel()
        if broken is not None:
            raise broken
        return scene.report

    async def _heal(self) -> None:
        scene = self.scene
        await self._faults.mend()
        scene.journal.note("mended")
        started = trio.current_time()
        await self._checks.wait_alike(2 * scene.heal_interval_s + SLACK_S)
        scene.report.converged_s = trio.current_time() - started
        scene.journal.note("alike")
        await self._checks.check(scene.files.values(), all_up=True)

    async def recheck(self) -> None:
        """Check what is listed once more, and some of the content, after all peers were restarted.

        Raises PromiseBroken.
        """
        self.scene.client = new_client()
        async with self.scene.client:
            await self._checks.wait_alike(2 * self.scene.heal_interval_s + SLACK_S)
            await self._checks.nothing_is_missing()
            await self._checks.check(self._checks.some_files(), all_up=True)

    async def _storm(self, seconds: float) -> None:
        broken: PromiseBroken | None = None
        end = trio.current_time() + seconds
        over = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._clients.run, over)
                await self._faults.run(end)
                await trio.sleep_until(end)
                over.set()
        except* PromiseBroken as group:
            broken = first_of(group)
        if broken is not None:
            raise broken


async def sample(scene: Scene) -> None:
    """Note, each second, who runs and how many copies are missing, until cancelled."""
    while True:
        await trio.sleep(SAMPLE_EACH_S)
        with trio.move_on_after(SAMPLE_EACH_S):
            figures = await scene.cluster.figures()
            missing: dict[str, int] = {}
            for found in figures.values():
                for node_id, count in found.missing.items():
                    missing[node_id] = max(count, missing.get(node_id, 0))
            files = max((found.files for found in figures.values()), default=0)
            scene.journal.note(
                "sample", up=sorted(scene.live()), answer=sorted(figures), files=files, missing=sum(missing.values())
            )
