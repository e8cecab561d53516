"""`minidfs` itself: help, version, and how failures are said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import click
import pytest

from peer.cli.main import EXIT_INTERRUPTED, minidfs, run_command
from sim.__main__ import sim


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(minidfs, "minidfs", ["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in minidfs.commands)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(minidfs, "minidfs", []) == 0
    assert capsys.readouterr().out.startswith("Usage: minidfs [OPTIONS]")


def test_the_help_of_every_command_works(capsys: pytest.CaptureFixture[str]) -> None:
    for name in minidfs.commands:
        assert run_command(minidfs, "minidfs", [name, "--help"]) == 0
        assert f"Usage: minidfs {name}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'trio', 'httpx', 'rich', 'starlette', 'sqlite_utils'}"
    done = run("-c", f"import sys, peer.cli.main; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["peer", "sim"])
def test_python_m_is_the_same_as_the_command(module: str) -> None:
    done = run("-m", module, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert version("minidfs") in done.stdout
    assert run("-m", module, "--help").stdout.startswith(
        f"Usage: {'minidfs' if module == 'peer' else module} [OPTIONS]"
    )


def test_a_misuse_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(minidfs, "minidfs", ["serve", "--speed"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minidfs: No such option")
    assert err.endswith("; see minidfs serve --help\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("outcome", "code", "shown"),
    [
        (click.ClickException("the disk is full"), 1, "try: the disk is full\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, ""),
        (None, 0, ""),
        (3, 3, ""),
    ],
)
def test_the_exit_code_follows_from_how_the_command_ended(
    capsys: pytest.CaptureFixture[str], outcome: BaseException | int | None, code: int, shown: str
) -> None:
    @click.command()
    def attempt() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert run_command(attempt, "try", []) == code
    assert capsys.readouterr().err.strip("\n") == shown.strip("\n")


def commands_of(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{path} {name}")


@pytest.mark.parametrize(
    ("path", "command"), [*commands_of(minidfs, "minidfs"), *commands_of(sim, "sim")], ids=lambda value: str(value)
)
def test_every_option_says_what_it_is_for_and_what_holds_without_it(path: str, command: click.Command) -> None:
    assert command.help
    first = command.help.partition("\n")[0]
    assert len(first) <= 72, f"{path}: cut short in the list of commands: {first}"
    for option in command.params:
        if not isinstance(option, click.Option) or option.is_flag:
            continue
        assert option.help, f"{path} {option.opts[0]}"
        assert option.required or option.show_default or "default" in option.help, f"{path} {option.opts[0]}"
