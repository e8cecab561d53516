"""What is done to real peers, one thing at a time, each within what they promise to survive; then it is mended."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from blake3 import blake3

from sim.chaos.checks import Checks
from sim.chaos.scene import Scene
from sim.relay import Relay

PAUSE_BETWEEN_S = (0.2, 1.5)
LASTS_S = (0.5, 6.0)
KILLED_FOR_S = (0.2, 1.5)
BITS = 5
"""Flipped at a time, each in a chunk of its own."""
CLOCK_OFF_S = 30 * 86_400
BALLAST_PIECE = bytes(1024 * 1024)

KINDS = ("kill", "pause", "partition", "slow", "disk-full", "bit-rot", "clock", "restart-all")


@dataclass(frozen=True, slots=True)
class Means:
    """What faults need beside processes; a kind whose means are missing is left out, and `why_not` says why."""

    relay: Relay | None = None
    small_disk: str | None = None
    """The peer whose folder is a small file system of its own."""
    has_clocks: bool = False
    """Whether the peers run under `sim.chaos.skewed`."""

    def why_not(self, kind: str) -> str | None:
        """Why a kind of fault cannot be made here; None when it can."""
        if kind in ("partition", "slow") and self.relay is None:
            return "the peers talk to each other without a relay"
        if kind == "disk-full" and self.small_disk is None:
            return "a small file system can be mounted by root on Linux only"
        if kind == "clock" and not self.has_clocks:
            return "the peers run by the clock of the machine"
        if kind == "pause" and os.name != "posix":
            return "this system cannot stop a process and let it go on"
        return None


def clock_file(folder: Path) -> Path:
    """Where a peer of `sim.chaos.skewed` finds how wrong its clock is, beside its folder."""
    return folder.with_name(f"{folder.name}.clock")


class FaultMaker:
    """Makes faults of the given kinds, drawn from a seed of its own."""

    def __init__(self, scene: Scene, checks: Checks, seed: int, kinds: Sequence[str], means: Means) -> None:
        self._scene = scene
        self._checks = checks
        self._chance = random.Random(seed)
        self._kinds = tuple(kinds)
        self._means = means
        self._makers: dict[str, Callable[[str], Awaitable[None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "partition": self._partition,
            "slow": self._slow,
            "disk-full": self._fill_disk,
            "bit-rot": self._flip_bits,
            "clock": self._set_clock,
            "restart-all": self._restart_all,
        }

    async def run(self, end: float) -> None:
        """One fault after the other, each kind once first, until `end` by trio's clock. Raises PromiseBroken."""
        kinds = list(self._kinds)
        self._chance.shuffle(kinds)
        while trio.current_time() < end and self._kinds:
            await trio.sleep(self._chance.uniform(*PAUSE_BETWEEN_S))
            kind = kinds.pop() if kinds else self._chance.choice(self._kinds)
            node_id = self._chance.choice(self._scene.node_ids)
            await self._makers[kind](node_id)

    async def mend(self) -> None:
        """End whatever is wrong: also where a fault was broken off."""
        if self._means.relay is not None:
            self._means.relay.mend()
        for peer in self._scene.cluster.status():
            if peer.pid is not None and os.name == "posix":
                with suppress(ProcessLookupError):
                    os.kill(peer.pid, signal.SIGCONT)
            _ballast(self._scene.cluster.data / peer.node_id).unlink(missing_ok=True)
        for node_id in self._scene.down():
            await self._start(node_id)

    def _begin(self, kind: str, where: str) -> None:
        self._scene.report.faults[kind] += 1
        self._scene.journal.fault_begins(kind, where)

    async def _last(self) -> None:
        await trio.sleep(self._chance.uniform(*LASTS_S))

    def _others(self, node_id: str) -> list[str]:
        return [other for other in self._scene.node_ids if other != node_id]

    # --- processes ---

    async def _kill(self, node_id: str) -> None:
        """One peer or two of them at once; what they held is read elsewhere meanwhile, and they catch up."""
        also = self._chance.sample(self._others(node_id), self._chance.choice((0, 0, 1)))
        victims = [node_id, *also]
        for victim in victims:
            self._begin("kill", victim)
            await self._end(victim)
        await trio.sleep(self._chance.uniform(*KILLED_FOR_S))
        await self._checks.check(self._checks.some_files(), all_up=False)
        for victim in victims:
            before = {file.file_key for file in self._scene.files.values() if file.must_exist}
            await self._start(victim)
            self._scene.journal.fault_ends("kill", victim)
            await self._checks.wait_caught_up(victim, before)

    async def _restart_all(self, _node_id: str) -> None:
        self._begin("restart-all", "all")
        for node_id in self._scene.node_ids:
            await self._end(node_id)
        async with trio.open_nursery() as nursery:
            for node_id in self._scene.node_ids:
                nursery.start_soon(self._start, node_id)
        self._scene.journal.fault_ends("restart-all", "all")

    async def _end(self, node_id: str) -> None:
        if self._means.relay is not None:
            self._means.relay.close(node_id)
        await self._scene.cluster.kill(node_id)

    async def _start(self, node_id: str) -> None:
        if self._means.relay is not None:
            await self._means.relay.open(node_id)
        await self._scene.cluster.start(node_id)

    async def _pause(self, node_id: str) -> None:
        pid = next(peer.pid for peer in self._scene.cluster.status() if peer.node_id == node_id)
        assert pid is not None, "nothing else is wrong now"
        self._begin("pause", node_id)
        os.kill(pid, signal.SIGSTOP)
        try:
            await self._last()
        finally:
            os.kill(pid, signal.SIGCONT)
        self._scene.journal.fault_ends("pause", node_id)

    # --- the network between peers ---

    async def _partition(self, node_id: str) -> None:
        """A peer and all others, or some of them, or one way only."""
        relay = self._means.relay
        assert relay is not None
        others = self._others(node_id)
        if self._chance.random() < 0.3:
            others = self._chance.sample(others, 1)
        one_way = self._chance.random() < 0.3
        self._begin("partition", node_id)
        for other in others:
            relay.cut(node_id, other)
            if not one_way:
                relay.cut(other, node_id)
        await self._last()
        relay.mend()
        self._scene.journal.fault_ends("partition", node_id)

    async def _slow(self, node_id: str) -> None:
        relay = self._means.relay
        assert relay is not None
        self._begin("slow", node_id)
        late_s, lost = self._chance.uniform(0.01, 0.5), self._chance.uniform(0, 0.3)
        for other in self._others(node_id):
            for rule in (relay.rule(node_id, other), relay.rule(other, node_id)):
                rule.late_s, rule.lost = late_s, lost
        await self._last()
        relay.mend()
        self._scene.journal.fault_ends("slow", node_id)

    # --- disks and clocks ---

    async def _fill_disk(self, _node_id: str) -> None:
        node_id = self._means.small_disk
        assert node_id is not None
        self._begin("disk-full", node_id)
        ballast = _ballast(self._scene.cluster.data / node_id)
        await trio.to_thread.run_sync(_fill, ballast)
        await self._last()
        ballast.unlink()
        self._scene.journal.fault_ends("disk-full", node_id)

    async def _flip_bits(self, node_id: str) -> None:
        """In chunk files of which another peer has a good one: one copy goes bad, never the last."""
        folder = self._scene.cluster.data
        others = [folder / other for other in self._others(node_id)]
        flipped = 0
        self._scene.spoiled[node_id] = None
        async with self._scene.unread():
            for path in self._shuffled(list((folder / node_id / "chunks").glob("*/*.*"))):
                where, bit = self._chance.random(), self._chance.randrange(8)
                if flipped < BITS and any(map(_is_good, _copies_in(others, path))):
                    flipped += await trio.to_thread.run_sync(_flip, path, where, bit)
        if flipped:
            self._begin("bit-rot", node_id)
            self._scene.journal.fault_ends("bit-rot", node_id)

    def _shuffled(self, paths: list[Path]) -> list[Path]:
        paths.sort()
        self._chance.shuffle(paths)
        return paths[: 4 * BITS]

    async def _set_clock(self, node_id: str) -> None:
        """A clock is set, forwards or backwards, and stays wrong for some time."""
        self._begin("clock", node_id)
        path = clock_file(self._scene.cluster.data / node_id)
        off_s = self._chance.choice((-1, 1)) * CLOCK_OFF_S ** self._chance.random()
        path.write_text(f"{off_s:.3f}", encoding="ascii")
        await self._last()
        path.write_text("0", encoding="ascii")
        self._scene.journal.fault_ends("clock", node_id)


def _ballast(folder: Path) -> Path:
    return folder / "ballast.chaos"


def _fill(ballast: Path) -> None:
    """Write until not a byte more fits."""
    with ballast.open("wb", buffering=0) as file:
        piece = BALLAST_PIECE
        while piece:
            try:
                file.write(piece)
            except OSError:
                piece = piece[: len(piece) // 2]


def _copies_in(folders: Sequence[Path], path: Path) -> Iterator[Path]:
    """The files of other peers that have the content of a chunk file, which is named after it."""
    stem = path.name.partition(".")[0]
    for folder in folders:
        yield from (folder / "chunks" / path.parent.name).glob(f"{stem}.*")


def _is_good(path: Path) -> bool:
    try:
        return blake3(path.read_bytes()).hexdigest() == path.name.partition(".")[0]
    except FileNotFoundError:
        return False


def _flip(path: Path, where: float, bit: int) -> bool:
    """Flip a bit; False when the file has gone meanwhile or is empty."""
    try:
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if not size:
                return False
            at = file.seek(int(where * size))
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << bit)]))
    except FileNotFoundError:
        return False
    return True
