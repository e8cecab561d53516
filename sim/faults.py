"""What goes wrong in a simulated world, within what we promise to survive.

The atlas (`_is_known_elsewhere`, `_is_whole_elsewhere`) never lets a fault destroy the last good copy of anything: a
bit is flipped, a row damaged, a disk lost or rolled back only while others have what goes with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from random import Random

import httpx
import trio

from peer.node import Node
from sim.disk import TOTAL_BYTES, Faults, Platter
from sim.looks import chunks_of_puts_on, chunks_on, floors_on, good_chunks_on, puts_on, version_vector_on
from sim.network import FAIR, Weather
from sim.scenarios import PlannedFault
from sim.world import VirtualClock, World

EIO = 0.002
EIO_AT_COMMIT = 0.05
DIRTY_WITHIN_S = 1.0
READS = 20
"""Of files on a disk that fails, at most."""
NEWCOMERS = 3
"""Peers that join a world, at most."""
FORK_S = 60.0
"""At most so long nothing else goes wrong after a machine was resumed."""

STAY_TRIES, STAY_S = 20, 1.0
"""How often those that are leaving are told to stay, in the end."""

OnLost = Callable[[str], None]
"""Is told of a peer whose disk is not what it was."""


class FaultMaker:
    """Makes the planned faults, one after the other, and has a `look` before each; `heal` ends them all."""

    def __init__(
        self,
        world: World,
        faults: Iterable[PlannedFault],
        done: Counter[str],
        on_lost: OnLost,
        look: Callable[[], None],
    ) -> None:
        self._world = world
        self._faults = tuple(faults)
        self._chance = Random()
        self._lasts_s = 0.0
        self._done = done
        self._on_lost = on_lost
        self._look = look
        self._images: dict[str, tuple[Platter, int]] = {}
        """By peer, its disk and the number of its life at some moment."""
        self.harmed_at: dict[str, float] = {}
        """When content or rows of a peer were last spoiled."""
        self._makers: dict[str, Callable[[str], Awaitable[None]]] = {
            "crash": self._crash,
            "pause": self._pause,
            "fail": self._fail,
            "flip": self._flip,
            "fill": self._fill,
            "damage": self._damage,
            "lose disk": self._lose_disk,
            "restore image": self._restore_image,
            "cut": self._cut,
            "weather": self._blow,
            "clock": self._set_clock,
            "join": self._join,
            "evict": self._evict,
            "leave": self._leave,
        }
        self._peers = len(world.machines)
        for machine in world.machines.values():
            machine.platter.loses = self._losses(machine.name)

    def _losses(self, name: str) -> Random:
        """What decides which of the bytes that were not synced a power cut takes."""
        return Random(f"{self._world.seed} {name} crashes")

    async def run(self, over: trio.Event) -> None:
        """Make the faults, each at its time or, when the one before lasts longer, right behind it, until it is over."""
        started = trio.current_time()
        names = list(self._world.machines)
        for fault in self._faults:
            with trio.move_on_at(started + fault.at_s):
                await over.wait()
            if over.is_set():
                return
            self._look()
            self._chance, self._lasts_s = Random(fault.seed), fault.lasts_s
            self._world.trace("fault", f"number {fault.number}", f"{fault.kind} {names[fault.peer]}")
            await self._makers[fault.kind](names[fault.peer])

    def _note(self, what: str, name: str) -> None:
        self._done[what] += 1
        self._world.trace("fault", what, name)

    async def heal(self) -> list[str]:
        """End all faults and start who is down; those that cannot start."""
        self._world.network.weather = FAIR
        for name, machine in self._world.machines.items():
            machine.platter.faults = None
            machine.platter.capacity_bytes = TOTAL_BYTES
            for other in self._world.machines:
                self._mend(name, other)
            self._world.resume(name)
        unable = [name for name in self._world.machines if not await self._world.try_start(name)]
        await self._stay(unable)
        return unable

    # --- power ---

    async def _crash(self, name: str) -> None:
        if not self._world.machines[name].is_up:
            await self._start(name)
            return
        if self._chance.random() < 0.5:
            await self._wait_until_dirty(name)
        self._note("power cuts", name)
        await self._world.crash(name)
        await trio.sleep(self._lasts_s)
        await self._start(name)

    async def _wait_until_dirty(self, name: str) -> None:
        """Until there are bytes to lose on its disk; but not for long."""
        with trio.move_on_after(DIRTY_WITHIN_S):
            while not self._platter(name).is_dirty:  # noqa: ASYNC110 - looking costs no real time
                await trio.sleep(0.001)

    async def _pause(self, name: str) -> None:
        if self._world.machines[name].is_up:
            self._note("pauses", name)
            self._world.pause(name)
            await trio.sleep(self._lasts_s)
            self._world.resume(name)

    async def _start(self, name: str) -> None:
        self._world.machines[name].platter.faults = None
        await self._world.try_start(name)

    async def _join(self, _name: str) -> None:
        """One more peer joins those that are there."""
        if len(self._world.machines) == self._peers + NEWCOMERS:
            await trio.lowlevel.checkpoint()
            return
        name = self._world.add()
        self._note("new peers", name)
        self._world.machines[name].platter.loses = self._losses(name)
        with trio.move_on_after(self._lasts_s):
            await self._world.start(name)

    async def _evict(self, name: str) -> None:
        """A peer that is down is removed for good, and comes back with its disk after a while."""
        if self._world.machines[name].is_up:
            await self._world.crash(name)
        through = self._chance.choice(list(self._others(name)))
        with suppress(httpx.HTTPError):
            answer = await self._world.request(through, "POST", f"/nodes/{name}/evict?force=true")
            if answer.status_code == httpx.codes.OK:
                self._note("evictions", name)
        await trio.sleep(self._lasts_s)
        await self._start(name)

    async def _leave(self, name: str) -> None:
        """A peer leaves once others have what it holds, or stays after all; who has left comes back after a while."""
        machine = self._world.machines[name]
        through = self._chance.choice(list(self._world.machines))
        with suppress(httpx.HTTPError):
            answer = await self._world.request(through, "POST", f"/nodes/{name}/leave")
            if answer.status_code == httpx.codes.OK:
                self._note("leavings", name)
        with trio.move_on_after(self._lasts_s):
            await self._world.wait_until(lambda: not machine.is_up, math.inf)
        if machine.is_up and self._chance.random() < 0.5:
            with suppress(httpx.HTTPError):
                await self._world.request(name, "POST", f"/nodes/{name}/leave?undo=true")
        if machine.node is None:
            await self._start(name)

    async def _stay(self, unable: list[str]) -> None:
        """Have everybody stay: who has left meanwhile comes back."""
        for _ in range(STAY_TRIES):
            for name, machine in self._world.machines.items():
                if machine.node is None and name not in unable:
                    await self._world.try_start(name)
                elif _is_leaving(machine.node):
                    with suppress(httpx.HTTPError):
                        await self._world.request(name, "POST", f"/nodes/{name}/leave?undo=true")
            await trio.sleep(STAY_S)
            if not any(machine.node is None or _is_leaving(machine.node) for machine in self._world.machines.values()):
                return

    # --- disks ---

    async def _fail(self, name: str) -> None:
        self._note("failing disks", name)
        machine = self._world.machines[name]
        machine.flawed_life, platter = machine.lives, machine.platter
        chance = Random(self._chance.getrandbits(64))
        platter.faults = Faults(chance, EIO * self._chance.choice((0, 1, 5)), EIO_AT_COMMIT)
        loses_power, stays = self._chance.random() < 0.3, self._chance.random() < 0.5
        with trio.move_on_after(self._lasts_s):
            await self._read_from(name)
            await self._world.wait_until(lambda: loses_power and bool(platter.left_behind), math.inf)
        if platter.left_behind and loses_power and machine.is_up:
            # While nobody knows whether a commit reached the disk.
            self._note("power cuts", name)
            await self._world.crash(name)
            await self._start(name)
        elif not stays:
            platter.faults = None

    async def _fill(self, name: str) -> None:
        self._note("full disks", name)
        platter = self._world.machines[name].platter
        platter.capacity_bytes = platter.used_bytes()
        await trio.sleep(self._lasts_s)
        platter.capacity_bytes = TOTAL_BYTES

    async def _read_from(self, name: str) -> None:
        """Clients read what a peer has on its disk, which fails now and then."""
        files = sorted(chunks_of_puts_on(self._platter(name)).values())
        for key, _ in self._chance.sample(files, min(READS, len(files))):
            with suppress(httpx.HTTPError):
                await self._world.request(name, "GET", f"/files/{key}")

    async def _flip(self, name: str) -> None:
        """A bit of a chunk flips while another peer's disk has the chunk whole; or, of one file, a bit at each peer."""
        elsewhere = {chunk for other in self._others(name) for chunk in good_chunks_on(self._platter(other))}
        files = [file for file in chunks_of_puts_on(self._platter(name)).values() if elsewhere.intersection(file[1])]
        if not files:
            await trio.lowlevel.checkpoint()
            return
        key, chunks = self._chance.choice([file for file in files if len(file[1]) > 1] or files)
        if len(chunks) > 1 and self._chance.random() < 0.5:
            # No peer has all of the file any more, and all peers together still have.
            for number, machine in enumerate(self._world.machines):
                self._flip_bit_of(machine, chunks[number % len(chunks)])
        else:
            key, chunks = self._chance.choice(files)
            self._flip_bit_of(name, self._chance.choice(chunks))
        if self._chance.random() < 0.7 and self._world.machines[name].is_up:
            with suppress(httpx.HTTPError):
                await self._world.request(name, "GET", f"/files/{key}")

    def _flip_bit_of(self, name: str, chunk: bytes) -> None:
        elsewhere = {good for other in self._others(name) for good in good_chunks_on(self._platter(other))}
        if chunk in elsewhere and dict(chunks_on(self._platter(name))).get(chunk):
            self._note("flipped bits", name)
            self.harmed_at[name] = trio.current_time()
            self._spoil(name, chunk)

    def _spoil(self, name: str, chunk: bytes) -> None:
        platter = self._platter(name)
        for database in platter.databases.values():
            row = database.execute("SELECT serial, content FROM chunks WHERE hash = ?", (chunk,)).fetchone()
            bit = 1 << self._chance.randrange(8)
            if row[0] is None:
                spoiled = bytearray(row[1])
                spoiled[self._chance.randrange(len(spoiled))] ^= bit
                database.execute("UPDATE chunks SET content = ? WHERE hash = ?", (bytes(spoiled), chunk))
            else:
                file = platter.files[f"chunks/{chunk[:1].hex()}/{chunk.hex()}.{row[0]}"]
                file.content[self._chance.randrange(len(file.content))] ^= bit
                file.changes += 1

    async def _damage(self, name: str) -> None:
        """Between a power cut and the next start a put's row goes, or changes; another catalog has it as it was."""
        if self._world.machines[name].is_up:
            await self._world.crash(name)
        here = puts_on(self._platter(name))
        elsewhere = {put for other in self._others(name) for put in puts_on(self._platter(other))}
        common = sorted(here.keys() & elsewhere)
        if common:
            self._note("damaged rows", name)
            self.harmed_at[name] = trio.current_time()
            row_id = here[self._chance.choice(common)]
            (database,) = self._platter(name).databases.values()
            if self._chance.random() < 0.5:
                database.execute("DELETE FROM holds WHERE put = ?", (row_id,))
                database.execute("DELETE FROM puts WHERE id = ?", (row_id,))
            else:
                changed = "UPDATE puts SET filename = 'damaged', sha256 = zeroblob(32) WHERE id = ?"
                database.execute(changed, (row_id,))
        await self._start(name)

    async def _lose_disk(self, name: str) -> None:
        """A disk is replaced by an empty one, while others know and have all that is on it."""
        await self._replace_disk(name, "lost disks", Platter())

    async def _restore_image(self, name: str) -> None:
        """A disk is rolled back to how it was some time ago; the first time it comes to it, the image is made.

        With its memory, a peer writes on under the epoch it had then, which others know more of already.
        """
        machine = self._world.machines[name]
        image, life = self._images.pop(name, (None, 0))
        if image is None:
            await trio.lowlevel.checkpoint()
            if not any(database.in_transaction for database in self._platter(name).databases.values()):
                self._images[name] = self._platter(name).copy(), machine.lives
        elif self._chance.random() < 0.5 or not self._can_tell_a_fork(name, image):
            await self._replace_disk(name, "restored images", image)
        else:
            if self._chance.random() < 0.7:
                self._cut_off(name)
            await self._replace_disk(name, "resumed machines", image, life)
            await trio.sleep(self._lasts_s)
            self._mend_all(name)
            # While peers disagree about a log no disk that has one of its branches may go.
            with trio.move_on_after(FORK_S):
                await self._world.wait_until(self._world.have_converged, math.inf)

    def _can_tell_a_fork(self, name: str, image: Platter) -> bool:
        """Whether all others' logs have what this peer wrote after an image: below a floor nobody can tell a fork."""
        seen = {origin: seq for origin, seq in version_vector_on(image).items() if origin[0] == name}
        floors = [floors_on(self._platter(other)) for other in self._others(name)]
        return all(theirs.get(origin, 0) <= seq for theirs in floors for origin, seq in seen.items())

    async def _replace_disk(self, name: str, what: str, platter: Platter, life: int | None = None) -> None:
        machine = self._world.machines[name]
        if machine.is_up:
            await self._world.crash(name)
        if self._is_known_elsewhere(name) and self._is_whole_elsewhere(name):
            self._note(what, name)
            self.harmed_at[name] = trio.current_time()
            self._on_lost(name)
            self._world.put_disk(name, platter)
            machine.resumed_life = life
            platter.loses = self._losses(name)
        await self._start(name)

    def _is_known_elsewhere(self, name: str) -> bool:
        """Whether one other disk has heard all that this one has."""
        known = version_vector_on(self._platter(name))
        others = [version_vector_on(self._platter(other)) for other in self._others(name)]
        return any(all(theirs.get(origin, 0) >= seen for origin, seen in known.items()) for theirs in others)

    def _is_whole_elsewhere(self, name: str) -> bool:
        """Whether other disks have every live put and every good chunk of this one: their rows may be damaged too."""
        others = [self._platter(other) for other in self._others(name)]
        chunks = {chunk for other in others for chunk in good_chunks_on(other)}
        puts = {put for other in others for put in puts_on(other)}
        mine = self._platter(name)
        return chunks.issuperset(good_chunks_on(mine)) and puts.issuperset(puts_on(mine))

    # --- network and clocks ---

    async def _cut(self, name: str) -> None:
        other = self._chance.choice(list(self._others(name)))
        self._note("cut links", f"{name} to {other}")
        self._world.network.cut(name, other)
        if self._chance.random() < 0.7:
            self._world.network.cut(other, name)
        if self._chance.random() < 0.3:
            self._cut_off(name)
        await trio.sleep(self._lasts_s)
        self._mend_all(name)

    def _cut_off(self, name: str) -> None:
        """From everybody: a peer that is alone."""
        for other in self._others(name):
            self._world.network.cut(name, other)
            self._world.network.cut(other, name)

    def _mend_all(self, name: str) -> None:
        for other in self._others(name):
            self._mend(name, other)

    def _mend(self, one: str, other: str) -> None:
        self._world.network.restore(one, other)
        self._world.network.restore(other, one)

    async def _blow(self, name: str) -> None:
        """Bad weather on all links, clients' too."""
        self._note("bad weathers", "everywhere")
        draw = self._chance.random
        self._world.network.weather = Weather(
            lost=draw() / 2, doubled=draw() / 4, slow=draw() / 4, slow_max_s=draw() * 3, broken=draw() / 5,
            bytes_per_s=self._chance.choice((math.inf, math.inf, 10 ** self._chance.uniform(3, 5))),
        )  # fmt: skip
        await trio.sleep(self._lasts_s)
        self._world.network.weather = FAIR

    async def _set_clock(self, name: str) -> None:
        """A peer's clock jumps, by anything from milliseconds to weeks, and may go at a wrong pace from then on."""
        await trio.lowlevel.checkpoint()
        machine = self._world.machines[name]
        if machine.env is not None and isinstance(clock := machine.env.clock, VirtualClock):
            self._note("clock steps", name)
            clock.offset_ms = self._chance.randrange(-1, 2) * int(10 ** self._chance.uniform(0, 9.3))
            clock.drift = self._chance.choice((0, self._chance.uniform(-0.1, 0.1)))

    # --- looking ---

    def _others(self, name: str) -> Iterable[str]:
        return (other for other in self._world.machines if other != name)

    def _platter(self, name: str) -> Platter:
        return self._world.machines[name].platter


def _is_leaving(node: Node | None) -> bool:
    return node is not None and node.services is not None and node.services.others.membership.me.is_draining
