"""Making and reading the file with a cluster's key, and `minidfs keygen`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from peer.cli.main import minidfs, run_command
from peer.cluster.key_file import FILE_BYTES_MAX, make_key_file, read_key_file
from protocol.keyring import OPEN, BadKey, Keyring


def keygen(*arguments: str) -> int:
    return run_command(minidfs, "minidfs", ["keygen", *arguments])


def test_a_new_key_is_in_a_file_of_its_owners_and_no_two_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.key", tmp_path / "other.key"
    assert [keygen(str(one)), keygen(str(other))] == [0, 0]
    assert str(one) in capsys.readouterr().out
    assert len({read_key_file(path).keys for path in (one, other)}) == 2
    if os.name == "posix":
        assert stat.S_IMODE(one.stat().st_mode) == 0o600


def test_a_key_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.key"
    make_key_file(path)
    before = path.read_bytes()
    assert keygen(str(path)) == 1
    assert "is there already" in capsys.readouterr().err
    assert keygen(str(tmp_path / "nowhere" / "a.key")) == 1
    assert "cannot be written: No such file" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_second_key_is_a_line_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.key"
    make_key_file(path)
    (first,) = read_key_file(path).keys
    assert keygen() == 0
    second = capsys.readouterr().out
    path.write_text(path.read_text() + second)
    assert read_key_file(path) == Keyring((first, bytes.fromhex(second)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no key in it"),
        (b"\xff\xfe", "is no text"),
        (b"short", "64 hexadecimal digits"),
        (b"# " + b"x" * FILE_BYTES_MAX + b"\n" + b"ab" * 32, "no key in it"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_without_a_key_stops_the_start_with_a_sentence_that_names_it(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadKey, match=said):
        read_key_file(path)
    peer = ["serve", "--id", "a", "--listen", "127.0.0.1:1", "--data", str(tmp_path / "data")]
    assert run_command(minidfs, "minidfs", [*peer, "--cluster-key-file", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert str(path) in complaint
    assert not (tmp_path / "data").exists()


def test_without_a_file_there_is_no_secret() -> None:
    assert read_key_file(None) is OPEN
