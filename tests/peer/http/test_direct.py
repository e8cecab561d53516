"""The direct way answers as the usual way does, is taken where it should be, and nowhere else."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest
from forms import BOUNDARY, field, form, parse
from hypothesis import given
from hypothesis import strategies as st
from multipart import MultipartError
from worlds import converged, get, in_world, put, services

from peer.http.callers import Callers
from peer.http.direct import FOUND_BYTES_MAX, FOUND_MAX, HOSTS_MAX, Direct, _sent_in
from peer.http.errors import HttpError
from sim.world import World

CONTENT = bytes(range(256)) * 4
LARGE = bytes(5000)
SETTINGS = {"inline_bytes_max": 2048, "chunk_bytes_max": 4096}
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}

Ask = tuple[str, str, dict[str, Any]]


async def never() -> None:
    raise AssertionError("nobody was to be asked")


def no_way(self: Direct, scope: object, unusual: object) -> bool:
    """In place of `Direct._is_plain`: nothing goes the direct way."""
    return False


def sent(body: bytes, **headers: str) -> dict[str, Any]:
    return {"content": body, "headers": {name.replace("_", "-"): value for name, value in headers.items()}}


def sent_form(*fields: bytes, **headers: str) -> dict[str, Any]:
    return {"content": form(*fields), "headers": {**FORM, **headers}}


FILE = field("file", CONTENT, "a name.txt", "Content-Type: text/plain")

DIRECT: list[Ask] = [
    ("GET", "/files/small", {}),
    ("HEAD", "/files/small", {}),
    ("GET", "/download/small", {}),
    ("HEAD", "/download/small", {}),
    ("GET", "/files/sm%61ll", {}),
    ("GET", "/files/small", {"headers": {"accept-encoding": "gzip", "cache-control": "no-cache"}}),
    ("POST", "/files", sent_form(FILE)),
    ("POST", "/files", sent_form(field("file", b"x", "plain"))),
    ("POST", "/files", sent_form(field("file", CONTENT, "photo.jpg", "Content-Type: application/octet-stream"))),
    ("PUT", "/files/new", sent(CONTENT)),
    ("PUT", "/files/new.png", sent(CONTENT, content_type="application/octet-stream")),
    ("PUT", "/files/small", sent(b"another content", content_type="text/csv; charset=utf-8")),
    ("PUT", "/files/small", sent(CONTENT)),
]
"""Requests that go the direct way alone."""

USUAL: list[Ask] = [
    ("GET", "/files/none", {}),
    ("GET", "/files/large", {}),
    ("HEAD", "/files/large", {}),
    ("GET", "/files/empty", {}),
    ("GET", "/files/small?version=nonsense", {}),
    ("GET", "/files/.hidden", {}),
    ("GET", "/files/small/", {}),
    ("GET", "/files/", {}),
    ("GET", "/files/small", {"headers": {"range": "bytes=1-3"}}),
    ("GET", "/files/small", {"headers": {"if-none-match": "*"}}),
    ("GET", "/files/small", {"headers": {"if-match": '"other"'}}),
    ("GET", "/files/small", {"headers": {"if-modified-since": "Fri, 01 Jan 2100 00:00:00 GMT"}}),
    ("GET", "/files/small", {"headers": {"if-unmodified-since": "Thu, 01 Jan 1970 00:00:00 GMT"}}),
    ("GET", "/files/small", {"headers": {"range": "bytes=1-3", "if-range": '"other"'}}),
    ("GET", "/files/small", {"headers": {"origin": "http://evil.example"}}),
    ("GET", "/files/small", {"headers": {"origin": "http://localhost"}}),
    ("GET", "/files/small", {"headers": {"host": "evil.example"}}),
    ("DELETE", "/files/small", {}),
    ("POST", "/files", sent_form(FILE, field("more", b"and more"))),
    ("POST", "/files", sent_form(field("before", b"x"), FILE)),
    ("POST", "/files", sent_form(FILE, FILE)),
    ("POST", "/files", sent_form(field("file", b"no name"))),
    ("POST", "/files", sent_form(field("file", b"", "empty.txt"))),
    ("POST", "/files", sent_form(field("file", b"x", ""))),
    ("POST", "/files", sent_form(field("file", b"x", "na\u00efve.txt"))),
    ("POST", "/files", sent_form(field("file", b"x", "a%22b.txt"))),
    ("POST", "/files", sent_form(field("file", LARGE, "large.bin"))),
    ("POST", "/files", {"content": form(FILE)[:-20], "headers": FORM}),
    ("POST", "/files", {"content": b"", "headers": FORM}),
    ("POST", "/files", sent(b"no form", content_type="text/plain")),
    ("POST", "/files", sent_form(FILE, **{"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="})),
    ("POST", "/files", sent_form(FILE, **{"repr-digest": "sha-256=:AAAA:"})),
    ("POST", "/files", sent_form(FILE, origin="http://evil.example")),
    ("POST", "/files", sent_form(FILE, host="evil.example")),
    ("POST", "/files?copies=1", sent_form(FILE)),
    ("PUT", "/files/empty-too", sent(b"")),
    ("PUT", "/files/large-too", sent(LARGE)),
    ("PUT", "/files/.hidden", sent(CONTENT)),
    ("PUT", "/files/wrong", sent(CONTENT, content_digest="sha-256=:AAAA:")),
    ("PUT", "/files/wrong", sent(CONTENT, origin="http://evil.example")),
    ("PATCH", "/files/small", sent(CONTENT)),
    ("POST", "/upload", sent_form(FILE)),
]
"""Requests that end on the usual way."""


def answers(asks: list[Ask]) -> list[tuple[int, dict[str, str], bytes]]:
    """Of peers that start alike; headers without what the network says."""
    found: list[tuple[int, dict[str, str], bytes]] = []

    async def scenario(world: World) -> None:
        await put(world, "node-1", "small", CONTENT)
        await put(world, "node-1", "large", LARGE)
        await put(world, "node-1", "empty", b"")
        await converged(world)
        for method, path, more in asks:
            response = await world.request("node-1", method, path, **more)
            found.append((response.status_code, dict(response.headers), response.content))
        listed = (await world.request("node-1", "GET", "/files")).json()["files"]
        metrics = (await world.request("node-1", "GET", "/metrics")).text
        counts = [
            line
            for line in metrics.splitlines()
            if line.startswith(("minidfs_http_requests_total", "minidfs_http_sent"))
        ]
        found.append((0, {}, repr((listed, counts)).encode()))

    in_world(scenario, peers=2, **SETTINGS)
    return found


@pytest.mark.parametrize("ask", [*DIRECT, *USUAL], ids=lambda ask: f"{ask[0]} {ask[1]}")
def test_both_ways_give_the_same_answers_and_count_the_same(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [ask, ("GET", "/files/small", {})]
    direct = answers(asks)
    monkeypatch.setattr(Direct, "_is_plain", no_way)
    for mine, usual in zip(direct, answers(asks), strict=True):
        assert mine == usual


@pytest.mark.parametrize(("asks", "usual"), [(DIRECT, 0), (USUAL, len(USUAL))], ids=["direct", "usual"])
def test_plain_requests_go_the_direct_way_and_no_others(
    asks: list[Ask], usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    went = 0
    call = Callers.__call__

    async def counted(self: Callers, scope: Any, receive: Any, send: Any) -> None:
        nonlocal went
        went += scope["path"].partition("/")[2].partition("/")[0] in ("files", "download", "upload")
        await call(self, scope, receive, send)

    async def scenario(world: World) -> None:
        nonlocal went
        await put(world, "node-1", "small", CONTENT)
        await put(world, "node-1", "large", LARGE)
        await put(world, "node-1", "empty", b"")
        await converged(world)
        monkeypatch.setattr(Callers, "__call__", counted)
        for number, (method, path, more) in enumerate(asks):
            await put(world, "node-2", f"x{number}", CONTENT)
            went = 0
            await world.request("node-1", method, path, **more)
            assert went == bool(usual), f"{method} {path} {more.get('headers')}"
            monkeypatch.setattr(Callers, "__call__", call)
            await put(world, "node-1", "small", CONTENT)
            monkeypatch.setattr(Callers, "__call__", counted)

    in_world(scenario, peers=2, **SETTINGS)


def test_a_file_that_was_read_is_read_anew_after_each_change() -> None:
    async def scenario(world: World) -> None:
        for number in range(3):
            await put(world, "node-1", "k", b"%d" % number)
            assert await get(world, "node-1", "k") == b"%d" % number
            assert await get(world, "node-1", "k") == b"%d" % number
        await put(world, "node-2", "k", b"of another peer")
        await converged(world)
        assert await get(world, "node-1", "k") == b"of another peer"
        await world.request("node-1", "DELETE", "/files/k")
        assert await get(world, "node-1", "k") == httpx.codes.NOT_FOUND

    in_world(scenario, peers=2)


def test_rot_in_the_database_never_leaves_by_the_direct_way_and_heals() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        await converged(world)
        machine = world.machines["node-1"]
        for database in machine.platter.databases.values():
            database.execute(
                "UPDATE chunks SET content = CAST(x'41' || substr(content, 2) AS BLOB) WHERE content IS NOT NULL"
            )
        direct = services(world, "node-1").downloads
        assert direct.small("k") is None
        assert await get(world, "node-1", "k") == CONTENT
        await converged(world)
        assert await get(world, "node-1", "k") == CONTENT
        found = direct.small("k")
        assert found is not None
        assert hashlib.sha256(found.content).digest() == found.sha256

    in_world(scenario, peers=2)


def test_a_row_that_is_no_text_any_more_is_an_error_of_the_database_on_both_ways() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        for database in world.machines["node-1"].platter.databases.values():
            database.execute("UPDATE chunks SET content = CAST(x'ff' AS TEXT)")
        assert services(world, "node-1").downloads.small("k") is None
        assert await get(world, "node-1", "k") == httpx.codes.SERVICE_UNAVAILABLE

    in_world(scenario, peers=1)


def test_what_was_looked_up_is_remembered_within_bounds() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        services_ = services(world, "node-1")
        config = services_.config
        direct = Direct(Callers(lambda *_: never(), config, lambda: services_), config, lambda: services_)
        found = direct._found(services_, "k")
        assert found is not None
        for number in range(FOUND_MAX + 10):
            direct._remember(f"k{number}", found)
        assert (len(direct._recent), direct._recent_bytes) == (FOUND_MAX, FOUND_MAX * len(CONTENT))
        # The earliest made room, and come back when they are asked for.
        assert next(iter(direct._recent)) == "k10"
        assert direct._found(services_, "k") == found
        assert len(direct._recent) == FOUND_MAX
        large = found._replace(file=found.file._replace(content=bytes(FOUND_BYTES_MAX // 4)))
        for number in range(9):
            direct._remember(f"large{number}", large)
            direct._remember("large0", large)
        assert direct._recent_bytes <= FOUND_BYTES_MAX
        assert direct._recent_bytes == sum(len(known.file.content) for known in direct._recent.values())
        for number in range(2 * HOSTS_MAX):
            assert direct._is_ours({"server": ("127.0.0.1", 1)}, b"localhost:%d" % number)
        assert len(direct._hosts) == HOSTS_MAX

    in_world(scenario, peers=1)


PIECES = st.lists(
    st.sampled_from([b"", b"\r\n", b"--", b"\r\n--" + BOUNDARY.encode(), BOUNDARY.encode(), b"a", b"--\r\n", b"\0\xff"])
)
LINES = st.lists(
    st.sampled_from(["Content-Type: text/plain", "content-type: image/png; x=y", "Content-Type: A/b", "X-Other: 1"]),
    max_size=2,
)
NAMES = st.sampled_from(
    ["a", "a b.txt", "", "..", "../x/y", 'q"q', "back\\slash", "100%25", "näme", "semi;colon", "a'b"]
)


@given(PIECES, NAMES, LINES, st.sampled_from(["file", "other"]), PIECES)
def test_a_form_is_read_as_the_parser_reads_it_or_left_to_it(
    pieces: list[bytes], name: str, lines: list[str], key: str, more: list[bytes]
) -> None:
    body = form(field(key, b"".join(pieces), name, *lines)) + b"".join(more)
    found = _sent_in(body, BOUNDARY.encode())
    if found is not None:
        assert found == parse([body])


@given(st.binary(max_size=60))
def test_bytes_that_are_no_form_are_left_to_the_parser(body: bytes) -> None:
    found = _sent_in(body, BOUNDARY.encode())
    try:
        parsed = parse([body])
    except (HttpError, MultipartError):
        parsed = None
    assert found in (None, parsed)
