"""A running peer: opens its data folder, joins its cluster, serves, and stops in order."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import trio

from peer.config import Address, Config
from peer.events import Events
from peer.files.delivery import Deliveries
from peer.files.downloads import Downloads
from peer.files.keys import Keys
from peer.files.listing import Listing
from peer.files.small_reads import SmallReads
from peer.files.targets import Targets
from peer.files.uploads import Uploads
from peer.gossip.answer import Answering
from peer.gossip.client import PeerClient, PeerUnreachable
from peer.gossip.exchange import Exchanger, Relay
from peer.gossip.fetching import Fetching
from peer.gossip.forks import Forks
from peer.gossip.joining import Seeds, announce, meet_others, settle_cluster
from peer.gossip.membership import Gossip
from peer.gossip.peers import Peers
from peer.gossip.placement import Placement
from peer.gossip.requests import PeerRequests
from peer.gossip.whole_state import WholeStates
from peer.http.app import make_app
from peer.http.facade import check_facade, serve_facade
from peer.http.services import Services
from peer.pace import Pace
from peer.store.chunks import ChunkStore
from peer.store.database import Database, meta_value, set_meta_value
from peer.store.holding import DAMAGED, PINNED_FOR, Holding
from peer.store.members import load_evictions, load_members, load_out, load_ranks, save_members
from peer.store.space import Space
from peer.tasks import Keeper
from peer.upkeep.anti_entropy import AntiEntropy
from peer.upkeep.inventory import Inventory
from peer.upkeep.lag import LoopLag
from peer.upkeep.leaving import Leaving
from peer.upkeep.queue import Queue
from peer.upkeep.repair import DeficitWatch, Repair
from peer.upkeep.verification import Verification
from peer.world.env import Datagrams, Env, HttpServer, Removed, StartError, StoreError
from protocol.identity import Life, Member, NodeId
from protocol.member_list import MemberList
from protocol.membership import Membership, Timing
from protocol.replica import Replica
from protocol.sessions import Sessions

log = logging.getLogger("minidfs.node")

DATABASE = "minidfs.db"
OWN_LISTENER = "peer"
LIFE_BITS = 63
EVENTS_BITS = 48
MEETINGS_MAX = 8
"""Peers with which logs are swapped at one time because they were met: who returns meets all of a large cluster."""


class Node:
    """One peer in its world. `run` it; `stop` it from another task; `services` is there once it has joined."""

    def __init__(self, config: Config, env: Env) -> None:
        self.config = config
        self.env = env
        self.services: Services | None = None
        self.address = config.listen
        """Where it listens; the port that was picked, once it is bound, when 0 was asked for."""
        self._stop = trio.Event()
        self.events = Events(env.clock.wall_ms, env.chance("events").getrandbits(EVENTS_BITS))
        self.space = Space(env, config.reserve_bytes, self.events)
        self.keeper = Keeper()
        self._pace = Pace(env.clock.now)
        self._sessions = Sessions(config.keyring, env.chance("session"))
        agent = {"user-agent": f"minidfs/{env.version} ({config.node_id})"}
        self._requests = PeerRequests(env, self._sessions, agent)
        self._exchanging = trio.Event()
        self._meetings = trio.CapacityLimiter(MEETINGS_MAX)
        self._failure: StartError | None = None

    @property
    def advertised(self) -> Address:
        """Where others reach this peer."""
        told = self.config.advertise
        return self.address if told is None else Address(told.host, told.port or self.address.port)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Finish running requests, then end."""
        self._stop.set()

    async def run(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped; `task_status` is told the address once it is bound.

        Raises StartError when the peer cannot start, or another one goes by its id, and StoreError when its data folder
        cannot be read.
        """
        if self.config.listen.is_wildcard and self.config.advertise is None:
            raise StartError(
                f"nobody can reach a peer at {self.config.listen.host}; say with --advertise HOST where others reach it"
            )
        self._check_key()
        with self.env.disk.lock():
            placement = Placement()
            database = Database(self.env, DATABASE, placement.targets)
            database.on_full, database.check_space = self.space.note_full, self.space.check
            try:
                await database.open()
                await self._look_over(database, placement)
                await self.space.set_aside()
                await self._run(database, placement, task_status)
            finally:
                with trio.CancelScope(shield=True):
                    await database.close()

    # --- opening ---

    def _check_key(self) -> None:
        """Raises StartError for a peer that others than its own machine reach, and that would believe everybody."""
        if not self.config.keyring.is_open:
            return
        for address in filter(None, (self.config.listen, self.config.facade)):
            if not address.is_loopback:
                raise StartError(
                    f"whoever reaches {address} could act as a peer; make the cluster a key with minidfs keygen FILE, "
                    "and give it to all its peers with --cluster-key-file FILE"
                )

    async def _look_over(self, database: Database, placement: Placement) -> None:
        """Make sure that the database is ours, and take from it what placement was last."""
        owner = database.look_up(lambda connection: meta_value(connection, "node_id"))
        if owner not in (None, self.config.node_id):
            raise StartError(f"the data folder belongs to {owner}; start that peer, or use another folder")
        placement.queued = await database.read(load_ranks)

    async def _settle_cluster(self, database: Database) -> str:
        """The cluster this peer belongs to, founds, or is told to belong to. Raises StartError."""
        known: str | None = database.look_up(lambda connection: meta_value(connection, "cluster_id"))
        wanted = self.config.cluster_id
        if known is not None and wanted not in (None, known):
            raise StartError(f"the data folder belongs to cluster {known}, not {wanted}; use another folder")
        if wanted is not None:
            return wanted
        if self.join:
            members = database.look_up(load_members)
            knows_others = any(member.node_id != self.config.node_id for member in members)
            return await settle_cluster(
                self._requests, self.env.clock, self.seeds, known, knows_others=knows_others, rejoin=self.config.rejoin
            )
        if known is not None:
            return known
        if self.config.join:
            raise StartError(
                f"--join names only this peer itself ({self.advertised}); name another one, or leave it out to found a "
                "cluster"
            )
        return f"{self.env.chance('cluster id').getrandbits(128):032x}"

    @property
    def join(self) -> tuple[Address, ...]:
        """The peers to ask for the cluster: all peers may be given one list, in which each finds itself too."""
        own = (self.address, self.advertised)
        return tuple(address for address in self.config.join if address not in own)

    @property
    def seeds(self) -> Seeds:
        """The same, with all the addresses that names stand for."""
        return Seeds(self.env.resolve, self.join, (self.address, self.advertised))

    # --- running ---

    async def _run(self, database: Database, placement: Placement, task_status: trio.TaskStatus[Address]) -> None:
        app = make_app(self.config, self.env.version, self.env.clock, lambda: self.services, self._pace, self._sessions)
        server = self.env.http_server(app)
        listeners = await server.listen(self.config.listen, name=OWN_LISTENER, shared=False)
        self.address = listeners[0].address
        datagrams = await self.env.open_datagrams(self.address)
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(listener.serve)
            nursery.start_soon(database.run)
            task_status.started(self.address)
            nursery.start_soon(self._join_and_serve, database, placement, datagrams, nursery, server)
            await self._stop.wait()
            await self._shut_down(server)
            nursery.cancel_scope.cancel()
        await self._requests.aclose()
        if self._failure is not None:
            raise self._failure

    async def _shut_down(self, server: HttpServer) -> None:
        if self.services is not None:
            self.services.draining.set()
            for worker in self.services.workers:
                log.debug("%s", worker.status())
        log.info("stopping; running requests may finish for %g s", self.config.shutdown_grace_s)
        await server.shut_down(self.config.shutdown_grace_s)

    async def _join_and_serve(
        self,
        database: Database,
        placement: Placement,
        datagrams: Datagrams,
        nursery: trio.Nursery,
        server: HttpServer,
    ) -> None:
        cluster_id = await self._settle_cluster(database)
        if self.config.facade is not None:
            await check_facade(self.env, server, self.config.facade, cluster_id)
        here, others, membership = await self._build(database, placement, cluster_id)
        services = self._wire(here, others, membership, datagrams)
        keep = self.keeper.keep
        nursery.start_soon(keep, "gossip", services.gossip.run)
        nursery.start_soon(keep, "whole states", services.whole_states.run)
        nursery.start_soon(keep, "small reads", services.small_reads.run)
        nursery.start_soon(keep, "verification", services.verification.run)
        nursery.start_soon(keep, "inventory", services.inventory.run)
        # Not waited for: where it was broken off by a stop, with very many files, it takes minutes.
        nursery.start_soon(keep, "placement", services.gossip.keep_members)
        for worker in services.workers:
            nursery.start_soon(keep, worker.name, worker.run)
        self.services = services
        self.events.tell("started", node=self.config.node_id)
        self._exchanging.set()
        log.info("%s serves on %s, cluster %s", self.config.node_id, self.advertised, cluster_id)
        if self.config.keyring.is_open:
            log.warning("without --cluster-key-file every program of this machine can act as a peer")
        # Who was told which cluster to belong to stays with it, whoever answers at an address.
        on_stranger = None if self.config.cluster_id is not None else self._fail
        if self.join:
            telling = partial(
                announce, self._requests, self.env.clock, self.seeds, others, services.gossip.learn, on_stranger
            )
            nursery.start_soon(keep, "joining", telling)
        if self.config.facade is not None:
            await nursery.start(serve_facade, server, self.config.facade, services)
        await meet_others(others, len(self.join))
        services.ready.set()

    async def _build(
        self, database: Database, placement: Placement, cluster_id: str
    ) -> tuple[Holding, Peers, Membership]:
        """What this peer has, and what it knows of the others, from its disk. Raises StoreError."""
        env, config = self.env, self.config
        me, members = await database.write(lambda: self._start_life(database, cluster_id))
        replica = Replica(me.node_id, database.store, env.chance("epochs"))
        database.on_uncertain = replica.leave_epoch
        database.remember = replica.remember
        chunks = ChunkStore(env, config, database, self.space)
        here = Holding(me.node_id, env.clock, database, replica, chunks, self.space, self.events)
        here.is_damaged = database.look_up(lambda connection: meta_value(connection, DAMAGED)) is not None
        here.pinned_for = database.look_up(lambda connection: meta_value(connection, PINNED_FOR))
        life = Life(env.clock.wall_ms(), env.chance("life").getrandbits(LIFE_BITS))
        known = MemberList(me, database.look_up(load_evictions))
        timing = Timing(config.probe_interval_s, config.down_after_s, config.out_after_s)
        out = database.look_up(load_out)
        membership = Membership(known, members, timing, life, env.chance("probing"), out)
        placement.follow(known.placed())
        await chunks.open()
        client = PeerClient(self._requests, cluster_id)
        return here, Peers(me.node_id, cluster_id, known, placement, client, self._pace), membership

    def _start_life(self, database: Database, cluster_id: str) -> tuple[Member, tuple[Member, ...]]:
        """A step: this start gets a higher incarnation than all before; a whole state half fetched is of no use."""
        store = database.store
        store.clear_incoming()
        set_meta_value(store.connection, "node_id", self.config.node_id)
        set_meta_value(store.connection, "cluster_id", cluster_id)
        members = load_members(store.connection)
        lives = [member.incarnation for member in members if member.node_id == self.config.node_id]
        joined = [member.joined for member in members if member.node_id == self.config.node_id]
        node_id, incarnation = NodeId(self.config.node_id), max(lives, default=0) + 1
        drains = any(member.is_draining for member in members if member.node_id == self.config.node_id)
        me = Member(node_id, str(self.advertised), incarnation, "", max(joined, default=0), drains)
        save_members(store, (me,))
        return me, members

    def _wire(self, here: Holding, others: Peers, membership: Membership, datagrams: Datagrams) -> Services:
        env, config = self.env, self.config
        told = (self._on_met, self._on_doubled, self._on_evicted)
        gossip = Gossip(env, here, others, membership, self._sessions, datagrams, *told, may_rejoin=config.rejoin)
        whole_states = WholeStates(env, here, others)
        forks = Forks(here, others)
        exchanger = Exchanger(env, config, here, others, whole_states, forks, gossip, self.keeper)
        fetching = Fetching(env, here, others)
        small_reads = SmallReads(fetching)
        targets = Targets(config, here, others, exchanger)
        deliveries = Deliveries(env, config, here, others, exchanger)
        repair = Repair(env, config, here, others, exchanger, fetching)
        anti_entropy = AntiEntropy(env, config, here, others, exchanger, repair)
        leaving = Leaving(here, others, exchanger, gossip)
        loop_lag = LoopLag(env.clock, config.loop_look_s)
        maintenance = (repair, DeficitWatch(here, repair), anti_entropy, here.chunks.collector, self.space)
        return Services(
            env=env,
            config=config,
            here=here,
            others=others,
            sessions=self._sessions,
            events=self.events,
            gossip=gossip,
            exchanger=exchanger,
            answering=Answering(env, here, others, exchanger, whole_states, forks, gossip),
            whole_states=whole_states,
            forks=forks,
            fetching=fetching,
            uploads=Uploads(env, config, here, others, targets, deliveries),
            downloads=Downloads(env, here, fetching, small_reads),
            small_reads=small_reads,
            keys=Keys(here, others, exchanger, targets),
            listing=Listing(here.database),
            repair=repair,
            queue=Queue(here, others, repair),
            anti_entropy=anti_entropy,
            verification=Verification(env, here, others, exchanger),
            inventory=Inventory(env, here),
            leaving=leaving,
            loop_lag=loop_lag,
            keeper=self.keeper,
            workers=(exchanger, Relay(env, here, exchanger), forks, *maintenance, leaving, loop_lag),
        )

    def _on_doubled(self, address: str) -> None:
        """Another process was there first under this id: this one ends, with its disk as it is."""
        self._fail(
            StartError(
                f"a peer named {self.config.node_id} runs at {address} already; stop that one, or use another --id here"
            )
        )

    def _on_evicted(self) -> None:
        """This peer was removed for good: by an operator, or because it has left."""
        if self.services is not None and self.services.here.is_closed:
            log.info("this peer has left its cluster")
            self.stop()
            return
        self._fail(
            Removed(f"{self.config.node_id} was removed from its cluster; add --join and --rejoin to join again")
        )

    def _fail(self, reason: StartError) -> None:
        self._failure = reason
        self.stop()

    async def _on_met(self, node_id: NodeId) -> None:
        """A peer answers after an absence: swap logs at once, and fetch what came to light."""
        await self._exchanging.wait()
        assert self.services is not None
        async with self._meetings:
            with suppress(PeerUnreachable, StoreError):
                await self.services.exchanger.exchange(node_id)
        self.services.repair.retry_now()
