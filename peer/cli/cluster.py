"""`minidfs cluster`: a local cluster in the foreground, and orders to it from another terminal.

Presentation only; `peer/cluster` does the work.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peer.cli.options import setting
from peer.cli.settings import home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import trio

    from peer.cluster import Answer, Event, LocalCluster, PeerHangs

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")
TABLE_S = 1.0
"""Between two looks at the peers, where a table of them is shown."""
TABLE_S_MAX = 5.0

# The terminal's window closed, or Ctrl-Break: the peers are in groups of their own and would live on.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def default_folder() -> Path:
    """Where the local cluster lives unless --data says otherwise, so that every command finds it from any folder."""
    return home() / "cluster"


_data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="The cluster's folder.  [default: ~/.minidfs/cluster, or $MINIDFS_HOME/cluster]",
)


@click.group(invoke_without_command=True)
@setting("--nodes", type=click.IntRange(min=1), help="Number of peers.  [default: 3, or as the folder has]")
@setting("--base-port", type=click.IntRange(1, 65535), help="Port of node-1; the others follow.  [default: 8001]")
@setting("--facade-port", type=click.IntRange(1, 65535), help="Port that all peers share.  [default: 8080]")
@click.option("--grow", is_flag=True, help="Let --nodes make an existing cluster larger, for good.")
@_data_option
@click.pass_context
def cluster(
    ctx: click.Context,
    nodes: int | None,
    base_port: int | None,
    facade_port: int | None,
    grow: bool,
    data: Path | None,
) -> int:
    """Run a local cluster in the foreground, one process a peer.

    The same folder continues the same cluster. Ctrl-C stops all peers; the commands below act on one, from another
    terminal. Settings of the peers, as MINIDFS_COPIES, are taken from variables and the settings file.
    """
    ctx.obj = data
    if ctx.invoked_subcommand is not None:
        return 0
    settings = {"nodes": nodes, "base_port": base_port, "facade_port": facade_port, "grow": grow}
    return _supervise((data or default_folder()).absolute(), settings)


@cluster.command()
@click.argument("node")
@_data_option
@click.pass_obj
def stop(group_data: Path | None, node: str, data: Path | None) -> None:
    """Stop a peer: it finishes its running requests first."""
    click.echo(_order(data or group_data, "stop", node).message)


@cluster.command()
@click.argument("node")
@click.option("--rejoin", is_flag=True, help="Also one that has left the cluster: it joins again.")
@_data_option
@click.pass_obj
def start(group_data: Path | None, node: str, data: Path | None, *, rejoin: bool) -> None:
    """Start a peer that is down, and wait until it answers."""
    click.echo(_order(data or group_data, "rejoin" if rejoin else "start", node).message)


@cluster.command()
@click.argument("node")
@_data_option
@click.pass_obj
def kill(group_data: Path | None, node: str, data: Path | None) -> None:
    """Kill a peer as a crash would."""
    click.echo(_order(data or group_data, "kill", node).message)


@cluster.command()
@_data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def status(group_data: Path | None, data: Path | None, as_json: bool) -> None:
    """Show which peers run."""
    peers = _order(data or group_data, "status").peers
    if as_json:
        click.echo(json.dumps([asdict(peer) for peer in peers], indent=2))
        return
    for peer in peers:
        state = "down" if peer.pid is None else f"{'hangs' if peer.hangs else 'running'}  process {peer.pid}"
        click.echo(f"{peer.node_id:<10}{peer.address:<18}{state}")


def _order(data: Path | None, command: str, node: str = "") -> Answer:
    from peer.cluster import ClusterError, send_order

    try:
        return send_order((data or default_folder()).absolute(), command, node)
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


def _supervise(data: Path, settings: Mapping[str, Any]) -> int:
    import trio

    from peer.cluster import ClusterError
    from peer.config import ConfigError

    try:
        trio.run(_run, data, settings)
    except ClusterError as error:
        raise click.ClickException(str(error)) from error
    except ConfigError as error:
        raise click.UsageError(str(error), click.get_current_context()) from error
    return 0


async def _run(data: Path, settings: Mapping[str, Any]) -> None:
    import trio

    from peer.cluster import open_cluster

    screen = _Screen(data)
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with open_cluster(data, **settings, tell=screen.show) as opened:
            with trio.CancelScope() as serving:
                opened.nursery.start_soon(_stop_on_signal, signals, serving, opened, screen)
                await opened.start_all()
                screen.show_what_to_try(opened)
                await screen.show_table(opened)
        screen.say("all peers have stopped")


async def _stop_on_signal(
    signals: AsyncIterator[int], serving: trio.CancelScope, opened: LocalCluster, screen: _Screen
) -> None:
    async for _ in signals:
        if serving.cancel_called:
            opened.kill_all()
        else:
            screen.say("stopping the peers; Ctrl-C again kills them")
            serving.cancel()


class _Screen:
    """The supervisor's terminal: what the peers write, and what it has to say itself."""

    def __init__(self, data: Path) -> None:
        from rich.console import Console

        self._data_option = () if data == default_folder() else ("--data", str(data))
        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def say(self, line: str = "") -> None:
        self._print(line)

    def show(self, event: Event) -> None:
        from peer.cluster import PeerHangs, PeerWrote

        if isinstance(event, PeerWrote):
            self._print(event.line, node_id=event.node_id)
        elif isinstance(event, PeerHangs):
            self._print(self._about_hanging(event), node_id=event.node_id)
        elif event.ordered:
            self._print(f"ended ({event.how})", node_id=event.node_id)
        else:
            again = _own_command("start", event.node_id, *self._data_option)
            self._print(f"ended by itself ({event.how}); start it again with: {again}", node_id=event.node_id)

    def _about_hanging(self, event: PeerHangs) -> str:
        if event.answers_again:
            return f"answers again, after {event.silent_s:.0f} s"
        kill, start = (_own_command(order, event.node_id, *self._data_option) for order in ("kill", "start"))
        return (
            f"has not answered for {event.silent_s:.0f} s, though its process {event.pid} is there; "
            f"if it stays so: {kill} && {start}"
        )

    async def show_table(self, opened: LocalCluster) -> None:
        """Keep a table of the peers under what they write, where a terminal is there; until cancelled."""
        import trio
        from rich.live import Live

        from peer.cli.live import table_of

        if not self._console.is_terminal:
            await trio.sleep_forever()
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                started = trio.current_time()
                figures = await opened.figures()
                live.update(table_of(opened.status(), figures), refresh=True)
                # Counting many files takes a while, which is the clients' while.
                await trio.sleep(min(max(TABLE_S, 10 * (trio.current_time() - started)), TABLE_S_MAX))

    def show_what_to_try(self, opened: LocalCluster) -> None:
        layout = opened.layout
        first, other = layout.node_ids[0], layout.node_ids[min(1, layout.nodes - 1)]
        peer_url, other_url = (f"http://localhost:{layout.address_of(node_id).port}" for node_id in (first, other))
        facade_url = f"http://localhost:{layout.facade_port}"
        self.say()
        self.say(f"{layout.nodes} peers are running. Try, from another terminal:")
        self.say(f'  upload    echo hello > test.txt && curl -X POST {peer_url}/files -F "file=@test.txt"')
        self.say(f"  list      curl {facade_url}/files")
        self.say(f"  queue     curl {facade_url}/replication-queue")
        self.say(f"  download  curl -O {other_url}/files/<file_id>")
        self.say(f"  crash     {_own_command('kill', other, *self._data_option)}")
        self.say(f"  restart   {_own_command('start', other, *self._data_option)}")
        self.say(f"The data is in {opened.data}. Ctrl-C stops the cluster.")
        self.say()

    def _print(self, line: str, node_id: str = "") -> None:
        from rich.text import Text

        # Whoever read our output may have gone (a pipe into `head`): the cluster goes on, its logs are in its folder.
        # Rich leaves by SystemExit then, which would end all peers.
        prefix = (f"{node_id} | ", _colour_of(node_id)) if node_id else ""
        try:
            self._console.print(Text.assemble(prefix, line))
        except (BrokenPipeError, SystemExit):
            self._console.quiet = True


def _colour_of(node_id: str) -> str:
    number = node_id.rpartition("-")[2]
    return COLOURS[int(number) % len(COLOURS)] if number.isdecimal() else COLOURS[0]


def _own_command(*arguments: str) -> str:
    """A `minidfs cluster …` line that works when pasted: by the short name only where that is found."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        words = [sys.executable, "-m", "peer"]
    elif shutil.which("minidfs") == str(program):
        words = ["minidfs"]
    else:
        words = [str(program)]
    return shlex.join([*words, "cluster", *arguments])
