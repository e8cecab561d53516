"""Every route as clients see it: over the simulated network, against real peers in a simulated world."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from email import message_from_bytes
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
from worlds import converged, everywhere, heal, here, holders, in_world, others, part, peer_asks, pending, put, services

from peer.config import Address, Config
from peer.http.app import make_app
from peer.pace import Pace
from protocol import codec
from protocol.keyring import OPEN, Keyring
from protocol.sessions import Sessions
from sim.world import World

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'
SMALL = {"inline_bytes_max": 1024, "chunk_bytes_max": 4096}


def alone(scenario: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario with one peer."""
    in_world(scenario, peers=1, **SMALL, **settings)


def assert_error(response: httpx.Response, status: int) -> str:
    """Every error has one shape; returns its text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["status"] == status
    assert body["error"] == body["detail"]
    assert len(body["error"]) > 10
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        assert response.headers["retry-after"].isdecimal()
    return str(body["error"])


async def ask(world: World, method: str, path: str, **more: Any) -> httpx.Response:
    return await world.request("node-1", method, path, **more)


# --- downloads ---


DOWNLOADS: list[tuple[dict[str, str], int, bytes | None]] = [
    ({}, 200, CONTENT),
    ({"range": "bytes=0-0"}, 206, CONTENT[:1]),
    ({"range": "bytes=1000-1001"}, 206, CONTENT[1000:1002]),
    ({"range": "bytes=4095-4096"}, 206, CONTENT[4095:4097]),
    ({"range": "bytes=100-"}, 206, CONTENT[100:]),
    ({"range": "bytes=-5000"}, 206, CONTENT[-5000:]),
    ({"range": "bytes=-99999"}, 206, CONTENT),
    ({"range": "bytes=0-1,99999-"}, 206, CONTENT[:2]),
    ({"range": "bytes=0-,0-"}, 200, CONTENT),
    ({"range": "bytes=" + ",".join(["0-0"] * 2000)}, 200, CONTENT),
    ({"range": "bytes=99999-,-0"}, 416, None),
    ({"range": "lines=0-1"}, 200, CONTENT),
    ({"range": "bytes=10240-"}, 416, None),
    ({"range": "bytes=-0"}, 416, None),
    ({"if-none-match": ETAG}, 304, b""),
    ({"if-none-match": f'"x", W/{ETAG}'}, 304, b""),
    ({"if-none-match": "*"}, 304, b""),
    ({"if-none-match": '"x"'}, 200, CONTENT),
    ({"if-none-match": ETAG, "range": "bytes=0-0"}, 304, b""),
    ({"if-none-match": ETAG, "range": "bytes=10240-"}, 304, b""),
    ({"if-none-match": '"x"', "range": "bytes=0-0"}, 206, CONTENT[:1]),
    ({"if-match": ETAG}, 200, CONTENT),
    ({"if-match": "*"}, 200, CONTENT),
    ({"if-match": f'"x", {ETAG}', "range": "bytes=0-0"}, 206, CONTENT[:1]),
    ({"if-match": '"x"'}, 412, None),
    ({"if-match": f"W/{ETAG}"}, 412, None),
    ({"if-match": '"x"', "if-none-match": ETAG}, 412, None),
    ({"if-match": ETAG, "if-none-match": ETAG}, 304, b""),
    ({"if-range": ETAG, "range": "bytes=0-0"}, 206, CONTENT[:1]),
    ({"if-range": '"x"', "range": "bytes=0-0"}, 200, CONTENT),
    ({"if-range": '"x"', "range": "bytes=10240-"}, 200, CONTENT),
    ({"if-range": f"W/{ETAG}", "range": "bytes=0-0"}, 200, CONTENT),
    ({"if-range": "Thu, 01 Jan 2026 00:00:00 GMT", "range": "bytes=0-0"}, 200, CONTENT),
]


def test_several_ranges_come_as_the_parts_of_one_answer_with_a_copy_and_without() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        headers = {"range": "bytes=10-19, -5, 4000-8300"}
        wanted = [(10, 20), (len(CONTENT) - 5, len(CONTENT)), (4000, 8301)]
        for name in world.machines:
            response = await world.request(name, "GET", "/files/k", headers=headers)
            assert response.status_code == httpx.codes.PARTIAL_CONTENT
            assert "content-range" not in response.headers
            head = f"content-type: {response.headers['content-type']}\r\n\r\n".encode()
            parts = message_from_bytes(head + response.content).get_payload()
            assert isinstance(parts, list)
            assert [one.get_content_type() for one in parts] == ["application/octet-stream"] * 3
            for one, (first, end) in zip(parts, wanted, strict=True):
                assert one["content-range"] == f"bytes {first}-{end - 1}/{len(CONTENT)}"
                assert one.get_payload(decode=True) == CONTENT[first:end]
            told = await world.request(name, "HEAD", "/files/k", headers=headers)
            assert told.headers["content-length"] == str(len(response.content)) == response.headers["content-length"]

    in_world(scenario, peers=4, **SMALL)


def test_downloads_keep_to_their_conditions_and_ranges_with_a_copy_and_without() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        for name in world.machines:
            for headers, status, content in DOWNLOADS:
                response = await world.request(name, "GET", "/files/k", headers=headers)
                case = f"{name} {headers}"
                assert response.status_code == status, case
                if content is None:
                    assert_error(response, status)
                    continue
                assert response.content == content, case
                assert response.headers["etag"] == ETAG
                assert response.headers["accept-ranges"] == "bytes"
                if status == 206:
                    first = CONTENT.index(content) if len(content) > 256 else None
                    assert response.headers["content-range"].endswith("/10240")
                    assert response.headers["content-length"] == str(len(content))
                    assert first is None or response.headers["content-range"].startswith("bytes ")
                head = await world.request(name, "HEAD", "/files/k", headers=headers)
                assert head.content == b""
                assert head.status_code == status
                assert dict(head.headers) == dict(response.headers)

    # One copy among two peers: the other one passes it on.
    in_world(scenario, peers=2, copies=1, **SMALL)


def test_a_download_keeps_to_conditions_about_dates_unless_tags_say_more() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        stamp = (await ask(world, "GET", "/files/k")).headers["last-modified"]
        modified = parsedate_to_datetime(stamp)
        before, after = (format_datetime(modified + timedelta(seconds=s), usegmt=True) for s in (-1, 1))
        for headers, status in [
            ({"if-modified-since": stamp}, 304), ({"if-modified-since": after}, 304),
            ({"if-modified-since": before}, 200), ({"if-modified-since": "yesterday"}, 200),
            ({"if-modified-since": after, "if-none-match": '"x"'}, 200),
            ({"if-modified-since": before, "if-none-match": ETAG}, 304),
            ({"if-unmodified-since": stamp}, 200), ({"if-unmodified-since": before}, 412),
            ({"if-unmodified-since": "Thu, 99 Foo 2026"}, 200),
            ({"if-unmodified-since": before, "if-match": ETAG}, 200),
            ({"if-unmodified-since": after, "if-match": '"x"'}, 412),
            ({"if-range": stamp, "range": "bytes=0-0"}, 200),
        ]:  # fmt: skip
            assert (await ask(world, "GET", "/files/k", headers=headers)).status_code == status, headers

    alone(scenario)


def test_a_download_says_what_it_is_and_where_it_came_from() -> None:
    async def scenario(world: World) -> None:
        await world.upload("node-1", "été \U0001f600.html", CONTENT, file_id="k")
        response = await ask(world, "GET", "/files/k")
        expected = {
            "content-type": "text/html",
            "content-length": "10240",
            "x-content-type-options": "nosniff",
            "x-routed-from": "node-1",
            "x-node-latency-ms": "0",
            "repr-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:",
            "content-disposition": (
                "attachment; filename=\"_t_ _.html\"; filename*=UTF-8''%C3%A9t%C3%A9%20%F0%9F%98%80.html"
            ),
        }
        assert expected.items() <= dict(response.headers).items()

    alone(scenario)


def test_an_empty_file_is_200_and_any_range_of_it_416() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"")
        response = await ask(world, "GET", "/files/k")
        assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")
        assert_error(await ask(world, "GET", "/files/k", headers={"range": "bytes=0-"}), 416)

    alone(scenario)


@pytest.mark.parametrize(
    "key", ["%2E%2E", "a%2Fb", "%00", "-a", "_", ".a", "a" * 129, "a%0A", "%C3%A9", "a b", "%25", "*"]
)
def test_what_can_be_no_id_is_404(key: str) -> None:
    async def scenario(world: World) -> None:
        for method in ("GET", "DELETE"):
            assert_error(await ask(world, method, f"/files/{key}"), 404)
        assert (await ask(world, "HEAD", f"/files/{key}")).status_code == 404

    alone(scenario)


# --- uploads ---


def multipart(content: bytes, filename: str = "a.txt") -> dict[str, Any]:
    return {"files": {"file": (filename, content, "application/octet-stream")}}


def test_an_upload_answers_with_the_documented_receipt() -> None:
    async def scenario(world: World) -> None:
        response = await ask(world, "POST", "/files", **multipart(CONTENT, "été.txt"))
        receipt = response.json()
        key = receipt["file_id"]
        assert receipt == {
            "success": True, "file_id": key, "file_key": key, "stored_name": f"{key}.txt",
            "original_filename": "été.txt",
            "content_type": "text/plain", "size_bytes": 10240, "checksum_sha256": SHA256,
            "uploaded_at": receipt["uploaded_at"], "node_id": "node-1", "node": "node-1",
            "replication": {
                "total_nodes": 2, "successful": 2, "failed": 0,
                "details": [{"node": node, "success": True} for node in receipt_order(receipt)],
            },
            "durable_copies": ["node-1", "node-2", "node-3"], "durability": "fsync",
        }  # fmt: skip
        assert len(key) == 36
        assert receipt["uploaded_at"].endswith("Z")
        one = await ask(world, "POST", "/files?copies=1&file_id=K.1_-x", **multipart(b"1"))
        assert len(one.json()["durable_copies"]) >= 1
        assert one.json()["file_id"] == "K.1_-x"

    def receipt_order(receipt: dict[str, Any]) -> list[str]:
        return [detail["node"] for detail in receipt["replication"]["details"]]

    in_world(scenario, **SMALL)


@pytest.mark.parametrize(
    "query",
    ["file_id=", "file_id=a/b", "file_id=-a", "file_id=" + "a" * 129, "file_id=a%0A", "copies=0", "copies=-1",
     "copies=x",
     "copies=256", "copies=1.0", "copies=", "copies=%D9%A1", "min_copies=0", "min_copies=4&copies=3",
     "min_copies=x"],
)  # fmt: skip
def test_a_senseless_question_is_refused_and_stores_nothing(query: str) -> None:
    async def scenario(world: World) -> None:
        assert_error(await ask(world, "POST", f"/files?{query}", **multipart(CONTENT)), 400)
        assert (await ask(world, "GET", "/files")).json()["total"] == 0
        assert world.machines["node-1"].platter.files == {}

    alone(scenario)


def digest_of(name: str, content: bytes) -> str:
    return base64.b64encode(hashlib.new(name, content).digest()).decode()


@pytest.mark.parametrize("header", ["repr-digest", "content-digest"])
def test_digests_that_are_right_are_fine_and_wrong_ones_leave_nothing(header: str) -> None:
    async def scenario(world: World) -> None:
        right = [f"sha-256=:{digest_of('sha256', CONTENT)}:", f"SHA-512=:{digest_of('sha512', CONTENT)}:",
        "crc32c=:AAAA:",
                 f"sha-256=:{digest_of('sha256', CONTENT)}:, md5=:{digest_of('md5', CONTENT)}:", ""]  # fmt: skip
        wrong = [f"sha-256=:{digest_of('sha256', b'x')}:", f"sha-512=:{digest_of('sha256', CONTENT)}:", "sha-256=::",
        "sha-256",
                 f"md5=:{digest_of('md5', b'')}:", "sha-256=:not base64:", "sha-256=:AAAA:",
                 f"sha-256=:{digest_of('sha256', CONTENT)}:, md5=:{digest_of('md5', b'')}:"]  # fmt: skip
        for value in wrong:
            response = await ask(world, "POST", "/files?file_id=k", headers={header: value}, **multipart(CONTENT))
            assert_error(response, 400)
            await world.wait_until(lambda: not world.machines["node-1"].platter.files, 5)
        assert_error(await ask(world, "GET", "/files/k"), 404)
        for value in right:
            response = await ask(world, "POST", "/files?file_id=k", headers={header: value}, **multipart(CONTENT))
            assert response.status_code == 200, value

    alone(scenario)


def test_content_md5_is_checked() -> None:
    async def scenario(world: World) -> None:
        for value, status in [(digest_of("md5", CONTENT), 200), (digest_of("md5", b""), 400), ("?", 400), ("", 400)]:
            response = await ask(world, "POST", "/files", headers={"content-md5": value}, **multipart(CONTENT))
            assert response.status_code == status, value

    alone(scenario)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=b", 400), (b"junk", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400), (b"x", "multipart/form-data", 400), (b"x",
         "text/plain", 415),
        (b"--b\r\n" + b"h" * 100_000, "multipart/form-data; boundary=b", 413),
        (b'--b\r\nContent-Disposition: form-data; name="o"\r\n\r\n' + b"h" * 100_000,
         "multipart/form-data; boundary=b", 413),
    ],
)  # fmt: skip
def test_a_body_that_is_no_form_is_refused(body: bytes, kind: str, status: int) -> None:
    async def scenario(world: World) -> None:
        response = await ask(world, "POST", "/files", content=body, headers={"content-type": kind})
        assert response.status_code in (status, 400)
        assert_error(response, response.status_code)

    alone(scenario)


# --- register ---


def registration(**changes: Any) -> dict[str, Any]:
    body = {
        "file_key": "r", "original_filename": "r.txt", "size_bytes": 10240, "checksum_sha256": SHA256,
        "node_id": "node-1",
        "failed_nodes": [], **changes,
    }  # fmt: skip
    return {name: value for name, value in body.items() if value is not ...}


@pytest.mark.parametrize(
    "changes",
    [
        {"file_key": ...}, {"file_key": 1}, {"file_key": ""}, {"file_key": "a/b"}, {"file_key": "\ud800"},
        {"file_key": None},
        {"original_filename": ...}, {"original_filename": 1}, {"original_filename": None}, {"original_filename": ["a"]},
        {"size_bytes": ...}, {"size_bytes": -1}, {"size_bytes": "1"}, {"size_bytes": 1.0}, {"size_bytes": True},
        {"size_bytes": 1 << 63}, {"size_bytes": None},
        {"checksum_sha256": ...}, {"checksum_sha256": ""}, {"checksum_sha256": "0" * 63}, {"checksum_sha256": "g" * 64},
        {"checksum_sha256": 1}, {"checksum_sha256": "0" * 64 + "\n"}, {"checksum_sha256": "\u0660" * 64},
        {"node_id": ...}, {"node_id": ""}, {"node_id": 1}, {"node_id": "node-9"}, {"node_id": "a b"}, {"node_id": None},
        {"failed_nodes": "node-1"}, {"failed_nodes": [1]}, {"failed_nodes": ["node-9"]}, {"failed_nodes": {"a": 1}},
        {"failed_nodes": [None]},
    ],
)  # fmt: skip
def test_a_malformed_registration_is_refused_and_changes_nothing(changes: dict[str, Any]) -> None:
    async def scenario(world: World) -> None:
        body = json.dumps(registration(**changes))
        assert_error(await ask(world, "POST", "/files/register", content=body), 400)
        assert (await ask(world, "GET", "/files")).json()["total"] == 0

    alone(scenario)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 5000, b"NaN"])
def test_a_registration_that_is_no_json_object_is_refused(body: bytes) -> None:
    async def scenario(world: World) -> None:
        assert_error(await ask(world, "POST", "/files/register", content=body), 400)

    alone(scenario)


def test_a_body_of_json_over_a_mebibyte_is_refused() -> None:
    async def scenario(world: World) -> None:
        assert_error(await ask(world, "POST", "/files/register", content=b" " * (1 << 21)), 413)

    alone(scenario)


def test_a_key_registered_without_content_is_listed_and_503_until_its_content_comes() -> None:
    async def scenario(world: World) -> None:
        response = await ask(world, "POST", "/files/register", json=registration(failed_nodes=["node-2"]))
        assert response.json() == {"success": True, "message": "file metadata registered", "verified": False}
        await trio.sleep(1)
        (listed,) = (await world.request("node-2", "GET", "/files")).json()["files"]
        assert listed == {
            "file_key": "r", "original_filename": "r.txt", "size_bytes": 10240, "checksum_sha256": SHA256,
            "content_type": "text/plain", "uploaded_at": listed["uploaded_at"], "replicas": [],
        }  # fmt: skip
        for name in world.machines:
            assert "no content" in assert_error(await world.request(name, "GET", "/files/r"), 503)
        assert [target for _, target in pending(world, "node-3")] == ["node-1", "node-2", "node-3"]
        again = await world.request("node-3", "POST", "/files/register", json=registration())
        assert again.json()["verified"] is False
        assert_error(await ask(world, "POST", "/files/register", json=registration(checksum_sha256="0" * 64)), 409)
        assert_error(await ask(world, "POST", "/files/register", json=registration(size_bytes=1)), 409)
        await put(world, "node-2", "r", CONTENT)
        for name in world.machines:
            assert (await world.request(name, "GET", "/files/r")).content == CONTENT
        assert (await ask(world, "POST", "/files/register", json=registration())).json()["verified"] is True
        assert_error(await ask(world, "POST", "/files/register", json=registration(checksum_sha256="0" * 64)), 409)
        assert (await ask(world, "DELETE", "/files/r")).json()["deleted_from"] == 3

    in_world(scenario, **SMALL)


def test_content_that_is_here_under_another_key_proves_a_registration() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", CONTENT)
        response = await ask(world, "POST", "/files/register", json=registration(node_id="node-2"))
        assert response.json()["verified"] is True
        await converged(world)
        for name in world.machines:
            assert (await world.request(name, "GET", "/files/r")).content == CONTENT
        await ask(world, "DELETE", "/files/k")
        await trio.sleep(2)
        assert (await world.request("node-3", "GET", "/files/r")).content == CONTENT

    in_world(scenario, **SMALL)


# --- lists ---


def test_pages_of_files_hold_each_file_once_while_files_come_and_go() -> None:
    async def scenario(world: World) -> None:
        for number in range(25):
            await put(world, "node-1", f"k{number:02}", b"x")
            if number % 3 == 0:
                await trio.sleep(0.01)
        seen: list[str] = []
        after = ""
        while True:
            page = (await ask(world, "GET", f"/files?limit=4{after}")).json()
            assert page["count"] == len(page["files"]) <= 4
            seen += [file["file_key"] for file in page["files"]]
            if len(seen) == 8:
                await ask(world, "DELETE", f"/files/{seen[-1]}")
                await put(world, "node-1", "newer", b"x")
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert sorted(seen) == [f"k{number:02}" for number in range(25)]
        assert page["total"] == 25
        uploaded = [file["uploaded_at"] for file in (await ask(world, "GET", "/files")).json()["files"]]
        assert uploaded == sorted(uploaded, reverse=True)

    alone(scenario)


def test_files_are_found_by_the_beginning_of_their_name() -> None:
    async def scenario(world: World) -> None:
        for number, name in enumerate(["a.txt", "ab.txt", "b.txt", "a%_*.txt", "é.txt", "\U0001f600.txt"]):
            await world.upload("node-1", name, b"x", file_id=f"k{number}")
        for prefix, count in [
            ("a", 3),
            ("ab", 1),
            ("%", 0),
            ("a%", 1),
            ("é", 1),
            ("A", 0),
            ("", 6),
            ("a.txt", 1),
            ("\U0001f600", 1),
        ]:
            page = (
                await world.client.get(f"http://{world.machines['node-1'].address}/files", params={"name": prefix})
            ).json()
            assert (page["count"], page["total"]) == (count, count), prefix

    alone(scenario)


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "after=x", "after=%FF", "after=é", "after=MTI6Li4",
     "after=Og",
     "after=" + "9" * 5000],
)  # fmt: skip
def test_a_senseless_page_is_400(query: str) -> None:
    async def scenario(world: World) -> None:
        assert_error(await ask(world, "GET", f"/files?{query}"), 400)

    alone(scenario)


def test_the_queue_says_how_many_bytes_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await trio.sleep(5)
        for size in (10, 20, 3000):
            await put(world, "node-1", f"k{size}", b"x" * size)

        async def missing_bytes() -> list[int]:
            targets = (await ask(world, "GET", "/replication-queue")).json()["targets"]
            return [target["missing_bytes"] for target in targets]

        assert await missing_bytes() == [3030]
        monkeypatch.setattr("peer.store.lookups.SIZES_READ_MAX", 2)
        # Whichever two of them are read.
        assert await missing_bytes() in ([45], [4515], [4530])

    in_world(scenario, peers=2, copies=2, **SMALL)


def test_the_queue_is_filtered_before_it_is_cut() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-2")
        await trio.sleep(5)
        await put(world, "node-1", "recovered", b"x")
        await world.start("node-2")
        await converged(world)
        await world.crash("node-2")
        await trio.sleep(5)
        for number in range(3):
            await put(world, "node-1", f"k{number}", b"x")
            await trio.sleep(0.01)

        async def queue(query: str) -> list[tuple[str, str]]:
            answer = (await ask(world, "GET", f"/replication-queue?{query}")).json()
            assert answer["count"] == len(answer["items"])
            return [(item["file_key"], item["status"]) for item in answer["items"]]

        missing = [(f"k{number}", "PENDING") for number in reversed(range(3))]
        assert await queue("") == [*missing, ("recovered", "COMPLETED")]
        assert await queue("status=COMPLETED&limit=1") == [("recovered", "COMPLETED")]
        assert await queue("status=PENDING&limit=2") == missing[:2]
        assert await queue("status=FAILED") == []
        assert await queue("node_id=node-2&status=PENDING") == missing
        assert await queue("node_id=node-1") == []
        assert await queue("node_id='%00") == []

        async def left(query: str) -> tuple[int, int | None]:
            """Copies and seconds."""
            answer = (await ask(world, "GET", f"/replication-queue?{query}")).json()
            targets = [(one["missing"], one["seconds_left"]) for one in answer["targets"]]
            assert targets == ([(answer["missing"], answer["seconds_left"])] if answer["missing"] else [])
            return answer["missing"], answer["seconds_left"]

        missing_copies, seconds = await left("limit=1")
        assert missing_copies == 3
        assert seconds is not None
        assert seconds > 0
        assert await left("node_id=node-1") == (0, 0)
        await trio.sleep(61)
        # Nothing has come back for a minute.
        assert await left("node_id=node-2&status=COMPLETED") == (3, None)
        assert_error(await ask(world, "GET", "/replication-queue?status=LOST"), 400)
        assert_error(await ask(world, "GET", "/replication-queue?limit=0"), 400)
        (item, *_) = (await ask(world, "GET", "/replication-queue")).json()["items"]
        assert set(item) == {
            "id", "file_key", "target_node_id", "source_node_id", "status", "retry_count", "last_attempt",
            "next_attempt", "created_at", "error_message",
        }  # fmt: skip
        assert (item["source_node_id"], item["target_node_id"]) == ("node-1", "node-2")

    in_world(scenario, peers=2, copies=2)


def test_nodes_are_listed_with_what_is_believed_of_them_and_checked_now() -> None:
    async def scenario(world: World) -> None:
        await world.crash("node-3")
        checked = (await ask(world, "GET", "/nodes/check")).json()
        assert [(node["id"], node["status"]) for node in checked["nodes"]] == [
            ("node-1", "UP"),
            ("node-2", "UP"),
            ("node-3", "DOWN"),
        ]
        assert checked["nodes"][2]["latency_ms"] == 9999
        await trio.sleep(5)
        listed = (await ask(world, "GET", "/nodes")).json()
        assert [(node["id"], node["status"], node["role"]) for node in listed] == [
            ("node-1", "UP", "PEER"), ("node-2", "UP", "PEER"), ("node-3", "DOWN", "PEER"),
        ]  # fmt: skip
        assert listed[2]["latency_ms"] == 9999
        assert 0 <= listed[1]["latency_ms"] < 100
        assert listed[1]["address"] == "http://127.0.0.1:9002"
        assert all(node["last_heartbeat"].endswith("Z") for node in listed)

    in_world(scenario)


def test_numbers_are_whole_as_old_clients_read_them() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"x")
        latencies = [node["latency_ms"] for node in (await ask(world, "GET", "/nodes")).json()]
        latencies += [node["latency_ms"] for node in (await ask(world, "GET", "/nodes/check")).json()["nodes"]]
        assert [type(latency) for latency in latencies] == [int] * 6
        assert (await world.request("node-2", "GET", "/files/k")).headers["x-node-latency-ms"].isdecimal()

    in_world(scenario)


def test_an_item_of_the_queue_has_a_source_also_when_nobody_holds_the_file() -> None:
    async def scenario(world: World) -> None:
        await ask(world, "POST", "/files/register", json=registration(node_id="node-2"))
        items = (await ask(world, "GET", "/replication-queue")).json()["items"]
        assert [item["source_node_id"] for item in items] == ["node-1"] * 2

    in_world(scenario, peers=2, copies=2)


# --- uploads and downloads by their other names ---


def test_a_raw_body_is_stored_under_the_id_it_is_put_to() -> None:
    async def scenario(world: World) -> None:
        answer = await world.request(
            "node-1", "PUT", "/files/k", content=CONTENT, headers={"content-type": "image/png"}
        )
        receipt = answer.json()
        assert (receipt["file_id"], receipt["original_filename"], receipt["content_type"]) == ("k", "k", "image/png")
        assert receipt["checksum_sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert await everywhere(world, "k") == [CONTENT] * 3
        named = await world.request("node-2", "PUT", "/files/k?filename=dir/a.txt&copies=1", content=b"new")
        assert named.json()["original_filename"] == "a.txt"
        assert named.json()["content_type"] == "text/plain"
        await converged(world)
        assert await everywhere(world, "k") == [b"new"] * 3
        digest = {"repr-digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"}
        assert_error(await world.request("node-1", "PUT", "/files/k", content=b"other", headers=digest), 400)
        assert_error(await world.request("node-1", "PUT", "/files/.k", content=b"other"), 400)
        assert_error(await world.request("node-1", "PUT", f"/files/{'k' * 129}", content=b"other"), 400)
        assert await everywhere(world, "k") == [b"new"] * 3

    in_world(scenario, **SMALL)


def test_the_naming_services_upload_and_download_are_the_same_with_its_words() -> None:
    async def scenario(world: World) -> None:
        answer = await world.post_file("node-2", "/upload", "a.txt", CONTENT, {})
        receipt = answer.json()
        assert (receipt["routed_via"], receipt["selected_node"], receipt["node_latency_ms"]) == (
            "naming-service", "node-2", 0,
        )  # fmt: skip
        assert receipt["replication"]["successful"] == 2
        got = await world.request("node-3", "GET", f"/download/{receipt['file_key']}")
        assert got.content == CONTENT
        assert got.headers["x-routed-from"] == "node-3"
        assert_error(await world.request("node-3", "GET", "/download/unknown"), 404)

    in_world(scenario, **SMALL)


def test_a_location_counts_once_its_node_has_proved_it() -> None:
    async def scenario(world: World) -> None:
        targets_of = others(world, "node-1").placement.targets_of
        key = next(key for number in range(99) if targets_of(key := f"k{number}", 1) == ["node-1"])
        await put(world, "node-1", key, CONTENT)

        async def location(**body: object) -> httpx.Response:
            return await ask(world, "POST", "/files/register-location", json=body)

        assert (await location(file_key=key, node_id="node-1")).json() == {"success": True, "verified": True}
        assert (await location(file_key=key, node_id="node-2")).json() == {"success": True, "verified": False}
        assert holders(world, "node-1", key) == ["node-1"]
        assert_error(await location(file_key="unknown", node_id="node-1"), 404)
        assert_error(await location(file_key=key, node_id="node-9"), 400)
        assert_error(await location(file_key=".k", node_id="node-1"), 400)
        assert_error(await location(node_id="node-1"), 400)

    in_world(scenario, peers=2, copies=1, **SMALL)


# --- what is not there ---


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/files", "GET, HEAD, POST"), ("/files/k", "DELETE, GET, HEAD, PUT"), ("/upload", "POST"),
        ("/nodes", "GET, HEAD"), ("/files/register", "DELETE, GET, HEAD, POST, PUT"),
    ],
)  # fmt: skip
def test_a_refused_method_is_told_all_that_are_allowed(path: str, allowed: str) -> None:
    async def scenario(world: World) -> None:
        assert (await ask(world, "PATCH", path)).headers["allow"] == allowed

    alone(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405), ("GET", "/nothing", 404), ("GET", "/files/a/b", 404), ("POST", "/files/a/b", 404),
        ("PATCH", "/files", 405), ("DELETE", "/files", 405), ("PUT", "/files", 405), ("POST", "/files/k", 405),
        ("POST", "/download/k", 405),
        ("PATCH", "/files/k", 405), ("POST", "/nodes", 405), ("POST", "/health", 405), ("GET",
        "/nodes/node-1/recover", 405),
        ("PATCH", "/files/register", 405), ("POST", "/replication-queue", 405), ("GET", "/upload", 405),
        ("OPTIONS", "/files", 405),
        ("GET", "/peer/exchange", 401), ("POST", "/nodes/nobody/recover", 404), ("POST", "/nodes/%20/recover", 404),
        ("GET", "/files/register", 404), ("GET", "/files/unknown", 404), ("DELETE", "/files/unknown", 404),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_the_shape_of_every_error(method: str, path: str, status: int) -> None:
    async def scenario(world: World) -> None:
        response = await ask(world, method, path)
        assert_error(response, status)
        assert ("allow" in response.headers) == (status == 405)

    alone(scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/peer/exchange"), ("GET", "/peer/snapshot"), ("POST", "/peer/chunks"), ("GET",
     "/peer/chunks/" + "0" * 64),
     ("PUT", "/peer/chunks/" + "0" * 64), ("POST", "/peer/recover"), ("GET", "/peer/repairs")],
)  # fmt: skip
def test_peers_of_other_clusters_and_other_clients_are_kept_out(method: str, path: str) -> None:
    async def scenario(world: World) -> None:
        cluster = {"x-minidfs-cluster": others(world, "node-1").cluster_id}
        for headers in ({}, cluster, {**cluster, "x-minidfs-proof": "AAAA"}):
            assert_error(await ask(world, method, path, headers=headers), 401)
        assert_error(await peer_asks(world, "node-1", method, path, keyring=Keyring([bytes(31) + b"1"])), 401)
        assert_error(await peer_asks(world, "node-1", method, path, x_minidfs_cluster="another"), 403)
        assert world.machines["node-1"].platter.files == {}

    alone(scenario)


def test_what_peers_send_is_checked() -> None:
    async def scenario(world: World) -> None:
        async def asked(method: str, path: str, content: bytes = b"") -> httpx.Response:
            return await peer_asks(world, "node-1", method, path, content)

        for junk in (b"", b"junk", b"\x90", b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff"):
            assert_error(await asked("POST", "/peer/exchange", junk), 400)
            assert_error(await asked("POST", "/peer/join", junk), 400)
            if junk != b"\x90":
                assert_error(await asked("POST", "/peer/chunks", junk), 400)
        too_many = codec.pack([bytes(32)] * 1025)
        for path in ("/peer/chunks", "/peer/chunks/renew", "/peer/chunks/withdraw"):
            assert_error(await asked("POST", path, too_many), 400)
        assert codec.unpack((await asked("POST", "/peer/chunks/renew", codec.pack([bytes(32)]))).content) == [bytes(32)]
        assert_error(await asked("GET", f"/peer/chunks/{'00' * 32}?put=junk"), 400)
        assert_error(await asked("GET", f"/peer/chunks/{'00' * 32}?put=c0"), 400)
        for name in ("x", "00", "zz" * 32, "0" * 63, "%20" + "0" * 62):
            assert_error(await asked("GET", f"/peer/chunks/{name}"), 400)
            assert_error(await asked("PUT", f"/peer/chunks/{name}", b"x"), 400)
        assert_error(await asked("GET", "/peer/chunks/" + "0" * 64), 404)
        assert_error(await asked("PUT", "/peer/chunks/" + "0" * 64, b"other bytes" * 200), 400)
        assert_error(await asked("PUT", "/peer/chunks/" + "0" * 64, b"x" * 5000), 413)
        assert world.machines["node-1"].platter.files == {}
        assert services(world, "node-1").gossip.datagrams_dropped == 0

    alone(scenario)


class StoppedClock:
    """A clock for an app that needs none."""

    def now(self) -> float:
        return 0.0

    def wall_ms(self) -> int:
        return 0


def test_health_is_liveness_and_a_peer_that_has_not_joined_says_503_elsewhere() -> None:
    config = Config(node_id="node-7", listen=Address("127.0.0.1", 1), data=Path(), hostname="here")

    async def main() -> None:
        sessions = Sessions(OPEN, Random(1))
        transport = httpx.ASGITransport(
            make_app(config, "1.2.3", StoppedClock(), lambda: None, Pace(lambda: 0.0), sessions)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            health = await client.get("/health")
            assert health.json() == {
                "status": "UP", "service": "storage-node", "node_id": "node-7", "node": "node-7", "hostname": "here",
                "version": "1.2.3", "cluster_id": None,
            }  # fmt: skip
            for method, path in [
                ("GET", "/health/ready"), ("GET", "/files"), ("POST", "/files"), ("GET", "/files/k"), ("DELETE",
                "/files/k"),
                ("POST", "/files/register"), ("GET", "/nodes"), ("GET", "/nodes/check"), ("POST", "/nodes/a/recover"),
                ("GET", "/replication-queue"),
            ]:  # fmt: skip
                assert_error(await client.request(method, path), 503)

    trio.run(main)


# --- versions ---


def test_versions_written_apart_are_listed_and_read_and_end_with_the_next_upload() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"first")
        await converged(world)
        part(world, ("node-1",), ("node-2", "node-3"))
        await trio.sleep(10)
        await put(world, "node-1", "k", b"ours")
        await put(world, "node-2", "k", b"theirs")
        heal(world)
        await converged(world)
        dots: dict[bytes, str] = {}
        for name in world.machines:
            listed = (await world.request(name, "GET", "/files/k/versions")).json()
            assert (listed["file_id"], listed["file_key"], listed["count"]) == ("k", "k", 2)
            assert [version["shown"] for version in listed["versions"]] == [True, False]
            assert all(version["replicas"] == ["node-1", "node-2", "node-3"] for version in listed["versions"])
            contents = [
                (await world.request(name, "GET", "/files/k", params={"version": version["dot"]})).content
                for version in listed["versions"]
            ]
            assert sorted(contents) == [b"ours", b"theirs"]
            assert (await world.request(name, "GET", "/files/k")).content == contents[0]
            dots = {content: version["dot"] for content, version in zip(contents, listed["versions"], strict=True)}
        await put(world, "node-3", "k", b"last")
        for dot in dots.values():
            assert_error(await ask(world, "GET", f"/files/k?version={dot}"), 404)
        await put(world, "node-1", "other", b"x")
        (other,) = (await ask(world, "GET", "/files/other/versions")).json()["versions"]
        assert_error(await ask(world, "GET", f"/files/k?version={other['dot']}"), 404)
        for wrong in ("", "x", "node-1:zz:1", "node-1:1", "%00", "node-1:1:-1", "a" * 5000):
            assert_error(await ask(world, "GET", f"/files/k?version={wrong}"), 400)
        assert_error(await ask(world, "GET", "/files/unknown/versions"), 404)

    in_world(scenario, **SMALL)


# --- paging ---


@pytest.mark.parametrize("seed", range(5))
def test_pages_show_each_file_that_stays_once_while_others_come_and_go(seed: int) -> None:
    async def scenario(world: World) -> None:
        staying = {f"s{number}" for number in range(20)}
        going = {f"g{number}" for number in range(20)}
        for key in sorted(staying | going, key=lambda _: world.chance.random()):
            await put(world, "node-1", key, b"x")
        seen: list[str] = []
        after = ""
        while True:
            # Any peer goes on where another one left off.
            name = world.chance.choice(list(world.machines))
            page = (await world.request(name, "GET", f"/files?limit=7{after}")).json()
            seen += [file["file_key"] for file in page["files"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
            await put(world, "node-2", f"n{len(seen)}", b"new")
            for key in world.chance.sample(sorted(going), min(3, len(going))):
                going.remove(key)
                await world.request("node-3", "DELETE", f"/files/{key}")
            await trio.sleep(1)
        assert len(seen) == len(set(seen))
        assert staying <= set(seen)

    in_world(scenario, seed=seed, **SMALL)


# --- uploads that are handed on ---


def test_a_peer_short_of_space_hands_uploads_on_to_one_that_is_ready() -> None:
    async def scenario(world: World) -> None:
        for name in world.machines:
            await services(world, name).ready.wait()
        here(world, "node-1").space.reason = "the disk is full"
        for key, content in (("small", b"x"), ("large", CONTENT)):
            response = await ask(world, "POST", f"/upload?file_id={key}&copies=3", **multipart(content))
            receipt = response.json()
            assert response.status_code == httpx.codes.OK, receipt
            assert (receipt["routed_via"], receipt["selected_node"]) == ("naming-service", receipt["node_id"])
            assert receipt["selected_node"] in ("node-2", "node-3")
            assert receipt["durable_copies"] == ["node-2", "node-3"]
            assert receipt["node_latency_ms"] < 9999
            assert (await world.request("node-3", "GET", f"/files/{key}")).content == content
        wrong = {"content-md5": digest_of("md5", b"other")}
        assert "md5" in assert_error(await ask(world, "POST", "/upload", headers=wrong, **multipart(CONTENT)), 400)
        assert_error(await ask(world, "POST", "/upload", files={"other": b"x"}), 400)
        # Whoever asks this peer for itself is told.
        assert_error(await ask(world, "POST", "/files", **multipart(CONTENT)), 507)
        here(world, "node-2").space.reason = "the disk is full"
        receipt = (await ask(world, "POST", "/upload", **multipart(CONTENT))).json()
        assert receipt["selected_node"] == "node-3"
        here(world, "node-3").space.reason = "the disk is full"
        assert_error(await ask(world, "POST", "/upload", **multipart(CONTENT)), 507)

    in_world(scenario, **SMALL)
