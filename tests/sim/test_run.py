"""`sim run`: storms of faults over seeds, and that they would find what they are for."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from peer.store.chunks import ChunkStore
from peer.store.holding import Holding
from sim.run import parse_seeds, run, run_seed


@pytest.mark.parametrize(("text", "seeds"), [("1..3", [1, 2, 3]), ("7", [7]), ("0..0", [0]), ("10..11", [10, 11])])
def test_seeds_are_a_range_with_both_its_ends(text: str, seeds: list[int]) -> None:
    assert list(parse_seeds(text)) == seeds


@pytest.mark.parametrize("text", ["", "..", "3..1", "a..b", "1..", "..2", "-1..2", "1...3"])
def test_what_is_no_range_of_seeds_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no range"):
        parse_seeds(text)


def test_a_seed_keeps_all_promises_and_says_what_it_tried() -> None:
    tally, objection = run_seed(3)
    assert objection is None
    assert tally.done["uploads"] > 20
    assert sum(tally.done[harm] for harm in ("power cuts", "failing disks", "flipped bits", "full disks")) > 3


def test_a_seed_replays_what_happened() -> None:
    assert run_seed(5)[0] == run_seed(5)[0]


def test_storms_find_a_peer_that_serves_what_it_did_not_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkStore, "read_inline", lambda self, name, row: row.content)
    assert any(run_seed(seed)[1] is not None for seed in range(1, 9))


def test_storms_find_a_peer_that_never_takes_a_hold_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Holding, "condemn_chunk", lambda self, chunk_hash, row: [])
    assert any(run_seed(seed)[1] is not None for seed in range(1, 9))


def test_the_command_gives_one_line_of_verdict() -> None:
    result = CliRunner().invoke(run, ["--seeds", "1..2", "--jobs", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 seeds, 0 broke a promise; ")
