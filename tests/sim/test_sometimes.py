"""What must sometimes happen: the log lines that stand for it are those the peers write."""

from __future__ import annotations

import ast
import logging
from collections import Counter
from pathlib import Path

import pytest

import peer
from sim.sometimes import CONDITIONS, LOGGED, never, witnessed

FOLDER = Path(peer.__file__).parent


def texts_in_the_code() -> set[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FOLDER.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("text", sorted(LOGGED))
def test_each_line_that_is_listened_for_is_one_the_code_writes(text: str) -> None:
    assert text in texts_in_the_code()


def test_each_condition_has_a_name_of_its_own() -> None:
    assert len(set(CONDITIONS)) == len(CONDITIONS)


def test_lines_are_counted_instead_of_written_and_afterwards_all_is_as_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: Counter[str] = Counter()
    text, condition = next(iter(LOGGED.items()))
    log = logging.getLogger("minidfs.somewhere")
    root = logging.getLogger("minidfs")
    before = root.level, root.propagate, list(root.handlers)
    with witnessed(seen):
        log.info(text, "node-1", "behind")
        log.error("something else")
    assert seen == {condition: 1}
    assert capsys.readouterr().err == ""
    assert (root.level, root.propagate, root.handlers) == before
    assert condition not in never(seen)
    assert len(never(seen)) == len(CONDITIONS) - 1
