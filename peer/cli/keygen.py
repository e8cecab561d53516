"""`minidfs keygen`: a new key for a cluster."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
def keygen(file: Path | None) -> None:
    """Make a key for a cluster, in FILE or on the terminal.

    Every peer of the cluster needs a copy, which minidfs serve is told of by --cluster-key-file. To change the key of a
    running cluster, add a new line to every peer's file and restart one peer after the other; put the new line first
    everywhere, and restart them again; then take out the old line.
    """
    from peer.cluster.key_file import make_key_file, new_key

    if file is None:
        click.echo(new_key())
        return
    try:
        make_key_file(file)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already; name another file") from None
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"The key is in {file}. Copy it to every peer: minidfs serve … --cluster-key-file {file}")
