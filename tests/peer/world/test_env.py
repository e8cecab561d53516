"""One suite for the real world and the simulated one: what the simulator finds counts only if both keep it.

Each test runs against this machine's files and sockets, and against those in memory.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from peer.config import Address
from peer.world import disk as disk_module
from peer.world.disk import SystemDisk
from peer.world.env import (
    Disk,
    Env,
    FileMissing,
    HttpAnswer,
    HttpRequest,
    HttpRequests,
    Listener,
    RequestFailed,
    StartError,
    StoreError,
    Work,
)
from peer.world.server import Server
from peer.world.sockets import SystemDatagrams
from peer.world.system import SystemEnv
from sim.disk import Faults, Mount, Platter
from sim.world import VirtualEnv, World, run_world

DEADLINE_S = 20
WORLDS = pytest.mark.parametrize("kind", ["real", "virtual"])
MIB = 1024 * 1024


@dataclass
class Pair:
    """Two neighbours in one world, and addresses they may use."""

    ours: Env
    theirs: Env
    addresses: list[Address]


def in_world_of(kind: str, folder: Path, body: Callable[[Pair], Awaitable[None]]) -> None:
    """Run a test body in the real or the simulated world, for a while at most."""

    async def real() -> None:
        with trio.fail_after(DEADLINE_S):
            await body(Pair(SystemEnv(folder / "a"), SystemEnv(folder / "b"), [Address("127.0.0.1", 0)] * 3))

    async def virtual(world: World) -> None:
        with trio.fail_after(DEADLINE_S):
            envs = [VirtualEnv(world, machine.name, machine.platter, 1) for machine in world.machines.values()]
            await body(Pair(envs[0], envs[1], [machine.address for machine in world.machines.values()]))

    if kind == "real":
        trio.run(real)
    else:
        run_world(1, virtual)


# --- disk ---


@pytest.fixture(params=["real", "virtual"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return SystemDisk(tmp_path / "data") if request.param == "real" else Mount(Platter())


def write(disk: Disk, path: str, content: bytes) -> None:
    file = disk.create(path)
    file.write(content)
    file.sync()
    file.close()


def read(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        return file.read_at(0, MIB)
    finally:
        file.close()


def test_a_file_is_made_named_listed_read_and_removed(disk: Disk) -> None:
    with disk.lock():
        for folder in ("receiving", "chunks/ab"):
            disk.make_folder(folder)
            disk.make_folder(folder)
        write(disk, "receiving/1", b"one")
        write(disk, "receiving/2", b"")
        assert disk.list_files("receiving") == [("1", 3), ("2", 0)]
        disk.rename("receiving/1", "chunks/ab/one")
        disk.sync_folder("chunks/ab")
        disk.sync_folder("receiving")
        assert disk.list_files("receiving") == [("2", 0)]
        assert disk.list_files("chunks") == []
        assert disk.list_files("chunks/ab") == [("one", 3)]
        assert disk.list_files("chunks/none") == []
        assert read(disk, "chunks/ab/one") == b"one"
        disk.remove("chunks/ab/one")
        disk.remove("chunks/ab/one")
        disk.remove("nowhere/at all")
        assert disk.list_files("chunks/ab") == []


def test_files_are_written_in_pieces_and_read_anywhere(disk: Disk) -> None:
    with disk.lock():
        file = disk.create("a")
        for piece in (b"01234", b"", memoryview(b"xx56789xx")[2:7]):
            file.write(piece)
        file.sync()
        file.close()
        file.close()
        opened = disk.open("a")
        assert opened.read_at(0, 10) == b"0123456789"
        assert opened.read_at(3, 4) == b"3456"
        assert opened.read_at(8, 100) == b"89"
        assert opened.read_at(10, 1) == b""
        assert opened.read_at(99, 1) == b""
        assert opened.identity().size == 10
        opened.close()


def test_what_is_not_there_or_there_already_is_a_store_error(disk: Disk) -> None:
    with disk.lock():
        with pytest.raises(FileMissing):
            disk.open("missing")
        with pytest.raises(StoreError):
            disk.rename("missing", "other")
        with pytest.raises(StoreError):
            disk.create("no/such/folder/file")
        with pytest.raises(StoreError):
            disk.sync_folder("no/such/folder")
        write(disk, "taken", b"1")
        with pytest.raises(StoreError):
            disk.create("taken")
        with pytest.raises(StoreError):
            disk.rename("taken", "no/such/folder/file")
        assert read(disk, "taken") == b"1"


def test_an_open_file_outlives_its_name_and_its_identity_follows_changes(disk: Disk) -> None:
    with disk.lock():
        write(disk, "a", b"1234")
        first = disk.open("a")
        assert first.identity() == disk.open("a").identity()
        disk.remove("a")
        write(disk, "a", b"abcd")
        second = disk.open("a")
        assert first.read_at(0, 9) == b"1234"
        assert second.read_at(0, 9) == b"abcd"
        assert first.identity() != second.identity()
        for file in (first, second):
            file.close()


def test_a_second_peer_is_kept_off_a_disk_until_the_first_lets_go(disk: Disk) -> None:
    with disk.lock():
        with pytest.raises(StartError), disk.lock():
            pass
        with pytest.raises(StartError), disk.lock():
            pass
    with disk.lock():
        pass


def test_a_disk_says_how_much_fits_it(disk: Disk) -> None:
    with disk.lock():
        assert 0 < disk.free_bytes() <= disk.total_bytes()


def test_a_database_keeps_what_was_committed(disk: Disk) -> None:
    with disk.lock():
        writer = disk.database("a.db").connect_writer()
        writer.execute("CREATE TABLE IF NOT EXISTS meta (key, value)")
        writer.execute("BEGIN")
        writer.execute("INSERT INTO meta VALUES (1, 2)")
        writer.execute("COMMIT")
        pinned = disk.database("a.db").pin()
        writer.execute("DELETE FROM meta")
        assert pinned.execute("SELECT * FROM meta").fetchall() == [(1, 2)]
        pinned.close()
        writer.close()
        again = disk.database("a.db").connect_writer()
        assert again.execute("SELECT * FROM meta").fetchall() == []
        assert again.execute("PRAGMA foreign_keys").fetchone() == (1,)
        again.close()


def test_a_folder_is_made_durable_also_when_a_kill_left_it_unsynced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("peer.world.disk.sync_folder", synced.append)
    root = tmp_path / "above" / "root"
    (root / "chunks" / "aa").mkdir(parents=True)
    disk = SystemDisk(root)
    with disk.lock():
        assert {root.parent, tmp_path} <= {*synced}, "the name of the data folder, and of the one above it"
        synced.clear()
        disk.make_folder("chunks/aa")
        assert {*synced} == {root, root / "chunks"}


@pytest.mark.parametrize("syncs", [True, False])
def test_only_a_disk_that_syncs_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, syncs: bool
) -> None:
    synced: list[int] = []
    sync = disk_module.sync_file

    def count(descriptor: int) -> None:
        synced.append(descriptor)
        sync(descriptor)

    disk = SystemDisk(tmp_path, syncs=syncs)
    monkeypatch.setattr(disk_module, "sync_file", count)
    disk.make_folder("chunks")
    with closing(disk.create("chunks/a")) as file:
        file.write(b"content")
        file.sync()
    disk.sync_folder("chunks")
    assert bool(synced) is syncs
    with closing(disk.database("a.db").connect_writer()) as writer:
        full, normal = 2, 1
        assert writer.execute("PRAGMA synchronous").fetchone() == (full if syncs else normal,)


def test_space_that_was_allocated_is_taken(disk: Disk) -> None:
    with disk.lock():
        disk.allocate("reserve", 100_000)
        assert dict(disk.list_files(""))["reserve"] == 100_000
        disk.remove("reserve")
        assert "reserve" not in dict(disk.list_files(""))


# --- what only the virtual disk can show ---


def test_a_folder_whose_name_was_not_synced_dies_in_a_crash_with_all_that_is_in_it() -> None:
    platter = Platter()
    disk = Mount(platter)
    disk.make_folder("kept")
    platter.folders["kept/lost"] = None
    write(disk, "kept/lost/file", b"synced")
    disk.sync_folder("kept/lost")
    platter.crash()
    assert Mount(platter).list_files("kept/lost") == []
    with pytest.raises(StoreError):
        Mount(platter).create("kept/lost/again")


def test_a_commit_that_failed_comes_back_after_a_crash_unless_another_was_written_over_it() -> None:
    for is_overwritten in (False, True):
        platter = Platter()
        writer = Mount(platter).database("a.db").connect_writer()
        writer.execute("CREATE TABLE meta (key)")
        platter.faults = Faults(Random(1), eio_at_commit=1.0)
        writer.execute("BEGIN")
        writer.execute("INSERT INTO meta VALUES (1)")
        with pytest.raises(sqlite3.OperationalError):
            writer.execute("COMMIT")
        writer.execute("ROLLBACK")
        platter.faults = None
        if is_overwritten:
            writer.execute("BEGIN")
            writer.execute("INSERT INTO meta VALUES (2)")
            writer.execute("COMMIT")
        platter.crash()
        found = Mount(platter).database("a.db").connect_writer().execute("SELECT key FROM meta").fetchall()
        assert found == ([(2,)] if is_overwritten else [(1,)])


def test_a_roll_back_that_fails_leaves_nothing_for_other_connections_to_see() -> None:
    platter = Platter()
    database = Mount(platter).database("a.db")
    writer, reader = database.connect_writer(), database.connect_reader()
    writer.execute("CREATE TABLE meta (key)")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO meta VALUES (1)")
    platter.faults = Faults(Random(1), eio=1.0)
    with pytest.raises(sqlite3.OperationalError):
        writer.execute("ROLLBACK")
    platter.faults = None
    assert not writer.in_transaction
    assert reader.execute("SELECT key FROM meta").fetchall() == []


def test_a_crash_takes_what_was_not_synced_and_leaves_what_was() -> None:
    platter = Platter()
    disk = Mount(platter)
    disk.make_folder("f")
    with disk.lock():
        write(disk, "f/synced", b"synced")
        half = disk.create("f/half")
        half.write(b"synced,")
        half.sync()
        half.write(b"not synced")
        disk.create("f/unsynced").write(b"bytes")
        disk.sync_folder("f")
        write(disk, "f/name not synced", b"synced")
        disk.rename("f/synced", "f/renamed")
        platter.crash()
        for access in (
            lambda: disk.open("f/half"),
            lambda: disk.create("f/more"),
            lambda: disk.list_files("f"),
            lambda: disk.rename("f/half", "f/x"),
            lambda: disk.remove("f/half"),
            lambda: disk.sync_folder("f"),
            lambda: disk.database("a.db"),
            lambda: half.write(b"more"),
            lambda: half.sync(),
        ):
            with pytest.raises(StoreError, match="power"):
                access()
    again = Mount(platter)
    with again.lock():
        assert again.list_files("f") == [("half", 7), ("synced", 6), ("unsynced", 0)]
        assert read(again, "f/half") == b"synced,"
        with pytest.raises(FileMissing):
            again.open("f/renamed")


def test_a_name_that_was_synced_and_moved_is_in_both_folders_until_both_are_synced() -> None:
    platter = Platter()
    disk = Mount(platter)
    for folder in ("a", "b"):
        disk.make_folder(folder)
    with disk.lock():
        write(disk, "a/1", b"1")
        disk.sync_folder("a")
        disk.rename("a/1", "b/1")
        disk.sync_folder("b")
        platter.crash()
    again = Mount(platter)
    assert (again.list_files("a"), again.list_files("b")) == ([("1", 1)], [("1", 1)])


# --- blocking calls, clock and chance ---


@WORLDS
def test_blocking_calls_give_results_and_errors_and_are_waited_for_when_cancelled(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        env = pair.ours
        for work in Work:
            assert await env.run_blocking(work, divmod, 7, 2) == (3, 1)
            with pytest.raises(ZeroDivisionError):
                await env.run_blocking(work, divmod, 7, 0)
        done: list[str] = []
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                await env.run_blocking(Work.DISK, done.append, "done")

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert done == ["done"]

    in_world_of(kind, tmp_path, body)


@WORLDS
def test_clocks_go_forward_and_streams_of_chance_differ(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        before, wall_before = pair.ours.clock.now(), pair.ours.clock.wall_ms()
        await trio.sleep(0.01)
        assert pair.ours.clock.now() - before >= 0.01
        assert pair.ours.clock.wall_ms() - wall_before >= 9
        assert wall_before > 1_700_000_000_000
        draws = [env.chance(stream).getrandbits(64) for env in (pair.ours, pair.theirs) for stream in ("epochs", "ids")]
        assert len(set(draws)) == 4

    in_world_of(kind, tmp_path, body)


# --- datagrams ---


def bound_to(datagrams: Any) -> Address:
    if isinstance(datagrams, SystemDatagrams):
        return Address(*datagrams._socket.getsockname())
    address: Address = datagrams.address
    return address


@WORLDS
def test_addresses_stand_for_themselves_and_so_do_names_that_cannot_be_looked_up(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        for host in ("127.0.0.1", "::1", "nothing.invalid", "a..b", "a" * 300):
            assert await pair.ours.resolve(Address(host, 80)) == (Address(host, 80),)

    in_world_of(kind, tmp_path, body)


def test_a_name_stands_for_its_addresses(tmp_path: Path) -> None:
    async def main() -> None:
        found = await SystemEnv(tmp_path).resolve(Address("localhost", 80))
        assert Address("127.0.0.1", 80) in found
        assert all(address.is_loopback for address in found)

    trio.run(main)


@WORLDS
def test_datagrams_arrive_whole_with_their_senders_address(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        ours = await pair.ours.open_datagrams(pair.addresses[0])
        theirs = await pair.theirs.open_datagrams(pair.addresses[1])
        for payload in (b"hello", b"", b"x" * 1400):
            await ours.send(payload, bound_to(theirs))
            received, sender = await theirs.receive()
            assert received == payload
            assert sender == bound_to(ours)
            await theirs.send(b"back", sender)
            assert await ours.receive() == (b"back", bound_to(theirs))

    in_world_of(kind, tmp_path, body)


@WORLDS
def test_datagrams_to_nobody_or_to_an_absurd_address_are_lost_in_silence(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        ours = await pair.ours.open_datagrams(pair.addresses[0])
        theirs = await pair.theirs.open_datagrams(pair.addresses[1])
        for host, port in [
            ("127.0.0.1", 1), ("127.0.0.1", 0), ("", 9), ("::1", 9), ("256.1.1.1", 9), ("a" * 70 + ".invalid", 9),
            ("a\0b", 9), (".", 9), ("a..b", 9), ("\ud800", 9), ("127.0.0.1\n", 9), ("255.255.255.255", 9),
        ]:  # fmt: skip
            await ours.send(b"lost", Address(host, port))
        await ours.send(b"x" * 100_000, bound_to(theirs)) if kind == "real" else None
        await ours.send(b"arrives", bound_to(theirs))
        assert (await theirs.receive())[0] == b"arrives"

    in_world_of(kind, tmp_path, body)


# --- HTTP ---


async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: C901  (one case a path)
    """Does what the path says."""

    async def start(status: int = 200, *headers: tuple[bytes, bytes]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(content: bytes, *, more: bool = False) -> None:
        await send({"type": "http.response.body", "body": content, "more_body": more})

    path = scope["path"]
    if path.startswith("/echo"):
        size, digest = 0, hashlib.sha256()
        while True:
            message = await receive()
            assert message["type"] == "http.request"
            size += len(message["body"])
            digest.update(message["body"])
            if not message["more_body"]:
                break
        said = f"{scope['method']} {path} {scope['query_string'].decode()} {size} {digest.hexdigest()}".encode()
        names = [name for name, _ in scope["headers"]]
        assert names == [name.lower() for name in names]
        await start(200, (b"x-listener", scope["state"]["listener"].encode()), (b"content-length", b"%d" % len(said)))
        await body(said)
    elif path.startswith("/stream/"):
        await start(200, (b"content-type", b"text/plain"))
        for number in range(int(path.rpartition("/")[2])):
            await body(b"%d," % number, more=True)
            await body(b"", more=True)
        await body(b"")
    elif path == "/large":
        await start(200, (b"content-length", b"%d" % (8 * MIB)))
        for number in range(8):
            await body(bytes([number]) * MIB, more=number < 7)
    elif path == "/nothing":
        await start(204)
        await body(b"")
    elif path == "/teapot":
        await start(418, (b"x-one", b"1"), (b"x-one", b"2"), (b"content-length", b"2"))
        await body(b"{}")
    elif path == "/dies early":
        raise OSError("before it answered")
    elif path == "/dies":
        await start(200, (b"content-length", b"100"))
        await body(b"x" * 50, more=True)
        raise OSError("the disk is on fire")
    elif path == "/dies in chunks":
        await start(200)
        await body(b"x" * 50, more=True)
        raise OSError("the disk is on fire")
    elif path == "/stalls":
        await start(200, (b"content-length", b"100"))
        await body(b"x" * 50, more=True)
        await trio.sleep_forever()
    elif path == "/never":
        await trio.sleep_forever()


@asynccontextmanager
async def served(pair: Pair) -> AsyncIterator[tuple[httpx.AsyncClient, str, Any]]:
    """A client of ours, the address of their server, and the server."""
    server = pair.theirs.http_server(app)
    listeners: list[Listener] = list(await server.listen(pair.addresses[1], name="peer", shared=False))
    timeout = httpx.Timeout(DEADLINE_S)
    async with (
        httpx.AsyncClient(transport=pair.ours.http_transport(), trust_env=False, timeout=timeout) as client,
        trio.open_nursery() as nursery,
    ):
        for listener in listeners:
            nursery.start_soon(listener.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield client, f"http://{listeners[0].address}", server
        await server.shut_down(0)
        nursery.cancel_scope.cancel()


def http_test(body: Callable[[httpx.AsyncClient, str, Any], Awaitable[None]], kind: str, folder: Path) -> None:
    async def whole(pair: Pair) -> None:
        async with served(pair) as (client, url, server):
            await body(client, url, server)

    in_world_of(kind, folder, whole)


@WORLDS
def test_requests_arrive_as_they_were_sent(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            yield b""
            yield b"two"

        large = b"l" * (3 * MIB)
        for method, path, content, expected in [
            ("GET", "/echo", b"", "/echo "),
            ("POST", "/echo", b"body", "/echo "),
            ("PUT", "/echo/a%20b/%C3%A9/%2F%3F?x=1%262&y=%20", b"\0\xff", "/echo/a b/é//? x=1%262&y=%20"),
            ("POST", "/echo?", large, "/echo "),
            ("DELETE", "/echo/%25?a?b", b"", "/echo/% a?b"),
        ]:
            response = await client.request(method, url + path, content=content)
            digest = hashlib.sha256(content).hexdigest()
            assert response.text == f"{method} {expected} {len(content)} {digest}"
            assert response.headers["x-listener"] == "peer"
        response = await client.post(f"{url}/echo", content=pieces())
        assert response.text.split()[-2:] == ["6", hashlib.sha256(b"onetwo").hexdigest()]

    http_test(body, kind, tmp_path)


@WORLDS
def test_answers_arrive_as_they_were_given(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        teapot = await client.get(f"{url}/teapot")
        assert (teapot.status_code, teapot.content) == (418, b"{}")
        assert teapot.headers.get_list("x-one") == ["1", "2"]
        assert (await client.get(f"{url}/nothing")).content == b""
        assert (await client.get(f"{url}/stream/0")).content == b""
        assert (await client.get(f"{url}/stream/300")).text == "".join(f"{number}," for number in range(300))
        large = await client.get(f"{url}/large")
        assert (
            hashlib.sha256(large.content).digest()
            == hashlib.sha256(b"".join(bytes([number]) * MIB for number in range(8))).digest()
        )

    http_test(body, kind, tmp_path)


@WORLDS
def test_an_answer_is_streamed_while_it_is_made(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        async with client.stream("GET", f"{url}/stalls") as response:
            assert response.status_code == 200
            assert await anext(response.aiter_raw()) == b"x" * 50

    http_test(body, kind, tmp_path)


@WORLDS
@pytest.mark.parametrize("path", ["/dies", "/dies in chunks"])
def test_an_answer_that_breaks_off_is_an_error_and_not_a_short_answer(kind: str, tmp_path: Path, path: str) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        with pytest.raises(httpx.HTTPError):
            await client.get(url + path)
        assert (await client.get(f"{url}/nothing")).status_code == 204, "the others go on"

    http_test(body, kind, tmp_path)


@WORLDS
def test_a_bug_before_the_answer_is_500(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        assert (await client.get(f"{url}/dies early")).status_code == 500

    http_test(body, kind, tmp_path)


@WORLDS
@pytest.mark.parametrize("path", ["/never", "/stalls"])
def test_silence_is_a_read_timeout(kind: str, tmp_path: Path, path: str) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url + path, timeout=0.1)

    http_test(body, kind, tmp_path)


@WORLDS
def test_nobody_there_is_a_connect_error(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        async with served(pair) as (client, url, _):
            await client.get(f"{url}/nothing")
        async with httpx.AsyncClient(transport=pair.ours.http_transport(), trust_env=False) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{url}/nothing")

    in_world_of(kind, tmp_path, body)


# --- whole requests ---


def whole_test(body: Callable[[Asking], Awaitable[None]], kind: str, folder: Path) -> None:
    async def whole(pair: Pair) -> None:
        async with served(pair) as (_, url, server):
            requests = pair.ours.http_requests()
            await body(Asking(requests, Address.parse(url.removeprefix("http://")), server))
            requests.close()

    in_world_of(kind, folder, whole)


@dataclass
class Asking:
    """Whole requests to a server."""

    requests: HttpRequests
    address: Address
    server: Any

    async def __call__(
        self, target: str, body: bytes = b"", *, method: str = "GET", silence_s: float = DEADLINE_S, most: int = 9 * MIB
    ) -> HttpAnswer:
        request = HttpRequest(
            method=method,
            target=target,
            headers=(("x-one", "1"),),
            body=body,
            connect_timeout_s=DEADLINE_S,
            silence_timeout_s=silence_s,
            answer_bytes_max=most,
        )
        return await self.requests.request(self.address, request)


@WORLDS
def test_whole_requests_and_answers_arrive_as_they_were_sent(kind: str, tmp_path: Path) -> None:
    async def body(ask: Asking) -> None:
        large = b"l" * (3 * MIB)
        for method, target, content, expected in [
            ("GET", "/echo", b"", "/echo "),
            ("POST", "/echo", b"body", "/echo "),
            ("PUT", "/echo/a%20b/%C3%A9/%2F%3F?x=1%262&y=%20", b"\0\xff", "/echo/a b/é//? x=1%262&y=%20"),
            ("POST", "/echo?", large, "/echo "),
        ]:
            answer = await ask(target, content, method=method)
            said = f"{method} {expected} {len(content)} {hashlib.sha256(content).hexdigest()}"
            assert answer[:2] == (200, said.encode())
        assert (await ask("/teapot"))[:2] == (418, b"{}")
        assert (await ask("/nothing"))[:2] == (204, b"")
        assert (await ask("/stream/300")).content == b"".join(b"%d," % number for number in range(300))
        assert len((await ask("/large")).content) == 8 * MIB
        assert (await ask("/dies%20early")).status == 500

    whole_test(body, kind, tmp_path)


@WORLDS
@pytest.mark.parametrize("path", ["/dies", "/dies in chunks"])
def test_a_whole_answer_that_breaks_off_is_a_failure_and_the_next_request_is_answered(
    kind: str, tmp_path: Path, path: str
) -> None:
    async def body(ask: Asking) -> None:
        for _ in range(3):
            with pytest.raises(RequestFailed):
                await ask(path.replace(" ", "%20"))
            assert (await ask("/nothing")).status == 204

    whole_test(body, kind, tmp_path)


@WORLDS
@pytest.mark.parametrize("path", ["/never", "/stalls"])
def test_a_whole_request_waits_for_silence_no_longer_than_it_is_told(kind: str, tmp_path: Path, path: str) -> None:
    async def body(ask: Asking) -> None:
        with pytest.raises(RequestFailed):
            await ask(path, silence_s=0.1)
        with trio.move_on_after(0.1):
            await ask(path)
        assert (await ask("/nothing")).status == 204, "what was given up is no answer to another request"

    whole_test(body, kind, tmp_path)


@WORLDS
def test_a_whole_answer_that_is_too_long_is_a_failure(kind: str, tmp_path: Path) -> None:
    async def body(ask: Asking) -> None:
        with pytest.raises(RequestFailed, match="too long"):
            await ask("/large", most=MIB)
        assert (await ask("/teapot", most=2)).content == b"{}"

    whole_test(body, kind, tmp_path)


@WORLDS
def test_many_whole_requests_at_once_each_get_their_own_answer(kind: str, tmp_path: Path) -> None:
    async def body(ask: Asking) -> None:
        async def one(number: int) -> None:
            content = b"%d" % number * 1000
            answer = await ask(f"/echo/{number}", content, method="POST")
            digest = hashlib.sha256(content).hexdigest()
            assert answer.content.decode() == f"POST /echo/{number}  {len(content)} {digest}"

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(one, number)

    whole_test(body, kind, tmp_path)


@WORLDS
def test_a_whole_request_to_nobody_is_a_failure(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        requests = pair.ours.http_requests()
        async with served(pair) as (_, url, server):
            ask = Asking(requests, Address.parse(url.removeprefix("http://")), server)
            await ask("/nothing")
        with pytest.raises(RequestFailed):
            await ask("/nothing")
        requests.close()

    in_world_of(kind, tmp_path, body)


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", b"\0" * 100, b"HTTP/1.1 200"],
)
def test_what_is_no_answer_is_a_failure(answer: bytes, tmp_path: Path) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            requests = SystemEnv(tmp_path).http_requests()
            ask = Asking(requests, Address("127.0.0.1", listener.socket.getsockname()[1]), None)
            with trio.fail_after(DEADLINE_S), pytest.raises(RequestFailed):
                await ask("/")
            nursery.cancel_scope.cancel()

    trio.run(body)


def test_kept_connections_are_used_again_and_one_that_was_closed_meanwhile_is_replaced(tmp_path: Path) -> None:
    connections: list[int] = []

    async def serve(stream: trio.SocketStream) -> None:
        connections.append(0)
        while await stream.receive_some():
            connections[-1] += 1
            await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            if connections == [3]:
                # As the server that closes a connection just as the next request comes.
                await stream.receive_some()
                break
        await stream.aclose()

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            requests = SystemEnv(tmp_path).http_requests()
            ask = Asking(requests, Address("127.0.0.1", listener.socket.getsockname()[1]), None)
            with trio.fail_after(DEADLINE_S):
                for _ in range(6):
                    assert (await ask("/")).status == 204
            requests.close()
            nursery.cancel_scope.cancel()

    trio.run(body)
    assert connections == [3, 3]


@WORLDS
def test_shutting_down_waits_for_what_runs_and_ends_it_when_the_grace_is_over(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, server: Any) -> None:
        outcomes: list[object] = []

        async def get(path: str) -> None:
            try:
                outcomes.append((await client.get(url + path)).status_code)
            except httpx.HTTPError as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, "/never")
            await trio.sleep(0.05)
            started = trio.current_time()
            await server.shut_down(0.1)
            assert 0.09 <= trio.current_time() - started < 2
        assert len(outcomes) == 1
        assert isinstance(outcomes[0], httpx.HTTPError)
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/nothing")

    http_test(body, kind, tmp_path)


@WORLDS
def test_a_port_can_be_taken_once(kind: str, tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        server = pair.theirs.http_server(app)
        (first, *_) = await server.listen(pair.addresses[1], name="peer", shared=False)
        with pytest.raises(StartError, match="taken"):
            await pair.ours.http_server(app).listen(first.address, name="peer", shared=False)
        datagrams = await pair.theirs.open_datagrams(first.address)
        with pytest.raises(StartError, match="taken"):
            await pair.ours.open_datagrams(first.address)
        assert bound_to(datagrams) == first.address

    in_world_of(kind, tmp_path, body)


@WORLDS
def test_a_client_that_leaves_does_no_harm(kind: str, tmp_path: Path) -> None:
    async def body(client: httpx.AsyncClient, url: str, _: Any) -> None:
        for _ in range(20):
            with trio.move_on_after(0.01):
                await client.get(f"{url}/never")
            with suppress(httpx.HTTPError):
                async with client.stream("GET", f"{url}/large") as response:
                    await anext(response.aiter_raw())
        assert (await client.get(f"{url}/nothing")).status_code == 204

    http_test(body, kind, tmp_path)


def test_the_real_server_is_the_one_that_is_tested_here() -> None:
    async def body() -> None:
        assert isinstance(SystemEnv(Path()).http_server(app)._server, Server)  # type: ignore[attr-defined]

    trio.run(body)
