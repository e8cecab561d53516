"""The chaos runner's own parts: its journal, its picture, its wrong clocks, and what it does to files."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import trio
from blake3 import blake3
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from peer.cluster import Layout
from sim.chaos.command import Settings, _what_broke, chaos, peer_command
from sim.chaos.faults import KINDS, Means, _copies_in, _flip, _is_good, clock_file
from sim.chaos.journal import Journal
from sim.chaos.picture import COLOURS, faults_of, page, seconds_of, timeline
from sim.chaos.skewed import NS_PER_S, skewed
from sim.model import Promise, PromiseBroken

NODES = ["node-1", "node-2"]


def event(t: float, name: str, **details: Any) -> dict[str, Any]:
    return {"t": t, "event": name, **details}


def operation(t: float, outcome: str = "ok", took_s: float = 0.1) -> dict[str, Any]:
    return event(t, "operation", kind="upload", via="node-1", outcome=outcome, took_s=took_s)


def test_the_journal_keeps_events_in_memory_and_as_lines() -> None:
    file = io.StringIO()

    async def main() -> Journal:
        journal = Journal(file)
        journal.fault_begins("kill", "node-1")
        assert list(journal.running) == ["kill node-1"]
        journal.operation("upload", "node-2", "ok", 0.25)
        journal.operation("upload", "node-2", "503", 0.25)
        journal.fault_ends("kill", "node-1")
        return journal

    journal = trio.run(main)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert lines == journal.events
    assert [line["event"] for line in lines] == ["fault begins", "operation", "operation", "fault ends"]
    assert journal.counted == {"kill": 1, "upload": 1}
    assert not journal.running


def test_faults_have_a_beginning_and_an_end_and_those_that_were_not_mended_last() -> None:
    events = [
        event(1, "fault begins", kind="kill", where="node-1"),
        event(2, "fault begins", kind="slow", where="node-2"),
        event(3, "fault ends", kind="kill", where="node-1"),
    ]
    assert faults_of(events, 9) == [("kill", "node-1", 1, 3), ("slow", "node-2", 2, 9)]


def test_operations_are_counted_by_the_second() -> None:
    seconds = seconds_of([operation(0.2), operation(0.9, "503"), operation(2.0, took_s=0.5)])
    assert {at: (second.ok, second.failed) for at, second in seconds.items()} == {0: (1, 1), 2: (1, 0)}
    assert seconds[2].took_s == [0.5]


events_strategy = st.lists(
    st.one_of(
        st.builds(operation, st.floats(0, 100), st.sampled_from(["ok", "503", "broke off"]), st.floats(0, 10)),
        st.builds(
            lambda t, name, kind, where: event(t, name, kind=kind, where=where),
            st.floats(0, 100),
            st.sampled_from(["fault begins", "fault ends"]),
            st.sampled_from([*KINDS, "<script>"]),
            st.sampled_from([*NODES, "all"]),
        ),
        st.builds(lambda t, missing: event(t, "sample", missing=missing), st.floats(0, 100), st.integers(0, 1000)),
    ),
    max_size=30,
).map(lambda events: sorted(events, key=lambda one: one["t"]))


@given(events_strategy)
def test_any_run_makes_a_picture_within_its_frame(events: list[dict[str, Any]]) -> None:
    root = ET.fromstring(timeline(events, NODES))  # noqa: S314 - it is ours
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(bar.attrib["x"]) <= width
        assert 0 <= float(bar.attrib["y"]) <= height


@given(events_strategy)
def test_the_page_needs_nothing_else_and_shows_names_as_text(events: list[dict[str, Any]]) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Parser().feed(page("<b>title</b>", "<i>verdict</i>", events, NODES))
    assert not {"script", "link", "img", "b"} & {tag for tag, _ in tags}
    assert not any("src" in attributes or "href" in attributes for _, attributes in tags)


def test_a_skewed_clock_follows_its_file_and_is_right_without_one(tmp_path: Path) -> None:
    moment = [0.0]
    path = tmp_path / "clock"
    clock = skewed(path, lambda: 1000 * NS_PER_S, lambda: moment[0])
    assert clock() == 1000 * NS_PER_S
    path.write_text("-2.5")
    moment[0] = 1
    assert clock() == 997.5 * NS_PER_S
    path.write_text("not a number")
    moment[0] = 2
    assert clock() == 1000 * NS_PER_S


def test_a_bit_is_flipped_only_where_another_copy_is_good(tmp_path: Path) -> None:
    content = b"x" * 50_000
    name = blake3(content).hexdigest()
    here, there = (tmp_path / node / "chunks" / name[:2] / f"{name}.{serial}" for serial, node in enumerate(NODES))
    for path in (here, there):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert [path.name for path in _copies_in([tmp_path / "node-2"], here)] == [f"{name}.1"]
    assert _is_good(here)
    assert _flip(here, 0.999, 7)
    assert not _is_good(here)
    assert here.stat().st_size == len(content)
    assert _is_good(there)
    there.unlink()
    assert not _is_good(there)
    assert not _flip(there, 0.5, 0)
    assert list(_copies_in([tmp_path / "node-2"], here)) == []


def test_peers_are_found_at_the_relay_and_run_on_the_python_asked_for(tmp_path: Path) -> None:
    layout = Layout(cluster_id="00" * 16, nodes=2, base_port=9001, facade_port=9000)
    settings = Settings(peers=2, seconds=1, seed=1, kinds=(), heal_interval_s=5, python="/some/python")
    folder = tmp_path / "node-1"
    words = peer_command(settings, {"node-1": 9101, "node-2": 9102})(layout, "node-1", folder)
    assert words[0] == "/some/python"
    assert words[words.index("-m") + 1 :][:2] == ["sim.chaos.skewed", str(clock_file(folder))]
    assert words[words.index("--listen") + 1] == "127.0.0.1:9001"
    assert words[words.index("--advertise") + 1] == "127.0.0.1:9101"
    assert words[words.index("--join") + 1] == "127.0.0.1:9102"


def test_what_cannot_be_done_here_is_left_out_with_its_reason() -> None:
    nothing = Means()
    assert nothing.why_not("kill") is None
    for kind in ("partition", "slow", "disk-full", "clock"):
        assert nothing.why_not(kind)


def test_an_unknown_fault_is_refused_with_those_there_are() -> None:
    result = CliRunner().invoke(chaos, ["--faults", "kill,flood"])
    assert result.exit_code == click.UsageError.exit_code
    assert "no fault 'flood'" in result.output
    assert all(kind in result.output for kind in KINDS)


def test_each_kind_of_fault_has_a_colour_of_its_own() -> None:
    assert set(KINDS) == set(COLOURS)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_what_ended_a_run_is_a_broken_promise_however_deep_it_lies() -> None:
    broken = PromiseBroken(Promise.DELETED, "it is back")
    assert _what_broke(ExceptionGroup("", [ExceptionGroup("", [broken])])) is broken
    other = _what_broke(ExceptionGroup("", [OSError("no such process")]))
    assert (other.promise, str(other)) == (Promise.TASKS, "OSError: no such process")
