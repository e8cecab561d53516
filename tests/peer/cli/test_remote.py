"""A client that asks another peer when one fails, and moves files in pieces. The peers are scripted."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import click
import httpx
import pytest

from peer.cli.options import DEFAULT_URL, read_url
from peer.cli.remote import TRIES_AT_ONE_URL, Refused, Remote, Unreachable, file_path
from peer.cli.transfers import (
    ChecksumWrong,
    Download,
    filename_of,
    hash_of,
    part_of,
    upload_file,
    upload_stream,
)

Handler = Callable[[httpx.Request], httpx.Response]

CONTENT = bytes(range(256)) * 1000
SHA = hashlib.sha256(CONTENT).hexdigest()
FIRST, SECOND = "http://127.0.0.1:8001", "http://127.0.0.1:8002"


class Body(httpx.SyncByteStream):
    """A body that comes in pieces, and may end in the middle."""

    def __init__(self, content: bytes, *, breaks: bool = False) -> None:
        self._content = content
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        if self._breaks:
            raise httpx.ReadError("reset by peer")


class Cluster:
    """Two scripted peers; `of` says what one of them does with a request that is not about nodes."""

    def __init__(self) -> None:
        self.of: dict[str, Handler] = {}
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self.received: list[tuple[str, bytes, httpx.Headers]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        url = f"{request.url.scheme}://{request.url.netloc.decode()}"
        self.asked.append(f"{request.method} {url}{request.url.path}")
        if url in self.hanging:
            raise httpx.ReadTimeout("timed out", request=request)
        if url not in (FIRST, SECOND):
            raise httpx.ConnectError("[Errno 111] Connection refused", request=request)
        if request.url.path == "/nodes":
            nodes = [{"address": FIRST, "status": "UP", "latency_ms": 0}]
            nodes.append({"address": SECOND, "status": "UP", "latency_ms": 5})
            nodes.append({"address": "http://127.0.0.1:8003", "status": "DOWN", "latency_ms": 9999})
            return httpx.Response(200, json=nodes)
        if request.method == "PUT":
            body = request.read()
            self.received.append((url, body, request.headers))
        return self.of.get(url, serve)(request)

    def remote(self, *urls: str) -> Remote:
        return Remote(urls or (FIRST,), httpx.MockTransport(self))


def serve(request: httpx.Request) -> httpx.Response:
    """A healthy peer that has one file."""
    headers = {"etag": f'"{SHA}"', "content-disposition": "attachment; filename=\"a\"; filename*=UTF-8''%C3%A4.bin"}
    if request.method == "PUT":
        body = request.read()
        return httpx.Response(200, json={"checksum_sha256": hashlib.sha256(body).hexdigest()})
    if request.method == "DELETE":
        return httpx.Response(200, json={"deleted_nodes": []})
    first = request.headers.get("range", "bytes=0-")[6:-1]
    if request.method == "HEAD":
        return httpx.Response(200, headers=headers | {"content-length": str(len(CONTENT))})
    status = 206 if "range" in request.headers else 200
    return httpx.Response(status, headers=headers, stream=Body(CONTENT[int(first) :]))


def refuse(status: int) -> Handler:
    return lambda _: httpx.Response(status, json={"error": f"no, {status}"})


def fail(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("timed out", request=request)


def break_off(request: httpx.Request) -> httpx.Response:
    """Half of what was asked for."""
    whole = serve(request)
    if request.method != "GET":
        return whole
    content = whole.read()
    half = Body(content[: (len(content) + 1) // 2], breaks=True)
    return httpx.Response(whole.status_code, headers=whole.headers, stream=half)


def nothing(_: int) -> None:
    pass


# --- whom to ask ---


def test_another_peer_is_asked_when_one_hangs() -> None:
    cluster = Cluster()
    cluster.hanging = {FIRST}
    with cluster.remote(FIRST, SECOND) as remote:
        assert remote.urls()[0] == SECOND
    assert cluster.asked.count(f"GET {FIRST}/nodes") == 1


def test_a_port_that_several_peers_share_is_tried_again_when_one_hangs() -> None:
    cluster = Cluster()
    cluster.hanging = {FIRST}
    with cluster.remote(FIRST) as remote, pytest.raises(Unreachable, match="no answer"):
        remote.urls()
    assert cluster.asked.count(f"GET {FIRST}/nodes") == TRIES_AT_ONE_URL


def test_a_refused_connection_is_not_tried_again() -> None:
    cluster = Cluster()
    with cluster.remote("http://127.0.0.1:1", FIRST) as remote:
        assert remote.urls() == [FIRST, SECOND]
    assert cluster.asked.count("GET http://127.0.0.1:1/nodes") == 1


def test_nobody_there_is_one_line_with_what_to_do() -> None:
    with Cluster().remote("http://127.0.0.1:1") as remote, pytest.raises(Unreachable) as error:
        remote.json("GET", "/files")
    assert error.value.message == (
        "no peer answers at http://127.0.0.1:1 (connection refused); start some with minidfs cluster, "
        "or say where with --to URL"
    )


def test_a_peer_that_fails_later_is_replaced_by_a_member_that_is_up() -> None:
    cluster = Cluster()
    cluster.of = {FIRST: fail, SECOND: lambda _: httpx.Response(200, json={"fine": True})}
    with cluster.remote() as remote:
        assert remote.json("GET", "/files") == {"fine": True}
    assert not any("8003" in asked for asked in cluster.asked)


@pytest.mark.parametrize(("status", "asked"), [(503, 2), (507, 2), (404, 1), (409, 1), (400, 1)])
def test_only_refusals_that_another_peer_may_not_repeat_are_taken_to_another(status: int, asked: int) -> None:
    cluster = Cluster()
    cluster.of = {FIRST: refuse(status), SECOND: refuse(status)}
    with cluster.remote() as remote, pytest.raises(Refused, match=f"no, {status}"):
        remote.json("GET", "/files")
    assert sum("/files" in line for line in cluster.asked) == asked


def test_what_is_no_peer_is_said_to_be_none() -> None:
    def other(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="<html>")

    with Remote([FIRST], httpx.MockTransport(other)) as remote, pytest.raises(Unreachable, match="no peer of Mini DFS"):
        remote.urls()


@pytest.mark.parametrize("text", ["", "https://a:1", "http://a", "http://a:1/path", "a", "http://:1", "a:b"])
def test_what_is_no_address_of_a_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write http://HOST:PORT|Port could not be"):
        read_url(text)


def test_addresses_may_be_written_short() -> None:
    assert read_url("127.0.0.1:8001") == FIRST
    assert read_url("http://[::1]:8001/") == "http://[::1]:8001"
    assert read_url(DEFAULT_URL) == DEFAULT_URL


def test_keys_are_quoted_in_paths() -> None:
    assert file_path("a/../b?c") == "/files/a%2F..%2Fb%3Fc"


# --- up ---


def test_a_file_is_sent_to_another_peer_when_one_fails_with_its_hash_ahead_and_counted_once() -> None:
    cluster = Cluster()
    cluster.of = {FIRST: fail}
    count = 0

    def advance(more: int) -> None:
        nonlocal count
        count += more

    with cluster.remote() as remote:
        receipt = upload_file(
            remote,
            io.BytesIO(CONTENT),
            len(CONTENT),
            hash_of(io.BytesIO(CONTENT), nothing),
            "key",
            {"filename": "a"},
            advance,
        )
    assert receipt["checksum_sha256"] == SHA
    assert [url for url, _, _ in cluster.received] == [FIRST, SECOND]
    for _, body, headers in cluster.received:
        assert body == CONTENT
        assert headers["content-length"] == str(len(CONTENT))
        assert "transfer-encoding" not in headers
        assert headers["repr-digest"].startswith("sha-256=:")
    assert count == len(CONTENT)


def test_a_file_that_became_shorter_is_not_taken_for_whole() -> None:
    with Cluster().remote() as remote, pytest.raises(click.ClickException, match="became shorter"):
        upload_file(remote, io.BytesIO(CONTENT), len(CONTENT) + 1, bytes(32), "key", {}, nothing)


def test_a_pipe_is_sent_once_and_what_arrived_differently_is_deleted() -> None:
    cluster = Cluster()
    with cluster.remote() as remote:
        assert upload_stream(remote, io.BytesIO(CONTENT), "key", {}, nothing)["checksum_sha256"] == SHA
    cluster.of = {FIRST: lambda request: httpx.Response(200, json={"checksum_sha256": "00" * 32})}
    with cluster.remote() as remote, pytest.raises(click.ClickException, match="other bytes than were sent"):
        upload_stream(remote, io.BytesIO(CONTENT), "key", {}, nothing)
    assert cluster.asked[-1] == f"DELETE {FIRST}/files/key"
    cluster.of = {FIRST: fail}
    with cluster.remote() as remote, pytest.raises(Unreachable, match="cannot be sent again"):
        upload_stream(remote, io.BytesIO(CONTENT), "key", {}, nothing)
    assert [url for url, _, _ in cluster.received] == [FIRST, FIRST, FIRST]


# --- down ---


def fetched(cluster: Cluster, part: bytes = b"") -> bytes:
    with cluster.remote() as remote:
        download = Download(remote, "key")
        download.look()
        file = io.BytesIO(part)
        download.go_on_from(file, nothing)
        download.fetch(file, nothing)
        assert download.filename == "ä.bin"
        return file.getvalue()


def test_a_download_goes_on_at_another_peer_where_one_broke_off() -> None:
    cluster = Cluster()
    cluster.of = {FIRST: break_off}
    assert fetched(cluster) == CONTENT


def test_a_download_comes_to_its_end_as_long_as_each_try_brings_something() -> None:
    cluster = Cluster()
    cluster.of = {FIRST: break_off, SECOND: break_off}
    assert fetched(cluster) == CONTENT


def test_a_download_goes_on_where_an_earlier_one_ended() -> None:
    cluster = Cluster()
    assert fetched(cluster, CONTENT[:1000]) == CONTENT
    assert fetched(cluster, CONTENT) == CONTENT


def test_an_earlier_part_that_is_no_part_of_the_file_is_noticed() -> None:
    with pytest.raises(ChecksumWrong):
        fetched(Cluster(), b"x" * 1000)
    with pytest.raises(ChecksumWrong):
        fetched(Cluster(), CONTENT + b"x")


def test_a_download_that_gets_nowhere_ends_with_what_to_do() -> None:
    cluster = Cluster()

    def head_only(request: httpx.Request) -> httpx.Response:
        return serve(request) if request.method == "HEAD" else fail(request)

    cluster.of = {FIRST: head_only, SECOND: head_only}
    with pytest.raises(Unreachable, match="run the command again to go on"):
        fetched(cluster)


@pytest.mark.parametrize(
    ("name", "saved_as"),
    [
        ("a%20b.txt", "a b.txt"),
        ("..%2F..%2Fetc%2Fpasswd", "passwd"),
        ("C%3A%5Cwin%5Ccalc.exe", "calc.exe"),
        ("..", ""),
        ("%2E%2E", ""),
        ("-rf", ""),
        ("%1B%5B2J", "[2J"),
    ],
)
def test_a_file_is_saved_under_a_name_that_is_no_place_and_no_option(name: str, saved_as: str) -> None:
    assert filename_of(f"attachment; filename=\"x\"; filename*=UTF-8''{name}") == saved_as


def test_a_part_is_kept_beside_its_target_by_content(tmp_path: Any) -> None:
    assert part_of(tmp_path / "a.bin", "ab" * 32) == tmp_path / ".a.bin.abababababababab.part"
