"""The supervisor: starts the peers, waits until they answer, and ends them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import httpx
import trio

from peer.cluster.events import PeerExited, PeerHangs, PeerStatus, PeerWrote, Tell, tell_nobody
from peer.cluster.figures import Figures, read_figures
from peer.cluster.folder import claimed, write_private
from peer.cluster.key_file import make_key_file
from peer.cluster.layout import (
    KEY_FILE,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    ClusterError,
    Layout,
    PeerCommand,
    serve_command,
    settle_layout,
)
from peer.cluster.orders import Answer, take_orders
from peer.cluster.ports import HEALTH_TIMEOUT_S, ask_health, check_ports
from peer.cluster.processes import PeerProcess, Run, ask_to_stop
from peer.config import EXIT_REMOVED

HEALTH_POLL_S = 0.05
LOG_POLL_S = 0.1
WATCH_S = 1.0
"""Between two looks at a peer that runs."""
HANGS_AFTER_S = 5.0
"""A peer that has not answered for so long is said to hang."""


class LocalCluster:
    """The peers of a cluster as processes of ours. Made by `open_cluster`; no peer runs before `start_all`."""

    def __init__(
        self,
        data: Path,
        layout: Layout,
        *,
        nursery: trio.Nursery,
        client: httpx.AsyncClient,
        command: PeerCommand = serve_command,
        tell: Tell = tell_nobody,
    ) -> None:
        self.data = data
        self.layout = layout
        self.nursery = nursery
        self._client = client
        self._tell = tell
        self._peers = {
            node_id: PeerProcess(
                node_id, layout.address_of(node_id), data / node_id, command(layout, node_id, data / node_id)
            )
            for node_id in layout.node_ids
        }

    async def start_all(self) -> None:
        """Start every peer and return when all answer that have not left the cluster.

        Raises ClusterError, with the last lines of one that does not get there.
        """
        runs = [(peer, await self._launch(peer)) for peer in self._peers.values()]
        for peer, run in runs:
            await self._wait_until_it_answers(peer, run, may_have_left=True)
        for peer, run in runs:
            if run.ended.is_set() and run.process.returncode != EXIT_REMOVED:
                raise _died_while_starting(peer, run)

    async def start(self, node_id: str, *, rejoin: bool = False) -> None:
        """Start a peer that is down and return when it answers; with `rejoin` also one that has left the cluster."""
        peer = self._find(node_id)
        await self._wait_until_it_answers(peer, await self._launch(peer, rejoin=rejoin))

    async def stop(self, node_id: str) -> None:
        """Let a peer finish and return when it has ended; one that takes too long is killed."""
        peer = self._find(node_id)
        await self._stop([peer.running()])

    async def kill(self, node_id: str) -> None:
        """End a peer as a crash would, and return when it has ended."""
        run = self._find(node_id).running()
        self._kill(run)
        await run.ended.wait()

    async def stop_all(self) -> None:
        """Let all peers finish at once; those that take too long are killed."""
        await self._stop(self._running())

    def kill_all(self) -> None:
        """Order the end of every peer without waiting for it."""
        for run in self._running():
            self._kill(run)

    def status(self) -> list[PeerStatus]:
        """Every peer, running or not."""
        return [
            PeerStatus(peer.node_id, str(peer.address), peer.run.process.pid, peer.run.hangs)
            if peer.run
            else PeerStatus(peer.node_id, str(peer.address), None)
            for peer in self._peers.values()
        ]

    async def figures(self) -> dict[str, Figures]:
        """What each peer that answers says of its files."""
        found: dict[str, Figures] = {}

        async def ask(peer: PeerProcess) -> None:
            figures = await read_figures(self._client, peer.address)
            if figures is not None:
                found[peer.node_id] = figures

        async with trio.open_nursery() as nursery:
            for peer in self._peers.values():
                if peer.run is not None and not peer.run.hangs:
                    nursery.start_soon(ask, peer)
        return found

    async def obey(self, command: str, node_id: str) -> Answer:
        """Carry out an order. Raises ClusterError for one that cannot be, or that there is not."""
        match command:
            case "status":
                return Answer("", tuple(self.status()))
            case "start":
                await self.start(node_id)
                return Answer(f"{node_id} started")
            case "rejoin":
                await self.start(node_id, rejoin=True)
                return Answer(f"{node_id} started, to join again")
            case "stop":
                await self.stop(node_id)
                return Answer(f"{node_id} stopped")
            case "kill":
                await self.kill(node_id)
                return Answer(f"{node_id} killed")
        raise ClusterError(f"the supervisor knows no order {command!r}; both commands must be of one version")

    def url_of(self, node_id: str) -> str:
        """Where a peer answers over HTTP."""
        return f"http://{self._find(node_id).address}"

    def _find(self, node_id: str) -> PeerProcess:
        try:
            return self._peers[node_id]
        except KeyError:
            raise ClusterError(f"there is no {node_id} in this cluster; it has {', '.join(self._peers)}") from None

    def _running(self) -> list[Run]:
        return [peer.run for peer in self._peers.values() if peer.run is not None]

    async def _launch(self, peer: PeerProcess, *, rejoin: bool = False) -> Run:
        run = await peer.launch(rejoin=rejoin)
        self.nursery.start_soon(self._follow, peer, run)
        return run

    async def _follow(self, peer: PeerProcess, run: Run) -> None:
        """Tell what the peer writes until its process ends, and that it ended. Cancelled: the process is killed."""
        try:
            while run.process.returncode is None:
                with trio.move_on_after(LOG_POLL_S):
                    await run.process.wait()
                self._tell_lines(peer, run.log.new_lines())
        finally:
            with trio.CancelScope(shield=True):
                run.process.kill()
                code = await run.process.wait()
            lines = run.log.new_lines(at_end=True)
            peer.forget(run)
        self._tell_lines(peer, lines)
        self._tell(PeerExited(peer.node_id, _describe_exit(code), run.ordered_to_end))

    async def _watch(self, peer: PeerProcess, run: Run) -> None:
        """Say so when a peer that has answered answers no more, though its process is there, and when it does again."""
        heard_at = trio.current_time()
        while not run.ended.is_set():
            with trio.move_on_after(WATCH_S):
                await run.ended.wait()
            if await ask_health(self._client, peer.address) is not None:
                if run.hangs:
                    run.hangs = False
                    silent_s = trio.current_time() - heard_at
                    self._tell(PeerHangs(peer.node_id, run.process.pid, silent_s, answers_again=True))
                heard_at = trio.current_time()
                continue
            silent_s = trio.current_time() - heard_at
            if silent_s >= HANGS_AFTER_S and not (run.hangs or run.ordered_to_end or run.ended.is_set()):
                run.hangs = True
                self._tell(PeerHangs(peer.node_id, run.process.pid, silent_s))

    def _tell_lines(self, peer: PeerProcess, lines: list[str]) -> None:
        for line in lines:
            self._tell(PeerWrote(peer.node_id, line))

    async def _wait_until_it_answers(self, peer: PeerProcess, run: Run, *, may_have_left: bool = False) -> None:
        with trio.move_on_after(START_TIMEOUT_S):
            while not run.ended.is_set():
                # Before it is ready a peer answers /health only, and everything else with 503.
                health = await ask_health(self._client, peer.address, "/health/ready")
                # Somebody else may have taken the port in between; that one must not pass for the peer.
                if health is not None and health.get("node_id") == peer.node_id and not run.ended.is_set():
                    self._tell_lines(peer, run.log.new_lines())
                    self.nursery.start_soon(self._watch, peer, run)
                    return
                await trio.sleep(HEALTH_POLL_S)
            if may_have_left and run.process.returncode == EXIT_REMOVED:
                return
            raise _died_while_starting(peer, run)
        raise ClusterError(
            f"{peer.node_id} runs but did not answer on {peer.address} for {START_TIMEOUT_S:.0f} s; see {run.log.path}"
        )

    async def _stop(self, runs: list[Run]) -> None:
        for run in runs:
            run.ordered_to_end = True
            ask_to_stop(run.process)
        with trio.move_on_after(STOP_TIMEOUT_S):
            for run in runs:
                await run.ended.wait()
        for run in runs:
            self._kill(run)
            await run.ended.wait()

    def _kill(self, run: Run) -> None:
        run.ordered_to_end = True
        run.process.kill()


def _died_while_starting(peer: PeerProcess, run: Run) -> ClusterError:
    how = _describe_exit(run.process.returncode)
    lines = run.log.last_lines()
    if not lines:
        return ClusterError(f"{peer.node_id} ended ({how}) while starting, without a word in {run.log.path}")
    return ClusterError("\n    ".join([f"{peer.node_id} ended ({how}) while starting; its last lines:", *lines]))


def _describe_exit(code: int | None) -> str:
    if code == EXIT_REMOVED:
        return "it has left the cluster; start it with --rejoin to have it join again"
    if code is None or code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"


@asynccontextmanager
async def open_cluster(
    data: Path,
    *,
    nodes: int | None = None,
    base_port: int | None = None,
    facade_port: int | None = None,
    grow: bool = False,
    command: PeerCommand = serve_command,
    tell: Tell = tell_nobody,
) -> AsyncIterator[LocalCluster]:
    """Claim the folder and the ports and take orders, until the block ends; then the peers are stopped orderly.

    When the block is cancelled from outside, the peers are killed. Raises ClusterError, or ConfigError for impossible
    settings, before anything is started.
    """
    failure: Exception | None = None
    with claimed(data):
        layout = settle_layout(data, nodes, base_port, facade_port, grow=grow)
        async with _health_client() as client:
            await check_ports(data, layout, client)
            _settle_key(data)
            write_private(data / "cluster.json", asdict(layout))
            async with trio.open_nursery() as nursery:
                cluster = LocalCluster(data, layout, nursery=nursery, client=client, command=command, tell=tell)
                with await take_orders(data, cluster.obey, nursery):
                    try:
                        yield cluster
                    except Exception as error:  # noqa: BLE001 - raised again below: a nursery would wrap it in a group
                        failure = error
                    await cluster.stop_all()
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _settle_key(data: Path) -> None:
    """See to it that the cluster has a key. Raises ClusterError."""
    try:
        make_key_file(data / KEY_FILE)
    except FileExistsError:
        return
    except OSError as error:
        raise ClusterError(f"{data / KEY_FILE} cannot be written: {error.strerror}") from error


def _health_client() -> httpx.AsyncClient:
    # A kept connection may lead to a process that has ended since; a proxy from the environment leads elsewhere.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT_S, limits=limits)
