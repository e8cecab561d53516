"""`GET /events`: a list, and as it happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from worlds import converged, here, in_world, put, services, spoil_files

from peer.http import events
from sim.world import World

SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}


async def listed(world: World, name: str, after: str | None = None) -> dict[str, Any]:
    params = {} if after is None else {"after": after}
    found: dict[str, Any] = (await world.request(name, "GET", "/events", params=params)).json()
    return found


def test_every_peer_tells_what_happened_to_files_and_members() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x" * 3000)
        await converged(world)
        await world.request("node-2", "DELETE", "/files/k")
        await world.crash("node-3")
        await trio.sleep(60)
        await put(world, "node-1", "later", b"y" * 3000)
        await world.start("node-3")
        await converged(world)
        for name in ("node-1", "node-2"):
            said = (await listed(world, name))["events"]
            told = [(event["kind"], event.get("file_key") or event.get("node")) for event in said]
            for expected in [
                ("started", name), ("joined", "node-3"), ("uploaded", "k"), ("deleted", "k"), ("suspect", "node-3"),
                ("down", "node-3"), ("uploaded", "later"), ("alive", "node-3"),
            ]:  # fmt: skip
                assert expected in told, (name, told)
            (uploaded,) = [event for event in said if event.get("file_key") == "k" and event["kind"] == "uploaded"]
            assert (uploaded["node"], uploaded["filename"], uploaded["size_bytes"]) == ("node-1", "k.bin", 3000)
            assert uploaded.get("durable_copies") == (["node-1", "node-2", "node-3"] if name == "node-1" else None)
        assert ("copied", 1) in [
            (event["kind"], event.get("copies")) for event in (await listed(world, "node-3"))["events"]
        ]

    in_world(scenario, **SMALL)


def test_rot_and_a_full_disk_are_told() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x" * 3000)
        await converged(world)
        assert spoil_files(world, "node-1")
        await world.request("node-1", "GET", "/files/k")
        (rot,) = [event for event in (await listed(world, "node-1"))["events"] if event["kind"] == "rot"]
        assert (rot["file_keys"], rot["files"]) == (["k"], 1)
        here(world, "node-1").space.note_full()
        await world.wait_until(lambda: here(world, "node-1").space.reason is None, 300)
        kinds = [event["kind"] for event in (await listed(world, "node-1"))["events"]]
        assert kinds.index("disk full") < kinds.index("disk has room")

    in_world(scenario, peers=2, **SMALL)


def test_who_asks_again_is_told_what_is_new_and_of_another_life_everything() -> None:
    async def scenario(world: World) -> None:
        first = await listed(world, "node-1")
        await put(world, "node-1", "k", b"content")
        (new,) = (await listed(world, "node-1", first["last"]))["events"]
        assert new["kind"] == "uploaded"
        assert (await listed(world, "node-1", new["id"]))["events"] == []
        for unknown in ("", "junk", "0-1", first["last"] + "x", "-1"):
            assert len((await listed(world, "node-1", unknown))["events"]) == len(first["events"]) + 1
        await world.crash("node-1")
        await world.start("node-1")
        again = (await listed(world, "node-1", new["id"]))["events"]
        assert again[0]["kind"] == "started"

    in_world(scenario, peers=2)


class Watcher:
    """A browser that watches a peer."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.status = 0

    async def watch(self, world: World, name: str, last: str = "") -> None:
        headers = {"accept": "text/event-stream", "last-event-id": last}
        url = f"http://{world.machines[name].address}/events"
        async with world.client.stream("GET", url, headers=headers, timeout=1000) as answer:
            self.status = answer.status_code
            async for line in answer.aiter_lines():
                self.said.append(line)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line.removeprefix("data: ")) for line in self.said if line.startswith("data: ")]


def test_what_happens_is_told_as_it_happens_and_the_stream_ends_with_the_peer() -> None:
    async def scenario(world: World) -> None:
        watcher, late = Watcher(), Watcher()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watcher.watch, world, "node-1")
            await world.wait_until(lambda: len(watcher.events) >= 3, 10)
            before = len(watcher.events)
            await put(world, "node-1", "k", b"content")
            await world.wait_until(lambda: len(watcher.events) > before, 2)
            assert watcher.events[-1]["file_key"] == "k"
            nursery.start_soon(late.watch, world, "node-1", watcher.events[before - 1]["id"])
            await trio.sleep(3 * events.BEAT_S)
            assert [event["file_key"] for event in late.events] == ["k"]
            assert watcher.said[0] == "retry: 2000"
            assert watcher.said.count(":") >= 2
            await world.stop("node-1")

    in_world(scenario, peers=2)


def test_no_more_than_some_may_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(events, "WATCHERS_MAX", 2)
        watchers = [Watcher() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for watcher in watchers[:2]:
                nursery.start_soon(watcher.watch, world, "node-1")
            await trio.sleep(1)
            await watchers[2].watch(world, "node-1")
            assert [watcher.status for watcher in watchers] == [200, 200, 503]
            nursery.cancel_scope.cancel()
        # Whoever goes makes room, as soon as something is sent.
        await trio.sleep(2 * events.BEAT_S)
        assert services(world, "node-1").watchers == set()

    in_world(scenario, peers=2)
