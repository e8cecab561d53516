"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8080"
"""The port all peers of a local cluster share."""


def read_url(text: str) -> str:
    """The URL of a peer, from `http://HOST:PORT` or `HOST:PORT`. Raises ValueError."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is no address of a peer; write http://HOST:PORT, as {DEFAULT_URL}")
    if parts.port is None:
        raise ValueError(f"{text!r} names no port; write http://HOST:PORT, as {DEFAULT_URL}")
    return f"http://{parts.netloc}"


def setting(*names: str, **more: Any) -> Callable[[Command], Command]:
    """An option that can also come from a variable, `--heal-interval` from MINIDFS_HEAL_INTERVAL, and from the file."""
    variable = "MINIDFS_" + names[0].partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **more)


_SIZE = re.compile(r"([0-9]{1,18})\s*(|B|KiB|MiB|GiB|TiB)", re.IGNORECASE)
_UNITS = ("b", "kib", "mib", "gib", "tib")


def read_size(text: str) -> int:
    """A number of bytes, from `32MiB` or `33554432`. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write bytes, or a number with KiB, MiB, GiB or TiB")
    return int(match[1]) << 10 * _UNITS.index(match[2].lower() or "b")


def _urls(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(read_url(value) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


to_option = setting(
    "--to",
    "urls",
    metavar="URL",
    multiple=True,
    default=(DEFAULT_URL,),
    callback=_urls,
    help=f"A peer to ask; may be repeated, for when one does not answer.  [default: {DEFAULT_URL}]",
)


def _found(path: str, field: str, ctx: click.Context, beginning: str) -> list[str]:
    """For a shell that completes a word: what a peer lists, nothing when none answers."""
    from peer.cli.remote import Remote

    with Remote(ctx.params.get("urls") or (os.environ.get("MINIDFS_TO") or DEFAULT_URL).split()) as remote:
        try:
            found = remote.json("GET", path)
        except click.ClickException:
            return []
    rows = found if isinstance(found, list) else found["files"]
    return sorted(str(row[field]) for row in rows if str(row[field]).startswith(beginning))


def complete_nodes(ctx: click.Context, _param: click.Parameter, beginning: str) -> list[str]:
    """The nodes whose ids begin so."""
    return _found("/nodes", "id", ctx, beginning)


def complete_keys(ctx: click.Context, _param: click.Parameter, beginning: str) -> list[str]:
    """The newest files whose ids begin so."""
    return _found("/files?limit=1000", "file_key", ctx, beginning)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def print_json(value: object) -> None:
    """Print a value for a script to read."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_each(values: Iterable[object]) -> None:
    """Print a list for a script to read, each value as it comes: there may be more than fit memory."""
    click.echo("[", nl=False)
    for number, value in enumerate(values):
        click.echo(("," if number else "") + "\n  " + json.dumps(value, ensure_ascii=False), nl=False)
    click.echo("\n]")


def asking(command: Command) -> Command:
    """For a command that asks a cluster: gives it `--to`, and the cluster as its first argument."""

    @to_option
    @functools.wraps(command)
    def ask(*args: Any, urls: tuple[str, ...], **kwargs: Any) -> Any:
        from peer.cli.remote import Remote

        with Remote(urls) as remote:
            return command(remote, *args, **kwargs)

    return ask  # type: ignore[return-value]
