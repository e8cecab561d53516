"""`minidfs cluster`: what it shows and says. The processes are tested in tests/peer/test_cluster.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peer.cli import cluster as cli
from peer.cli.main import minidfs, run_command
from peer.cluster import PeerExited, PeerWrote


def test_the_cluster_lives_in_the_home_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MINIDFS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.default_folder() == tmp_path / ".minidfs" / "cluster"
    monkeypatch.setenv("MINIDFS_HOME", str(tmp_path / "elsewhere"))
    assert cli.default_folder() == tmp_path / "elsewhere" / "cluster"


@pytest.mark.parametrize("order", [["stop", "node-2"], ["start", "node-2"], ["kill", "node-2"], ["status"]])
def test_an_order_without_a_running_cluster_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: list[str]
) -> None:
    monkeypatch.setenv("MINIDFS_HOME", str(tmp_path))
    assert run_command(minidfs, "minidfs", ["cluster", *order]) == 1
    folder = tmp_path / "cluster"
    assert capsys.readouterr().err == (
        f"minidfs: no cluster is running from {folder}; start one with: minidfs cluster --data {folder}\n"
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--nodes", "0"], "not in the range"),
        (["--nodes", "300"], "has 1 to 200 nodes"),
        (["--base-port", "65535"], "must lie within 1 to 65535"),
        (["--base-port", "8079"], "lies among the peers' own ports"),
        (["destroy"], "No such command"),
    ],
)
def test_misuse_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    assert run_command(minidfs, "minidfs", ["cluster", "--data", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert err.endswith("; see minidfs cluster --help\n")
    assert err.count("\n") == 1


def test_each_line_of_a_peer_is_shown_under_its_name_and_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = cli._Screen(tmp_path)
    screen.show(PeerWrote("node-1", "[bold]not markup[/bold] :smile: " + "x" * 300))
    screen.show(PeerExited("node-1", "exit code 0", ordered=True))
    assert capsys.readouterr().out.splitlines() == [
        "node-1 | [bold]not markup[/bold] :smile: " + "x" * 300,
        "node-1 | ended (exit code 0)",
    ]


def test_a_peer_that_ended_by_itself_is_reported_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/minidfs"])
    cli._Screen(tmp_path).show(PeerExited("node-2", "SIGKILL", ordered=False))
    assert capsys.readouterr().out == (
        "node-2 | ended by itself (SIGKILL); "
        f"start it again with: .venv/bin/minidfs cluster start node-2 --data {tmp_path}\n"
    )
