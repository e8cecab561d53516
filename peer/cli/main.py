"""The `minidfs` command: its groups, and how it fails.

The modules of the commands import only click; trio, rich and the peer itself are imported when a command runs, so that
`--help` is instant.
"""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource
from click.shell_completion import get_completion_class

from peer.cli.cluster import cluster
from peer.cli.files import get, ls, put, rm
from peer.cli.folder import check, db
from peer.cli.keygen import keygen
from peer.cli.looking import evict, leave, nodes, queue, recover, status
from peer.cli.serve import serve
from peer.cli.settings import apply_file, config

EXIT_INTERRUPTED = 130
"""What a shell reports for a command that Ctrl-C ended."""


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minidfs")
@click.option(
    "--config",
    "config_file",
    envvar="MINIDFS_CONFIG",
    show_envvar=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The settings file (TOML).  [default: ~/.minidfs/config.toml, where there is one]",
)
@click.pass_context
def minidfs(ctx: click.Context, config_file: Path | None) -> None:
    """A peer-to-peer file store without a coordinator.

    Any peer takes uploads, any peer serves every file, any peer may die. Begin with: minidfs cluster
    """
    apply_file(ctx, config_file)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, ids of files and names of nodes.

    For bash, as a line of ~/.bashrc:  eval "$(minidfs completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(minidfs, {}, "minidfs", "_MINIDFS_COMPLETE").source())


_LOOKING = (status, nodes, queue, recover, leave, evict)
for _command in (cluster, serve, put, get, ls, rm, *_LOOKING, config, check, db, keygen, completion):
    minidfs.add_command(_command)


def main() -> int:
    """Run `minidfs` with the arguments of this process; gives its exit code."""
    return run_command(minidfs, "minidfs")


def _origin_of(error: click.UsageError) -> str:
    """The settings file, when a wrong value comes from there; click itself names variables."""
    param = error.param if isinstance(error, click.BadParameter) else None
    if error.ctx is None or param is None or param.name is None:
        return ""
    is_of_file = error.ctx.get_parameter_source(param.name) is ParameterSource.DEFAULT_MAP
    return f" (from {error.ctx.meta.get('settings file')})" if is_of_file else ""


def run_command(command: click.Command, name: str, args: list[str] | None = None) -> int:
    """Run a click command that returns its exit code or nothing, and report a failure as one line, `name: sentence`."""
    try:
        code = command.main(args, prog_name=name, standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        sentence = error.format_message().rstrip(".") + _origin_of(error)
        click.echo(f"{name}: {sentence}; see {where} --help", err=True)
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"{name}: {error.format_message()}", err=True)
        return error.exit_code
    except click.Abort:
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
