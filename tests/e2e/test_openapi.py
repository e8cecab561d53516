"""Generated requests, right and wrong ones, against what `/openapi.json` says of a running cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from e2e.cluster_fixture import content_of, running_peers, within

pytestmark = [pytest.mark.e2e]

CHECKS = (
    # Every status is one the document names for the operation; 500 is named nowhere.
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "negative_data_rejection",
    "use_after_free",
)


@within(150)
async def test_a_cluster_answers_as_its_description_says_and_comes_to_no_harm(tmp_path: Path) -> None:
    async with running_peers(tmp_path / "data") as peers:
        await peers.upload("node-1", content_of(1, 100_000))
        url = peers.url("node-2", "/openapi.json")
        options = ["--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--seed", "1"]
        options += ["--max-time", "10", "--continue-on-failure", "--no-color"]
        # What that does is for good, and would leave nothing to ask.
        options += ["--exclude-operation-id", "evict", "--exclude-operation-id", "leave"]
        done = await trio.run_process(
            [sys.executable, "-m", "schemathesis.cli", "run", url, *options],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout.decode()
        assert b"generated" in done.stdout, "no request was made"
        # It may have overwritten and deleted whatever it found listed; what comes now is stored, and seen by all.
        last = await peers.upload("node-1", content_of(2, 100_000))
        await peers.wait_held_by_all(last["file_key"])
        lists = [await peers.listed(node_id) for node_id in peers.node_ids]
        assert all(other == lists[0] for other in lists)
        for node_id in peers.node_ids:
            assert await peers.content(node_id, last["file_key"]) == (200, content_of(2, 100_000))
            assert " ERROR " not in peers.log_of(node_id)
