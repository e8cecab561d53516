"""`minidfs check` finds every kind of damage to a data folder, and only damage; `minidfs db snapshot` copies it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from e2e.cluster_fixture import Peers, content_of, running_peers, within

from peer.cli.main import minidfs, run_command
from peer.store.check import Report, bytes_to_check, check_folder
from peer.world.disk import SystemDisk, open_database_read_only

pytestmark = [pytest.mark.e2e]


def checked(folder: Path) -> Report:
    read = []
    with closing(open_database_read_only(folder / "minidfs.db")) as connection:
        report = check_folder(connection, SystemDisk(folder), read.append)
        if not report.findings:
            assert sum(read) == bytes_to_check(connection) == report.chunk_bytes
    return report


def sql(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "minidfs.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


def chunk_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "chunks").rglob("*") if path.is_file())


def flip_a_byte_of_a_chunk(folder: Path) -> None:
    path = chunk_files(folder)[0]
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def lose_a_chunk(folder: Path) -> None:
    chunk_files(folder)[0].unlink()


def flip_a_byte_of_a_small_chunk(folder: Path) -> None:
    sql(folder, "UPDATE chunks SET content = CAST('other' AS BLOB) WHERE content IS NOT NULL")


def lose_the_row_of_a_chunk(folder: Path) -> None:
    sql(folder, "DELETE FROM chunks WHERE id = (SELECT min(id) FROM chunks)")


def lose_a_hold(folder: Path) -> None:
    sql(folder, "DELETE FROM holds WHERE seq = (SELECT max(seq) FROM holds)")


def change_a_name(folder: Path) -> None:
    sql(folder, "UPDATE puts SET filename = 'other' WHERE shown")


def count_one_more(folder: Path) -> None:
    sql(folder, "UPDATE meta SET value = value + 1 WHERE key = 'files'")


def damage_a_row(folder: Path) -> None:
    sql(folder, "UPDATE puts SET sha256 = x'00' WHERE shown")


def lose_an_op(folder: Path) -> None:
    sql(folder, "DELETE FROM log WHERE seq = 1")


def lose_the_last_op(folder: Path) -> None:
    sql(folder, "DELETE FROM log WHERE arrival = (SELECT max(arrival) FROM log)")


def swap_two_ops(folder: Path) -> None:
    origin = "(SELECT origin FROM log WHERE seq = 2 LIMIT 1)"
    sql(
        folder,
        f"UPDATE log SET op = (SELECT op FROM log other WHERE other.origin = log.origin AND other.seq = 3 - log.seq)"
        f" WHERE origin = {origin} AND seq IN (1, 2)",
    )


def damage_an_op(folder: Path) -> None:
    sql(folder, "UPDATE log SET op = x'c0' WHERE seq = 1")


def overwrite_a_page(folder: Path) -> None:
    with (folder / "minidfs.db").open("rb+") as file:
        file.seek(5 * 4096)
        file.write(b"\xff" * 4096)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_byte_of_a_chunk, "has other bytes than its name says"),
    (lose_a_chunk, "has a row and no file"),
    (flip_a_byte_of_a_small_chunk, "has other bytes than its name says"),
    (lose_the_row_of_a_chunk, "of its chunks have no row"),
    (lose_a_hold, "do not give its sum"),
    (change_a_name, "do not give its sum"),
    (count_one_more, "files and shows"),
    (damage_a_row, "cannot be read"),
    (lose_an_op, "lacks op 1"),
    (lose_the_last_op, "ends before op"),
    (swap_two_ops, "has another op 1 than was written"),
    (damage_an_op, "has op 1 that cannot be read"),
    (overwrite_a_page, "the database is damaged"),
]


async def _filled(peers: Peers) -> None:
    for number in range(3):
        await peers.upload("node-1", content_of(number, 200), name=f"small-{number}.txt")
    await peers.upload("node-2", content_of(9, 9_000_000), name="large.bin")
    await peers.wait_alike(20)


@within(120)
async def test_every_kind_of_damage_is_found_and_nothing_else(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data", nodes=2) as peers:
        await _filled(peers)
    folder = tmp_path / "data" / "node-1"
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}
    sound = checked(folder)
    assert (sound.files, sound.held, sound.chunks, sound.leftovers, sound.findings) == (4, 4, 5, 0, [])
    # Four puts, and what the other peer holds of them.
    assert 4 < sound.ops <= 8
    for path, content in before.items():
        assert path.read_bytes() == content, f"checking changed {path.name}"
    for damage, words in DAMAGES:
        broken = tmp_path / damage.__name__
        shutil.copytree(folder, broken)
        damage(broken)
        found = checked(broken).findings
        assert any(words in finding.what for finding in found), (damage.__name__, found)
        assert all(finding.next_step for finding in found)
    (folder / "chunks" / "ab").mkdir(exist_ok=True)
    (folder / "chunks" / "ab" / "left.over").write_text("x")
    assert (checked(folder).leftovers, checked(folder).findings) == (1, [])


@within(120)
async def test_the_commands_check_and_copy_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, copy = tmp_path / "data" / "node-1", tmp_path / "copy.db"

    def run(*words: str) -> tuple[int, str, str]:
        code = run_command(minidfs, "minidfs", list(words))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    async with running_peers(tmp_path / "data", nodes=2) as peers:
        await _filled(peers)
        code, _, err = run("check", str(folder))
        assert code == 1
        assert "another peer uses the data folder" in err
        assert run("db", "snapshot", str(folder), str(copy))[0] == 0
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM files").fetchone() == (4,)
    assert [name for name in os.listdir(tmp_path) if name.startswith("copy")] == ["copy.db"]
    assert "is there already" in run("db", "snapshot", str(folder), str(copy))[2]
    assert run("db", "snapshot", "--force", str(folder), str(copy))[0] == 0

    code, out, _ = run("check", str(folder))
    assert (code, out.partition(";")[0]) == (0, f"{folder} is sound")
    lose_a_chunk(folder)
    code, out, _ = run("check", str(folder))
    assert code == 1
    assert "is not sound: 1 problems" in out
    assert "\n  next: nothing while others have the file" in out
    code, out, _ = run("check", "--json", str(folder))
    assert (code, len(json.loads(out)["findings"])) == (1, 1)

    assert "has no minidfs.db" in run("check", str(tmp_path))[2]
    with closing(sqlite3.connect(folder / "minidfs.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "the database has schema 99" in run("check", str(folder))[2]
    (folder / "minidfs.db").write_bytes(b"no database at all" * 1000)
    code, _, err = run("check", str(folder))
    assert (code, err.count("\n")) == (1, 1)
    assert "the database cannot be read" in err
