"""`sim`: the same peers in worlds we control."""

from __future__ import annotations

import sys

import click

from peer.cli.main import run_command
from sim.bench.command import bench
from sim.chaos.command import chaos
from sim.fill import fill_command
from sim.growth.command import growth
from sim.hunt import hunt
from sim.membership import membership
from sim.mutations import mutations
from sim.run import replay, run, shrink, table
from sim.smoke import smoke


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minidfs")
def sim() -> None:
    """Run peers of Mini DFS in worlds under our control."""


sim.add_command(bench)
sim.add_command(chaos)
sim.add_command(mutations)
sim.add_command(run)
sim.add_command(replay)
sim.add_command(shrink)
sim.add_command(smoke)
sim.add_command(table)
sim.add_command(hunt)
sim.add_command(fill_command)
sim.add_command(growth)
sim.add_command(membership)


def main() -> int:
    """Run `sim` with the arguments of this process; gives its exit code."""
    return run_command(sim, "sim")


if __name__ == "__main__":
    sys.exit(main())
