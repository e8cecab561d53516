"""`GET /metrics` and `GET /openapi.json`, of peers in a simulated world."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families
from worlds import converged, get, here, in_world, put

from peer.http.app import CLIENT_ROUTES
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}
CONTENT = b"x" * 10_000

Sample = tuple[str, tuple[tuple[str, str], ...]]


async def metrics(world: World, name: str) -> dict[Sample, float]:
    """All samples of a peer, by name and labels."""
    response = await world.request(name, "GET", "/metrics")
    assert response.status_code == httpx.codes.OK
    assert response.headers["content-type"].startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    found = {sample_key(sample.name, sample.labels.items()): sample.value for sample in samples}
    assert len(found) == len(samples), "a sample came twice"
    return found


def sample_key(name: str, labels: Iterable[tuple[str, str]]) -> Sample:
    return name, tuple(sorted(labels))


def key(name: str, **labels: str) -> Sample:
    return sample_key(name, labels.items())


def test_metrics_count_requests_bytes_files_copies_and_what_is_missing() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        assert await get(world, "node-1", "k") == CONTENT
        assert (await world.request("node-1", "HEAD", "/files/k")).status_code == httpx.codes.OK
        assert (await world.request("node-1", "GET", "/files/unknown")).status_code == httpx.codes.NOT_FOUND
        assert (await world.request("node-1", "BREW", "/tea")).status_code == httpx.codes.NOT_FOUND
        found = await metrics(world, "node-1")
        route = "/files/{file_id}"
        assert found[key("minidfs_http_requests_total", method="POST", route="/files", status="200")] == 1
        assert found[key("minidfs_http_requests_total", method="GET", route=route, status="200")] == 1
        assert found[key("minidfs_http_requests_total", method="HEAD", route=route, status="200")] == 1
        assert found[key("minidfs_http_requests_total", method="GET", route=route, status="404")] == 1
        assert found[key("minidfs_http_requests_total", method="other", route="other", status="404")] == 1
        assert found[key("minidfs_http_received_bytes_total", route="/files")] > len(CONTENT)
        refusal = (await world.request("node-1", "GET", "/files/unknown")).content
        assert found[key("minidfs_http_sent_bytes_total", route=route)] == len(CONTENT) + len(refusal)
        assert found[key("minidfs_http_request_duration_seconds_count", route=route)] == 3
        assert found[key("minidfs_http_requests_running")] == 1  # this one
        assert found[key("minidfs_files")] == 1
        assert found[key("minidfs_copies")] == 1
        assert found[key("minidfs_disk_size_bytes")] > 0
        assert found[key("minidfs_read_only")] == 0
        assert found[key("minidfs_peer_state", node="node-2", state="alive")] == 1
        assert found[key("minidfs_exchanges_total", node="node-2", result="ok")] > 0
        assert found[key("minidfs_probe_datagrams_total", kind="sent")] > 0
        assert found[key("minidfs_event_loop_lag_seconds")] == 0

    in_world(scenario, **SMALL)


def test_metrics_show_a_peer_that_is_down_what_it_misses_and_that_it_caught_up() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-3")
        await trio.sleep(10)
        await put(world, "node-1", "k", CONTENT)
        here(world, "node-2").space.reason = "full"
        found = await metrics(world, "node-1")
        assert found[key("minidfs_peer_state", node="node-3", state="down")] == 1
        assert found[key("minidfs_peer_state", node="node-3", state="alive")] == 0
        assert found[key("minidfs_missing_copies", node="node-3")] == 1
        assert found[key("minidfs_missing_copies", node="node-2")] == 0
        assert (await metrics(world, "node-2"))[key("minidfs_read_only")] == 1
        here(world, "node-2").space.reason = None
        await world.start("node-3")
        await converged(world)
        found = await metrics(world, "node-3")
        assert found[key("minidfs_repaired_copies_total")] == 1
        assert found[key("minidfs_repaired_bytes_total")] == len(CONTENT)
        assert (await metrics(world, "node-1"))[key("minidfs_missing_copies", node="node-3")] == 0

    in_world(scenario, **SMALL)


def test_strangers_cannot_make_the_metrics_grow() -> None:
    async def scenario(world: World) -> None:
        await world.request("node-1", "GET", "/x0")
        before = len(await metrics(world, "node-1"))
        for number in range(20):
            await world.request("node-1", f"M{number}", f"/x{number}/y")
            await world.request("node-1", "GET", f"/z{number}")
        # Beside the request for the metrics itself, and the other methods that are lumped together.
        assert len(await metrics(world, "node-1")) <= before + 20

    in_world(scenario, peers=1, **SMALL)


def test_the_machine_readable_interface_names_every_route_and_method() -> None:
    async def scenario(world: World) -> None:
        document = (await world.request("node-1", "GET", "/openapi.json")).json()
        described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
        reading = {("/files/{file_id}", "HEAD"), ("/download/{file_id}", "HEAD")}
        served = {(route.path, method) for route in CLIENT_ROUTES for method in route.methods or () if method != "HEAD"}
        assert described == served | reading
        names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
        assert len(names) == len(set(names))

    in_world(scenario, peers=1)
