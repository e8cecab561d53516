"""What is said of a cluster: true, in one sentence, and for each problem a reason and a next step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.diagnosis import Lacking, NodeSeen, diagnose

UP = [NodeSeen(f"node-{number}", f"http://10.0.0.{number}:8001", True, "now") for number in (1, 2, 3)]
DOWN = NodeSeen("node-2", "http://10.0.0.2:8001", False, "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("files", "lacking", "sentence"),
    [
        (0, [], "No files yet; 3 of 3 peers are up."),
        (1, [], "The file has its copies; 3 of 3 peers are up."),
        (12, [], "All 12 files have their copies; 3 of 3 peers are up."),
        (12, [Lacking("node-3", 1)], "12 files; 1 copy missing; 3 of 3 peers are up."),
        (1, [Lacking("node-3", 2), Lacking("node-1", 3)], "1 file; 5 copies missing; 3 of 3 peers are up."),
    ],
)
def test_the_state_is_one_sentence(files: int, lacking: list[Lacking], sentence: str) -> None:
    assert diagnose(files, UP, lacking).sentence == sentence


def test_a_healthy_cluster_has_no_problems() -> None:
    assert diagnose(5, UP, []).problems == ()


def test_a_peer_that_is_down_is_named_with_when_it_answered_and_its_copies_wait_for_it() -> None:
    found = diagnose(5, [UP[0], DOWN, UP[2]], [Lacking("node-2", 4)])
    assert found.sentence == "5 files; 4 copies missing; 2 of 3 peers are up."
    down, copies = found.problems
    assert (down.what, down.why) == ("node-2 is down", "it last answered at 2026-01-01T00:00:00Z")
    assert "minidfs cluster start node-2" in down.next_step
    assert (copies.what, copies.why) == ("4 copies missing on node-2", "node-2 is down")


def test_copies_that_could_not_be_fetched_say_why_and_how_to_hurry() -> None:
    (failed,) = diagnose(5, UP, [Lacking("node-3", 1, "node-1 cannot be reached")]).problems
    assert failed.why == "fetching failed: node-1 cannot be reached"
    assert "minidfs recover node-3" in failed.next_step
    (running,) = diagnose(5, UP, [Lacking("node-3", 1)]).problems
    assert running.why == "they are being fetched"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "2 h"), (86_400, "24 h")]
)
def test_copies_that_are_being_fetched_say_how_long_it_takes(seconds: int, words: str) -> None:
    (running,) = diagnose(5, UP, [Lacking("node-3", 1, None, seconds)]).problems
    assert running.why == f"they are being fetched, for another {words} or so"


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (NodeSeen("n", "http://h:1", True, None, answers=False), "n does not answer here"),
        (NodeSeen("n", "http://h:1", True, None, not_ready="read-only: the disk is full"), "n takes no files"),
        (NodeSeen("n", "http://h:1", True, None, is_damaged=True), "n lost part of its catalog"),
        (NodeSeen("n", "http://h:1", True, None, disputed_logs=2), "n knows other ops than its fellows for 2 logs"),
    ],
)
def test_what_a_peer_says_of_itself_is_a_problem(node: NodeSeen, what: str) -> None:
    assert [problem.what for problem in diagnose(1, [*UP, node], []).problems] == [what]


def test_a_full_disk_says_to_make_room() -> None:
    node = NodeSeen("n", "http://h:1", True, None, not_ready="read-only: the disk is full")
    assert diagnose(1, [*UP, node], []).problems[0].next_step.startswith("make room on its disk")


def test_a_lone_peer_is_a_problem_and_says_how_to_add_others() -> None:
    (lone,) = diagnose(3, UP[:1], []).problems
    assert "--join 10.0.0.1:8001" in lone.next_step


@given(
    nodes=st.lists(
        st.builds(
            NodeSeen,
            st.sampled_from(["a", "b", "c"]),
            st.just("http://h:1"),
            st.booleans(),
            st.none() | st.just("then"),
            answers=st.booleans(),
            not_ready=st.none() | st.just("joining"),
            is_damaged=st.booleans(),
            disputed_logs=st.integers(0, 2),
        ),
        min_size=1,
        max_size=3,
    ),
    lacking=st.lists(st.builds(Lacking, st.sampled_from(["a", "d"]), st.integers(1, 9))),
)
def test_only_a_cluster_with_nothing_wrong_has_no_problems(nodes: list[NodeSeen], lacking: list[Lacking]) -> None:
    found = diagnose(3, nodes, lacking)
    is_wrong = any(
        not node.is_up or not node.answers or node.not_ready or node.is_damaged or node.disputed_logs for node in nodes
    )
    assert bool(found.problems) == bool(is_wrong or lacking or len(nodes) == 1)
    assert all(problem.what and problem.why and problem.next_step for problem in found.problems)
