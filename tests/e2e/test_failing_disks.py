"""Real disks that are full, or that fail to sync a commit: nothing acknowledged is lost, and deleting goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio
from e2e.cluster_fixture import Peers, content_of, database_of, running_peers, wait_until, within

pytestmark = pytest.mark.e2e

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's tmpfs and preloaded libraries")
DISK_BYTES = 120 * 2**20

# Fails every sync of a write-ahead log while a file of this name exists, or does not return from it (SYNCS_HANG). What
# was written stays in the page cache, as after a real error of a disk, and so may be found by the next process.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int must_fail(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    const char *trigger = getenv("FAIL_SYNCS_WHILE");
    if (length < 4 || trigger == NULL || access(trigger, F_OK) != 0) return 0;
    path[length] = 0;
    if (strcmp(path + length - 4, "-wal") != 0) return 0;
    while (getenv("SYNCS_HANG") != NULL && access(trigger, F_OK) == 0) usleep(10000);
    return 1;
}

int fsync(int fd) {
    if (must_fail(fd)) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    if (must_fail(fd)) { errno = EIO; return -1; }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


@dataclass(frozen=True)
class Trigger:
    """While it is pulled, logs are not synced."""

    path: Path

    def pull(self) -> None:
        self.path.touch()

    def release(self) -> None:
        self.path.unlink()


@pytest.fixture
def trigger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trigger:
    """Peers started from now on fail to sync their logs while this file exists."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the failing sync with")
    source, library, path = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "syncs fail"
    source.write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAIL_SYNCS_WHILE", str(path))
    return Trigger(path)


@LINUX_ONLY
@within(60)
async def test_a_commit_that_failed_and_comes_back_after_a_kill_costs_nothing(tmp_path: Path, trigger: Trigger) -> None:
    content = content_of("kept", 300_000)
    async with running_peers(tmp_path / "cluster", nodes=1) as peers:
        await peers.upload("node-1", content, file_id="k")
        trigger.pull()
        files = {"file": ("test.bin", content, "application/octet-stream")}
        refused = await peers.client.post(peers.url("node-1", "/files"), params={"file_id": "k"}, files=files)
        assert refused.status_code == 503
        # Long enough for whatever would be tidied up.
        await trio.sleep(0.5)
        await peers.local.kill("node-1")
        trigger.release()
        await peers.local.start("node-1")
        with database_of(peers.folder("node-1")) as database:
            (serial,) = database.execute("SELECT serial FROM chunks").fetchone()
        assert await peers.content("node-1", "k") == (200, content)
        await peers.wait_tidy("node-1")
        (chunk_file,) = (peers.folder("node-1") / "chunks").glob("*/*")
        assert chunk_file.suffix == f".{serial}"


@LINUX_ONLY
@within(60)
async def test_a_peer_whose_commits_failed_goes_on_when_they_do_not_any_more(tmp_path: Path, trigger: Trigger) -> None:
    async with running_peers(tmp_path / "cluster", nodes=1) as peers:
        first = content_of("first", 300_000)
        await peers.upload("node-1", first, file_id="k")
        trigger.pull()
        for _ in range(3):
            response = await peers.client.delete(peers.url("node-1", "/files/k"))
            assert response.status_code == 503
        assert await peers.content("node-1", "k") == (200, first)
        trigger.release()
        second = content_of("second", 300_000)
        await peers.upload("node-1", second, file_id="l")
        await peers.local.kill("node-1")
        await peers.local.start("node-1")
        assert await peers.content("node-1", "k") == (200, first)
        assert await peers.content("node-1", "l") == (200, second)
        log = peers.log_of("node-1")
        assert "Traceback" not in log
        assert log.count("a commit failed and may or may not be on the disk") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for a peer's folder."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave not a byte on the file system of a folder."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    continue
            except OSError:
                continue
    assert os.statvfs(folder).f_bavail == 0
    return ballast


async def is_ready(peers: Peers) -> bool:
    return (await peers.client.get(peers.url("node-1", "/health/ready"))).status_code == 200


@LINUX_ONLY
@within(90)
async def test_files_are_deleted_at_zero_bytes_free_and_all_is_well_when_there_is_room(small_disk: Path) -> None:
    async with running_peers(small_disk, nodes=1) as peers:
        for number in range(60):
            await peers.upload("node-1", content_of(number, 20_000 + number * 2000), file_id=f"k{number}")
        ballast = fill(small_disk)
        files = {"file": ("a", content_of("refused", 300_000))}
        for _ in range(3):
            refused = await peers.client.post(peers.url("node-1", "/files"), files=files)
            assert refused.status_code == 507, refused.text
        fill(small_disk)
        assert (await peers.client.delete(peers.url("node-1", "/files/unknown"))).status_code == 404
        assert not await is_ready(peers)
        for number in range(50):
            response = await peers.client.delete(peers.url("node-1", f"/files/k{number}"))
            assert response.status_code == 200, response.text
        ballast.unlink()
        await wait_until(lambda: is_ready(peers), 20, "the peer takes content again")
        await peers.upload("node-1", content_of("later", 300_000), file_id="later")
        assert set(await peers.listed("node-1")) == {"later", *(f"k{number}" for number in range(50, 60))}
        log = peers.log_of("node-1")
        assert "Traceback" not in log
        assert log.count("the disk is full") == 1


@LINUX_ONLY
@within(60)
async def test_a_call_to_the_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, trigger: Trigger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNCS_HANG", "1")
    first = content_of("first", 300_000)
    async with running_peers(tmp_path / "cluster", "--shutdown-grace", "1", nodes=1) as peers:
        await peers.upload("node-1", first, file_id="k")
        trigger.pull()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_try_to_upload, peers)
            # The health of a peer is asked for on its event loop, which no call to the disk holds up.
            await trio.sleep(0.5)
            assert (await peers.json("node-1", "/health"))["status"] == "UP"
            peers.terminate("node-1")
            assert await peers.wait_exit("node-1", 10) == "exit code 1"
            nursery.cancel_scope.cancel()
        assert "a call to the disk hangs: ending without it" in peers.log_of("node-1")
        trigger.release()
        await peers.local.start("node-1")
        assert await peers.content("node-1", "k") == (200, first)


async def _try_to_upload(peers: Peers) -> None:
    with suppress(httpx.HTTPError):
        await peers.client.put(peers.url("node-1", "/files/hangs"), content=content_of("hangs", 300_000))
