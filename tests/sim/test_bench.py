"""`sim bench` measures what it says; how fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from sim.bench import command, loads, machine
from sim.bench.command import QUICK, Contestant, _healed, bench
from sim.bench.generator import _Load, form_of, last_of
from sim.bench.loads import Figures, Place, Workload
from sim.bench.report import Row, as_markdown, as_picture, unit_of
from sim.bench.seaweed import SeaweedFiler
from sim.bench.swift import Swift
from sim.bench.systems import HEAL_S, HealTimeout, System, SystemMissing

SMALL = Workload("PUT 4 KiB", "put", 4096, 16)
LARGE = Workload("PUT 2 MiB", "put", 2 * 2**20, 1)
LARGE_READS = Workload("GET 2 MiB", "get", 2 * 2**20, 1)
PLACE = Place("http://a:1", "/in/{name}", "/raw/{name}", "/", "/", "", "")


def row_of(system: str, workload: Workload, *requests: int) -> Row:
    rounds = [Figures(count, 2.0, 1.0, 9.0, errors=1) for count in requests]
    return Row(system, workload, rounds, [0.5 for _ in requests], 3 * workload.size * (sum(requests) - 3), 100.0)


def test_a_rate_is_requests_a_second_and_of_large_files_mib_a_second() -> None:
    assert row_of("a", SMALL, 100, 300).rates() == [50.0, 150.0]
    assert row_of("a", LARGE, 10).rates() == [10.0]


def test_the_table_has_medians_spread_and_what_it_cost() -> None:
    table = as_markdown(["a machine"], [row_of("ours", SMALL, 100, 300, 200), Row("not measured", SMALL)])
    about, _, head, rule, line = table.splitlines()
    assert about == "- a machine"
    assert head.count("|") == rule.count("|") == line.count("|")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # 1.5 s of processors for 600 requests; three bytes on the disk for each that was stored.
    assert cells == ["PUT 4 KiB", "ours", "100 /s", "50 to 150", "1.0", "9.0", "2.50", "3.00", "100", "3"]


def test_bars_are_as_long_as_their_share_of_the_fastest() -> None:
    picture = ElementTree.fromstring(as_picture([row_of("a <b>", SMALL, 100), row_of("c", SMALL, 200)]))  # noqa: S314
    first, second = (float(bar.attrib["width"]) for bar in picture.iter("{http://www.w3.org/2000/svg}rect"))
    assert second == 2 * first > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_processes_cost_is_read_from_the_system() -> None:
    me = [os.getpid()]
    before = machine.cpu_s(me)
    sum(range(10_000_000))
    after = machine.cpu_s(me)
    assert before is not None
    assert after is not None
    assert after > before
    assert (machine.memory_mib(me) or 0) > 1
    assert me[0] in machine.with_descendants([os.getppid()])
    assert machine.cpu_s([2**22 + 1]) == 0


def test_a_folder_takes_up_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(os.urandom(100_000))
    assert 100_000 <= machine.disk_bytes(tmp_path) < 200_000


def test_of_a_large_file_nothing_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "sent"
    loads._write_random(path, 3 * loads.PIECE_BYTES + 5)
    seen: set[bytes] = set()
    for _ in range(3):
        loads._make_different(path)
        content = path.read_bytes()
        assert len(content) == 3 * loads.PIECE_BYTES + 5
        pieces = [content[start : start + loads.PIECE_BYTES] for start in range(0, len(content), loads.PIECE_BYTES)]
        assert len(seen | set(pieces)) == len(seen) + 4
        seen |= set(pieces)


@pytest.mark.parametrize("rival", [SeaweedFiler, Swift])
def test_a_rival_that_is_not_there_is_said_to_be_missing(
    rival: type[SeaweedFiler | Swift], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemMissing, match="pip install"):
        rival(tmp_path, 3).start()


@pytest.mark.parametrize("takes_forms", [True, False])
def test_a_content_is_posted_in_a_form_or_put_as_it_is(takes_forms: bool) -> None:
    place = replace(PLACE, takes_forms=takes_forms)
    sent = _Load(place, SMALL, 1.0, [], None)._request("k", bytes(SMALL.size))
    assert (sent.method, sent.target) == ("POST" if takes_forms else "PUT", "/in/k")
    content = b"k" + bytes(SMALL.size - 1)
    assert sent.body == (form_of(content) if takes_forms else content)


def test_a_system_is_not_measured_with_what_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never(System):
        name = "never"
        cannot = frozenset({SMALL.kind})

    measured = []
    monkeypatch.setattr(command, "_add_round", lambda one, *_: measured.append(one.system.name))
    able, unable = Contestant(System(tmp_path), PLACE), Contestant(Never(tmp_path), PLACE)
    command._measure([able, unable], [SMALL, LARGE_READS], 1, 1.0, tmp_path, quick=True)
    assert measured == ["", "", "never"]


@pytest.mark.parametrize(
    ("page", "field", "last"),
    [
        ({"files": [], "next": "f7"}, "next", "f7"),
        ({"files": [], "next": None}, "next", ""),
        ([{"name": "a"}, {"name": "b"}], "-1.name", "b"),
        ([], "-1.name", ""),
    ],
)
def test_the_last_file_of_a_page_is_where_a_system_says_it(page: object, field: str, last: str) -> None:
    assert last_of(page, field) == last


def test_lists_are_measured_in_files_and_a_healed_disk_in_mib() -> None:
    walk = Workload("LIST 100,000 files", "walk", 4096, 1, files=100_000)
    assert (unit_of(walk), row_of("a", walk, 100).rates()) == ("files/s", [50_000.0])
    heal = Workload("heal", "heal", 2**20, 1, files=50)
    assert (unit_of(heal), row_of("a", heal, 50).rates()) == ("MiB/s", [25.0])


def test_copies_that_do_not_come_back_are_an_error_and_not_the_end(tmp_path: Path) -> None:
    class Never(System):
        def heal_lost_disk(self) -> float:
            raise HealTimeout("nothing has its copies back")

    healed = _healed(Never(tmp_path), 50)
    assert (healed.errors, healed.requests, healed.seconds) == (1, 0, HEAL_S)


def run_quick(folder: Path) -> Result:
    return CliRunner().invoke(bench, ["--quick", "--no-rivals", "--report", str(folder)], catch_exceptions=False)


@pytest.mark.once
@pytest.mark.timeout(120)
@pytest.mark.parametrize("tools", ["as they are", "none"])
def test_a_quick_bench_measures_each_load_without_an_error(
    tools: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tools == "none":
        monkeypatch.setenv("PATH", "")
    result = run_quick(tmp_path)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["workload"] for row in rows] == [load.name for load in QUICK]
    assert all(row["errors"] == 0 and row["rates"][0] > 0 for row in rows), rows
    assert ("built-in generator" in result.stdout) or tools != "none"
    ElementTree.parse(tmp_path / "report.svg")  # noqa: S314


def test_a_load_that_is_none_is_said_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, ["--only", "DELETE", "--report", str(tmp_path)])
    assert result.exit_code == 1
    assert "no load has 'DELETE'" in result.output
