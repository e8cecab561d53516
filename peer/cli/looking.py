"""`minidfs nodes`, `queue`, `recover`, `leave`, `evict`, `status`: how a cluster is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from peer.cli.options import asking, complete_nodes, json_option, print_json

if TYPE_CHECKING:
    import httpx

    from peer.cli.diagnosis import Diagnosis, Lacking, NodeSeen
    from peer.cli.remote import Remote

QUEUE_MAX = 10_000
READY_PATH = "/health/ready"
LEAVE_LOOK_S = 1.0
"""Between two looks whether a node has left."""

_DAMAGED = re.compile(r"^minidfs_damaged (\S+)$", re.MULTILINE)
_DISPUTED = re.compile(r"^minidfs_disputed_logs\{[^}]*\} (\S+)$", re.MULTILINE)


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns under each other."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@click.command()
@json_option
@asking
def nodes(remote: Remote, as_json: bool) -> None:
    """List the peers and whether they are up."""
    found = remote.json("GET", "/nodes")
    if as_json:
        print_json(found)
        return
    rows = [
        (node["id"], _state(node), node["address"], _latency(node), node["last_heartbeat"] or "never") for node in found
    ]
    print_table(("NODE", "STATE", "ADDRESS", "LATENCY", "LAST HEARD"), rows)


def _state(node: dict[str, Any]) -> str:
    """Whether it answers, and whether it is on its way out."""
    return node["state"] if node["membership"] == "member" else f"{node['state']}, {node['membership']}"


def _latency(node: dict[str, Any]) -> str:
    return "-" if node["status"] == "DOWN" else f"{node['latency_ms']} ms"


@click.command()
@click.option("--node", metavar="NODE", shell_complete=complete_nodes, help="Copies for this node.  [default: for all]")
@click.option(
    "--status",
    type=click.Choice(["PENDING", "IN_PROGRESS", "COMPLETED", "FAILED"], case_sensitive=False),
    help="Copies of which this is true.  [default: all]",
)
@json_option
@asking
def queue(remote: Remote, node: str | None, status: str | None, as_json: bool) -> None:
    """List copies that are missing, or came back.

    Those that were fetched are listed for 24 hours.
    """
    wanted = {"node_id": node, "status": status and status.upper()}
    params = {name: value for name, value in wanted.items() if value is not None}
    items = remote.json("GET", "/replication-queue", {**params, "limit": str(QUEUE_MAX)})["items"]
    if as_json:
        print_json(items)
        return
    rows = [
        (item["file_key"], item["target_node_id"], item["status"], item["retry_count"], item["error_message"] or "")
        for item in items
    ]
    print_table(("FILE", "FOR", "STATUS", "TRIES", "ERROR"), rows)


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@json_option
@asking
def recover(remote: Remote, node: str, as_json: bool) -> int:
    """Make a node fetch all it lacks, now, and wait until it has."""
    from urllib.parse import quote

    found = remote.json("POST", f"/nodes/{quote(node, safe='')}/recover", timeout_s=None)
    if as_json:
        print_json(found)
    elif found["total"] == 0:
        click.echo(f"{node} lacks nothing")
    else:
        click.echo(f"{node} fetched {found['success']} of {found['total']} files")
    return 1 if found["failed"] else 0


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@click.option("--undo", is_flag=True, help="Let it stay after all.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when it has left.")
@json_option
@asking
def leave(remote: Remote, node: str, as_json: bool, *, undo: bool, wait: bool) -> int:
    """Let a node leave once others hold what it holds.

    It serves what it has until then, and ends by itself. Its share goes to the others.
    """
    import time
    from urllib.parse import quote

    found = remote.json("POST", f"/nodes/{quote(node, safe='')}/leave", {"undo": "true"} if undo else None)
    if as_json:
        print_json(found)
    else:
        click.echo(found["message"])
    while wait and not undo and any(member["id"] == node for member in remote.json("GET", "/nodes")):
        time.sleep(LEAVE_LOOK_S)
    if wait and not undo and not as_json:
        click.echo(f"{node} has left")
    return 0


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@click.option("--force", is_flag=True, help="Also when files are on it alone: they are given up.")
@json_option
@asking
def evict(remote: Remote, node: str, as_json: bool, *, force: bool) -> int:
    """Remove a node for good.

    Its share goes to the others, and what it holds counts no longer. It ends when it hears of that; started with
    --rejoin it joins again.
    """
    from urllib.parse import quote

    found = remote.json("POST", f"/nodes/{quote(node, safe='')}/evict", {"force": "true"} if force else None)
    if as_json:
        print_json(found)
    else:
        click.echo(found["message"])
    return 0


@click.command()
@json_option
@asking
def status(remote: Remote, as_json: bool) -> int:
    """Say how the cluster is, and what to do.

    One sentence, and for each problem its reason and the next step. Exit code 1 when there are problems.
    """
    from peer.cli.diagnosis import diagnose

    files = remote.json("GET", "/files", {"limit": "1"})["total"]
    seen = [_look_at(remote, node) for node in remote.json("GET", "/nodes")]
    found = diagnose(files, seen, _lacking(remote))
    if as_json:
        print_json({"files": files, "nodes": [asdict(node) for node in seen], **asdict(found)})
    else:
        _print(found)
    return 1 if found.problems else 0


def _look_at(remote: Remote, node: dict[str, Any]) -> NodeSeen:
    """A member as others see it and, when it is up, as it answers itself."""
    from peer.cli.diagnosis import NodeSeen

    is_up = node["status"] == "UP"
    known = (node["id"], node["address"], is_up, node["last_heartbeat"])
    if not is_up:
        return NodeSeen(*known)
    ready = remote.answer_of(node["address"], READY_PATH)
    counted = remote.answer_of(node["address"], "/metrics")
    if ready is None or counted is None:
        return NodeSeen(*known, answers=False)
    return NodeSeen(
        *known,
        not_ready=None if ready.is_success else _reason_in(ready),
        is_damaged=any(float(value) for value in _DAMAGED.findall(counted.text)),
        disputed_logs=sum(int(float(value)) for value in _DISPUTED.findall(counted.text)),
    )


def _reason_in(refusal: httpx.Response) -> str:
    try:
        return str(refusal.json()["error"])
    except (ValueError, TypeError, KeyError):
        return f"it answers with status {refusal.status_code}"


def _lacking(remote: Remote) -> list[Lacking]:
    from peer.cli.diagnosis import Lacking

    failed = remote.json("GET", "/replication-queue", {"status": "FAILED", "limit": str(QUEUE_MAX)})
    errors = {item["target_node_id"]: item["error_message"] for item in failed["items"]}
    return [
        Lacking(target["node_id"], target["missing"], errors.get(target["node_id"]), target["seconds_left"])
        for target in failed["targets"]
    ]


def _print(found: Diagnosis) -> None:
    click.echo(found.sentence)
    for problem in found.problems:
        click.echo(f"\n{problem.what}: {problem.why}\n  next: {problem.next_step}")
