"""The README's table of endpoints: its curl lines, run as they stand, but for the ports."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest
from e2e.cluster_fixture import Peers, curl, running_peers, within

from peer.http.app import CLIENT_ROUTES

pytestmark = [pytest.mark.e2e]

README = Path(__file__).parents[2] / "README.md"
ROW = re.compile(r"^\| (.+) \| `(curl .+)` \|$", re.MULTILINE)
ENDPOINT = re.compile(r"`([A-Z]+) (/\S*)`")
HELLO = b"hello\n"


def rows() -> list[tuple[str, str]]:
    return ROW.findall(README.read_text(encoding="utf-8"))


def arguments(peers: Peers, line: str) -> list[str]:
    """A curl line, for the ports this cluster has."""
    ports = {str(8000 + int(node_id.rpartition("-")[2])): peers.port(node_id) for node_id in peers.node_ids}
    ports["8080"] = peers.local.layout.facade_port
    return shlex.split(re.sub(r"localhost:(\d+)", lambda match: f"localhost:{ports[match[1]]}", line))[1:]


def test_the_table_has_every_endpoint_and_no_other() -> None:
    named = {match for name, _ in rows() for match in ENDPOINT.findall(name)}
    served = {(method, route.path) for route in CLIENT_ROUTES for method in route.methods or () if method != "HEAD"}
    assert named == served | {("HEAD", "/files/{file_id}")}


@within(60)
async def test_every_line_of_the_table_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_bytes(HELLO)
    async with running_peers(tmp_path / "data") as peers:
        for name, line in rows():
            words = arguments(peers, line)
            done = await curl(*words, "-w", "\n%{http_code}", cwd=tmp_path)
            answer, _, status = done.stdout.rpartition(b"\n")
            assert done.returncode == 0, f"{line}: {done.stderr.decode()}"
            assert status in (b"200", b"206"), f"{line}: {answer.decode()}"
            for method, path in ENDPOINT.findall(name):
                assert re.search(re.sub(r"{\w+}", r"[\\w.-]+", path) + r"(?:[?]\S*)?$", _address(words)), line
                assert _method(words) == method, line
        await peers.wait_exit("node-3", 20)
        assert (tmp_path / "report").read_bytes() == HELLO
        assert (tmp_path / "report.txt").read_bytes() == HELLO
        listed = await peers.listed("node-2")
        assert "report" not in listed
        assert listed["note"]["original_filename"] == "note.txt"
        response = await peers.client.get(peers.facade("/files/note"))
        assert (response.status_code, response.content) == (httpx.codes.OK, HELLO), "equal content was known"


def _address(words: list[str]) -> str:
    return next(word for word in words if word.startswith("http://"))


def _method(words: list[str]) -> str:
    if "-X" in words:
        return words[words.index("-X") + 1]
    return {"-T": "PUT", "-I": "HEAD", "-d": "POST"}.get(next((w for w in words if w in ("-T", "-I", "-d")), ""), "GET")
