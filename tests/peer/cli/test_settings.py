"""Where settings come from: options, variables, the file, defaults; and `minidfs config`, which shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.cli.main import minidfs, run_command
from peer.cli.options import read_size
from peer.config import Address, Config

FILE = """
to = ["http://10.0.0.1:8001", "10.0.0.2:8001"]

[serve]
id = "node-7"
listen = "10.0.0.7:8001"
join = ["10.0.0.1:8001", "10.0.0.2:8001"]
data = "somewhere"
heal-interval = 5
copies = 2
reserve = "1MiB"

[cluster]
nodes = 5
"""


class FakeRun(ModuleType):
    config: Config

    def run_peer(self, config: Config) -> int:
        self.config = config
        return 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRun:
    fake = FakeRun("peer.run")
    monkeypatch.setitem(sys.modules, "peer.run", fake)
    monkeypatch.setenv("MINIDFS_HOME", str(tmp_path))
    monkeypatch.setenv("MINIDFS_CONFIG", "")
    return fake


def in_force(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, tuple[str, str]]:
    assert run_command(minidfs, "minidfs", [*options, "config", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return {f"{each['table']}.{each['name']}": (each["value"], each["source"]) for each in found}


def test_the_file_in_the_home_folder_counts_when_it_is_there(run: FakeRun, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(FILE)
    assert run_command(minidfs, "minidfs", ["serve"]) == 0
    config = run.config
    assert (config.node_id, config.listen) == ("node-7", Address("10.0.0.7", 8001))
    assert config.join == (Address("10.0.0.1", 8001), Address("10.0.0.2", 8001))
    assert (config.heal_interval_s, config.copies, config.reserve_bytes) == (5, 2, 1 << 20)


def test_an_option_wins_over_a_variable_and_that_over_the_file(
    run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.toml"
    file.write_text(FILE)
    monkeypatch.setenv("MINIDFS_COPIES", "4")
    monkeypatch.setenv("MINIDFS_HEAL_INTERVAL", "7")
    monkeypatch.setenv("MINIDFS_JOIN", "a:1 b:2")
    assert run_command(minidfs, "minidfs", ["--config", str(file), "serve", "--copies", "5"]) == 0
    assert (run.config.copies, run.config.heal_interval_s, run.config.node_id) == (5, 7, "node-7")
    assert run.config.join == (Address("a", 1), Address("b", 2))


def test_what_is_in_force_is_shown_with_where_it_comes_from(
    run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.toml"
    file.write_text(FILE)
    monkeypatch.setenv("MINIDFS_COPIES", "4")
    found = in_force(capsys, "--config", str(file))
    assert found["client.to"] == ("http://10.0.0.1:8001 10.0.0.2:8001", f"file {file}")
    assert found["serve.copies"] == ("4", "variable MINIDFS_COPIES")
    assert found["serve.heal-interval"] == ("5", f"file {file}")
    assert found["serve.join"] == ("10.0.0.1:8001 10.0.0.2:8001", f"file {file}")
    assert found["serve.down-after"] == ("2.5", "default")
    assert found["cluster.nodes"] == ("5", f"file {file}")
    assert run_command(minidfs, "minidfs", ["config"]) == 0
    assert "serve.copies" in capsys.readouterr().out


def test_every_field_of_a_peers_configuration_is_a_setting_but_those_of_the_protocol(
    run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = minidfs.commands["serve"]
    fields = {param.name for param in serve.params} - {"help"}
    # What may travel in a message, and what a chunk is, all peers must agree on; the host's name is the system's; only
    # simulated peers, whose loop is never late, look at it less often.
    own = {"inline_bytes_max", "chunk_bytes_max", "hostname", "loop_look_s"}
    assert set(Config.__dataclass_fields__) - fields == own
    shown = {name.partition(".")[2] for name in in_force(capsys) if name.startswith("serve.")}
    assert len(shown) == len(fields)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "[serve]\nheal-interval-s = 5",
            "sets 'heal-interval-s' in [serve], which there is not; did you mean heal-interval?",
        ),
        ("[server]\nid = 'a'", "sets 'server', which there is not; did you mean serve?"),
        ("serve = 5", "serve is a table: [serve]"),
        ("[serve", "cannot be read"),
        ("[serve]\nlisten = 'a:1'\ncopies = 'many'", "'many' is not a valid integer range (from "),
        ("[serve]\nlisten = 8001", "'8001' is no address; write HOST:PORT, for example 127.0.0.1:8001 (from "),
    ],
)
def test_a_wrong_file_is_one_line_with_what_and_where(
    run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    (tmp_path / "config.toml").write_text(content)
    assert run_command(minidfs, "minidfs", ["serve", "--id", "a", "--data", "b"]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert "config.toml" in err
    assert err.count("\n") == 1


def test_a_file_that_was_told_must_be_there(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(minidfs, "minidfs", ["--config", "nowhere.toml", "config"]) == 2
    assert "nowhere.toml" in capsys.readouterr().err


@given(st.integers(0, 1 << 40))
def test_sizes_are_read_as_they_are_written(count: int) -> None:
    assert read_size(str(count)) == count
    for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), 1):
        assert read_size(f"{count} {unit}") == count << 10 * power


@pytest.mark.parametrize("text", ["", "MiB", "1.5GiB", "1 XB", "-1", "1e9", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        read_size(text)
