"""`minidfs serve`: options to Config, failures to sentences. The peer itself is replaced."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from peer.cli.main import minidfs, run_command
from peer.config import Address, Config
from peer.world.env import StartError, StoreError

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
    assert (config.copies, config.heal_interval_s, config.log_level) == (
        defaults.copies,
        defaults.heal_interval_s,
        defaults.log_level,
    )


def test_every_option_reaches_the_configuration(node: FakeNode) -> None:
    addresses = "--facade 127.0.0.1:8080 --join 127.0.0.1:8001 --join [::1]:8003"
    others = f"--copies 2 --heal-interval 0.5 --log-level DEBUG --cluster-id {'AB' * 16}"
    assert run_command(minidfs, "minidfs", [*NEEDED, *addresses.split(), *others.split()]) == 0
    config = node.config
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
