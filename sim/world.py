"""A simulated cluster: the real Node over a virtual clock, network and disk, in which a seed decides everything."""

from __future__ import annotations

import gc
import importlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import httpx
import trio

from peer.config import Address, Config
from peer.files.uploads import FILE_IDS
from peer.node import Node
from peer.store.chunk_files import SERIALS
from peer.world.env import (
    AsgiApp,
    Clock,
    Datagrams,
    Disk,
    HttpRequests,
    HttpServer,
    Removed,
    StartError,
    StoreError,
    Work,
)
from sim.disk import EVENT_LOOP, Mount, Platter
from sim.model import Promise
from sim.network import Network, VirtualDatagrams, VirtualHttpServer, VirtualRequests, VirtualTransport
from sim.pauses import MACHINE
from sim.virtual_time import VirtualTime

T = TypeVar("T")

log = logging.getLogger("minidfs.sim")

EPOCH_MS = 1_767_225_600_000
"""The wall clock when a world begins: 2026-01-01T00:00:00Z."""

FIRST_PORT = 9001
CLIENT_TIMEOUT_S = 20.0
BLOCKING_CALL_S = {Work.HASH: 0.0005, Work.DISK: 0.002, Work.DATABASE_WRITE: 0.003, Work.DATABASE_READ: 0.0005}
"""At most so much virtual time passes in a blocking call of a kind."""

Scenario = Callable[["World"], Awaitable[None]]


@contextmanager
def deterministic_trio(seed: int) -> Iterator[None]:
    """Make trio run ready tasks in an order that the seed decides.

    By default trio shuffles each batch of ready tasks by chance, and ties between equal deadlines fall by memory
    addresses. With its private flag it sorts each batch by age before it shuffles, by its private generator. (Both
    names are private: a test notices when they move. Importing hypothesis sets the flag too, and seeds the generator
    anew for each example, so the seed is set here, at the start of each run.)
    """
    trio_run: Any = importlib.import_module("trio._core._run")
    flag_before, state_before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    collects = gc.isenabled()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    # A collection at a random moment would close forgotten generators at a random moment.
    gc.disable()
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = flag_before
        trio_run._r.setstate(state_before)
        if collects:
            gc.enable()


class VirtualClock:
    """The world's time; a peer's wall clock may be off by `offset_ms`, and go wrong by a share of the time."""

    def __init__(self) -> None:
        self.offset_ms = 0
        self.drift = 0.0

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000 * (1 + self.drift)) + self.offset_ms


class VirtualEnv:
    """See `peer.world.env.Env`: one life of a peer in a world."""

    def __init__(self, world: World, name: str, platter: Platter, life: int, resumed_life: int | None = None) -> None:
        self._world = world
        self._name = name
        self._life = life
        self._resumed_life = resumed_life
        self.clock: Clock = VirtualClock()
        self.mount = Mount(platter)
        self.disk: Disk = self.mount
        self.version = "simulated"
        self.shares_ports = False
        self._delays = self.chance("blocking calls")
        self._datagrams: list[VirtualDatagrams] = []
        self._listeners: list[VirtualHttpServer] = []

    def chance(self, stream: str) -> Random:
        # Two files under one id, or chunk files of two lives under one serial, are not what is to come of a resumed
        # machine: real ones draw from the system.
        life = self._life if self._resumed_life is None or stream in (FILE_IDS, SERIALS) else self._resumed_life
        return Random(f"{self._world.seed} {self._name} {life} {stream}")

    async def run_blocking(self, work: Work, call: Callable[..., T], *args: object) -> T:
        await self._world.time.pass_by(self._delays.uniform(0, BLOCKING_CALL_S[work]), shielded=True)
        # Not even a commit that was under way comes to its end.
        self.mount.check_power()
        self.mount.thread = work
        try:
            return call(*args)
        finally:
            self.mount.thread = EVENT_LOOP

    async def resolve(self, address: Address) -> Sequence[Address]:
        await trio.lowlevel.checkpoint()
        return self._world.names.get(address, (address,))

    async def open_datagrams(self, address: Address) -> Datagrams:
        await trio.lowlevel.checkpoint()
        datagrams = VirtualDatagrams(self._world.network, self._name, address)
        self._datagrams.append(datagrams)
        return datagrams

    def http_transport(self) -> httpx.AsyncBaseTransport:
        return VirtualTransport(self._world.network, self._name)

    def http_requests(self) -> HttpRequests:
        return VirtualRequests(self._world.network, self._name)

    def http_server(self, app: AsgiApp) -> HttpServer:
        return VirtualHttpServer(self._world.network, app)

    def watch_stalls(self, limit_s: float, on_stall: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def fence(self) -> None:
        """Cut this life off from disk and network: whatever it still does changes nothing."""
        for datagrams in self._datagrams:
            datagrams.is_dead = True


@dataclass(slots=True)
class _Machine:
    """A place for a peer: its disk stays when the peer dies."""

    name: str
    address: Address
    platter: Platter = field(default_factory=Platter)
    lives: int = 0
    flawed_life: int | None = None
    """In which the disk failed: files that could not be removed may stay until the next start."""
    resumed_life: int | None = None
    """The next life draws what this one drew: its machine's memory is that of before, as is its disk."""
    node: Node | None = None
    env: VirtualEnv | None = None
    scope: trio.CancelScope | None = None
    gone: trio.Event | None = None
    may_fail_to_start: bool = False

    @property
    def is_up(self) -> bool:
        """Whether a peer runs here and has joined its cluster."""
        return self.node is not None and self.node.services is not None


class World:
    """Peers `node-1`, `node-2`, … and clients. See `run_world`."""

    def __init__(
        self, seed: int, nursery: trio.Nursery, time: VirtualTime, peers: int, settings: Mapping[str, Any]
    ) -> None:
        self.seed = seed
        self.time = time
        self._nursery = nursery
        self._digest = blake2b(digest_size=16)
        self.seen: Counter[str] = Counter()
        """What happened of that which must sometimes happen, see `sim.sometimes`."""
        self.kept: Counter[Promise] = Counter()
        """How often each promise was looked at and found kept."""
        self.events: list[str] | None = None
        self.show: Callable[[str], None] | None = None
        self.network = Network(Random(f"{seed} network"), self.trace, time)
        self.chance = Random(f"{seed} scenario")
        self.settings = dict(settings)
        """Of peers that start from now on."""
        self.names: dict[Address, Sequence[Address]] = {}
        """What names stand for."""
        self.machines: dict[str, _Machine] = {}
        for _ in range(peers):
            self.add()
        self.client = httpx.AsyncClient(transport=VirtualTransport(self.network, "client"), timeout=CLIENT_TIMEOUT_S)

    # --- what happened ---

    def trace(self, who: str, what: str, detail: str) -> None:
        """Note an event: it becomes part of what two runs of a seed must have in common."""
        line = f"{trio.current_time():.6f} {who} {what} {detail}"
        self._digest.update(line.encode() + b"\n")
        if self.events is not None:
            self.events.append(line)
        if self.show is not None:
            self.show(line)

    def digest(self) -> str:
        """Stands for everything that happened so far, in its order."""
        return self._digest.hexdigest()

    # --- peers ---

    def add(self) -> str:
        """One more machine, with an empty disk; its name."""
        number = len(self.machines) + 1
        name = f"node-{number}"
        self.machines[name] = machine = _Machine(name, Address("127.0.0.1", FIRST_PORT + number - 1))
        self.network.owner_of[machine.address.port] = name
        self.put_disk(name, machine.platter)
        return name

    def put_disk(self, name: str, platter: Platter) -> None:
        """Give a machine that is down a disk."""
        self.machines[name].platter = platter
        platter.saw = self._saw

    def _saw(self, what: str) -> None:
        self.seen[what] += 1

    async def start_all(self) -> None:
        """Start every peer, and wait until each sees all others."""
        for name in self.machines:
            await self.start(name)
        await self.wait_until(self.all_met, 30)

    async def start(self, name: str) -> None:
        """Start a peer on its disk; returns once it has joined its cluster."""
        machine = self.machines[name]
        machine.lives += 1
        env = VirtualEnv(self, name, machine.platter, machine.lives, machine.resumed_life)
        machine.resumed_life = None
        others = tuple(other.address for other in self.machines.values() if other is not machine)
        config = Config(
            node_id=name,
            listen=machine.address,
            data=Path(name),
            join=others,
            cluster_id="00" * 16,
            reserve_bytes=0,
            loop_look_s=1.0,
        )
        config = replace(config, **self.settings)
        machine.env, machine.node, machine.gone = env, Node(config, env), trio.Event()
        self.trace(name, "starts", f"life {machine.lives}")
        self._nursery.start_soon(self._live, machine)
        await self.wait_until(lambda: machine.is_up, 30)

    async def try_start(self, name: str) -> bool:
        """Start a peer whose disk may fail it; False when it said that it cannot start."""
        machine = self.machines[name]
        if machine.node is not None:
            return True
        machine.may_fail_to_start = True
        try:
            with trio.move_on_after(30):
                await self.start(name)
            if machine.node is not None and not machine.is_up:
                await self.crash(name)
        finally:
            machine.may_fail_to_start = False
        return machine.is_up

    async def _live(self, machine: _Machine) -> None:
        node, env, gone = machine.node, machine.env, machine.gone
        assert node is not None
        assert env is not None
        assert gone is not None
        MACHINE.set(machine.name)
        try:
            with trio.CancelScope() as machine.scope:
                await node.run()
            if not env.mount.is_cut:
                self.trace(machine.name, "has ended", "")
                machine.node = None
        except Removed:
            self.trace(machine.name, "was removed", "")
            machine.node = None
        # The clean-up of a peer whose power is gone fails here and there, and on a bad disk one may not start; anything
        # else is a bug.
        except BaseException as error:
            cannot_start = machine.may_fail_to_start and node.services is None and _is_about_the_disk(error)
            if not env.mount.is_cut and not cannot_start:
                raise
            if cannot_start:
                self.trace(machine.name, "cannot start", "")
                machine.node = None
        finally:
            env.fence()
            gone.set()

    async def crash(self, name: str) -> None:
        """Cut a peer's power: first its disk and network are dead, then its tasks end."""
        machine = self.machines[name]
        assert machine.env is not None
        assert machine.scope is not None
        assert machine.gone is not None
        _check_tasks(machine)
        self.trace(name, "crashes", "")
        machine.env.fence()
        machine.platter.crash()
        self.resume(name)
        machine.scope.cancel()
        await machine.gone.wait()
        machine.node = None

    def pause(self, name: str) -> None:
        """Let a peer stand still: it does nothing, hears nothing and answers nothing until it is resumed."""
        self.trace(name, "pauses", "")
        self.network.pauses.pause(name)

    def resume(self, name: str) -> None:
        """Let a paused peer go on; what came meanwhile is there at once."""
        if self.network.pauses.is_paused(name):
            self.trace(name, "goes on", "")
            self.network.pauses.resume(name)

    async def stop(self, name: str) -> None:
        """Let a peer finish and end."""
        machine = self.machines[name]
        assert machine.node is not None
        assert machine.gone is not None
        _check_tasks(machine)
        self.trace(name, "stops", "")
        machine.node.stop()
        await machine.gone.wait()
        machine.node = None

    def live_nodes(self) -> list[Node]:
        """The peers that run and have joined."""
        nodes = [machine.node for machine in self.machines.values()]
        return [node for node in nodes if node is not None and node.services is not None]

    def all_met(self) -> bool:
        """Whether each running peer believes all others to be up: one that has just started knows of nobody yet."""
        return all(
            node.services is not None and len(node.services.others.membership.reachable()) == len(self.machines) - 1
            for node in self.live_nodes()
        )

    # --- clients ---

    async def request(self, name: str, method: str, path: str, **more: Any) -> httpx.Response:
        """A client's request to a peer. Raises httpx.HTTPError."""
        return await self.client.request(method, f"http://{self.machines[name].address}{path}", **more)

    async def upload(self, name: str, filename: str, content: bytes, file_id: str | None = None) -> httpx.Response:
        """A client's upload, as curl sends it. Raises httpx.HTTPError."""
        return await self.post_file(name, f"/files?file_id={file_id}" if file_id else "/files", filename, content, {})

    async def post_file(
        self, name: str, path: str, filename: str, content: bytes, headers: Mapping[str, str]
    ) -> httpx.Response:
        """A form with one file in it. Raises httpx.HTTPError."""
        boundary = "-- a boundary of the simulated client --".replace(" ", "-")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        content_type = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return await self.request(name, "POST", path, content=body, headers={**content_type, **headers})

    # --- time ---

    async def wait_until(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Let virtual time pass until something holds. Raises trio.TooSlowError."""
        with trio.fail_after(limit_s):
            # Conditions are about many peers at once, and looking costs no real time.
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.05)

    def have_converged(self) -> bool:
        """Whether all running peers have equal version vectors and states, and nobody lacks a copy of any content."""
        roots = [node.services.here.replica.root() for node in self.live_nodes() if node.services]
        up = [machine for machine in self.machines.values() if machine.is_up]
        return len(dict.fromkeys(roots)) <= 1 and not any(map(_lacks_copies, up))


def _check_tasks(machine: _Machine) -> None:
    """A task that failed in a way nobody foresaw is a bug, though the peer lives on."""
    failures = machine.node.keeper.failures if machine.node is not None else {}
    assert not failures, f"tasks of {machine.name} failed, the log says why: {dict(failures)}"


def _is_about_the_disk(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_about_the_disk, error.exceptions))
    return isinstance(error, StoreError | StartError | trio.Cancelled)


def _lacks_copies(machine: _Machine) -> bool:
    """Looked up beneath the peer, whose disk may fail it."""
    query = (
        "SELECT EXISTS (SELECT 1 FROM queue JOIN puts ON puts.id = queue.put"
        " WHERE status = 'PENDING' AND puts.chunks IS NOT NULL)"
    )
    return any(bool(database.execute(query).fetchone()[0]) for database in machine.platter.databases.values())


PARTITIONS = 64
"""Instead of 4096: ranking those is most of the time a small world takes to start."""


@contextmanager
def few_partitions() -> Iterator[None]:
    """Make worlds that start quickly, where it is of no interest how files are spread."""
    names = ("protocol.placement", "peer.store.members", "peer.gossip.placement")
    modules: list[Any] = [importlib.import_module(name) for name in names]
    before = [module.PARTITIONS for module in modules]
    for module in modules:
        module.PARTITIONS = PARTITIONS
    try:
        yield
    finally:
        for module, partitions in zip(modules, before, strict=True):
            module.PARTITIONS = partitions


def run_world(
    seed: int,
    scenario: Scenario,
    *,
    peers: int = 3,
    copies: int = 3,
    heal_interval_s: float = 30.0,
    keep_events: bool = False,
    **settings: Any,
) -> tuple[str, list[str]]:
    """Run a scenario in a world of its own; returns the digest of its trace, and the trace if it is to be kept.

    `settings` are fields of the peers' Config.
    """
    settings |= {"copies": copies, "heal_interval_s": heal_interval_s}
    time = VirtualTime()

    async def main() -> tuple[str, list[str]]:
        async with trio.open_nursery() as nursery:
            world = World(seed, nursery, time, peers, settings)
            world.events = [] if keep_events else None
            try:
                await scenario(world)
            finally:
                # Also what failed must come to its end, and tasks of a paused peer never would.
                for name in world.machines:
                    world.network.pauses.resume(name)
            result = world.digest(), world.events or []
            for name, machine in world.machines.items():
                if machine.node is not None:
                    await world.crash(name)
            nursery.cancel_scope.cancel()
        return result

    with deterministic_trio(seed):
        return trio.run(main, clock=time)
