"""Plants each bug of `sim.mutants` in a scratch copy of the project and runs the tests that must find it there.

The tree it is started from is only read. A bug counts as found when the tests fail (pytest's exit code 1); tests that
cannot be collected, run out of time or import another copy of the project prove nothing and are errors.
"""

from __future__ import annotations

import compileall
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import click

from sim.mutants import MUTANTS, Mutant

PROJECT = Path(__file__).resolve().parent.parent
COPIED = ("protocol", "peer", "sim", "tests", "pyproject.toml")
LIMIT_S = 120.0

_GREEN, _RED = 0, 1
_FAILED_TEST = re.compile(r"^FAILED (?:\S*/)?(\S+?\.py::\S+)", re.MULTILINE)

# Runs inside pytest: the editable install of the project must not be what is tested.
_WATCH = '''\
"""Ends a run with exit code 70 if it imported a module of the project from anywhere but this copy."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def pytest_sessionfinish(session):
    for name in ("protocol", "protocol.replica", "protocol.catalog", "peer", "peer.worker", "replicas.cluster"):
        module = sys.modules.get(name)
        if module is not None and HERE not in Path(module.__file__).resolve().parents:
            print(f"{name} was imported from {module.__file__}, not from {HERE}")
            session.exitstatus = 70
    if not {"protocol", "peer"} & set(sys.modules):
        print("the tests did not import the project at all")
        session.exitstatus = 70
'''


class MutantDoesNotApply(Exception):
    """The text a mutant replaces is not in its file exactly once: rewrite the mutant."""


_FOREIGN = shutil.ignore_patterns("__pycache__")


class TestsAreRed(Exception):
    """Without any mutant, so that red says nothing."""


class Outcome(Enum):
    """What the tests said of a mutant."""

    FOUND = "found"
    SURVIVED = "SURVIVED"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Result:
    """What became of one mutant: `by` is the test that found it, or what went wrong."""

    mutant: Mutant
    outcome: Outcome
    by: str
    seconds: float


@dataclass(frozen=True)
class Run:
    """One run of pytest in a scratch copy."""

    exit_code: int | None
    """None: it ran out of time."""
    output: str
    seconds: float


def check_applies(mutant: Mutant) -> None:
    """Raises MutantDoesNotApply."""
    found = (PROJECT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    if found != 1:
        raise MutantDoesNotApply(
            f"mutant {mutant.name}: what it replaces is {found} times in {mutant.file}, not once; "
            f"rewrite it in sim/mutants.py:\n{mutant.old}"
        )


@contextmanager
def scratch_copy(of: Path = PROJECT) -> Iterator[Path]:
    """A copy of the project, or of a copy of it, to spoil."""
    with tempfile.TemporaryDirectory(prefix="minidfs-mutant-") as folder:
        scratch = Path(folder)
        for name in COPIED:
            source = of / name
            if source.is_dir():
                shutil.copytree(
                    source, scratch / name, ignore=shutil.ignore_patterns("__pycache__") if of == PROJECT else None
                )
            else:
                shutil.copy2(source, scratch / name)
        (scratch / "watch_imports.py").write_text(_WATCH, encoding="utf-8")
        yield scratch


@contextmanager
def compiled_copy() -> Iterator[Path]:
    """A copy that is compiled already: compiling takes longer than most tests need to find a bug."""
    with scratch_copy() as pristine:
        compileall.compile_dir(pristine, quiet=2)
        yield pristine


def plant(mutant: Mutant, scratch: Path) -> None:
    """Spoil a copy. What was compiled of the file goes too: Python tells files apart by their second and size only."""
    path = scratch / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def run_tests(scratch: Path, tests: Iterable[str], limit_s: float = LIMIT_S, server: PytestServer | None = None) -> Run:
    """Run these tests on the copy, up to the first that fails; in a fork of `server`, where there is one."""
    arguments = ["-x", "-q", "-rf", "--tb=line", "-p", "watch_imports", "-p", "no:xdist"]
    arguments += ["--hypothesis-profile=mutants", *tests]
    paths = [str(scratch), str(scratch / "tests")]
    # Where pytest believes itself on CI it writes every difference out in full, which for long lists takes minutes.
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "BUILD_NUMBER")}
    variables = inherited | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
    started = time.monotonic()
    if server is not None:
        code, output = server.run(scratch, arguments, variables, paths, limit_s)
        return Run(code, output, time.monotonic() - started)
    command = [sys.executable, "-m", "pytest", *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours
            command, cwd=scratch, env=variables, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Run(None, f"no result after {limit_s:.0f} s", time.monotonic() - started)
    return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - started)


class PytestServer:
    """A process of `sim/pytest_server.py`: it runs pytest in forks of itself, starting anew takes longer."""

    def __init__(self) -> None:
        self._process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        script = str(PROJECT / "sim" / "pytest_server.py")
        # A session of its own, to be ended with all that tests have started in it.
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(
        self, folder: Path, arguments: list[str], variables: dict[str, str], paths: list[str], limit_s: float
    ) -> tuple[int | None, str]:
        """Pytest's exit code, None when it ran out of time, and what it printed."""
        output = folder / "output.txt"
        job = {"folder": str(folder), "arguments": arguments, "variables": variables, "paths": paths}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**job, "output": str(output)}) + "\n")
        self._process.stdin.flush()
        overdue = threading.Timer(limit_s, self._kill)
        overdue.start()
        answer = self._process.stdout.readline()
        overdue.cancel()
        if not answer:
            self._process.wait()
            self._process = self._start()
            return None, f"no result after {limit_s:.0f} s"
        return int(answer), output.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """End the process, and whatever tests have left running in it."""
        self._kill()
        self._process.wait()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@contextmanager
def pytest_servers(count: int) -> Iterator[queue.SimpleQueue[PytestServer | None]]:
    """So many servers, each to be taken and given back; Nones where processes cannot fork."""
    servers = [PytestServer() if hasattr(os, "fork") else None for _ in range(count)]
    free: queue.SimpleQueue[PytestServer | None] = queue.SimpleQueue()
    for server in servers:
        free.put(server)
    try:
        yield free
    finally:
        for server in servers:
            if server is not None:
                server.close()


def try_mutant(mutant: Mutant, pristine: Path, servers: queue.SimpleQueue[PytestServer | None]) -> Result:
    """Plant one bug and see whether its tests find it."""
    server = servers.get()
    try:
        with scratch_copy(pristine) as scratch:
            plant(mutant, scratch)
            run = run_tests(scratch, mutant.tests, server=server)
    finally:
        servers.put(server)
    return judge(mutant, run)


def judge(mutant: Mutant, run: Run) -> Result:
    """Red tests are what we want; anything but red and green is no answer."""
    failed = _FAILED_TEST.search(run.output)
    if run.exit_code == _RED and failed:
        return Result(mutant, Outcome.FOUND, failed[1], run.seconds)
    if run.exit_code == _GREEN:
        return Result(mutant, Outcome.SURVIVED, "", run.seconds)
    last_line = run.output.strip().rpartition("\n")[2]
    return Result(mutant, Outcome.ERROR, f"pytest: {run.exit_code}: {last_line}", run.seconds)


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants of these names, or all.

    Raises click.BadParameter for a name there is not.
    """
    known = {mutant.name: mutant for mutant in MUTANTS}
    assert len(known) == len(MUTANTS), "two mutants of one name"
    for name in names:
        if name not in known:
            raise click.BadParameter(f"there is no mutant {name!r}; --list shows all")
    return [known[name] for name in names] or list(MUTANTS)


def run_unmutated(mutants: Sequence[Mutant]) -> Run:
    """All their tests on an unspoilt copy: unless that is green, red says nothing."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with scratch_copy() as scratch:
        return run_tests(scratch, tests, 3 * LIMIT_S)


def run_mutations(names: Sequence[str] = (), jobs: int = 2, *, with_none: bool = True) -> Iterator[Result | Run]:
    """Try mutants, `jobs` at a time; gives what their tests say without any of them, and the results in their order.

    Raises MutantDoesNotApply before anything runs, and TestsAreRed, after what those tests said, when that is no pass.
    Without `with_none` nobody asks what they say without any.
    """
    mutants = chosen(names)
    for mutant in mutants:
        check_applies(mutant)
    with (
        compiled_copy() as pristine,
        pytest_servers(jobs) as servers,
        ThreadPoolExecutor(max_workers=jobs) as pool,
    ):
        unmutated = pool.submit(run_unmutated, mutants) if with_none else None
        tried = [pool.submit(try_mutant, mutant, pristine, servers) for mutant in mutants]
        if unmutated is not None:
            yield unmutated.result()
        if unmutated is not None and unmutated.result().exit_code != _GREEN:
            pool.shutdown(cancel_futures=True)
            raise TestsAreRed("the tests fail without any mutant; mend that first")
        for one in tried:
            yield one.result()


@click.command("mutations")
@click.argument("names", nargs=-1)
@click.option("--list", "list_only", is_flag=True, help="Show the planted bugs and run nothing.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="How many to try at a time.")
@click.option(
    "--with-none/--without-none",
    default=True,
    show_default=True,
    help="Run the tests without any bug first; leave that out where they run anyway.",
)
def mutations(names: tuple[str, ...], *, list_only: bool, jobs: int, with_none: bool) -> None:
    """Plant bugs in a copy of the project, for the tests to find.

    Exit code 1 when one survives.
    """
    if list_only:
        for mutant in chosen(names):
            click.echo(f"{mutant.name:<42} {mutant.says}")
        return
    started = time.monotonic()
    missed = 0
    try:
        for result in run_mutations(names, jobs, with_none=with_none):
            if isinstance(result, Run):
                click.echo(f"{'(none)':<42} {_said_of(result)}")
                continue
            missed += result.outcome is not Outcome.FOUND
            name, outcome = result.mutant.name, result.outcome.value
            click.echo(f"{name:<42} {outcome:<8} {result.seconds:6.1f} s  {result.by}")
    except (MutantDoesNotApply, TestsAreRed) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{len(chosen(names))} planted bugs, {missed} not found, {time.monotonic() - started:.0f} s")
    if missed:
        raise click.exceptions.Exit(1)


def _said_of(unmutated: Run) -> str:
    if unmutated.exit_code == _GREEN:
        return f"green    {unmutated.seconds:6.1f} s"
    return f"RED      {unmutated.seconds:6.1f} s\n{unmutated.output}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or those of the process."""
    mutations.main(args=None if argv is None else list(argv), prog_name="python -m sim.mutations")


if __name__ == "__main__":
    main()
