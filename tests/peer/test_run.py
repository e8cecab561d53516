"""How a peer's process logs, and finds out where others reach it."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from peer import run
from peer.config import Address, Config
from peer.world.env import StartError

ANY = "0.0.0.0"  # noqa: S104 - what is done about it is what is tested


def config_of(**more: object) -> Config:
    return Config(node_id="node-1", listen=Address("127.0.0.1", 8001), data=Path("x"), **more)  # type: ignore[arg-type]


@pytest.fixture
def _restored() -> object:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.mark.usefixtures("_restored")
def test_json_logs_are_one_object_an_event_with_a_traceback_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    run.set_up_logging(config_of(log_format="json"))
    log = logging.getLogger("minidfs.test")
    log.info("%s is %s", "node-2", "down")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        log.exception("failed\nbadly")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["time"].endswith("Z")
    assert {name: first[name] for name in ("level", "logger", "node", "event", "values", "message")} == {
        "level": "INFO",
        "logger": "minidfs.test",
        "node": "node-1",
        "event": "%s is %s",
        "values": ["node-2", "down"],
        "message": "node-2 is down",
    }
    assert "ZeroDivisionError" in second["traceback"]
    assert second["message"] == "failed\nbadly"


@pytest.mark.usefixtures("_restored")
def test_text_logs_are_a_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    run.set_up_logging(config_of(log_level="warning"))
    logging.getLogger("minidfs.test").info("not said")
    logging.getLogger("minidfs.test").warning("said %d times", 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("Z WARNING minidfs.test said 1 times")


def test_only_a_wildcard_address_needs_another_one_to_be_told() -> None:
    plain = config_of()
    assert run.reachable(plain) is plain
    told = Config(node_id="a", listen=Address(ANY, 1), data=Path("x"), advertise=Address("10.0.0.1", 0))
    assert run.reachable(told) is told


def test_the_way_to_the_others_decides_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def towards(host: str, _port: int, _family: socket.AddressFamily) -> str | None:
        asked.append(host)
        return "10.0.0.5" if host == "10.0.0.2" else None

    monkeypatch.setattr(run, "own_host_towards", towards)
    monkeypatch.setattr(run, "own_hosts", list)
    wildcard = Config(
        node_id="a", listen=Address(ANY, 8001), data=Path("x"), join=(Address("b", 1), Address("10.0.0.2", 1))
    )
    assert run.reachable(wildcard).advertise == Address("10.0.0.5", 8001)
    assert asked[:2] == ["b", "10.0.0.2"]
    lone = Config(node_id="a", listen=Address(ANY, 8001), data=Path("x"))
    with pytest.raises(StartError, match="say it with --advertise HOST"):
        run.reachable(lone)
    monkeypatch.setattr(run, "own_hosts", lambda: ["10.9.9.9"])
    assert run.reachable(lone).advertise == Address("10.9.9.9", 8001)
