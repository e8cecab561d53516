"""`sim growth` brings a cluster through all it measures, and says what came of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sim.__main__ import sim


@pytest.mark.once
@pytest.mark.timeout(240)
def test_every_phase_is_measured_and_ends_with_every_copy_there(tmp_path: Path) -> None:
    options = ["--files", "150", "--calm", "1", "--limit", "40", "--missed", "30"]
    result = CliRunner().invoke(
        sim, ["growth", str(tmp_path), *options, "--report", str(tmp_path / "report")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    (grown,) = json.loads((tmp_path / "report" / "report.json").read_text())
    assert grown["files"] == 150
    assert grown["read_ms"] > 0
    names = [phase["name"] for phase in grown["phases"]]
    joins = ["calm", "a peer joins", "calm, with it"]
    assert names == [*joins, "one is away for 30 files", "it is back", "a disk was lost"]
    for phase in grown["phases"]:
        assert phase["uploads"]["errors"] == 0, phase
        assert phase["uploads"]["p50_ms"] > 0, phase
        assert (phase["took_s"] is not None) == (phase["name"] in ("a peer joins", "it is back", "a disk was lost"))
    # Filled clusters stay, to be measured again; what was measured goes.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["150", "report"]
    table = (tmp_path / "report" / "report.md").read_text().splitlines()
    assert "| | 150 files |" in table
    assert [line.split(" | ")[1] for line in table if line.startswith("| 150 |")] == names
    picture = (tmp_path / "report" / "report.svg").read_text()
    assert picture.count("<polyline ") == 3 + 6 * len(names)
