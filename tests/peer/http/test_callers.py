"""Who may ask: hosts and origins, and what pages that may are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from worlds import get, in_world

from peer.config import Address, Config
from peer.http.callers import Callers
from protocol.identity import Member, NodeId
from sim.world import World

LOOPBACK = Config(node_id="node-1", listen=Address("127.0.0.1", 8001), data=Path(), facade=Address("127.0.0.1", 8080))
OPEN = replace(LOOPBACK, listen=Address("0.0.0.0", 8001), facade=None, names=("store.example",), hostname="box")  # noqa: S104


def ask(
    config: Config, method: str = "GET", server: str = "10.1.2.3", members: tuple[Member, ...] = (), **headers: str
) -> tuple[httpx.Response, bool]:
    """The answer to a request with these header fields, and whether the app was asked."""
    asked = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked = True
        await PlainTextResponse("content", headers={"vary": "Accept"})(scope, receive, send)

    async def main() -> httpx.Response:
        services: Any = SimpleNamespace(others=SimpleNamespace(membership=SimpleNamespace(members=lambda: members)))
        callers = Callers(app, config, lambda: services)

        async def from_server(scope: Scope, receive: Receive, send: Send) -> None:
            await callers({**scope, "server": (server, 8001)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(from_server)) as client:
            fields = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, "http://localhost:8001/files", headers=fields)

    return trio.run(main), asked


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8001", "localhost", "LOCALHOST:8080", "localhost.", "[::1]:8001", "127.1.2.3", "[::ffff:127.0.0.1]"],
)
def test_a_loopback_peer_goes_by_every_name_of_loopback(host: str) -> None:
    answer, asked = ask(LOOPBACK, server="127.0.0.1", host=host)
    assert (answer.status_code, asked) == (200, True)


@pytest.mark.parametrize("host", ["10.1.2.3:8001", "localhost:8001", "store.example", "Store.Example.:1", "box"])
def test_an_open_peer_goes_by_its_address_and_the_names_it_was_given(host: str) -> None:
    answer, asked = ask(OPEN, host=host)
    assert (answer.status_code, asked) == (200, True)


@pytest.mark.parametrize("config", [LOOPBACK, OPEN])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8001", "8.8.8.8", "localhost.evil.example", "localhost@evil.example", "[::2", ""],
)
def test_a_name_that_is_not_ours_is_misdirected(config: Config, host: str) -> None:
    answer, asked = ask(config, "POST", host=host)
    assert (answer.status_code, asked) == (421, False)
    assert "--name" in answer.json()["error"]


@pytest.mark.parametrize(
    ("config", "origin"),
    [
        (LOOPBACK, "http://localhost:3000"), (LOOPBACK, "http://127.0.0.1:8001"), (LOOPBACK, "https://[::1]"),
        (OPEN, "http://localhost:8001"), (replace(OPEN, origins=("https://dash.example",)), "https://dash.example"),
    ],
)  # fmt: skip
def test_pages_of_ours_may_ask_and_read_the_answer(config: Config, origin: str) -> None:
    answer, asked = ask(config, "POST", origin=origin)
    assert (answer.status_code, asked) == (200, True)
    assert answer.headers["access-control-allow-origin"] == origin
    assert "X-Routed-From" in answer.headers["access-control-expose-headers"]
    assert answer.headers["vary"] == "Accept, Origin"


@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
@pytest.mark.parametrize(
    ("config", "origin"),
    [
        (LOOPBACK, "https://evil.example"), (LOOPBACK, "null"), (LOOPBACK, "http://localhost.evil.example"),
        (LOOPBACK, "file://localhost"), (LOOPBACK, "http://[::1"), (LOOPBACK, ""), (OPEN, "http://localhost:3000"),
        (OPEN, "http://10.1.2.3"), (replace(OPEN, origins=("https://dash.example",)), "http://dash.example"),
        (replace(OPEN, origins=("https://dash.example",)), "https://dash.example.evil.example"),
    ],
)  # fmt: skip
def test_pages_of_elsewhere_are_refused_before_anything_is_done(config: Config, origin: str, method: str) -> None:
    answer, asked = ask(config, method, origin=origin, access_control_request_method="PUT")
    assert (answer.status_code, asked) == (403, False)
    assert "access-control-allow-origin" not in answer.headers


def test_a_browser_that_asks_first_is_told_what_it_may_send() -> None:
    answer, asked = ask(
        LOOPBACK,
        "OPTIONS",
        origin="http://localhost:3000",
        access_control_request_method="PUT",
        access_control_request_headers="content-type, x-mine",
    )
    assert (answer.status_code, asked) == (204, False)
    assert "PUT" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "content-type, x-mine"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_programs_send_no_origin_and_get_no_header_for_pages() -> None:
    answer, asked = ask(LOOPBACK)
    assert (answer.status_code, asked) == (200, True)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://10.0.0.2:8001", 200), ("http://10.0.0.2:8080", 200), ("http://10.0.0.2:8002", 403),
        ("https://10.0.0.2:8080", 403), ("http://10.0.0.3:8080", 403), ("http://[fd00::2]:8080", 200),
    ],
)  # fmt: skip
def test_pages_of_members_may_ask_from_their_own_ports_and_that_of_the_naming_service(origin: str, status: int) -> None:
    config = replace(OPEN, facade=Address("10.1.2.3", 8080))
    members = (Member(NodeId("b"), "10.0.0.2:8001", 1), Member(NodeId("c"), "[fd00::2]:8001", 1))
    answer, asked = ask(config, members=members, host="10.1.2.3:8001", origin=origin)
    assert (answer.status_code, asked) == (status, status == 200)


def test_a_page_elsewhere_can_neither_write_nor_register_and_one_of_a_member_can() -> None:
    async def scenario(world: World) -> None:
        evil = {"origin": "https://evil.example"}
        refused = await world.post_file("node-1", "/files?file_id=k", "a", b"evil", evil)
        assert refused.status_code == 403
        for method, path in [("POST", "/files/register"), ("DELETE", "/files/k"), ("PUT", "/files/k")]:
            assert (await world.request("node-1", method, path, headers=evil)).status_code == 403
        assert await get(world, "node-1", "k") == 404
        member = {"origin": f"http://{world.machines['node-2'].address}"}
        taken = await world.post_file("node-1", "/files?file_id=k", "a", b"good", member)
        assert taken.headers["access-control-allow-origin"] == member["origin"]
        assert await get(world, "node-1", "k") == b"good"

    in_world(scenario, peers=2, copies=2)
