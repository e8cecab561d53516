"""The project's tasks; `.ci/run` calls them too. Each runs in the environment nox itself is installed in."""

from __future__ import annotations

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "test"]

PYTHON = sys.executable
TYPOS = str(Path(PYTHON).parent / "typos")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and spelling."""
    session.run(PYTHON, "-m", "ruff", "check", ".")
    session.run(PYTHON, "-m", "ruff", "format", "--check", ".")
    session.run(PYTHON, "-m", "mypy")
    session.run(TYPOS)


@nox.session
def test(session: nox.Session) -> None:
    """All tests, on all cores; paths and options of pytest may follow behind `--`."""
    session.run(PYTHON, "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def deep(session: nox.Session) -> None:
    """Thousands of random histories of replicas; minutes."""
    session.run(PYTHON, "-m", "pytest", "-n", "auto", "tests/protocol", "--hypothesis-profile=deep", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Plant each known bug in a copy; the tests must find it."""
    session.run(PYTHON, "-m", "sim", "mutations", *session.posargs)


@nox.session
def storm(session: nox.Session) -> None:
    """Simulated lives under faults: many short ones of three peers, some long ones of five."""
    session.run(PYTHON, "-m", "sim", "run", "--seeds", "1..60", "--peers", "3", "--minutes", "1", "--sometimes")
    session.run(
        PYTHON, "-m", "sim", "run", "--seeds", "1..8", "--peers", "3", "--minutes", "1", "--scenario", "members"
    )
    session.run(PYTHON, "-m", "sim", "run", "--seeds", "1..200", "--peers", "5", "--minutes", "10", "--within", "9")


@nox.session
def hunt(session: nox.Session) -> None:
    """Plant bugs in a copy; simulated lives must find each."""
    session.run(PYTHON, "-m", "sim", "hunt")


@nox.session
def chaos(session: nox.Session) -> None:
    """A minute of everything that can be done to five real processes."""
    session.run(PYTHON, "-m", "sim", "chaos", "--peers", "5", "--minutes", "1", "--seed", "7")


@nox.session
def draw(session: nox.Session) -> None:
    """Draw docs/rooms.svg anew from the code's imports."""
    session.run(PYTHON, "docs/draw_rooms.py")


@nox.session
def ci(session: nox.Session) -> None:
    """What CI runs, in an environment of its own."""
    session.run("bash", ".ci/run", external=True)
