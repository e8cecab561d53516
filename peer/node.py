"""A running peer: opens its data folder, joins its cluster, serves, and stops in order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from peer.config import Address, Config
from peer.files.downloads import Downloads
from peer.files.keys import Files
from peer.files.listing import Listing
from peer.files.uploads import Uploads
from peer.gossip.client import PeerClient, PeerUnreachable, join
from peer.gossip.exchange import Exchanger
from peer.gossip.membership import Gossip
from peer.gossip.peers import PeerState, Placement
from peer.http.app import FACADE, make_app
from peer.http.services import Services
from peer.store.chunks import ChunkStore
from peer.store.database import Database, meta_value, set_meta_value
from peer.store.members import load_members, load_ranks, save_members, update_placement
from peer.store.space import Space
from peer.upkeep.anti_entropy import Upkeep
from peer.upkeep.repair import Repair
from peer.world.env import Datagrams, Env, HttpServer, Listener, StartError, StoreError
from protocol import catalog
from protocol.identity import NodeId
from protocol.membership import Membership
from protocol.messages import Member
from protocol.replica import Replica

log = logging.getLogger("minidfs.node")

DATABASE = "minidfs.db"
OWN_LISTENER = "peer"
JOIN_RETRY_S = 1.0
STALL_LIMIT_S = 2.0
"""A peer whose event loop stands still for this long lets the facade's connections go to the others."""
FACADE_RETRY_S = 1.0
MEET_TIMEOUT_S = 3.0
MEET_POLL_S = 0.05
FACADE_CHECK_S = 2.0


class Node:
    """One peer in its world. `run` it; `stop` it from another task; `services` is there once it has joined."""

    def __init__(self, config: Config, env: Env) -> None:
        self.config = config
        self.env = env
        self.services: Services | None = None
        self.address = config.listen
        self._stop = trio.Event()
        self.space = Space(env, config.reserve_bytes)
        self._placement_turn = trio.Lock()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Finish running requests, then end."""
        self._stop.set()

    async def run(self, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until stopped; `task_status` is told the address once it is bound.

        Raises StartError when the peer cannot start, and StoreError when its data folder cannot be read.
        """
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

    async def _look_over(self, database: Database, placement: Placement) -> None:
        """Make sure that the database is ours and sound, and take from it what placement was last."""
        owner = database.look_up(lambda connection: meta_value(connection, "node_id"))
        if owner not in (None, self.config.node_id):
            raise StartError(f"the data folder belongs to {owner}; start that peer, or use another folder")
        placement.queued = await database.read(load_ranks)
        await database.write_alone(partial(self._take_possession, database))

    def _take_possession(self, database: Database) -> None:
        """A step: the database is ours. Damaged rows show as a sum that is not theirs; others have what was lost."""
        store = database.store
        set_meta_value(store.connection, "node_id", self.config.node_id)
        actual = catalog.sum_of_rows(store)
        if actual != store.state_sum():
            log.error("the catalog's rows do not give its sum: damaged rows; other peers' copies of them are kept")
            store.set_state_sum(actual)

    def _cluster_id(self, database: Database) -> str | None:
        """The cluster this peer belongs to, founds, or is told to belong to; None when others have to say."""
        known: str | None = database.look_up(lambda connection: meta_value(connection, "cluster_id"))
        wanted = self.config.cluster_id
        if known is not None and wanted not in (None, known):
            raise StartError(f"the data folder belongs to cluster {known}, not {wanted}; use another folder")
        if known is not None or wanted is not None:
            return known or wanted
        return None if self.config.join else f"{self.env.chance('cluster id').getrandbits(128):032x}"

    # --- running ---

    async def _run(self, database: Database, placement: Placement, task_status: trio.TaskStatus[Address]) -> None:
        app = make_app(self.config, self.env.version, lambda: self.services)
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
        if self.services is not None:
            await self.services.state.client.aclose()

    async def _shut_down(self, server: HttpServer) -> None:
        if self.services is not None:
            self.services.state.draining = True
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
        cluster_id = self._cluster_id(database) or await self._ask_cluster_id()
        services = await self._build(database, placement, datagrams, cluster_id)
        for task in (
            services.gossip.run,
            services.exchanger.run,
            services.repair.run,
            services.upkeep.run,
            services.state.chunks.run_collector,
            self.space.run,
        ):
            nursery.start_soon(task)
        await self._on_members(services.state)
        self.services = services
        log.info("%s serves on %s, cluster %s", self.config.node_id, self.address, cluster_id)
        nursery.start_soon(self._announce, services)
        if self.config.facade is not None:
            await nursery.start(self._serve_facade, server, self.config.facade, services.state)
        await self._meet_others(services.state)
        services.state.ready.set()

    async def _ask_cluster_id(self) -> str:
        """Ask the peers to join, one after the other, until one answers."""
        while True:
            for address in self.config.join:
                try:
                    cluster_id, _ = await join(self.env, str(address), "", None)
                except PeerUnreachable as error:
                    log.warning("joining: %s", error)
                else:
                    return cluster_id
            await trio.sleep(JOIN_RETRY_S)

    async def _build(self, database: Database, placement: Placement, datagrams: Datagrams, cluster_id: str) -> Services:
        """Put the peer together over its database. Raises StoreError."""
        me, members = await database.write(lambda: self._start_life(database, cluster_id))
        replica = Replica(me.node_id, database.store, self.env.chance("epochs"))
        database.on_uncertain = replica.leave_epoch
        database.remember = replica.remember
        state = PeerState(
            env=self.env,
            config=self.config,
            cluster_id=cluster_id,
            me=me.node_id,
            database=database,
            replica=replica,
            chunks=ChunkStore(self.env, self.config, database, self.space),
            membership=Membership(me, members, self.config.probe_interval_s, self.config.down_after_s),
            placement=placement,
            client=PeerClient(self.env, cluster_id),
            space=self.space,
        )
        placement.follow(state.membership.members())
        await self._take_stock(state)
        return self._wire(state, datagrams)

    def _start_life(self, database: Database, cluster_id: str) -> tuple[Member, tuple[Member, ...]]:
        """A step: this start gets a higher incarnation than all before; a whole state half fetched is of no use."""
        store = database.store
        store.clear_stage()
        set_meta_value(store.connection, "cluster_id", cluster_id)
        members = load_members(store.connection)
        lives = [member.incarnation for member in members if member.node_id == self.config.node_id]
        me = Member(NodeId(self.config.node_id), str(self.address), max(lives, default=0) + 1)
        save_members(store, (me,))
        return me, members

    async def _take_stock(self, state: PeerState) -> None:
        stock = await state.chunks.open()
        for name, row, serial in stock.found_again:
            await state.database.write(partial(state.database.store.set_chunk, name, row._replace(serial=serial)))
            await state.read_chunk(name, state.chunks.verify)
        for name, row in stock.vanished:
            await state.lose_chunk(name, row)

    def _wire(self, state: PeerState, datagrams: Datagrams) -> Services:
        gossip = Gossip(state, datagrams, lambda: self._on_members(state), self._on_met)
        exchanger = Exchanger(state, gossip.learn)
        uploads = Uploads(state, exchanger)
        downloads = Downloads(state)
        repair = Repair(state, downloads)
        return Services(
            state=state,
            gossip=gossip,
            exchanger=exchanger,
            uploads=uploads,
            downloads=downloads,
            files=Files(state, exchanger, uploads),
            listing=Listing(state, repair),
            repair=repair,
            upkeep=Upkeep(state, exchanger, repair),
        )

    # --- members ---

    async def _on_members(self, state: PeerState) -> None:
        """Keep the members, and what follows from them."""
        members = state.membership.members()
        state.placement.follow(members)
        try:
            await state.database.write(lambda: save_members(state.database.store, members))
            async with self._placement_turn:
                await update_placement(self.env, state.database, state.placement, state.membership.members())
        except StoreError as error:
            log.error("cannot keep the members: %s", error)
        state.news.ring()

    async def _on_met(self, node_id: NodeId) -> None:
        """A peer answers after an absence: swap logs at once, and fetch what came to light."""
        if self.services is None:
            return
        with suppress(PeerUnreachable, StoreError):
            await self.services.exchanger.exchange(node_id)
        self.services.repair.retry_now()

    async def _meet_others(self, state: PeerState) -> None:
        """Give the others a moment to answer, so that who waits for us to be ready finds us among them."""
        membership = state.membership
        with trio.move_on_after(MEET_TIMEOUT_S):
            # Both sides of this change; for a few seconds at most, looking is simpler than being told.
            while len(membership.reachable()) < max(len(membership.members()) - 1, len(self.config.join)):  # noqa: ASYNC110
                await trio.sleep(MEET_POLL_S)

    async def _announce(self, services: Services) -> None:
        """Tell the peers to join of us until one has answered, unless we know others already."""
        state = services.state
        while len(state.membership.members()) == 1 and self.config.join:
            for address in self.config.join:
                try:
                    _, members = await join(self.env, str(address), state.cluster_id, state.membership.me)
                except PeerUnreachable as error:
                    log.info("joining: %s", error)
                else:
                    services.gossip.learn(members)
            await trio.sleep(JOIN_RETRY_S)

    # --- the facade ---

    async def _check_facade(self, facade: Address, state: PeerState) -> None:
        """Make sure that whoever serves the facade's port is of our cluster. Raises StartError."""
        with trio.move_on_after(FACADE_CHECK_S):
            try:
                cluster_id = await state.client.cluster_id_at(str(facade))
            except PeerUnreachable:
                return
            if cluster_id not in (None, state.cluster_id):
                raise StartError(f"port {facade.port} serves another cluster; choose another with --facade")

    async def _serve_facade(
        self,
        server: HttpServer,
        facade: Address,
        state: PeerState,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve the shared port; take it again after a stall, or, where ports are not shared, from a peer that died.

        Raises StartError when something else has it.
        """
        await self._check_facade(facade, state)
        is_started = False
        while True:
            try:
                listeners = await server.listen(facade, name=FACADE, shared=True)
            except StartError:
                if self.env.shares_ports and not is_started:
                    raise
                listeners = []
            if not is_started:
                is_started = True
                task_status.started()
            if not listeners:
                await trio.sleep(FACADE_RETRY_S)
                continue
            with self.env.watch_stalls(STALL_LIMIT_S, lambda listeners=listeners: _close_all(listeners)):  # type: ignore[misc]
                async with trio.open_nursery() as nursery:
                    for listener in listeners:
                        nursery.start_soon(listener.serve)
            if self.is_stopping:
                return
            log.warning("stopped serving %s; taking it again", facade)
            await trio.sleep(FACADE_RETRY_S)


def _close_all(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()
