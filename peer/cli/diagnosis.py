"""How a cluster is, in one sentence, and for each problem its reason and the next step. Pure: from what peers said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A member, as others see it and as it answered itself."""

    node_id: str
    address: str
    is_up: bool
    """What the peers believe that were asked."""
    last_heard: str | None
    answers: bool = True
    """Whether it answered this command, where it was asked because it is up."""
    not_ready: str | None = None
    """Why it takes no files, in its own words."""
    is_damaged: bool = False
    disputed_logs: int = 0


@dataclass(frozen=True, slots=True)
class Lacking:
    """Copies a node should hold and does not."""

    node_id: str
    count: int
    error: str | None = None
    """What the last attempt to fetch one of them failed with."""
    seconds_left: int | None = None
    """Until it has all, if that can be told."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, why, and what to do."""

    what: str
    why: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cluster's state."""

    sentence: str
    problems: tuple[Problem, ...]


def diagnose(files: int, nodes: Iterable[NodeSeen], lacking: Iterable[Lacking]) -> Diagnosis:
    """Put together what was seen."""
    nodes, lacking = tuple(nodes), tuple(lacking)
    up = {node.node_id for node in nodes if node.is_up}
    problems = [problem for node in nodes for problem in _of_node(node)]
    problems += [_of_copies(some, some.node_id in up) for some in lacking]
    if len(nodes) == 1:
        problems.append(
            Problem(
                "the cluster has one peer",
                "a single copy of each file is all there can be",
                f"start more with: minidfs serve --id NAME --listen HOST:PORT --data FOLDER --join {_bare(nodes[0])}",
            )
        )
    return Diagnosis(_sentence(files, nodes, sum(some.count for some in lacking)), tuple(problems))


def _sentence(files: int, nodes: tuple[NodeSeen, ...], missing: int) -> str:
    up = sum(node.is_up for node in nodes)
    peers = f"{up} of {len(nodes)} peers {'is' if up == 1 else 'are'} up"
    if missing:
        return f"{_count(files, 'file')}; {_count(missing, 'copy', 'copies')} missing; {peers}."
    if not files:
        return f"No files yet; {peers}."
    return f"{'The file has its' if files == 1 else f'All {files} files have their'} copies; {peers}."


def _of_node(node: NodeSeen) -> Iterable[Problem]:
    name = node.node_id
    if not node.is_up:
        heard = "it has not answered yet" if node.last_heard is None else f"it last answered at {node.last_heard}"
        again = (
            f"start it again (in a local cluster: minidfs cluster start {name}); what it missed it then fetches itself"
        )
        yield Problem(f"{name} is down", heard, again)
    elif not node.answers:
        yield Problem(
            f"{name} does not answer here",
            f"nothing came from {node.address}, though other peers take it for up",
            "see whether its process hangs, and whether that address can be reached from this machine",
        )
    if node.not_ready is not None:
        yield Problem(f"{name} takes no files", node.not_ready, _way_out_of(node.not_ready))
    if node.is_damaged:
        yield Problem(
            f"{name} lost part of its catalog",
            "rows of its database were damaged",
            "nothing while another peer is up, for it takes over that one's; then look after its disk",
        )
    if node.disputed_logs:
        yield Problem(
            f"{name} knows other ops than its fellows for {_count(node.disputed_logs, 'log')}",
            "a machine was resumed from an image, or two processes went by one id",
            "see that every id is used once; the owner of the log settles it by itself when it is up",
        )


def _way_out_of(reason: str) -> str:
    if reason.startswith("read-only"):
        return "make room on its disk; it takes files again by itself"
    return "wait a moment; its log says more"


def _of_copies(some: Lacking, is_up: bool) -> Problem:
    what = f"{_count(some.count, 'copy', 'copies')} missing on {some.node_id}"
    if not is_up:
        return Problem(what, f"{some.node_id} is down", f"none; they are fetched when {some.node_id} is back")
    if some.error is not None:
        hurry = f"it is tried again by itself; to try now: minidfs recover {some.node_id}"
        return Problem(what, f"fetching failed: {some.error}", hurry)
    left = "" if some.seconds_left is None else f", for another {_time(some.seconds_left)} or so"
    return Problem(what, f"they are being fetched{left}", f"wait, or hurry with: minidfs recover {some.node_id}")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _time(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{round(minutes / 60)} h"


def _bare(node: NodeSeen) -> str:
    return node.address.partition("://")[2]
