"""What is done on systems that lack something of Linux: the same small functions, with the lack made up."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import trio

from peer import run
from peer.config import Address
from peer.locks import try_lock
from peer.world import disk as disks
from peer.world import sockets
from peer.world.disk import SystemDisk
from peer.world.sockets import SystemDatagrams


def test_on_macos_a_sync_goes_past_the_cache_of_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []
    fcntl = ModuleType("fcntl")
    fcntl.F_FULLFSYNC = 51  # type: ignore[attr-defined]
    fcntl.fcntl = lambda descriptor, command: asked.append((descriptor, command))  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    with (tmp_path / "file").open("wb") as file:
        disks.sync_file(file.fileno())
        assert asked == [(file.fileno(), 51)]
    disks.sync_folder(tmp_path)
    assert len(asked) == 2


def test_on_windows_folders_are_not_synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(disks.os, "name", "nt")
        patch.setattr(disks.os, "open", refuse)
        disks.sync_folder(tmp_path)


def test_files_are_read_without_pread_and_set_aside_without_fallocate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pread", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    disk = SystemDisk(tmp_path)
    disk.allocate("reserve", 100_000)
    assert (tmp_path / "reserve").stat().st_size == 100_000
    (tmp_path / "file").write_bytes(b"0123456789")
    file = disk.open("file")
    assert (file.read_at(4, 3), file.read_at(0, 2), file.read_at(8, 10)) == (b"456", b"01", b"89")
    file.close()


def test_where_there_is_no_fcntl_files_are_locked_as_windows_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked: set[tuple[int, int]] = set()

    def locking(descriptor: int, _mode: int, _count: int) -> None:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) in locked:
            raise OSError(36, "Resource deadlock avoided")
        locked.add((found.st_dev, found.st_ino))

    msvcrt = ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.locking = 2, locking  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    with (tmp_path / "lock").open("a+b") as one, (tmp_path / "lock").open("a+b") as two:
        assert try_lock(one.fileno())
        assert not try_lock(two.fileno())


def test_a_reset_that_windows_reports_for_an_earlier_datagram_is_passed_over() -> None:
    class Socket:
        def __init__(self) -> None:
            self.answers: list[OSError | tuple[bytes, tuple[str, int]]] = [
                ConnectionResetError(10054, "forcibly closed by the remote host"),
                ConnectionResetError(10054, "forcibly closed by the remote host"),
                (b"hello", ("127.0.0.1", 9)),
            ]

        async def recvfrom(self, _size: int) -> tuple[bytes, tuple[str, int]]:
            await trio.lowlevel.checkpoint()
            answer = self.answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

    async def main() -> None:
        datagrams = SystemDatagrams(Socket())  # type: ignore[arg-type]
        assert await datagrams.receive() == (b"hello", Address("127.0.0.1", 9))

    trio.run(main)


@pytest.mark.parametrize("platform", ["win32", "darwin", "sunos5"])
def test_ports_are_shared_only_where_connections_are_shared_out(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert not sockets.shares_ports()
    assert sockets.own_hosts() == []


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resource = ModuleType("resource")
    limits = [(256, -1)]
    resource.RLIMIT_NOFILE, resource.RLIM_INFINITY = 7, -1  # type: ignore[attr-defined]
    resource.getrlimit = lambda _: limits[-1]  # type: ignore[attr-defined]
    resource.setrlimit = lambda _, pair: limits.append(pair)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "resource", resource)
    run.allow_open_files()
    assert limits[-1] == (run.OPEN_FILES, -1)
    run.allow_open_files()
    assert len(limits) == 2
    assert caplog.messages == []
    limits.append((256, 512))
    run.allow_open_files()
    assert limits[-1] == (512, 512)
    assert caplog.messages == [
        f"only 512 files and connections may be open here; ulimit -n {run.OPEN_FILES} would allow all"
    ]
    monkeypatch.setitem(sys.modules, "resource", None)
    run.allow_open_files()
