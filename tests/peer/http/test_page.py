"""The web page as it is sent: what it shows without scripts, and what it may do with them."""

from __future__ import annotations

import re
from html import unescape

import pytest
from worlds import converged, in_world, others, put, services

from peer.http import page
from protocol.identity import Member, NodeId
from protocol.messages import View
from sim.world import World

HOSTILE = '<img src=x onerror="alert(1)">{{rows}}.txt'


def test_without_scripts_the_page_lists_files_and_links_to_them() -> None:
    async def scenario(world: World) -> None:
        await world.upload("node-1", "a.txt", b"content", file_id="a b".replace(" ", "-"))
        await put(world, "node-1", "second", b"more")
        await converged(world)
        answer = await world.request("node-2", "GET", "/")
        assert answer.status_code == 200
        links = re.findall(r'<a href="(files/[^"]+)" download="([^"]+)">([^<]+)</a>', answer.text)
        assert links == [("files/second", "second.bin", "second.bin"), ("files/a-b", "a.txt", "a.txt")]
        for link, _, _ in links:
            assert (await world.request("node-2", "GET", f"/{link}")).status_code == 200
        assert "2 files on 2 nodes." in answer.text
        found = (await world.request("node-2", "GET", "/", params={"name": "sec"})).text
        assert "1 of 1 files" in found
        assert "a.txt" not in found

    in_world(scenario, peers=2)


def test_more_files_than_fit_are_on_further_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "ROWS", 3)

    async def scenario(world: World) -> None:
        for number in range(7):
            await put(world, "node-1", f"k{number}", b"content")
        seen: list[str] = []
        path = "/"
        for _ in range(5):
            text = (await world.request("node-1", "GET", path)).text
            seen += re.findall(r'<a href="files/([^"]+)"', text)
            older = re.search(r'<a href="(\?[^"]+)">Older files</a>', text)
            if older is None:
                break
            path = "/" + unescape(older[1])
        assert sorted(seen) == [f"k{number}" for number in range(7)]
        assert (await world.request("node-1", "GET", "/?after=junk!")).status_code == 400

    in_world(scenario, peers=1)


def test_names_are_text_and_never_markup() -> None:
    async def scenario(world: World) -> None:
        await world.post_file("node-1", "/files?file_id=k", "x", b"content", {})
        put_it = await world.request("node-1", "PUT", "/files/hostile", params={"filename": HOSTILE}, content=b"x")
        assert put_it.status_code == 200
        text = (await world.request("node-1", "GET", "/")).text
        assert "<img" not in text
        assert text.count("<tr><td") == 2
        for query in (HOSTILE, "{{rows}}", '"><script>alert(1)</script>'):
            searched = (await world.request("node-1", "GET", "/", params={"name": query})).text
            assert "<img" not in searched
            assert searched.count("<script") == 1
            assert searched.count("<tr><td") == (query == HOSTILE)

    in_world(scenario, peers=1)


def test_the_page_may_ask_its_own_peer_and_the_members_and_nobody_else() -> None:
    async def scenario(world: World) -> None:
        strange = Member(NodeId("strange"), "evil.example:1; script-src *", 1)
        services(world, "node-1").gossip.learn(View.of(strange))
        answer = await world.request("node-1", "GET", "/")
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        addresses = [member.address for member in others(world, "node-1").membership.members()]
        assert len(addresses) == 3
        assert policy["connect-src"].split()[1:] == [f"http://{address}" for address in addresses[:2]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script(?! type=\"module\" src=\"page/main.js\")|<style| style=| on[a-z]+=", answer.text)

    in_world(scenario, peers=2)


def test_the_parts_of_the_page_are_sent_with_their_types_and_nothing_else_is() -> None:
    async def scenario(world: World) -> None:
        text = (await world.request("node-1", "GET", "/")).text
        parts = re.findall(r'(?:href|src)="(page/[^"]+)"', text)
        assert len(parts) == 3
        for part in [*parts, "page/files.js"]:
            answer = await world.request("node-1", "GET", f"/{part}")
            assert answer.status_code == 200
            assert (
                answer.headers["content-type"].partition(";")[0]
                == page.TYPES[part.rpartition(".")[2]].partition(";")[0]
            )
            again = await world.request("node-1", "GET", f"/{part}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        for missing in ("page/index.html", "page/nothing.js", "page/..%2Fpage.py", "page/"):
            assert (await world.request("node-1", "GET", f"/{missing}")).status_code == 404

    in_world(scenario, peers=1)


def test_a_peer_says_of_itself_what_its_operator_should_know() -> None:
    async def scenario(world: World) -> None:
        await put(world, "node-1", "k", b"content")
        own = (await world.request("node-1", "GET", "/node")).json()
        assert (own["id"], own["files"], own["copies"], own["missing"]) == ("node-1", 1, 1, 0)
        assert 0 < own["disk_free_bytes"] <= own["disk_total_bytes"]
        assert [warning[:20] for warning in own["warnings"]] == ["this peer is alone: ", "it has no cluster ke"]
        services(world, "node-1").here.space.note_full()
        services(world, "node-1").here.is_damaged = True
        warnings = (await world.request("node-1", "GET", "/node")).json()["warnings"]
        assert any("the disk is full" in warning for warning in warnings)
        assert any("damaged" in warning for warning in warnings)

    in_world(scenario, peers=1)
