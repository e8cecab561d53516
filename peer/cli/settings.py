"""The settings file, and `minidfs config`: what is in force and where it comes from.

An option wins over a variable, a variable over the file, the file over the default. The file is TOML:

    to = ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]   # whom put, get, ls, … ask

    [serve]                                                # as the options of minidfs serve
    id = "node-1"
    listen = "10.0.0.1:8001"
    heal-interval = 10

    [cluster]                                              # as the options of minidfs cluster
    nodes = 5
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from peer.cli.options import json_option, print_json

TABLES = ("serve", "cluster")


class Setting(NamedTuple):
    """One setting in force."""

    table: str
    name: str
    value: str
    source: str


def home() -> Path:
    """Where settings and the local cluster are kept unless told otherwise."""
    found = os.environ.get("MINIDFS_HOME")
    return (Path(found) if found else Path.home() / ".minidfs").absolute()


def apply_file(ctx: click.Context, told: Path | None) -> None:
    """Take the settings file's values as defaults of all commands below this context.

    Without one told, that in the home folder counts if it is there. Raises click.UsageError for a file that cannot be
    read or has settings there are not.
    """
    path = told or home() / "config.toml"
    if told is None and not path.exists():
        return
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the settings file {path} cannot be read: {error}") from error
    ctx.meta["settings file"] = path
    # The peers that minidfs cluster starts have the same settings.
    os.environ["MINIDFS_CONFIG"] = str(path.absolute())
    ctx.default_map = _defaults(ctx, path, found)


def _defaults(ctx: click.Context, path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    group = ctx.command
    assert isinstance(group, click.Group)
    _check(path, "", found, [*TABLES, "to"])
    defaults: dict[str, Any] = {}
    for table in TABLES:
        values = found.get(table, {})
        options = _options_of(group.commands[table])
        if not isinstance(values, dict):
            raise click.UsageError(f"in {path}, {table} is a table: [{table}]")
        plain = {name.replace("_", "-"): value for name, value in values.items()}
        _check(path, table, plain, list(options))
        defaults[table] = {str(options[name].name): _as_words(value) for name, value in plain.items()}
    if "to" in found:
        urls = found["to"] if isinstance(found["to"], list) else [found["to"]]
        for name, command in group.commands.items():
            if "to" in _options_of(command):
                defaults[name] = {"urls": [str(url) for url in urls]}
    return defaults


def _as_words(value: Any) -> Any:
    """A value as the command line has it, but lists and booleans as they are."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if isinstance(value, bool) else str(value)


def _check(path: Path, table: str, found: Mapping[str, Any], known: list[str]) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise click.UsageError(
                f"{path} sets {name!r}{f' in [{table}]' if table else ''}, which there is not; {hint}"
            )


def _options_of(command: click.Command) -> dict[str, click.Option]:
    """The settings among the options of a command, those that may come from a variable, by their name."""
    options = [param for param in command.params if isinstance(param, click.Option) and param.envvar]
    return {option.opts[0].removeprefix("--"): option for option in options}


@click.command()
@json_option
@click.pass_context
def config(ctx: click.Context, as_json: bool) -> None:
    """Show the settings in force, and where each comes from.

    An option wins over a variable, a variable over the settings file, the file over the default.
    """
    assert ctx.parent is not None
    found = list(_in_force(ctx.parent))
    if as_json:
        print_json([setting._asdict() for setting in found])
        return
    width = max(len(f"{setting.table}.{setting.name}") for setting in found)
    value_width = max(len(setting.value) for setting in found)
    for setting in found:
        name = f"{setting.table}.{setting.name}"
        click.echo(f"{name:<{width}}  {setting.value:<{value_width}}  {setting.source}")


def _in_force(ctx: click.Context) -> Iterator[Setting]:
    group = ctx.command
    assert isinstance(group, click.Group)
    for table, name in (("client", "ls"), *((table, table) for table in TABLES)):
        command = group.commands[name]
        with command.make_context(name, [], parent=ctx, resilient_parsing=True) as inner:
            for option_name, option in _options_of(command).items():
                yield Setting(table, option_name, *_value_of(inner, option))


def _value_of(ctx: click.Context, option: click.Option) -> tuple[str, str]:
    value, source = option.consume_value(ctx, {})
    where = {
        ParameterSource.ENVIRONMENT: f"variable {option.envvar}",
        ParameterSource.DEFAULT_MAP: f"file {ctx.meta.get('settings file')}",
    }.get(source, "default")
    return _shown(value), where


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str | int | float | Path) else "-"
