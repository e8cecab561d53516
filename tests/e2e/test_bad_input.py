"""Bad input over real sockets, against each of three peers: a clear answer, and afterwards everything is still right.

One cluster serves all of these tests; each of them ends with a look at what must not have changed.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgpack
import pytest
from e2e.insider import Insider

from peer.cluster import free_base_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NODES = 3
WAIT_S = 20
KEPT = "kept"
CONTENT = bytes(range(256)) * 400
GROWTH_BYTES_MAX = 100 * 2**20
"""What all of this may add to a peer's memory: less than the bad input comes to."""
TLS_HELLO = bytes.fromhex("16030100a10100009d0303") + bytes(range(150))


@dataclass
class Victims:
    """A running cluster, and what is known to be stored in it."""

    ports: list[int]
    data: Path
    client: httpx.Client
    cluster_id: str = ""
    acknowledged: set[str] = field(default_factory=set)

    def url(self, number: int, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[number]}{path}"

    def get(self, number: int, path: str) -> Any:
        response = self.client.get(self.url(number, path))
        assert response.status_code == httpx.codes.OK, response.text
        return response.json()

    def log_of(self, number: int) -> str:
        return (self.data / f"node-{number + 1}" / "peer.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    data = tmp_path_factory.mktemp("cluster")
    base = free_base_port(NODES + 1)
    command = [sys.executable, "-m", "peer", "cluster", "--data", str(data / "peers")]
    command += ["--base-port", str(base), "--facade-port", str(base + NODES)]
    with (data / "log").open("wb") as log, httpx.Client(trust_env=False, timeout=WAIT_S) as client:
        cluster = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = Victims([base + number for number in range(NODES)], data / "peers", client)
            for number in range(NODES):
                _wait_ready(found, number, data / "log")
            found.cluster_id = found.get(0, "/health")["cluster_id"]
            stored = client.post(found.url(0, f"/files?file_id={KEPT}"), files={"file": ("a.bin", CONTENT)})
            assert stored.json()["durable_copies"] == ["node-1", "node-2", "node-3"]
            found.acknowledged.add(KEPT)
            yield found
        finally:
            cluster.terminate()
            cluster.wait(WAIT_S)


def _wait_ready(victims: Victims, number: int, log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if victims.client.get(victims.url(number, "/health/ready")).status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise AssertionError(f"node-{number + 1} does not come up: {log.read_text()}")


@pytest.fixture(params=range(NODES), ids=lambda number: f"node-{number + 1}")
def victim(victims: Victims, request: pytest.FixtureRequest) -> Iterator[tuple[Victims, int]]:
    """One peer to be tried; afterwards all of them are as they were."""
    yield victims, request.param
    _assert_unharmed(victims)


def _assert_unharmed(victims: Victims) -> None:
    for number in range(NODES):
        # Nothing is listed that was not acknowledged, and what was is there.
        listed = {file["file_key"] for file in victims.get(number, "/files?limit=1000")["files"]}
        assert listed <= victims.acknowledged, f"node-{number + 1} lists what nobody was promised"
        assert victims.client.get(victims.url(number, f"/files/{KEPT}")).content == CONTENT
        assert [node["status"] for node in victims.get(number, "/nodes")] == ["UP"] * NODES
        log = victims.log_of(number)
        assert "Traceback" not in log, log
        assert "the app failed" not in log, log


# --- raw requests ---


def tell(victims: Victims, number: int, raw: bytes, *, hang_up: bool = False) -> tuple[int, bytes]:
    """Send bytes; status and all of the answer, status 0 if the peer just closed the connection."""
    with socket.create_connection(("127.0.0.1", victims.ports[number]), WAIT_S) as sock:
        # It may have answered, and closed, long before all of it is sent.
        with suppress(ConnectionError):
            sock.sendall(raw)
        if hang_up:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while piece := sock.recv(65_536):
                answer += piece
    if not answer:
        return 0, b""
    version, _, rest = answer.partition(b" ")
    assert version == b"HTTP/1.1", answer[:200]
    status = int(rest[:3])
    assert status != httpx.codes.INTERNAL_SERVER_ERROR, answer
    return status, answer


def request(method: str, target: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request after which the connection ends."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body or length is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


FORM = "Content-Type: multipart/form-data; boundary=b"


def part(disposition: str, content: bytes = b"x") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def post_form(body: bytes) -> bytes:
    return request("POST", "/files", FORM, body=body)


def form(*parts: bytes) -> bytes:
    return post_form(b"".join(parts) + b"--b--\r\n")


FILE = part('name="file"; filename="a"')
JSON = "Content-Type: application/json"
REGISTER = {
    "file_key": "r",
    "original_filename": "r",
    "size_bytes": 1,
    "checksum_sha256": "0" * 64,
    "node_id": "node-1",
}


def register(**other: object) -> bytes:
    return request("POST", "/files/register", JSON, body=json.dumps(REGISTER | other).encode())


def json_body(body: bytes) -> bytes:
    return request("POST", "/files/register", JSON, body=body)


BAD: dict[str, tuple[bytes, set[int]]] = {
    # Forms.
    "no file field": (form(part('name="other"')), {400}),
    "two file fields": (form(FILE, FILE), {400}),
    "a form without fields": (form(), {400}),
    "no file chosen": (form(part('name="file"; filename=""', b"")), {400}),
    "no form": (request("POST", "/files", "Content-Type: text/plain", body=b"x"), {415}),
    "no type": (request("POST", "/files", body=b"x"), {415}),
    "no boundary": (request("POST", "/files", "Content-Type: multipart/form-data", body=b"x"), {400}),
    "another boundary": (post_form(FILE.replace(b"--b", b"--c")), {400}),
    "a form that is cut short": (post_form(FILE), {400}),
    "a form with an endless head": (post_form(b"--b\r\n" + b"A: b\r\n" * 300_000), {400, 413}),
    "a form with endless fields": (post_form(part('name="o"') * 20_000 + FILE), {400, 413}),
    "a form with an endless field": (post_form(part('name="o"', b"x" * 10**6) + FILE), {413}),
    "a part without a head": (post_form(b"--b\r\n\r\nx\r\n--b--\r\n"), {400}),
    # The line that looks like a header field is one, of the part; it goes nowhere.
    "a raw line end in a name": (form(part('name="file"; filename="a\r\nSet-Cookie: x=1"')), {200, 400}),
    # Lengths.
    "a negative length": (request("POST", "/files", FORM, "Content-Length: -1"), {400}),
    "a length that is no number": (request("POST", "/files", FORM, "Content-Length: ten"), {400}),
    "a length in other digits": (request("POST", "/files", FORM, "Content-Length: +10"), {400}),
    "an absurd length": (request("POST", "/files", FORM, "Content-Length: " + "9" * 400), {400, 413}),
    "a length beyond all files": (request("POST", "/files", FORM, length=2**41), {413}),
    "a raw body beyond all files": (request("PUT", "/files/large", length=2**41), {413}),
    "two lengths": (request("POST", "/files", FORM, "Content-Length: 1", "Content-Length: 2"), {400}),
    "a length and chunks": (request("POST", "/files", FORM, "Content-Length: 1", "Transfer-Encoding: chunked"), {400}),
    "an unknown coding": (request("POST", "/files", FORM, "Transfer-Encoding: gzip"), {400, 501}),
    "chunks that are none": (request("POST", "/files", FORM, "Transfer-Encoding: chunked", body=b"zz\r\n"), {400}),
    # Questions.
    "an unknown id": (request("GET", "/files/unknown"), {404}),
    "an id with slashes": (request("GET", "/files/a/b/c"), {404}),
    "an id with escaped slashes": (request("GET", "/files/a%2Fb"), {404}),
    "an id that climbs": (request("GET", "/files/..%2f..%2fetc%2fpasswd"), {404}),
    "an id of dots": (request("GET", "/files/.."), {404}),
    "an id with NUL": (request("GET", "/files/%00"), {400}),
    "an id that is no UTF-8": (request("GET", "/files/%ff%fe"), {400}),
    "a broken escape": (request("GET", "/files/%zz"), {400, 404}),
    "an id of 5,000 characters": (request("GET", "/files/" + "a" * 5000), {404}),
    "deleting what is not there": (request("DELETE", "/files/unknown"), {404}),
    "an unknown node": (request("POST", "/nodes/node-99/recover"), {404}),
    "an unknown address": (request("GET", "/etc/passwd"), {404}),
    "a method nobody has": (request("PATCH", "/files"), {405}),
    "a method that is none": (request("BREW", "/files"), {400}),
    "a limit that is none": (request("GET", "/files?limit=-1"), {400}),
    "a limit of 6,000 digits": (request("GET", "/files?limit=" + "9" * 6000), {400}),
    "a cursor that is none": (request("GET", "/files?after=%00%ff"), {400}),
    "a version that is none": (request("GET", f"/files/{KEPT}?version=a:b:c"), {400}),
    "another host": (request("GET", "/files").replace(b"localhost", b"evil.example"), {421}),
    "a page of elsewhere": (request("GET", "/files", "Origin: http://evil.example"), {403}),
    # Ranges.
    "a range beyond the end": (request("GET", f"/files/{KEPT}", "Range: bytes=999999-"), {416}),
    "a range of no last bytes": (request("GET", f"/files/{KEPT}", "Range: bytes=-0"), {416}),
    "a reversed range": (request("GET", f"/files/{KEPT}", "Range: bytes=9-1"), {200}),
    "a negative range": (request("GET", f"/files/{KEPT}", "Range: bytes=-1--5"), {200}),
    "an absurd range": (request("GET", f"/files/{KEPT}", "Range: bytes=0-" + "9" * 5000), {206}),
    "2,000 ranges": (request("GET", f"/files/{KEPT}", "Range: bytes=" + ",".join(["0-"] * 2000)), {200}),
    "a date that is none": (request("GET", f"/files/{KEPT}", "If-Modified-Since: yesterday"), {200}),
    # Heads.
    "10,000 header fields": (request("GET", "/files", *[f"X-{n}: y" for n in range(10_000)]), {431}),
    "a path of 1 MB": (request("GET", "/" + "a" * 10**6), {414, 431}),
    "a header field of 1 MB": (request("GET", "/files", "X: " + "y" * 10**6), {431}),
    "no version": (b"GET /files\r\n\r\n", {505}),
    "another version": (b"GET /files HTTP/9.9\r\nHost: localhost\r\n\r\n", {400, 505}),
    "no host": (b"GET /files HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
    "a TLS hello": (TLS_HELLO, {400}),
    "a preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "NUL bytes": (b"\0" * 1000, {400}),
    "random bytes": (random.Random(1).randbytes(50_000), {400, 431}),
    # JSON.
    "no JSON": (json_body(b"file_key"), {400}),
    "empty JSON": (json_body(b" "), {400}),
    "deep JSON": (json_body(b"[" * 200_000), {400}),
    "deep JSON in a field": (json_body(b'{"file_key":' + b"[" * 200_000), {400}),
    "JSON that is no object": (json_body(b"[1]"), {400}),
    "JSON that is no UTF-8": (json_body(b'{"file_key": "\xff"}'), {400}),
    "JSON of 2 MB": (json_body(b" " * 2 * 2**20), {413}),
    "JSON with a number of 10,000 digits": (json_body(b'{"size_bytes": ' + b"9" * 10_000 + b"}"), {400}),
    "a key of another type": (register(file_key=1), {400}),
    "a key with a slash": (register(file_key="a/b"), {400}),
    "a name of another type": (register(original_filename=["a"]), {400}),
    "a size of another type": (register(size_bytes="1"), {400}),
    "a size that is true": (register(size_bytes=True), {400}),
    "a negative size": (register(size_bytes=-1), {400}),
    "an absurd size": (register(size_bytes=10**30), {400}),
    "a checksum that is none": (register(checksum_sha256="x"), {400}),
    "a node that is none": (register(node_id="../x"), {400}),
    "a node nobody knows": (register(node_id="node-99"), {400}),
    "failed nodes of another type": (register(failed_nodes="node-2"), {400}),
    "failed nodes nobody knows": (register(failed_nodes=["node-99"]), {400}),
    # Peers' messages.
    "a peer of no cluster": (request("POST", "/peer/exchange", body=b"x"), {401}),
    "a peer of another cluster": (request("GET", "/peer/snapshot", "X-Minidfs-Cluster: " + "0" * 32), {401}),
    "a proof that is none": (request("GET", "/peer/snapshot", "X-Minidfs-Proof: AAAA"), {401}),
    "a proof of bytes": (request("GET", "/peer/snapshot", "X-Minidfs-Proof: \xff\xfe"), {401}),
    "a made up proof": (request("GET", "/peer/snapshot", "X-Minidfs-Proof: " + "A" * 96), {401}),
    "a join": (request("POST", "/peer/join", body=b"\x92\xa0\x90"), {401}),
    "a join of 2 MB": (request("POST", "/peer/join", body=b"x" * 2 * 2**20), {401}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_answer_and_changes_nothing(victim: tuple[Victims, int], case: str) -> None:
    raw, expected = BAD[case]
    status, answer = tell(*victim, raw)
    assert status in expected, answer[:500]
    if b'"durable_copies"' in answer:
        _note_acknowledged(*victim, answer)
    if status >= httpx.codes.BAD_REQUEST:
        head, _, body = answer.partition(b"\r\n\r\n")
        told = json.loads(body)
        assert told["status"] == status, head
        assert len(told["error"]) > 10
        assert told["error"] == told["detail"]


@pytest.mark.parametrize("sent", [0, 1, 50, 200])
@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_an_upload_that_is_broken_off_leaves_nothing(victim: tuple[Victims, int], framing: str, sent: int) -> None:
    body = FILE[:-2] + b"y" * 200
    if framing.startswith("Transfer"):
        body = b"%X\r\n%b\r\n" % (len(body), body)
    status, _ = tell(*victim, request("POST", "/files", FORM, framing) + body[:sent], hang_up=True)
    assert status in (0, 400)


def test_an_endless_upload_ends_with_its_client(victim: tuple[Victims, int]) -> None:
    victims, number = victim
    with socket.create_connection(("127.0.0.1", victims.ports[number]), WAIT_S) as sock:
        sock.sendall(request("POST", "/files", FORM, "Transfer-Encoding: chunked"))
        sock.sendall(b"10000000\r\n" + FILE[:-2])
        for _ in range(32):
            sock.sendall(bytes(2**20))
    # The bytes it had stored are gone again, here and where they were on their way to.
    deadline = time.monotonic() + WAIT_S
    while any(_stray_bytes(victims, other) for other in range(NODES)):
        assert time.monotonic() < deadline, "bytes of a broken-off upload stay"
        time.sleep(0.1)


def _stray_bytes(victims: Victims, number: int) -> int:
    folder = victims.data / f"node-{number + 1}"
    sizes = []
    for path in [*folder.glob("receiving/*"), *folder.glob("chunks/*/*")]:
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes) if sum(sizes) > 4 * 2**20 else 0


NAMES = [
    "../../etc/passwd", "..", "a\\b\\c.txt", 'quo"ted', "n" * 500, "\U0001f600 \U0001f469\u200d\U0001f680.png",
    "日本語", "a;b=c", "'; DROP TABLE puts", "%0d%0aSet-Cookie: x", "\x7f\x01", ".", "\xfcber.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_stored_listed_and_sent_safely(victim: tuple[Victims, int], name: str) -> None:
    victims, number = victim
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    status, answer = tell(victims, number, form(part(f'name="file"; filename="{quoted}"', b"named")))
    assert status == httpx.codes.OK, answer
    receipt = json.loads(answer.partition(b"\r\n\r\n")[2])
    victims.acknowledged.add(receipt["file_id"])
    assert "/" not in receipt["stored_name"]
    for other in range(NODES):
        sent = victims.client.get(victims.url(other, f"/files/{receipt['file_id']}"))
        assert sent.content == b"named"
        disposition = sent.headers["content-disposition"]
        assert disposition.isascii()
        assert disposition.isprintable()
        assert ".." not in disposition
        assert f"filename*=UTF-8''{quote(receipt['original_filename'], safe='')}" in disposition or set(name) == {"."}
    deleted = victims.client.delete(victims.url(number, f"/files/{receipt['file_id']}"))
    assert deleted.json()["deleted_from"] == NODES


# --- what only peers send ---


def _msgpack_of(chance: random.Random, depth: int = 3) -> object:
    """Any value that travels."""
    kinds: list[Callable[[], object]] = [
        lambda: chance.randrange(-(2**63), 2**64), lambda: chance.randbytes(chance.randrange(40)), lambda: None,
        lambda: "é\0" * chance.randrange(9), lambda: chance.random(), lambda: True, lambda: chance.randrange(12),
    ]  # fmt: skip
    if depth:
        kinds.append(lambda: [_msgpack_of(chance, depth - 1) for _ in range(chance.randrange(12))])
        kinds.append(lambda: {chance.randrange(9): _msgpack_of(chance, depth - 1) for _ in range(chance.randrange(4))})
    return chance.choice(kinds)()


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/peer/join"), ("POST", "/peer/exchange"), ("POST", "/peer/chunks"), ("POST", "/peer/chunks/renew"),
     ("POST", "/peer/chunks/withdraw"), ("PUT", "/peer/chunks/" + "ab" * 32), ("PUT", "/peer/chunks/short")],
)  # fmt: skip
def test_messages_that_are_none_are_refused(victim: tuple[Victims, int], method: str, path: str) -> None:
    victims, number = victim
    chance = random.Random(f"{path} {number}")
    insider, address = Insider(victims.data), f"127.0.0.1:{victims.ports[number]}"
    insider.meet(address)
    cluster = f"X-Minidfs-Cluster: {victims.cluster_id}"
    bodies = [b"\xc1", b"", chance.randbytes(3000), b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 10**5]
    messages = [_msgpack_of(chance) for _ in range(40)]
    messages += [[1, victims.cluster_id, *[_msgpack_of(chance) for _ in range(8)]] for _ in range(40)]
    bodies += [bytes(msgpack.packb(message)) for message in messages]
    for body in bodies:
        proof = insider.field(address, method, path, body)
        status, answer = tell(victims, number, request(method, path, cluster, proof, body=body, length=len(body)))
        # An empty list of chunks is a message.
        assert status == httpx.codes.BAD_REQUEST or body == b"\x90", answer
    proof = insider.field(address, method, path)
    status, _ = tell(victims, number, request(method, path, cluster, proof, length=2**40))
    assert status in (400, 413)


def test_datagrams_that_are_none_are_dropped(victim: tuple[Victims, int]) -> None:
    victims, number = victim
    chance = random.Random(number)
    forged = [1, "node-9", "127.0.0.1:1", 2**53]
    datagrams = [b"", b"\xc1", b"x" * 60_000, TLS_HELLO, b"\x91" * 1400]
    datagrams += [chance.randbytes(chance.randrange(1500)) for _ in range(300)]
    datagrams += [bytes(msgpack.packb(_msgpack_of(chance))) for _ in range(300)]
    datagrams += [bytes(msgpack.packb([1, kind, "0" * 32, 1, forged])) for kind in range(4)]
    datagrams += [bytes(msgpack.packb([1, kind, victims.cluster_id, 1, forged[:2]])) for kind in range(4)]
    insider, address = Insider(victims.data), f"127.0.0.1:{victims.ports[number]}"
    insider.meet(address)
    datagrams += [insider.sessions.seal(address, datagram) for datagram in datagrams if len(datagram) < 60_000]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, ("127.0.0.1", victims.ports[number]))
    assert [node["id"] for node in victims.get(number, "/nodes")] == ["node-1", "node-2", "node-3"]


# --- random mistakes ---


def _mistaken(chance: random.Random, raw: bytes) -> bytes:
    """A request with a few mistakes in it."""
    for _ in range(chance.randrange(1, 4)):
        at, end = sorted((chance.randrange(len(raw) + 1), chance.randrange(len(raw) + 1)))
        raw = chance.choice(
            [
                raw[:at] + chance.randbytes(chance.randrange(1, 5)) + raw[at:],
                raw[:at] + raw[end:],
                raw[:at] + raw[at:end] * 2 + raw[end:],
                raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :],
                raw[:at],
            ]
        ) or b"\r\n"  # fmt: skip
    return raw


@pytest.mark.parametrize("seed", range(4))
def test_requests_with_random_mistakes_do_no_harm(victim: tuple[Victims, int], seed: int) -> None:
    victims, number = victim
    chance = random.Random(f"{number} {seed}")
    good = [form(FILE), request("GET", f"/files/{KEPT}", "Range: bytes=1-5"), register(file_key="m"),
            request("GET", "/files?limit=3&name=a"), request("GET", "/replication-queue?status=PENDING"),
            request("PUT", "/files/put", body=b"content")]  # fmt: skip
    for _ in range(60):
        status, answer = tell(victims, number, _mistaken(chance, chance.choice(good)), hang_up=True)
        if status == httpx.codes.OK and b'"success":true' in answer:
            _note_acknowledged(victims, number, answer)


def _note_acknowledged(victims: Victims, number: int, answer: bytes) -> None:
    """What was taken after all is promised from now on: a registration tells its key by listing it."""
    with suppress(ValueError):
        receipt = json.loads(answer.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 ")[0])
        if "file_id" in receipt:
            victims.acknowledged.add(receipt["file_id"])
            return
    listed = victims.get(number, "/files?limit=1000")["files"]
    victims.acknowledged |= {file["file_key"] for file in listed if not file["replicas"]}


# --- afterwards ---


def test_all_of_this_has_cost_no_memory(victims: Victims) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    for number in range(NODES):
        before = _memory(victims, number)
        for _ in range(20):
            for case in ("JSON of 2 MB", "deep JSON", "a path of 1 MB", "10,000 header fields", "random bytes"):
                tell(victims, number, BAD[case][0])
        assert _memory(victims, number) - before < GROWTH_BYTES_MAX


def _memory(victims: Victims, number: int) -> int:
    """Resident bytes of the peer that listens on a port."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            if f"127.0.0.1:{victims.ports[number]}".encode() in command and b"serve" in command:
                found += int((folder / "statm").read_text().split()[1]) * 4096
    assert found, "the peer's process was not found"
    return found
