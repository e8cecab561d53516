"""`minidfs put`, `get`, `ls`, `rm`: files to a cluster and back."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from peer.cli.options import asking, complete_keys, json_option, print_json, print_json_each
from peer.locks import try_lock

if TYPE_CHECKING:
    from peer.cli.remote import Remote
    from peer.cli.transfers import Download

STDIO = "-"
PAGE = 1000


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@click.option("--id", "key", metavar="KEY", help="Upload under this id, in place of what has it.  [default: a new one]")
@click.option("--name", metavar="NAME", help="Call it so.  [default: the file's own name, or stdin]")
@click.option("--copies", type=click.IntRange(min=1), help="Copies to make.  [default: the peer's setting, usually 3]")
@click.option(
    "--min-copies", type=click.IntRange(min=1), help="Fail unless so many peers get it on disk.  [default: 1]"
)
@json_option
@asking
def put(
    remote: Remote,
    files: tuple[str, ...],
    key: str | None,
    name: str | None,
    copies: int | None,
    min_copies: int | None,
    as_json: bool,
) -> None:
    """Upload files, `-` for what comes in by a pipe.

    Prints the id of each, and which peers have it on disk. The checksum is verified before anything is acknowledged.
    """
    if len(files) > 1 and (key is not None or name is not None):
        raise click.UsageError("--id and --name are for one file at a time")
    counts = {"copies": copies, "min_copies": min_copies}
    query = {option: str(count) for option, count in counts.items() if count is not None}
    receipts = []
    try:
        for file in files:
            receipts.append(_put(remote, file, key or str(uuid.uuid4()), name, query))
            if not as_json:
                click.echo(_receipt_line(receipts[-1]))
    finally:
        # Of those that were uploaded before one failed, too.
        if as_json:
            print_json(receipts)


def _put(remote: Remote, file: str, key: str, name: str | None, query: dict[str, str]) -> Any:
    from peer.cli.progress import showing
    from peer.cli.transfers import hash_of, upload_file, upload_stream

    shown = name or ("stdin" if file == STDIO else Path(file).name)
    query = {"filename": shown, **query}
    if file == STDIO:
        with showing(shown, None) as advance:
            return upload_stream(remote, sys.stdin.buffer, key, query, advance)
    path = Path(file)
    with _openly(f"read {file}"), path.open("rb") as source:
        if not path.is_file():
            with showing(shown, None) as advance:
                return upload_stream(remote, source, key, query, advance)
        size = path.stat().st_size
        with showing(f"hashing {shown}", size) as advance:
            digest = hash_of(source, advance)
        with showing(shown, size) as advance:
            return upload_file(remote, source, size, digest, key, query, advance)


def _receipt_line(receipt: dict[str, Any]) -> str:
    from peer.cli.progress import human_bytes

    lacking = [detail["node"] for detail in receipt["replication"]["details"] if not detail["success"]]
    line = f"{receipt['file_id']}  {receipt['original_filename']}, {human_bytes(receipt['size_bytes'])}, "
    line += f"on {', '.join(receipt['durable_copies'])}"
    return line + (f"; {', '.join(lacking)} will get it when it can be reached" if lacking else "")


@click.command()
@click.argument("key", shell_complete=complete_keys)
@click.option(
    "-o", "--output", metavar="FILE", help="Save it here, `-` for standard output.  [default: the file's own name]"
)
@click.option("--force", is_flag=True, help="Replace a file that has the file's own name.")
@asking
def get(remote: Remote, key: str, output: str | None, force: bool) -> None:
    """Download a file by its id; the checksum is verified.

    A download that broke off goes on where it was when the command is repeated.
    """
    from peer.cli.progress import showing
    from peer.cli.transfers import Download

    download = Download(remote, key)
    download.look()
    if output == STDIO:
        with showing(download.filename, download.size) as advance:
            download.fetch(sys.stdout.buffer, advance)
            sys.stdout.buffer.flush()
        return
    target = Path(output or download.filename)
    if target.is_dir():
        target /= download.filename
        output = None
    if output is None and target.exists() and not force:
        raise click.ClickException(
            f"{target} is there already; replace it with --force, or save elsewhere with -o FILE"
        )
    _save(download, target)
    _say_saved(target, download)


def _save(download: Download, target: Path) -> None:
    from peer.cli.progress import showing
    from peer.cli.transfers import ChecksumWrong, forget_part, part_of

    part = part_of(target, download.sha256)
    with _openly(f"write {target}"), showing(download.filename, download.size) as advance:
        with part.open("a+b") as file:
            if not try_lock(file.fileno()):
                raise click.ClickException(f"another process is fetching {target} already")
            try:
                download.go_on_from(file, advance)
                download.fetch(file, advance)
            except ChecksumWrong:
                forget_part(part)
                raise
        part.replace(target)


def _say_saved(target: Path, download: Download) -> None:
    from peer.cli.progress import human_bytes

    click.echo(f"{target}  {human_bytes(download.size)}, checksum verified", err=True)


@contextmanager
def _openly(what: str) -> Iterator[None]:
    """Errors of the local disk as one line."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"cannot {what}: {error.strerror or error}") from error


@click.command()
@click.argument("prefix", required=False)
@click.option("--limit", type=click.IntRange(min=1), help="Show so many, the newest.  [default: all]")
@json_option
@asking
def ls(remote: Remote, prefix: str | None, limit: int | None, as_json: bool) -> None:
    """List files, the newest first.

    With PREFIX only those whose name begins so.
    """
    from peer.cli.progress import human_bytes

    found = _listed(remote, prefix, limit)
    if as_json:
        print_json_each(found)
        return
    for file in found:
        size, copies = human_bytes(file["size_bytes"]), ", ".join(file["replicas"]) or "no copy"
        click.echo(
            f"{file['file_key']:<36}  {size:>10}  {file['uploaded_at']}  {file['original_filename']}  ({copies})"
        )


def _listed(remote: Remote, prefix: str | None, limit: int | None) -> Iterator[dict[str, Any]]:
    params = {} if prefix is None else {"name": prefix}
    left = limit
    while left is None or left > 0:
        params["limit"] = str(PAGE if left is None else min(PAGE, left))
        page = remote.json("GET", "/files", params)
        yield from page["files"]
        left = None if left is None else left - len(page["files"])
        if page["next"] is None:
            return
        params["after"] = page["next"]


@click.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True, shell_complete=complete_keys)
@asking
def rm(remote: Remote, keys: tuple[str, ...]) -> int:
    """Delete files by their ids, everywhere and for ever."""
    from peer.cli.remote import Refused, file_path

    failed = 0
    for key in keys:
        try:
            answer = remote.json("DELETE", file_path(key))
        except Refused as error:
            failed += 1
            click.echo(f"minidfs: {key}: {error.message}", err=True)
            continue
        done, behind = len(answer["deleted_nodes"]), answer["failed"]
        late = f"; {behind} more follow when they can be reached" if behind else ""
        click.echo(f"{key}  deleted on {done} of {answer['total_nodes']} peers{late}")
    return 1 if failed else 0
