"""`minidfs cluster`: what it shows and says. The processes are tested in tests/peer/test_cluster.py."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from peer.cli import cluster as cli
from peer.cli.live import table_of
from peer.cli.main import minidfs, run_command
from peer.cluster import Figures, PeerExited, PeerHangs, PeerStatus, PeerWrote


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


def test_a_peer_that_hangs_is_reported_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/minidfs"])
    screen = cli._Screen(tmp_path)
    screen.show(PeerHangs("node-2", 4711, 5.2))
    screen.show(PeerHangs("node-2", 4711, 60.0, answers_again=True))
    order = ".venv/bin/minidfs cluster"
    assert capsys.readouterr().out.splitlines() == [
        "node-2 | has not answered for 5 s, though its process 4711 is there; if it stays so: "
        f"{order} kill node-2 --data {tmp_path} && {order} start node-2 --data {tmp_path}",
        "node-2 | answers again, after 60 s",
    ]


def test_the_table_shows_each_peer_with_what_it_holds_and_lacks() -> None:
    peers = [
        PeerStatus("node-1", "127.0.0.1:8001", 1),
        PeerStatus("node-2", "127.0.0.1:8002", None),
        PeerStatus("node-3", "127.0.0.1:8003", 3, hangs=True),
    ]
    figures = {"node-1": Figures(files=12, copies_here=11, missing={"node-2": 4})}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table_of(peers, figures))
    title, _, _, _, *rows, _ = console.export_text().splitlines()
    assert title.strip() == "12 files, 4 copies missing"
    assert [[cell.strip() for cell in row.strip("│").split("│")] for row in rows] == [
        ["node-1", "running", "127.0.0.1:8001", "11", "0"],
        ["node-2", "down", "127.0.0.1:8002", "-", "4"],
        ["node-3", "hangs", "127.0.0.1:8003", "-", "0"],
    ]
