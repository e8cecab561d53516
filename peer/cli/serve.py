"""`minidfs serve`: one peer in the foreground."""

from __future__ import annotations

import math
import re
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from peer.cli.options import read_size, setting
from peer.config import DURABILITIES, EXIT_REMOVED, Address, Config, ConfigError
from protocol.keyring import Keyring

ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
CLUSTER_ID = re.compile(r"[0-9a-f]{32}")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


def _address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Address | None:
    try:
        return None if value is None else Address.parse(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _advertised(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    # An IPv6 address without brackets has colons of its own, and no port.
    has_port = value.count(":") == 1 or (value.startswith("[") and not value.endswith("]"))
    try:
        address = Address.parse(value if has_port else f"{value}:0")
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


def _keyring(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> Keyring:
    from peer.cluster.key_file import read_key_file
    from protocol.keyring import BadKey

    try:
        return read_key_file(value)
    except BadKey as error:
        raise click.BadParameter(str(error)) from error


def _origins(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not ORIGIN.fullmatch(value):
            raise click.BadParameter(f"{value!r} is no origin; write scheme, host and port only: https://dash.example")
    return values


def _seconds(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{value} is no number of seconds; it is above 0 and finite")
    return value


def _bytes(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    try:
        return read_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_seconds_option = partial(setting, type=float, callback=_seconds, metavar="SECONDS", show_default=True)


@click.command()
@setting("--id", "node_id", metavar="NAME", required=True, callback=_node_id, help="The peer's name, as node-2.")
@setting(
    "--listen", metavar="HOST:PORT", callback=_address, required=True, help="The peer's own address, as 127.0.0.1:8002."
)
@setting(
    "--advertise",
    metavar="HOST[:PORT]",
    callback=_advertised,
    help="Where other peers reach this one.  [default: where it listens; for 0.0.0.0 the address towards the others]",
)
@setting(
    "--facade",
    metavar="HOST:PORT",
    callback=_address,
    help="The address that all peers of this machine share.  [default: none]",
)
@setting(
    "--join",
    metavar="HOST:PORT",
    callback=_addresses,
    multiple=True,
    help="A peer of the cluster to join, or a name of several; may be repeated.  [default: found a cluster, or go on]",
)
@setting(
    "--rejoin/--no-rejoin",
    default=False,
    show_default=True,
    help="Go over to the cluster of the peers in --join with all files, from one that this peer is alone in; or join"
    " again the one it was removed from.",
)
@setting(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder of this peer's files and database; made when it is not there.",
)
@setting(
    "--cluster-id",
    metavar="HEX",
    callback=_cluster_id,
    help="Found or join only the cluster with this id (32 digits).  [default: any]",
)
@setting(
    "--cluster-key-file",
    "keyring",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_keyring,
    help="The key without which no peer is believed; minidfs keygen makes one.  [default: none, on loopback only]",
)
@setting("--copies", type=click.IntRange(min=1), default=3, show_default=True, help="Copies of an uploaded file.")
@_seconds_option("--heal-interval", "heal_interval_s", default=30.0, help="Between two comparisons with another peer.")
@_seconds_option(
    "--probe-interval", "probe_interval_s", default=0.5, help="Between two probes, each of one other peer."
)
@_seconds_option(
    "--down-after", "down_after_s", default=2.5, help="A suspect has so long, at least, to show that it is up."
)
@_seconds_option(
    "--out-after", "out_after_s", default=600.0, help="One that was down for so long has its share given to others."
)
@_seconds_option(
    "--target-timeout", "target_timeout_s", default=1.0, help="An upload waits so long for a peer without progress."
)
@_seconds_option(
    "--shutdown-grace", "shutdown_grace_s", default=10.0, help="Running requests may finish for so long at a stop."
)
@setting(
    "--durability",
    type=click.Choice(DURABILITIES),
    default="fsync",
    show_default=True,
    help="Sync every copy before it is told of; or leave it to the operating system: faster, and not power-safe.",
)
@setting(
    "--reserve",
    "reserve_bytes",
    metavar="SIZE",
    callback=_bytes,
    default="32MiB",
    show_default=True,
    help="Set aside on the disk, so that files can still be deleted when it is full; 0 for nothing.",
)
@setting(
    "--max-file-size",
    "file_bytes_max",
    metavar="SIZE",
    callback=_bytes,
    default="1TiB",
    show_default=True,
    help="A larger upload is refused.",
)
@setting(
    "--name",
    "names",
    metavar="HOST",
    multiple=True,
    help="A host name the peer goes by, beside its addresses; may be repeated.  [default: none]",
)
@setting(
    "--origin",
    "origins",
    metavar="URL",
    callback=_origins,
    multiple=True,
    help="An origin, as https://dash.example, whose pages may use the peer; may be repeated.  [default: none]",
)
@setting(
    "--log-level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="Say nothing less important than this.",
)
@setting(
    "--log-format",
    type=click.Choice(LOG_FORMATS, case_sensitive=False),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object an event.",
)
def serve(**settings: Any) -> int:
    """Run one peer in the foreground.

    Ctrl-C or SIGTERM stops it: running requests finish first. Each setting can also come from a variable or from the
    settings file, table [serve]; minidfs config shows what is in force.
    """
    if settings["rejoin"] and (not settings["join"] or settings["cluster_id"] is not None):
        raise click.UsageError("--rejoin goes where the peers of --join are: it needs --join and no --cluster-id")
    settings["data"] = settings["data"].absolute()
    return _run(Config(**settings, hostname=socket.gethostname()))


class _Removed(click.ClickException):
    exit_code = EXIT_REMOVED


def _run(config: Config) -> int:
    from peer.run import run_peer
    from peer.world.env import Removed, StartError, StoreError

    try:
        return run_peer(config)
    except Removed as error:
        raise _Removed(str(error)) from error
    except (StartError, StoreError) as error:
        raise click.ClickException(str(error)) from error
