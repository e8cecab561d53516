"""`minidfs serve`: one peer in the foreground."""

from __future__ import annotations

import math
import re
import socket
from pathlib import Path

import click

from peer.config import Address, Config, ConfigError

ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
CLUSTER_ID = re.compile(r"[0-9a-f]{32}")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Address | None:
    try:
        return None if value is None else Address.parse(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _advertised(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    has_port = value.rpartition(":")[2].isdecimal() and (value.startswith("[") or value.count(":") == 1)
    bare = f"[{value}]" if value.count(":") > 1 and not value.startswith("[") else value
    try:
        address = Address.parse(value if has_port else f"{bare}:0")
    except ConfigError:
        raise click.BadParameter(f"{value!r} is no place; write HOST or HOST:PORT, as 192.168.1.7") from None
    if address.is_wildcard:
        raise click.BadParameter(f"nobody can reach a peer at {address.host}; write one address of this machine")
    return address


def _addresses(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Address, ...]:
    return tuple(address for value in values if (address := _address(ctx, param, value)) is not None)


def _node_id(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from protocol.identity import NODE_ID_PATTERN

    if not NODE_ID_PATTERN.fullmatch(value):
        raise click.BadParameter(
            f"{value!r} is no node id; write up to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return value


def _cluster_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not CLUSTER_ID.fullmatch(value.lower()):
        raise click.BadParameter(f"{value!r} is no cluster id; it has 32 hexadecimal digits")
    return value and value.lower()


def _origins(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not ORIGIN.fullmatch(value):
            raise click.BadParameter(f"{value!r} is no origin; write scheme, host and port only: https://dash.example")
    return values


def _seconds(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is no number of seconds; it is above 0 and finite")
    return value


@click.command()
@click.option("--id", "node_id", metavar="NAME", required=True, callback=_node_id, help="The peer's name, as node-2.")
@click.option(
    "--listen", metavar="HOST:PORT", callback=_address, required=True, help="The peer's own address, as 127.0.0.1:8002."
)
@click.option(
    "--advertise",
    metavar="HOST[:PORT]",
    callback=_advertised,
    help="Where other peers reach this one.  [default: where it listens; for 0.0.0.0 the address towards the others]",
)
@click.option(
    "--facade", metavar="HOST:PORT", callback=_address, help="The address that all peers of this machine share."
)
@click.option(
    "--join",
    metavar="HOST:PORT",
    callback=_addresses,
    multiple=True,
    help="A peer of the cluster to join; may be repeated.",
)
@click.option(
    "--rejoin/--no-rejoin",
    default=False,
    show_default=True,
    help="Go over to the cluster of the peers in --join with all files, from one that this peer is alone in.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder of this peer's files and database; made when it is not there.",
)
@click.option("--copies", type=click.IntRange(min=1), default=3, show_default=True, help="Copies of an uploaded file.")
@click.option(
    "--heal-interval",
    type=float,
    callback=_seconds,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two comparisons with another peer.",
)
@click.option(
    "--cluster-id", metavar="HEX", callback=_cluster_id, help="Found or join only the cluster with this id (32 digits)."
)
@click.option("--name", "names", metavar="HOST", multiple=True, help="A host name the peer goes by; may be repeated.")
@click.option(
    "--origin",
    "origins",
    metavar="URL",
    callback=_origins,
    multiple=True,
    help="An origin, as https://dash.example, whose pages may use the peer; may be repeated.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS, case_sensitive=False), default="info", show_default=True)
def serve(
    node_id: str,
    listen: Address,
    advertise: Address | None,
    facade: Address | None,
    join: tuple[Address, ...],
    rejoin: bool,
    data: Path,
    copies: int,
    heal_interval: float,
    cluster_id: str | None,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    log_level: str,
) -> int:
    """Run one peer in the foreground.

    Ctrl-C or SIGTERM stops it: running requests finish, for 10 seconds at most.
    """
    if rejoin and (not join or cluster_id is not None):
        raise click.UsageError("--rejoin goes where the peers of --join are: it needs --join and no --cluster-id")
    config = Config(
        node_id=node_id,
        listen=listen,
        advertise=advertise,
        facade=facade,
        join=join,
        rejoin=rejoin,
        data=data.absolute(),
        copies=copies,
        heal_interval_s=heal_interval,
        cluster_id=cluster_id,
        names=names,
        origins=origins,
        log_level=log_level.lower(),
        hostname=socket.gethostname(),
    )
    return _run(config)


def _run(config: Config) -> int:
    from peer.run import run_peer
    from peer.world.env import StartError, StoreError

    try:
        return run_peer(config)
    except (StartError, StoreError) as error:
        raise click.ClickException(str(error)) from error
