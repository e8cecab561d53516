"""`minidfs check` and `minidfs db snapshot`: what can be done with a peer's data folder without the peer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from peer.cli.options import json_option, print_json

if TYPE_CHECKING:
    from peer.store.check import Report

_folder_argument = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@click.command()
@_folder_argument
@json_option
def check(folder: Path, as_json: bool) -> int:
    """Verify a peer's data folder, while the peer is stopped.

    Reads the database and all content, compares each with its checksums, and changes nothing. Exit code 1 when
    something is wrong.
    """
    from peer.cli.progress import showing
    from peer.store.check import bytes_to_check, check_folder
    from peer.world.disk import SystemDisk, open_database_read_only

    with _one_line_errors():
        database = _database_in(folder)
        disk = SystemDisk(folder)
        with (
            disk.lock(),
            closing(open_database_read_only(database)) as connection,
            showing("checking", bytes_to_check(connection)) as advance,
        ):
            report = check_folder(connection, disk, advance)
    if as_json:
        print_json(asdict(report))
    else:
        _print(folder, report)
    return 1 if report.findings else 0


def _print(folder: Path, report: Report) -> None:
    from peer.cli.progress import human_bytes

    state = f"not sound: {len(report.findings)} problems" if report.findings else "sound"
    held = f"{report.files} files, {report.held} of them held"
    content = f"{report.chunks} chunks with {human_bytes(report.chunk_bytes)}"
    click.echo(f"{folder} is {state}; {held}, {content}, {report.ops} logged ops")
    if report.leftovers:
        click.echo(f"{report.leftovers} files are of no use; the next start removes them")
    for finding in report.findings:
        click.echo(f"\n{finding.what}\n  next: {finding.next_step}")


@click.group()
def db() -> None:
    """Work with a peer's database."""


@db.command()
@_folder_argument
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUTPUT when it is there.")
def snapshot(folder: Path, output: Path, force: bool) -> None:
    """Copy the database in FOLDER to OUTPUT.

    Consistently, also while the peer runs. The copy is one SQLite file, for sqlite-utils, Datasette and the like. It
    has the catalog and small contents, not the chunk files: to restore a peer, back up its whole folder while it is
    stopped.
    """
    from peer.cli.progress import human_bytes
    from peer.store.snapshot import copy_database
    from peer.world.disk import open_database_read_only

    if output.exists() and not force:
        raise click.ClickException(f"{output} is there already; replace it with --force, or name another file")
    with _one_line_errors(), closing(open_database_read_only(_database_in(folder))) as connection:
        copy_database(connection, output)
    click.echo(f"{output}  {human_bytes(output.stat().st_size)}", err=True)


def _database_in(folder: Path) -> Path:
    from peer.node import DATABASE

    path = folder / DATABASE
    if not path.is_file():
        raise click.ClickException(
            f"{folder} has no {DATABASE}; name the folder that was given to the peer with --data"
        )
    return path


@contextmanager
def _one_line_errors() -> Iterator[None]:
    import sqlite3

    from peer.store.check import REPLACE
    from peer.world.env import StartError, StoreError

    try:
        yield
    except (StartError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    except sqlite3.Error as error:
        raise click.ClickException(f"the database cannot be read: {error}; {REPLACE}") from error
