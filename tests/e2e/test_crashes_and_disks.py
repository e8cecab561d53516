"""Killed in the middle of uploads, an emptied disk, a disk put back from a copy: nothing lost, nothing deleted back."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import trio
from e2e.cluster_fixture import Peers, content_of, database_of, running_peers, wait_until, within

pytestmark = pytest.mark.e2e

HEAL = ("--heal-interval", "2")
HEALED_WITHIN_S = 20
SIZES = (1, 5_000, 40_000, 300_000)


async def upload_some(peers: Peers, via: str, count: int, prefix: str) -> dict[str, bytes]:
    """Files of all kinds of sizes through one peer; what they contain, by id."""
    contents = {}
    for number in range(count):
        content = content_of(f"{prefix}-{number}", SIZES[number % len(SIZES)])
        receipt = await peers.upload(via, content)
        contents[receipt["file_id"]] = content
    return contents


async def delete(peers: Peers, via: str, file_key: str) -> None:
    response = await peers.client.delete(peers.url(via, f"/files/{file_key}"))
    assert response.status_code == 200, response.text


async def check_contents(peers: Peers, node_id: str, contents: dict[str, bytes]) -> None:
    for file_key, content in contents.items():
        assert await peers.content(node_id, file_key) == (200, content), file_key


@pytest.mark.once
@within(90)
async def test_killed_in_the_middle_of_many_uploads_it_opens_again(tmp_path: Path) -> None:
    async with running_peers(tmp_path, *HEAL) as peers:
        acknowledged: dict[str, bytes] = {}

        async def keep_uploading(worker: int) -> None:
            number = 0
            while True:
                number += 1
                content = content_of(f"{worker}-{number}", (*SIZES, 10_000_000)[number % 5])
                try:
                    receipt = await peers.upload("node-1", content)
                except httpx.TransportError:
                    return
                acknowledged[receipt["file_id"]] = content

        for round_number in (1, 2, 3):
            wanted = len(acknowledged) + 20
            async with trio.open_nursery() as nursery:
                for worker in range(6):
                    nursery.start_soon(keep_uploading, 10 * round_number + worker)

                async def are_enough(wanted: int = wanted) -> bool:
                    return len(acknowledged) >= wanted

                await wait_until(are_enough, 30, f"{wanted} uploads are acknowledged")
                await peers.local.kill("node-1")
            await peers.local.start("node-1")
            await peers.wait_tidy("node-1")
            assert acknowledged.keys() <= (await peers.listed("node-1")).keys()

        listed = await peers.wait_alike(HEALED_WITHIN_S)
        assert acknowledged.keys() <= listed.keys()
        for node_id in peers.node_ids:
            await check_contents(peers, node_id, acknowledged)


@within(60)
async def test_operators_read_the_tables_of_a_live_peer(tmp_path: Path) -> None:
    async with running_peers(tmp_path) as peers:
        await peers.local.stop("node-3")
        receipt = await peers.upload("node-1", b"hello", name="hello.txt")
        with database_of(peers.folder("node-2")) as db:
            assert {"nodes"} <= set(db.table_names())
            assert {"files", "file_locations", "replication_queue"} <= set(db.view_names())
            assert {row["node_id"] for row in db["nodes"].rows} == set(peers.node_ids)
            (file,) = db["files"].rows
            assert file["file_key"] == receipt["file_id"]
            assert file["checksum_sha256"] == receipt["checksum_sha256"]
            assert {row["node_id"] for row in db["file_locations"].rows} >= {"node-1"}
            assert ("node-3", "PENDING") in {
                (row["target_node_id"], row["status"]) for row in db["replication_queue"].rows
            }
            assert {row["membership"] for row in db["nodes"].rows} == {"member"}


@within(90)
async def test_an_emptied_data_folder_fills_again_and_brings_nothing_back(tmp_path: Path) -> None:
    async with running_peers(tmp_path, *HEAL) as peers:
        contents = await upload_some(peers, "node-2", 12, "before")
        gone = [contents.popitem()[0] for _ in range(3)]
        for file_key in gone[:2]:
            await delete(peers, "node-1", file_key)
        await peers.local.stop("node-2")
        await delete(peers, "node-3", gone[2])
        contents |= await upload_some(peers, "node-3", 4, "while away")
        folder = peers.folder("node-2")
        shutil.rmtree(folder)

        await peers.local.start("node-2")

        listed = await peers.wait_alike(HEALED_WITHIN_S)
        assert listed.keys() == contents.keys()
        assert all(file["replicas"] == list(peers.node_ids) for file in listed.values())
        await check_alone(peers, "node-2", contents, gone)
        await peers.wait_tidy("node-2")


@pytest.mark.once
@within(90)
async def test_a_data_folder_put_back_from_a_copy_converges_and_brings_nothing_back(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "cluster", *HEAL) as peers:
        contents = await upload_some(peers, "node-2", 12, "before")
        gone = [contents.popitem()[0] for _ in range(2)]
        folder, copy = peers.folder("node-2"), tmp_path / "copy"
        await peers.local.stop("node-2")
        shutil.copytree(folder, copy)
        await peers.local.start("node-2")
        await peers.wait_all_see_each_other()

        # What the copy does not know: files, among them of node-2's own epoch, deletions of old and new ones, and an
        # older version that was overwritten.
        contents |= await upload_some(peers, "node-2", 8, "after")
        contents |= await upload_some(peers, "node-1", 4, "after, elsewhere")
        gone += [contents.popitem()[0] for _ in range(3)]
        for file_key in gone:
            await delete(peers, "node-2", file_key)
        overwritten = next(iter(contents))
        contents[overwritten] = content_of("overwritten", 50_000)
        await peers.upload("node-2", contents[overwritten], file_id=overwritten)
        await peers.local.stop("node-2")
        shutil.rmtree(folder)
        copy.rename(folder)

        await peers.local.start("node-2")

        listed = await peers.wait_alike(HEALED_WITHIN_S)
        assert listed.keys() == contents.keys()
        assert all(file["replicas"] == list(peers.node_ids) for file in listed.values())
        await check_alone(peers, "node-2", contents, gone)
        await peers.wait_tidy("node-2")
        contents |= await upload_some(peers, "node-2", 4, "later")
        await peers.wait_alike(HEALED_WITHIN_S)
        for node_id in peers.node_ids:
            await check_contents(peers, node_id, contents)


@pytest.mark.once
@within(90)
async def test_two_of_three_emptied_disks_fill_again_from_the_third(tmp_path: Path) -> None:
    async with running_peers(tmp_path, *HEAL) as peers:
        contents = await upload_some(peers, "node-1", 8, "all")
        gone = contents.popitem()[0]
        await delete(peers, "node-2", gone)
        for node_id in ("node-1", "node-2"):
            await peers.local.kill(node_id)
            shutil.rmtree(peers.folder(node_id))
        for node_id in ("node-1", "node-2"):
            await peers.local.start(node_id)
        listed = await peers.wait_alike(HEALED_WITHIN_S)
        assert listed.keys() == contents.keys()
        await check_alone(peers, "node-1", contents, [gone])


async def check_alone(peers: Peers, node_id: str, contents: dict[str, bytes], gone: list[str]) -> None:
    """Every file a peer is listed as a holder of comes from its own disk, with all others stopped."""
    others = [other for other in peers.node_ids if other != node_id]
    for other in others:
        await peers.local.stop(other)
    await check_contents(peers, node_id, contents)
    assert (await peers.listed(node_id)).keys() == contents.keys()
    for other in others:
        await peers.local.start(other)
    await peers.wait_all_see_each_other()

    async def all_say_404() -> bool:
        return all([(await peers.content(each, file_key))[0] == 404 for each in peers.node_ids for file_key in gone])

    await wait_until(all_say_404, 5, "what was deleted is 404")
