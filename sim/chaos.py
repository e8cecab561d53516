"""Uploads and deletes against real peers of which some are killed, and a model of what the peers acknowledged.

The peers are known from outside only: their processes, their command line and their HTTP. All choices come from one
seed; what real processes make of them differs from run to run, so a failure names the seed and what was seen.

    python -m sim.chaos --seconds 60
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
import trio

from peer.cli.main import run_command
from peer.cluster import Layout, LocalCluster, PeerCommand, free_base_port, open_cluster, serve_command
from sim.model import FileModel, Promise, PromiseBroken, Version, content_of

SIZES = (0, 1, 4096, 32 * 1024, 32 * 1024 + 1, 1024 * 1024, 9 * 1024 * 1024)
WEIGHTS = (1, 2, 6, 4, 4, 4, 1)
"""Of the sizes: at the edges of what lies in the database and of a chunk; few large ones, which are mostly waiting."""

WORKERS = 6
OPEN = ("PENDING", "IN_PROGRESS", "FAILED")
"""What items of the replication queue may be while copies are missing."""
SHARE_OF_EQUALS = 0.4
EQUALS = 14
"""Bodies that are sent again and again."""

KEYS_OF_OUR_OWN = 12
"""File ids that are overwritten and deleted again and again."""
OPERATION_TIMEOUT_S = 30.0
SLACK_S = 5.0
"""On top of what is promised, for a machine that runs other things too."""
POLL_S = 0.1
READERS = 8
CHECKED_ALONG_THE_WAY = 60
PAGE = 1000


@dataclass(slots=True)
class Report:
    """What a run came to."""

    seed: int
    uploads: int = 0
    uploaded_bytes: int = 0
    deletes: int = 0
    reads: int = 0
    uncertain: int = 0
    wrong: int = 0
    """Uploads whose content was not what their checksum said; none may be taken."""
    refused: Counter[str] = field(default_factory=Counter)
    """By what was asked and answered."""
    timeouts: int = 0
    kills: int = 0
    catch_up_s: list[float] = field(default_factory=list)
    """For each restarted peer, from its first answer until it had all that had been acknowledged before."""
    converged_s: float = 0.0
    slowest_s: float = 0.0

    def __str__(self) -> str:
        caught_up = ", ".join(f"{took_s:.1f}" for took_s in self.catch_up_s) or "none"
        return (
            f"seed {self.seed}: {self.uploads} uploads ({self.uploaded_bytes / 2**20:.0f} MiB), "
            f"{self.deletes} deletes, {self.reads} checked reads, {self.wrong} wrong uploads, "
            f"{self.uncertain} without an answer, {sum(self.refused.values())} refused, "
            f"{self.timeouts} timed out, {self.kills} kills; "
            f"caught up after {caught_up} s; all alike {self.converged_s:.1f} s after the end; "
            f"the slowest operation took {self.slowest_s:.1f} s"
            + "".join(f"\n  refused {count} times: {what}" for what, count in self.refused.most_common())
        )


# --- the storm ---


class Chaos:
    """Clients and a killer against one cluster of real processes; `run` it once."""

    def __init__(self, cluster: LocalCluster, seed: int, heal_interval_s: float) -> None:
        self.cluster = cluster
        self.report = Report(seed)
        self.files: dict[str, FileModel] = {}
        self._heal_interval_s = heal_interval_s
        self._chance = random.Random(seed)
        self._killer = random.Random(seed + 1)
        self._sent: dict[str, Version] = {}
        """By checksum, whatever may be stored somewhere: a file whose receipt was lost has an id nobody knows."""
        self._own = [f"ours-{number}" for number in range(KEYS_OF_OUR_OWN)]
        self._client = httpx.AsyncClient(
            trust_env=False,
            timeout=OPERATION_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def run(self, seconds: float) -> Report:
        """Storm for so long, then let everything heal and check it all. Raises PromiseBroken."""
        async with self._client:
            await self._storm(seconds)
            for node_id in self._down():
                await self.cluster.start(node_id)
            started = trio.current_time()
            await self.wait_alike(2 * self._heal_interval_s + SLACK_S)
            self.report.converged_s = trio.current_time() - started
            await self.check(self.files.values(), all_up=True)
        return self.report

    async def recheck(self) -> None:
        """Check what is listed once more, and some of the content, after all peers were restarted.

        Raises PromiseBroken.
        """
        async with httpx.AsyncClient(trust_env=False, timeout=OPERATION_TIMEOUT_S) as self._client:
            await self.wait_alike(2 * self._heal_interval_s + SLACK_S)
            listed = {file["file_key"] for file in await self.listing(self.cluster.layout.node_ids[0])}
            missing = [file.file_key for file in self.files.values() if file.must_exist and file.file_key not in listed]
            self._expect(not missing, Promise.ACKNOWLEDGED, f"not listed after a restart: {missing[:5]}")
            await self.check(self._some_files(), all_up=True)

    async def _storm(self, seconds: float) -> None:
        broken: PromiseBroken | None = None
        end = trio.current_time() + seconds
        over = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(self._work, over)
                await self._kill_again_and_again(end)
                over.set()
        except* PromiseBroken as group:
            broken = _first(group)
        if broken is not None:
            raise broken

    def _live(self) -> frozenset[str]:
        return frozenset(peer.node_id for peer in self.cluster.status() if peer.pid is not None)

    def _down(self) -> list[str]:
        return [peer.node_id for peer in self.cluster.status() if peer.pid is None]

    async def _kill_again_and_again(self, end: float) -> None:
        chance = self._killer
        while trio.current_time() < end:
            await trio.sleep(chance.uniform(0.2, 1.5))
            victims = chance.sample(self.cluster.layout.node_ids, chance.choice((1, 1, 2)))
            for node_id in victims:
                await self.cluster.kill(node_id)
                self.report.kills += 1
            await trio.sleep(chance.uniform(0.2, 1.5))
            await self.check(self._some_files(), all_up=False)
            for node_id in victims:
                before = {file.file_key for file in self.files.values() if file.must_exist}
                await self.cluster.start(node_id)
                await self._wait_caught_up(node_id, before)

    # --- clients ---

    async def _work(self, over: trio.Event) -> None:
        while not over.is_set():
            live = sorted(self._live())
            if not live:
                await trio.sleep(POLL_S)
                continue
            via = self._chance.choice(live)
            draw = self._chance.random()
            started = trio.current_time()
            if draw < 0.4:
                await self._upload(via, None)
            elif draw < 0.48:
                await self._upload_wrong(via)
            elif draw < 0.78:
                own = self.files.setdefault(key := self._chance.choice(self._own), FileModel(key))
                await self._with(own, self._upload, via, own)
            else:
                known = [file for file in self.files.values() if not file.busy and file.must_exist]
                if known:
                    file = self._chance.choice(known)
                    await self._with(file, self._delete, via, file)
            self.report.slowest_s = max(self.report.slowest_s, trio.current_time() - started)
            await trio.lowlevel.checkpoint()

    async def _with(self, file: FileModel, operation: Callable[..., Any], *args: object) -> None:
        """One operation at a time on a file: of two at once nobody could say which came first."""
        if file.busy or file.retired:
            return
        file.busy = True
        try:
            await operation(*args)
        finally:
            file.busy = False

    def _content(self) -> tuple[Version, bytes]:
        """A body of its own, or one of those that are sent again and again, under the same ids and others."""
        if self._chance.random() < SHARE_OF_EQUALS:
            seed = self._chance.randrange(EQUALS)
            size = SIZES[seed % len(SIZES)]
        else:
            seed = self._chance.getrandbits(48)
            (size,) = self._chance.choices(SIZES, WEIGHTS)
        body = content_of(seed, size)
        return Version(seed, size, hashlib.sha256(body).hexdigest()), body

    async def _upload_wrong(self, via: str) -> None:
        """Content that is not what its checksum says, half of it content that is stored under other ids."""
        version, body = self._content()
        wrong = {"content-md5": "AAAAAAAAAAAAAAAAAAAAAA=="}
        response = await self._send("POST", via, "/files", files={"file": ("wrong.bin", body)}, headers=wrong)
        if isinstance(response, httpx.Response):
            taken = response.status_code == httpx.codes.OK
            self._expect(not taken, Promise.REFUSED, f"{via} took {version} with another checksum")
            self.report.wrong += 1

    async def _upload(self, via: str, file: FileModel | None) -> None:
        version, body = self._content()
        seed, size = version.seed, version.size
        self._sent[version.sha256] = version
        response = await self._send(
            "POST",
            via,
            "/files",
            params={"file_id": file.file_key} if file else {},
            files={"file": (f"{seed}.bin", body, "application/octet-stream")},
        )
        if isinstance(response, _NoAnswer):
            if file is not None and response.may_have_happened:
                file.uncertain_put(version)
                file.retired = file.retired or response.may_happen_yet
            return
        if response.status_code != httpx.codes.OK:
            self._note_refusal(response)
            return
        receipt = response.json()
        acknowledged = Version(seed, size, version.sha256, frozenset(receipt["durable_copies"]))
        is_of_it = receipt["checksum_sha256"] == version.sha256
        self._expect(is_of_it, Promise.RECEIPTS, f"a receipt for other content: {receipt}")
        self._expect(
            via in acknowledged.holders, Promise.RECEIPTS, f"{via} acknowledged what it does not hold: {receipt}"
        )
        self.report.uploads += 1
        self.report.uploaded_bytes += size
        known = file or self.files.setdefault(receipt["file_id"], FileModel(receipt["file_id"]))
        known.acknowledged_put(acknowledged, via)

    async def _delete(self, via: str, file: FileModel) -> None:
        response = await self._send("DELETE", via, f"/files/{file.file_key}")
        if isinstance(response, _NoAnswer):
            if response.may_have_happened:
                file.uncertain_delete()
                file.retired = file.retired or response.may_happen_yet
        elif response.status_code == httpx.codes.OK:
            self.report.deletes += 1
            file.acknowledged_delete(via)
        elif response.status_code == httpx.codes.NOT_FOUND:
            what = f"{via} does not know {file.file_key}, which it holds"
            self._expect(file.may_be_unknown_to(via), Promise.ACKNOWLEDGED, what)
        else:
            self._note_refusal(response)

    def _note_refusal(self, response: httpx.Response) -> None:
        self.report.refused[f"{response.request.method} {response.status_code} {response.json()['error']}"] += 1

    async def _send(self, method: str, via: str, path: str, **content: Any) -> httpx.Response | _NoAnswer:
        try:
            return await self._client.request(method, self.cluster.url_of(via) + path, **content)
        except httpx.ConnectError:
            return _NoAnswer(may_have_happened=False, may_happen_yet=False)
        except httpx.TimeoutException:
            self.report.timeouts += 1
            return _NoAnswer(may_have_happened=True, may_happen_yet=True)
        except httpx.TransportError:
            self.report.uncertain += 1
            return _NoAnswer(may_have_happened=True, may_happen_yet=False)

    # --- checks ---

    @staticmethod
    def _expect(is_so: bool, promise: Promise, otherwise: str) -> None:
        if not is_so:
            raise PromiseBroken(promise, otherwise)

    def _some_files(self) -> list[FileModel]:
        """Of the files nobody works on the newest, and a few of the others."""
        idle = [file for file in self.files.values() if not file.busy]
        newest, others = idle[-CHECKED_ALONG_THE_WAY // 2 :], idle[: -CHECKED_ALONG_THE_WAY // 2]
        return newest + self._killer.sample(others, min(len(others), CHECKED_ALONG_THE_WAY // 2))

    async def check(self, files: Iterable[FileModel], *, all_up: bool) -> None:
        """Every one of these files reads as it must from every live peer, within a heal interval."""
        live = self._live()
        reader_slots = trio.CapacityLimiter(READERS)
        broken: PromiseBroken | None = None

        async def check_one(file: FileModel) -> None:
            async with reader_slots:
                await self._with(file, self._check_file, file, live, all_up)

        try:
            async with trio.open_nursery() as nursery:
                for file in list(files):
                    nursery.start_soon(check_one, file)
        except* PromiseBroken as group:
            broken = _first(group)
        if broken is not None:
            raise broken

    async def _check_file(self, file: FileModel, live: frozenset[str], all_up: bool) -> None:
        for node_id in sorted(live):
            deadline = trio.current_time() + self._heal_interval_s + SLACK_S
            while (objection := await self._read(file, node_id, live, all_up)) is not None:
                if trio.current_time() > deadline:
                    raise objection.at(f"{node_id}, with {sorted(live)} up")
                await trio.sleep(POLL_S)

    async def _read(self, file: FileModel, node_id: str, live: frozenset[str], all_up: bool) -> PromiseBroken | None:
        digest = hashlib.sha256()
        try:
            async with self._client.stream("GET", f"{self.cluster.url_of(node_id)}/files/{file.file_key}") as response:
                async for piece in response.aiter_raw():
                    digest.update(piece)
        except httpx.TransportError as error:
            return PromiseBroken(Promise.ACKNOWLEDGED, f"{file.file_key}: broke off: {error!r}")
        self.report.reads += 1
        return file.objection(response.status_code, digest.hexdigest(), live, all_up=all_up)

    async def _wait_caught_up(self, node_id: str, before: set[str]) -> None:
        """A restarted peer lists all that had been acknowledged, and holds its copy of it."""
        started = trio.current_time()
        while missing := await self._missing_at(node_id, before):
            if trio.current_time() - started > self._heal_interval_s + SLACK_S:
                shown = ", ".join(missing[:5])
                what = f"{node_id} has not caught up after a heal interval; {len(missing)} lack: {shown}"
                raise PromiseBroken(Promise.ALIKE, what)
            await trio.sleep(POLL_S)
        self.report.catch_up_s.append(trio.current_time() - started)

    async def _missing_at(self, node_id: str, before: set[str]) -> list[str]:
        """Of the files acknowledged before and touched by nobody since, those a peer does not hold yet."""
        listed = {file["file_key"]: file for file in await self.listing(node_id)}
        live = self._live()
        return [
            file.file_key
            for key in sorted(before)
            if (file := self.files[key]).must_exist
            and not file.busy
            and not file.retired
            and all(version is not None and version.is_live(live) for version in file.shown)
            and (key not in listed or node_id not in listed[key]["replicas"])
        ]

    async def listing(self, node_id: str) -> list[dict[str, Any]]:
        """All files a peer lists."""
        files: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            params: dict[str, str | int] = {"limit": PAGE} | ({"after": cursor} if cursor else {})
            response = await self._client.get(f"{self.cluster.url_of(node_id)}/files", params=params)
            page = response.raise_for_status().json()
            files += page["files"]
            cursor = page["next"]
            if cursor is None:
                return files

    async def wait_alike(self, within_s: float) -> None:
        """All peers list the same files on the same holders, and no copy is missing. Raises PromiseBroken."""
        deadline = trio.current_time() + within_s
        while (difference := await self._difference()) is not None:
            if trio.current_time() > deadline:
                raise PromiseBroken(Promise.ALIKE, f"after {within_s:g} s with all peers up: {difference}")
            await trio.sleep(POLL_S)

    async def _difference(self) -> str | None:
        first, *others = self.cluster.layout.node_ids
        listed = {file["file_key"]: file for file in await self.listing(first)}
        for other in others:
            theirs = {file["file_key"]: file for file in await self.listing(other)}
            for key in sorted({*listed, *theirs}):
                if listed.get(key) != theirs.get(key):
                    return f"{first} lists {listed.get(key)}, {other} {theirs.get(key)}"
        for key, file in listed.items():
            if key not in self.files and file["checksum_sha256"] not in self._sent:
                return f"a file nobody sent is listed: {file}"
        for node_id in (first, *others):
            for status in OPEN:
                url = f"{self.cluster.url_of(node_id)}/replication-queue?status={status}"
                items = (await self._client.get(url)).json()["items"]
                if items:
                    return f"{node_id} still has {len(items)} items {status} in its queue, as {items[0]}"
        return None


@dataclass(frozen=True, slots=True)
class _NoAnswer:
    may_have_happened: bool
    may_happen_yet: bool


def _first(group: BaseExceptionGroup[PromiseBroken]) -> PromiseBroken:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, PromiseBroken)
    return found


# --- the command ---


def healing_every(heal_interval_s: float) -> PeerCommand:
    """The command line of peers with another heal interval."""

    def command(layout: Layout, node_id: str, folder: Path) -> list[str]:
        return [*serve_command(layout, node_id, folder), "--heal-interval", f"{heal_interval_s:g}"]

    return command


async def _run_in(folder: Path, seed: int, seconds: float, heal_interval_s: float) -> Report:
    base = free_base_port(4)
    async with open_cluster(
        folder, nodes=3, base_port=base + 1, facade_port=base, command=healing_every(heal_interval_s)
    ) as cluster:
        await cluster.start_all()
        chaos = Chaos(cluster, seed, heal_interval_s)
        report = await chaos.run(seconds)
        await cluster.stop_all()
        await cluster.start_all()
        await chaos.recheck()
        return report


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="How long to storm, in seconds.")
@click.option("--seed", type=int, help="Of all choices.  [default: drawn]")
@click.option("--heal-interval", type=float, default=5.0, show_default=True, metavar="SECONDS", help="Of the peers.")
def chaos(seconds: float, seed: int | None, heal_interval: float) -> int:
    """Kill peers of a local cluster while clients upload and delete.

    What was promised is checked.
    """
    chosen = random.SystemRandom().getrandbits(32) if seed is None else seed
    click.echo(f"seed {chosen}")
    folder = Path(tempfile.mkdtemp(prefix="minidfs-chaos-"))
    try:
        report = trio.run(_run_in, folder, chosen, seconds, heal_interval)
    except PromiseBroken as broken:
        raise click.ClickException(f"seed {chosen}: {broken}; data and logs are in {folder}") from broken
    shutil.rmtree(folder)
    click.echo(str(report))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(chaos, "sim.chaos"))
