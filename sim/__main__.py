"""`sim`: the same peers in worlds we control. Commands are added here as they come."""

from __future__ import annotations

import sys

import click

from peer.cli.main import run_command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minidfs")
@click.pass_context
def sim(ctx: click.Context) -> None:
    """Run peers of Mini DFS in worlds under our control."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        if not sim.commands:
            click.echo("\nThere are no commands yet.")


def main() -> int:
    """Run `sim` with the arguments of this process; gives its exit code."""
    return run_command(sim, "sim")


if __name__ == "__main__":
    sys.exit(main())
