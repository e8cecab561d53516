"""Peers killed at random under uploads and deletes: what they acknowledged holds.

MINIDFS_E2E_SECONDS says for how long (60 for a full run), MINIDFS_E2E_SEED what is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from e2e.cluster_fixture import running_peers, within

from sim.chaos.storm import Chaos
from sim.model import FileModel, Version

SECONDS = float(os.environ.get("MINIDFS_E2E_SECONDS", "12"))
SEED = int(os.environ.get("MINIDFS_E2E_SEED", "7"))
HEAL_INTERVAL_S = 5.0


@pytest.mark.once
@pytest.mark.e2e
@within(SECONDS * 3 + 90)
async def test_what_was_acknowledged_survives_random_kills(tmp_path: Path) -> None:
    async with running_peers(tmp_path, "--heal-interval", str(HEAL_INTERVAL_S)) as peers:
        chaos = Chaos(peers.local, SEED, HEAL_INTERVAL_S)
        report = await chaos.run(SECONDS)
        print(report)
        assert report.faults["kill"] > 0
        assert report.timeouts == 0

        await peers.local.stop_all()
        await peers.local.start_all()
        await chaos.recheck()
        for node_id in peers.node_ids:
            await peers.wait_tidy(node_id)


# The model itself: it must object to what breaks a promise, and only to that.

ALL = frozenset({"node-1", "node-2", "node-3"})


def version(seed: int, *holders: str) -> Version:
    return Version(seed, 1, f"sha-{seed}", frozenset(holders))


def test_the_model_objects_to_a_lost_file_while_a_holder_is_live() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, "node-1", "node-2"), "node-1")
    assert file.objection(200, "sha-1", ALL, all_up=True) is None
    assert file.objection(404, "", frozenset({"node-2", "node-3"}), all_up=False)
    assert file.objection(503, "", ALL, all_up=True)
    assert file.objection(503, "", frozenset({"node-3"}), all_up=False) is None


def test_the_model_lets_a_version_that_ranks_above_be_shown_to_a_writer_that_had_not_heard_of_it() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, "node-1"), "node-1")
    file.acknowledged_put(version(2, "node-2"), "node-2", rivals={"sha-1"})
    assert file.objection(200, "sha-1", ALL, all_up=True) is None
    assert file.objection(200, "sha-2", ALL, all_up=True) is None
    file.acknowledged_put(version(3, *ALL), "node-2")
    assert file.objection(200, "sha-1", ALL, all_up=True)
    file.acknowledged_put(version(4, *ALL), "node-2", rivals={"sha-3"})
    assert file.objection(200, "sha-3", ALL, all_up=True), "node-2 had it, so it was replaced"


def test_the_model_objects_to_a_deleted_file_that_is_back() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, "node-1", "node-2"), "node-1")
    file.acknowledged_delete("node-2")
    assert file.objection(404, "", ALL, all_up=True) is None
    assert file.objection(200, "sha-1", ALL, all_up=True)


def test_the_model_lets_a_version_survive_a_delete_by_a_peer_that_had_not_heard_of_it() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, "node-1"), "node-1")
    file.acknowledged_delete("node-2")
    assert file.objection(404, "", ALL, all_up=True) is None
    assert file.objection(200, "sha-1", ALL, all_up=True) is None


def test_the_model_objects_to_an_overwritten_version() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, "node-1", "node-2"), "node-1")
    file.acknowledged_put(version(2, "node-3"), "node-3")
    assert file.objection(200, "sha-1", ALL, all_up=True)
    assert file.objection(200, "sha-2", ALL, all_up=True) is None


def test_the_model_takes_an_unanswered_upload_either_way() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, *ALL), "node-1")
    file.uncertain_put(version(2))
    assert file.objection(200, "sha-1", ALL, all_up=True) is None
    assert file.objection(200, "sha-2", ALL, all_up=True) is None
    assert file.objection(404, "", ALL, all_up=True)


def test_the_model_takes_an_unanswered_delete_either_way() -> None:
    file = FileModel("key")
    file.acknowledged_put(version(1, *ALL), "node-1")
    file.uncertain_delete()
    assert file.objection(200, "sha-1", ALL, all_up=True) is None
    assert file.objection(404, "", ALL, all_up=True) is None
