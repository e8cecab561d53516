"""`minidfs serve`: options to Config, failures to sentences. The peer itself is replaced."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from peer.cli.main import minidfs, run_command
from peer.config import Address, Config
from peer.world.env import StartError, StoreError

ANY = "0.0.0.0"  # noqa: S104 - that it is refused is what is tested
NEEDED = ["serve", "--id", "node-2", "--listen", "127.0.0.1:8002", "--data", "somewhere"]


class FakeNode(ModuleType):
    """Stands in for peer.run."""

    config: Config
    outcome: int | Exception = 0

    def run_peer(self, config: Config) -> int:
        self.config = config
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    fake = FakeNode("peer.run")
    monkeypatch.setitem(sys.modules, "peer.run", fake)
    return fake


def test_the_needed_options_are_enough(node: FakeNode) -> None:
    assert run_command(minidfs, "minidfs", NEEDED) == 0
    config = node.config
    assert (config.node_id, config.listen, config.data) == (
        "node-2",
        Address("127.0.0.1", 8002),
        Path("somewhere").absolute(),
    )
    assert (config.facade, config.join, config.cluster_id) == (None, (), None)
    defaults = Config(node_id="node-2", listen=config.listen, data=config.data)
    assert replace(config, hostname=defaults.hostname) == defaults


def test_every_option_reaches_the_configuration(node: FakeNode) -> None:
    addresses = "--facade 127.0.0.1:8080 --join 127.0.0.1:8001 --join [::1]:8003"
    others = f"--copies 2 --heal-interval 0.5 --log-level DEBUG --cluster-id {'AB' * 16} --advertise 10.0.0.7"
    more = "--probe-interval 2 --down-after 7 --target-timeout 3 --shutdown-grace 4 --reserve 1MiB --max-file-size 2GiB"
    names = "--name a.example --name b.example --origin https://c.example --log-format json --durability os"
    assert run_command(minidfs, "minidfs", [*NEEDED, *f"{addresses} {others} {more} {names}".split()]) == 0
    config = node.config
    assert config.advertise == Address("10.0.0.7", 0)
    assert (config.probe_interval_s, config.down_after_s, config.target_timeout_s) == (2, 7, 3)
    assert (config.shutdown_grace_s, config.reserve_bytes, config.file_bytes_max) == (4, 1 << 20, 2 << 30)
    assert (config.names, config.origins) == (("a.example", "b.example"), ("https://c.example",))
    assert (config.log_format, config.durability) == ("json", "os")
    assert config.facade == Address("127.0.0.1", 8080)
    assert config.join == (Address("127.0.0.1", 8001), Address("::1", 8003))
    assert (config.copies, config.heal_interval_s, config.log_level) == (2, 0.5, "debug")
    assert config.cluster_id == "ab" * 16


def test_the_peers_exit_code_is_that_of_the_command(node: FakeNode) -> None:
    node.outcome = 7
    assert run_command(minidfs, "minidfs", NEEDED) == 7


@pytest.mark.parametrize("kind", [StartError, StoreError])
def test_a_failure_of_the_peer_is_one_line_and_exit_1(
    node: FakeNode, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    node.outcome = kind("port 8002 is taken; choose another with --listen")
    assert run_command(minidfs, "minidfs", NEEDED) == 1
    assert capsys.readouterr().err == "minidfs: port 8002 is taken; choose another with --listen\n"


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--id", "-x", "is no node id"),
        ("--id", "a" * 65, "is no node id"),
        ("--id", "a/b", "is no node id"),
        ("--id", "node-2\n", "is no node id"),
        ("--listen", "8002", "is no address; write HOST:PORT"),
        ("--join", "here:", "is no address; write HOST:PORT"),
        ("--facade", "here:99999", "is no address; write HOST:PORT"),
        ("--copies", "0", "not in the range"),
        ("--heal-interval", "0", "is no number of seconds"),
        ("--heal-interval", "nan", "is no number of seconds"),
        ("--cluster-id", "abc", "is no cluster id"),
        ("--log-level", "loud", "is not one of"),
        ("--log-format", "xml", "is not one of"),
        ("--reserve", "lots", "is no size; write bytes"),
        ("--reserve", "-1", "is no size; write bytes"),
        ("--advertise", "::", "nobody can reach a peer at ::"),
        ("--advertise", ANY, "nobody can reach a peer at 0.0.0.0"),
        ("--advertise", "a:b", "is no place; write HOST or HOST:PORT"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_2(
    node: FakeNode, capsys: pytest.CaptureFixture[str], option: str, value: str, complaint: str
) -> None:
    assert run_command(minidfs, "minidfs", [*NEEDED, option, value]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minidfs: Invalid value for ")
    assert complaint in err
    assert err.count("\n") == 1
    assert not hasattr(node, "config")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.7", Address("10.0.0.7", 0)),
        ("10.0.0.7:9000", Address("10.0.0.7", 9000)),
        ("a.example", Address("a.example", 0)),
        ("[fd00::7]:9000", Address("fd00::7", 9000)),
        ("fd00::7", Address("fd00::7", 0)),
    ],
)
def test_an_advertised_place_may_leave_out_the_port(node: FakeNode, text: str, address: Address) -> None:
    assert run_command(minidfs, "minidfs", [*NEEDED, "--advertise", text]) == 0
    assert node.config.advertise == address


@pytest.mark.parametrize("more", [[], ["--join", "127.0.0.1:8001", "--cluster-id", "ab" * 16]])
def test_rejoin_needs_somebody_to_ask(node: FakeNode, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    assert run_command(minidfs, "minidfs", [*NEEDED, "--rejoin", *more]) == 2
    assert "it needs --join and no --cluster-id" in capsys.readouterr().err
    assert not hasattr(node, "config")
