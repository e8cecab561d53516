"""The peers' processes: starting, asking to stop, following their logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from peer.cluster.layout import ClusterError, rejoining
from peer.config import Address

LAST_LINES = 10
LAST_BYTES_MAX = 64 * 1024


if sys.platform == "win32":

    async def open_process(command: Sequence[str], log: IO[bytes]) -> trio.Process:
        # A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the peers orderly.
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_peer_environment(),
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
        )

    def ask_to_stop(process: trio.Process) -> None:
        process.send_signal(signal.CTRL_BREAK_EVENT)

else:

    async def open_process(command: Sequence[str], log: IO[bytes]) -> trio.Process:
        # A group of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops the peers orderly.
        return await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_peer_environment(),
            process_group=0,
        )

    def ask_to_stop(process: trio.Process) -> None:
        process.send_signal(signal.SIGTERM)


def _peer_environment() -> dict[str, str]:
    # The peers run the code that this supervisor was loaded from, also when that is no installed copy.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


class PeerLog:
    """A peer's log file: the peer appends to it itself, so neither our death nor a stalled terminal can block it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "peer.log"
        self.writer = self.path.open("ab")
        self._reader = self.path.open("rb")
        self._start = self._reader.seek(0, os.SEEK_END)
        self._partial = b""

    def new_lines(self, *, at_end: bool = False) -> list[str]:
        """The lines written since the last call; an unfinished one waits for its end."""
        *lines, self._partial = (self._partial + self._reader.read()).split(b"\n")
        if at_end and self._partial:
            lines, self._partial = [*lines, self._partial], b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def last_lines(self) -> list[str]:
        """The last lines of this run."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._start, size - LAST_BYTES_MAX))
            return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]

    def close(self) -> None:
        self._reader.close()


@dataclass(slots=True)
class Run:
    """One process of a peer, from its start to its end."""

    process: trio.Process
    log: PeerLog
    ended: trio.Event
    ordered_to_end: bool = False
    hangs: bool = False


class PeerProcess:
    def __init__(self, node_id: str, address: Address, folder: Path, command: Sequence[str]) -> None:
        self.node_id = node_id
        self.address = address
        self.folder = folder
        self.command = command
        self.run: Run | None = None
        self._starting = trio.Lock()

    async def launch(self, *, rejoin: bool = False) -> Run:
        # Two orders to start may come at once, and opening a process takes a moment.
        async with self._starting:
            if self.run is not None:
                raise ClusterError(f"{self.node_id} is already running (process {self.run.process.pid})")
            try:
                self.run = await self._open(rejoining(self.command) if rejoin else self.command)
                self._pid_file.write_text(f"{self.run.process.pid}\n", encoding="ascii")
            except OSError as error:
                raise ClusterError(f"{self.node_id} cannot be started: {error}") from error
            return self.run

    async def _open(self, command: Sequence[str]) -> Run:
        log = PeerLog(self.folder)
        try:
            with log.writer:
                return Run(await open_process(command, log.writer), log, trio.Event())
        except OSError:
            log.close()
            raise

    def running(self) -> Run:
        if self.run is None:
            raise ClusterError(f"{self.node_id} is already down")
        return self.run

    def forget(self, run: Run) -> None:
        self.run = None
        self._pid_file.unlink(missing_ok=True)
        run.log.close()
        run.ended.set()

    @property
    def _pid_file(self) -> Path:
        return self.folder / "peer.pid"
