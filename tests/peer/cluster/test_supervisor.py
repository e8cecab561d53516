"""A local cluster of real processes.

The peers are small stand-ins that answer /health, so what is tested is the supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec

import httpx
import pytest
import trio

from peer.cluster import (
    ClusterError,
    Event,
    Layout,
    LocalCluster,
    PeerExited,
    PeerHangs,
    PeerWrote,
    free_base_port,
    open_cluster,
    send_order,
    serve_command,
    settle_layout,
)
from peer.cluster import supervisor as engine
from peer.config import ConfigError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

DEADLINE_S = 60
FAKE_PEER = """
import http.server, json, os, signal, sys

node_id, port, cluster_id, behaviour = sys.argv[1:]
print("hello from", node_id)
if behaviour == "dies":
    print("the disk is on fire")
    sys.exit(3)
if behaviour == "mute":
    signal.pause()


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": "UP", "node_id": node_id, "cluster_id": cluster_id}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def stop(*_):
    print("stopping orderly", end="", flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else stop)
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Health).serve_forever()
"""
# `minidfs`, but with our stand-ins for peers.
FAKE_MINIDFS = """
import functools, sys
from peer import cluster
from peer.cli.main import main

def command(layout, node_id, folder):
    port = str(layout.address_of(node_id).port)
    return [sys.executable, {script!r}, node_id, port, layout.cluster_id, "good"]

cluster.open_cluster = functools.partial(cluster.open_cluster, command=command)
sys.exit(main())
"""

Arguments = ParamSpec("Arguments")


def in_trio(test: Callable[Arguments, Awaitable[None]]) -> Callable[Arguments, None]:
    """Run an async test under trio, with a deadline."""

    @wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(DEADLINE_S):
                await test(*args, **kwargs)

        trio.run(bounded)

    return run


class Stage:
    """A folder, free ports and stand-in peers for one test; collects what the cluster tells."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "cluster"
        self.script = folder / "fake_peer.py"
        self.script.write_text(FAKE_PEER)
        self.minidfs = folder / "fake_minidfs.py"
        self.minidfs.write_text(FAKE_MINIDFS.format(script=str(self.script)))
        self.facade_port = free_base_port(5)
        self.base_port = self.facade_port + 1
        self.behaviours: dict[str, str] = {}
        self._tell, self.events = trio.open_memory_channel[Event](1000)

    def command(self, layout: Layout, node_id: str, _folder: Path) -> list[str]:
        port = str(layout.address_of(node_id).port)
        behaviour = self.behaviours.get(node_id, "good")
        return [sys.executable, str(self.script), node_id, port, layout.cluster_id, behaviour]

    @asynccontextmanager
    async def opened(self, nodes: int | None = None, *, grow: bool = False) -> AsyncIterator[LocalCluster]:
        async with open_cluster(
            self.data,
            nodes=nodes,
            base_port=self.base_port,
            facade_port=self.facade_port,
            grow=grow,
            command=self.command,
            tell=self._tell.send_nowait,
        ) as cluster:
            yield cluster

    @asynccontextmanager
    async def running(self, nodes: int | None = None, *, grow: bool = False) -> AsyncIterator[LocalCluster]:
        async with self.opened(nodes, grow=grow) as cluster:
            await cluster.start_all()
            yield cluster

    @property
    def cluster_arguments(self) -> list[str]:
        ports = ["--base-port", str(self.base_port), "--facade-port", str(self.facade_port)]
        return ["cluster", "--nodes", "2", *ports, "--data", str(self.data)]

    async def next_exit(self) -> PeerExited:
        async for event in self.events:
            if isinstance(event, PeerExited):
                return event
        raise AssertionError

    async def next_hang(self) -> PeerHangs:
        async for event in self.events:
            if isinstance(event, PeerHangs):
                return event
        raise AssertionError

    def told(self) -> list[Event]:
        """What the cluster has told since the last look."""
        events = []
        while self.events.statistics().current_buffer_used:
            events.append(self.events.receive_nowait())
        return events


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def answers(cluster: LocalCluster, node_id: str) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        try:
            return (await client.get(f"{cluster.url_of(node_id)}/health")).is_success
        except httpx.TransportError:
            return False


def pid_of(cluster: LocalCluster, node_id: str) -> int:
    (pid,) = (peer.pid for peer in cluster.status() if peer.node_id == node_id)
    assert pid is not None
    return pid


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def read_until(stream: trio.abc.ReceiveStream, text: str) -> str:
    seen = b""
    while text.encode() not in seen:
        part = await stream.receive_some()
        assert part, f"ended before {text!r}:\n{seen.decode()}"
        seen += part
    return seen.decode()


async def minidfs(*arguments: str) -> tuple[int, str, str]:
    """Run the real command line; gives exit code, output and errors."""
    done = await trio.run_process(
        [sys.executable, "-m", "peer", *arguments], capture_stdout=True, capture_stderr=True, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# The engine.


@in_trio
async def test_peers_answer_once_started_and_are_gone_when_the_block_ends(stage: Stage) -> None:
    async with stage.running(nodes=3) as cluster:
        pids = [pid_of(cluster, node_id) for node_id in ("node-1", "node-2", "node-3")]
        assert [await answers(cluster, node_id) for node_id in cluster.layout.node_ids] == [True, True, True]
        assert (stage.data / "node-2" / "peer.pid").read_text() == f"{pids[1]}\n"
    assert not any(is_running(pid) for pid in pids)
    assert not list(stage.data.glob("*/peer.pid"))


@in_trio
async def test_a_stopped_peer_finishes_orderly_and_can_be_started_again(stage: Stage) -> None:
    async with stage.running(nodes=2) as cluster:
        await cluster.stop("node-2")
        assert [peer.pid is None for peer in cluster.status()] == [False, True]
        assert not await answers(cluster, "node-2")
        assert (stage.data / "node-2" / "peer.log").read_text() == "hello from node-2\nstopping orderly"
        await cluster.start("node-2")
        assert await answers(cluster, "node-2")


@in_trio
async def test_a_killed_peer_has_no_chance_to_finish_and_can_be_started_again(stage: Stage) -> None:
    async with stage.running(nodes=2) as cluster:
        await cluster.kill("node-1")
        assert not await answers(cluster, "node-1")
        assert (stage.data / "node-1" / "peer.log").read_text() == "hello from node-1\n"
        assert await stage.next_exit() == PeerExited("node-1", "SIGKILL", ordered=True)
        await cluster.start("node-1")
        assert await answers(cluster, "node-1")


@in_trio
async def test_what_peers_write_is_told_line_by_line_with_an_unfinished_last_one(stage: Stage) -> None:
    async with stage.running(nodes=1):
        pass
    assert stage.told() == [
        PeerWrote("node-1", "hello from node-1"),
        PeerWrote("node-1", "stopping orderly"),
        PeerExited("node-1", "exit code 0", ordered=True),
    ]


@in_trio
async def test_orders_that_make_no_sense_are_refused(stage: Stage) -> None:
    async with stage.running(nodes=2) as cluster:
        with pytest.raises(ClusterError, match=r"^there is no node-9 in this cluster; it has node-1, node-2$"):
            await cluster.stop("node-9")
        with pytest.raises(ClusterError, match=r"^node-1 is already running \(process \d+\)$"):
            await cluster.start("node-1")
        await cluster.kill("node-1")
        for order in (cluster.stop, cluster.kill):
            with pytest.raises(ClusterError, match=r"^node-1 is already down$"):
                await order("node-1")


@in_trio
async def test_of_two_starts_at_once_one_is_refused(stage: Stage) -> None:
    async with stage.running(nodes=1) as cluster:
        await cluster.stop("node-1")
        refusals = []

        async def start() -> None:
            try:
                await cluster.start("node-1")
            except ClusterError as error:
                refusals.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            nursery.start_soon(start)
        assert len(refusals) == 1
        assert "already running" in refusals[0]


@in_trio
async def test_a_peer_that_dies_later_is_reported_and_not_restarted(stage: Stage) -> None:
    async with stage.running(nodes=2) as cluster:
        os.kill(pid_of(cluster, "node-2"), signal.SIGKILL)
        assert await stage.next_exit() == PeerExited("node-2", "SIGKILL", ordered=False)
        assert [peer.pid is None for peer in cluster.status()] == [False, True]


@in_trio
async def test_a_peer_that_freezes_is_reported_once_and_again_when_it_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "HANGS_AFTER_S", 0.3)
    monkeypatch.setattr(engine, "WATCH_S", 0.05)
    async with stage.running(nodes=2) as cluster:
        pid = pid_of(cluster, "node-2")
        os.kill(pid, signal.SIGSTOP)
        hangs = await stage.next_hang()
        assert (hangs.node_id, hangs.pid, hangs.answers_again) == ("node-2", pid, False)
        assert [peer.hangs for peer in cluster.status()] == [False, True]
        os.kill(pid, signal.SIGCONT)
        assert (await stage.next_hang()).answers_again
        assert [peer.hangs for peer in cluster.status()] == [False, False]
        await cluster.kill("node-2")
    assert not [event for event in stage.told() if isinstance(event, PeerHangs)]


@in_trio
async def test_a_peer_that_dies_while_starting_ends_the_start_with_its_last_lines(stage: Stage) -> None:
    stage.behaviours["node-2"] = "dies"
    with pytest.raises(ClusterError) as caught:
        async with stage.running(nodes=3):
            pytest.fail("the cluster started")
    assert str(caught.value).splitlines() == [
        "node-2 ended (exit code 3) while starting; its last lines:",
        "    hello from node-2",
        "    the disk is on fire",
    ]
    ordered = {event.node_id: event.ordered for event in stage.told() if isinstance(event, PeerExited)}
    assert ordered == {"node-1": True, "node-2": False, "node-3": True}


@in_trio
async def test_a_peer_that_never_answers_is_given_up_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "START_TIMEOUT_S", 0.2)
    stage.behaviours["node-1"] = "mute"
    with pytest.raises(ClusterError, match=r"^node-1 runs but did not answer on 127\.0\.0\.1:\d+ for"):
        async with stage.running(nodes=1):
            pytest.fail("the cluster started")


@in_trio
async def test_a_peer_that_does_not_stop_in_time_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "STOP_TIMEOUT_S", 0.2)
    stage.behaviours["node-1"] = "deaf"
    async with stage.running(nodes=1) as cluster:
        await cluster.stop("node-1")
        assert await stage.next_exit() == PeerExited("node-1", "SIGKILL", ordered=True)


@in_trio
async def test_peers_are_killed_when_the_block_is_cancelled(stage: Stage) -> None:
    with trio.CancelScope() as scope:
        async with stage.running(nodes=1) as cluster:
            pid = pid_of(cluster, "node-1")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert not is_running(pid)
    assert not (stage.data / "control.json").exists()


@in_trio
async def test_a_failure_in_the_block_stops_the_peers_and_comes_out_as_it_is(stage: Stage) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stage.running(nodes=1):
            raise ZeroDivisionError
    assert stage.told()[-1] == PeerExited("node-1", "exit code 0", ordered=True)


# Ports and folders.


@pytest.mark.parametrize(
    ("offset", "kind", "needed_by", "option"),
    [
        (1, socket.SOCK_STREAM, "node-2", "--base-port"),
        (1, socket.SOCK_DGRAM, "node-2", "--base-port"),
        (-1, socket.SOCK_STREAM, "the shared facade", "--facade-port"),
    ],
)
@in_trio
async def test_a_taken_port_gives_one_clear_line_and_nothing_is_started(
    stage: Stage, offset: int, kind: socket.SocketKind, needed_by: str, option: str
) -> None:
    port = stage.base_port + offset
    with socket.socket(socket.AF_INET, kind) as other:
        if kind == socket.SOCK_STREAM:
            # A cluster that had this port a moment ago may have left connections that wait for their end.
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        with pytest.raises(ClusterError) as caught:
            async with stage.running(nodes=3):
                pytest.fail("the cluster started")
    assert str(caught.value) == (
        f"port {port} is taken (needed by {needed_by}); stop what uses it or choose others with {option}"
    )
    assert stage.told() == []
    assert not (stage.data / "cluster.json").exists()


@in_trio
async def test_the_same_folder_continues_the_same_cluster_and_may_grow(stage: Stage) -> None:
    async with stage.running(nodes=1) as first:
        pass
    async with stage.running() as again:
        assert again.layout == first.layout
    async with stage.running(nodes=2, grow=True) as grown:
        assert grown.layout.cluster_id == first.layout.cluster_id
        assert grown.layout.node_ids == ("node-1", "node-2")
    assert json.loads((stage.data / "cluster.json").read_text())["nodes"] == 2


@in_trio
async def test_a_folder_with_a_cluster_refuses_other_numbers_of_nodes_and_other_ports(stage: Stage) -> None:
    async with stage.opened(nodes=3):
        pass
    with pytest.raises(ClusterError, match="holds a cluster of 3 nodes; fewer could leave out files"):
        settle_layout(stage.data, 2, None, None)
    with pytest.raises(ClusterError, match=r"add --grow to make it 5 for good, or try that with another --data$"):
        settle_layout(stage.data, 5, None, None)
    assert settle_layout(stage.data, 5, None, None, grow=True).nodes == 5
    for ports in ((stage.base_port + 1, None), (None, stage.facade_port - 1)):
        with pytest.raises(ClusterError, match=f"holds a cluster on --base-port {stage.base_port} --facade-port"):
            settle_layout(stage.data, None, *ports)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"nodes": 3}', '{"cluster_id":"a","nodes":0,"base_port":1,"facade_port":9}']
)
def test_a_damaged_cluster_file_is_said_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "cluster.json").write_text(content)
    with pytest.raises(ClusterError, match=r"cluster\.json cannot be read .*; repair it or use another --data$"):
        settle_layout(tmp_path, None, None, None)


@pytest.mark.parametrize(
    ("nodes", "base_port", "facade_port", "message"),
    [
        (0, 8001, 8080, "has 1 to 200 nodes, not 0"),
        (3, 65534, 8080, "must lie within 1 to 65535"),
        (3, 8001, 0, "must lie within 1 to 65535"),
        (80, 8001, 8080, "lies among the peers' own ports 8001 to 8080"),
    ],
)
def test_impossible_settings_are_refused(nodes: int, base_port: int, facade_port: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layout(cluster_id="0" * 32, nodes=nodes, base_port=base_port, facade_port=facade_port)


@in_trio
async def test_a_second_supervisor_of_the_folder_is_refused(stage: Stage) -> None:
    async with stage.running(nodes=1):
        with pytest.raises(ClusterError) as caught:
            async with stage.opened():
                pytest.fail("two supervisors own one folder")
    assert str(caught.value) == (
        f"a cluster is already running from {stage.data} (process {os.getpid()}); stop it or use another --data"
    )


@in_trio
async def test_a_folder_that_cannot_be_made_is_said_in_one_line(stage: Stage) -> None:
    stage.data.write_text("a file")
    with pytest.raises(ClusterError, match=r"^cannot use .* as the cluster's folder: File exists$"):
        async with stage.opened():
            pytest.fail("the cluster started")


def test_a_real_peer_is_told_its_addresses_all_others_and_the_cluster(tmp_path: Path) -> None:
    layout = Layout(cluster_id="ab" * 16, nodes=3, base_port=8001, facade_port=8080)
    command = serve_command(layout, "node-2", tmp_path / "node-2")
    assert command[0] == sys.executable
    assert " ".join(command[1:]) == (
        "-P -m peer serve --id node-2 --listen 127.0.0.1:8002 --advertise 127.0.0.1:8002 --no-rejoin"
        " --facade 127.0.0.1:8080"
        f" --join 127.0.0.1:8001 --join 127.0.0.1:8003 --cluster-id {'ab' * 16}"
        f" --cluster-key-file {tmp_path / 'cluster.key'} --data {tmp_path / 'node-2'}"
    )


# Orders, through the real command line.


@in_trio
async def test_orders_from_another_terminal_act_on_one_peer(stage: Stage) -> None:
    async with stage.running(nodes=2) as cluster:
        data = ("--data", str(stage.data))
        assert await minidfs("cluster", "stop", "node-2", *data) == (0, "node-2 stopped\n", "")
        assert not await answers(cluster, "node-2")
        code, out, _ = await minidfs("cluster", "status", *data)
        assert code == 0
        assert [line.split()[:3:2] for line in out.splitlines()] == [["node-1", "running"], ["node-2", "down"]]
        assert await minidfs("cluster", "stop", "node-2", *data) == (1, "", "minidfs: node-2 is already down\n")
        assert await minidfs("cluster", *data, "start", "node-2") == (0, "node-2 started\n", "")
        assert await answers(cluster, "node-2")
        assert await minidfs("cluster", "kill", "node-1", *data) == (0, "node-1 killed\n", "")
        assert not await answers(cluster, "node-1")
        code, _, err = await minidfs("cluster", "kill", "node-9", *data)
        assert (code, err) == (1, "minidfs: there is no node-9 in this cluster; it has node-1, node-2\n")
        code, out, _ = await minidfs("cluster", "status", "--json", *data)
        assert [(peer["node_id"], peer["pid"] is None) for peer in json.loads(out)] == [
            ("node-1", True),
            ("node-2", False),
        ]


@in_trio
async def test_only_who_may_read_the_control_file_may_give_orders(stage: Stage) -> None:
    control = stage.data / "control.json"
    async with stage.running(nodes=1) as cluster:
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        stored = json.loads(control.read_text())
        control.write_text(json.dumps(stored | {"token": "guess"}))
        with pytest.raises(ClusterError, match="token is not that of this supervisor"):
            await trio.to_thread.run_sync(partial(send_order, stage.data, "kill", "node-1"))
        assert await answers(cluster, "node-1")
    assert not control.exists()


@pytest.mark.parametrize("line", [b"", b"nonsense\n", b"[]\n", b'{"token": "x"}\n', b"x" * 10_000])
@in_trio
async def test_a_malformed_order_is_answered_and_harms_nothing(stage: Stage, line: bytes) -> None:
    async with stage.opened(nodes=1) as cluster:
        port = json.loads((stage.data / "control.json").read_text())["port"]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(line)
            await stream.send_eof()
            reply = json.loads(await read_until(stream, "\n"))
        assert reply["ok"] is False
        await cluster.start_all()


@pytest.mark.parametrize("greeting", [None, b"", b"SSH-2.0-OpenSSH\r\n"])
def test_a_control_file_left_behind_is_explained(tmp_path: Path, greeting: bytes | None) -> None:
    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        (tmp_path / "control.json").write_text(json.dumps({"port": port, "token": "t", "pid": 4711}))

        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(greeting or b"")
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            if greeting is None:
                await listener.aclose()
            else:
                nursery.start_soon(trio.serve_listeners, greet, [listener])
            with trio.fail_after(DEADLINE_S), pytest.raises(ClusterError) as caught:
                await trio.to_thread.run_sync(partial(send_order, tmp_path, "status"))
            nursery.cancel_scope.cancel()
        assert str(caught.value).startswith(
            (f"no cluster is running from {tmp_path}: its supervisor (process 4711) was", f"the cluster in {tmp_path} ")
        )

    trio.run(main)


# The supervisor as a process.


@asynccontextmanager
async def supervisor(stage: Stage) -> AsyncIterator[trio.Process]:
    """`minidfs cluster` with stand-in peers, until it says that they are up."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(stage.minidfs), *stage.cluster_arguments], stdout=-1, stderr=-1
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@in_trio
async def test_a_signal_to_the_supervisor_stops_all_peers_and_exits_0(stage: Stage, stop: signal.Signals) -> None:
    async with supervisor(stage) as process:
        assert process.stdout is not None
        greeting = await read_until(process.stdout, "Ctrl-C stops the cluster")
        pids = [int((stage.data / node_id / "peer.pid").read_text()) for node_id in ("node-1", "node-2")]
        process.send_signal(stop)
        farewell = await read_until(process.stdout, "all peers have stopped")
        assert await process.wait() == 0
    assert "node-1 | hello from node-1\n" in greeting
    assert f'curl -X POST http://localhost:{stage.base_port}/files -F "file=@test.txt"' in greeting
    assert f"cluster kill node-2 --data {stage.data}" in greeting
    assert "\x1b[" not in greeting, "colours though this is no terminal"
    assert "node-2 | stopping orderly\nnode-2 | ended (exit code 0)\n" in farewell
    assert not any(is_running(pid) for pid in pids)
    assert not (stage.data / "control.json").exists()


@in_trio
async def test_ctrl_c_in_the_terminal_does_not_reach_the_peers(stage: Stage) -> None:
    async with supervisor(stage) as process:
        assert process.stdout is not None
        await read_until(process.stdout, "Ctrl-C stops the cluster")
        pid = int((stage.data / "node-1" / "peer.pid").read_text())
        assert os.getpgid(pid) == pid
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


@in_trio
async def test_the_cluster_outlives_whoever_read_its_output(stage: Stage) -> None:
    async with supervisor(stage) as process:
        assert process.stdout is not None
        await read_until(process.stdout, "Ctrl-C stops the cluster")
        await process.stdout.aclose()
        for order, done in (("kill", "killed"), ("start", "started"), ("stop", "stopped")):
            assert await minidfs("cluster", order, "node-2", "--data", str(stage.data)) == (0, f"node-2 {done}\n", "")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


@in_trio
async def test_peers_left_over_from_a_killed_supervisor_are_named_with_what_to_do(stage: Stage) -> None:
    async with supervisor(stage) as process:
        assert process.stdout is not None
        await read_until(process.stdout, "Ctrl-C stops the cluster")
        process.kill()
        await process.wait()
    pids = [int((stage.data / node_id / "peer.pid").read_text()) for node_id in ("node-1", "node-2")]
    try:
        code, _, err = await minidfs("cluster", "stop", "node-1", "--data", str(stage.data))
        assert code == 1
        assert f"its supervisor (process {process.pid}) was killed" in err
        code, _, err = await minidfs(*stage.cluster_arguments)
        assert (code, err) == (
            1,
            f"minidfs: port {stage.base_port} is taken by what a killed supervisor of this cluster left running: "
            f"node-1 (process {pids[0]}), node-2 (process {pids[1]}); stop it with: kill {pids[0]} {pids[1]}\n",
        )
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@in_trio
async def test_the_command_line_says_a_taken_port_in_one_line(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", stage.base_port + 1)):
        code, out, err = await minidfs(*stage.cluster_arguments)
    assert (code, out) == (1, "")
    assert err == (
        f"minidfs: port {stage.base_port + 1} is taken (needed by node-2); "
        "stop what uses it or choose others with --base-port\n"
    )
