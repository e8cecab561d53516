"""A cluster that was filled is one like any other: its folders are sound, its peers start and serve what is in it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner

from peer.cluster import free_base_port, open_cluster, settle_layout
from peer.node import DATABASE
from peer.store.check import check_folder
from peer.world.disk import SystemDisk, open_database_read_only
from sim.__main__ import sim
from sim.fill import Filling

FILES = 60


def filled(folder: Path, copies: int) -> str:
    base_port = free_base_port(4)
    ports = ["--base-port", str(base_port), "--facade-port", str(base_port + 3)]
    options = ["--files", str(FILES), "--size", "500", "--copies", str(copies), *ports]
    return CliRunner().invoke(sim, ["fill", str(folder), *options], catch_exceptions=False).output


@pytest.mark.timeout(120)
def test_a_filled_cluster_is_sound_starts_and_serves_every_file_as_one_that_was_used(tmp_path: Path) -> None:
    assert f"{FILES} files" in filled(tmp_path / "c", 2)
    held = 0
    for node_id in ("node-1", "node-2", "node-3"):
        folder = tmp_path / "c" / node_id
        report = check_folder(open_database_read_only(folder / DATABASE), SystemDisk(folder), lambda _: None)
        assert not report.findings
        held += report.held
    assert held == 2 * FILES
    layout = settle_layout(tmp_path / "c", None, None, None)

    async def scenario() -> None:
        async with open_cluster(tmp_path / "c") as cluster, httpx.AsyncClient(trust_env=False, timeout=20) as client:
            await cluster.start_all()
            for node_id in layout.node_ids:
                url = cluster.url_of(node_id)
                listed = (await client.get(f"{url}/files")).json()["files"]
                assert len(listed) == FILES
                assert {len(file["replicas"]) for file in listed} == {2}
                for file in listed[:10]:
                    content = (await client.get(f"{url}/files/{file['file_key']}")).content
                    assert content == Filling(FILES, 500, 2).content(file["file_key"])
                queue = (await client.get(f"{url}/replication-queue")).json()
                assert queue["count"] == 0

    async def bounded() -> None:
        with trio.fail_after(90):
            await scenario()

    trio.run(bounded)


def test_a_folder_that_has_a_cluster_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "c", 3)
    before = (tmp_path / "c" / "cluster.json").read_bytes()
    result = CliRunner().invoke(sim, ["fill", str(tmp_path / "c"), "--files", "5"])
    assert result.exit_code != 0
    assert (tmp_path / "c" / "cluster.json").read_bytes() == before
