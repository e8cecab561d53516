"""What may import and call what: `sim -> peer -> protocol -> (msgpack, standard library)`, the rooms of a peer, and
where the world and SQL get in.

Each rule reads one module's syntax tree and gives the lines that break it; further down each is shown to find what it
is for.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "peer", "sim")

MAY_IMPORT = {"protocol": {"blake3", "msgpack"}, "peer": {"protocol"}, "sim": {"peer", "protocol"}}
"""What a package may import beside itself and the standard library; of third parties only protocol is restricted."""

FLOORS = (
    {"config", "events", "tasks", "locks", "complaints", "longest", "pace"},
    {"world", "cluster"},
    {"worker"},
    {"store"},
    {"gossip"},
    {"files", "upkeep"},
    {"http"},
    {"node"},
    {"run"},
    {"cli"},
)
"""The rooms of `peer/`: each may use those on floors below its own, and of protocol what it likes."""

ONLY = {"cluster": {"config", "tasks", "locks"}, "http": {"world.env"}}
"""Rooms that may use less: a cluster's supervisor knows a peer from outside; of the world, routes know interfaces."""

SQL = re.compile(
    r"\b(SELECT|INSERT INTO|REPLACE INTO|DELETE FROM|UPDATE \w+ SET|CREATE (TABLE|INDEX|VIEW)|ALTER TABLE)\b"
)

# The world, which the rules must not touch: events and `now` are handed to them.
BANNED_IN_PROTOCOL = {
    "asyncio", "concurrent", "ctypes", "httpx", "multiprocessing", "os", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "trio", "uuid",
}  # fmt: skip
CLOCKS_AND_CHANCE = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today",
    "uuid.uuid1", "uuid.uuid4", "os.urandom", "random.SystemRandom",
}  # fmt: skip
THE_WORLD = ("peer/world/", "peer/cluster/", "peer/cli/")
"""Where clocks and chance come from: the real environment, and the supervisor of real processes."""
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager"}

SET_MAKERS = {"set", "frozenset"}
SET_TYPES = SET_MAKERS | {"Set", "AbstractSet", "FrozenSet", "MutableSet"}
SET_METHODS = {"union", "intersection", "difference", "symmetric_difference"}
KEEP_ORDER = {"list", "tuple", "enumerate", "reversed", "iter", "zip"}
ORDER_DOES_NOT_MATTER = {"all", "any", "frozenset", "len", "set", "sorted", "sum"}

Rule = Callable[[str, ast.Module], Iterator[tuple[int, str]]]


# What a module imports and uses, by full names.


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every imported name in full: `from trio import Event` is `trio.Event`; imports within the package are skipped."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def used(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Every use of an imported name in full, called or not: after `import time as t`, `t.time` is `time.time`."""
    full_names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                full_names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            full_names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := _full_name(node, full_names)):
            yield node, name


def _full_name(node: ast.expr, full_names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return full_names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _full_name(node.value, full_names)):
        return f"{owner}.{node.attr}"
    return None


# The rules.


def arrows(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    package = path.partition("/")[0]
    forbidden = {*PACKAGES, "tests"} - {package} - MAY_IMPORT[package]
    for line, name in imported(tree):
        top = name.partition(".")[0]
        foreign = top not in sys.stdlib_module_names and top != package and top not in MAY_IMPORT[package]
        if top in forbidden or (package == "protocol" and foreign):
            yield line, f"{package} must not import {top}"


def rooms(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not path.startswith("peer/"):
        return
    here = _room(path.removesuffix(".py").replace("/", "."))
    for line, name in imported(tree):
        there = _room(name)
        if there is None or here is None or there == here:
            continue
        if _floor(there) >= _floor(here):
            yield line, f"{here} must not use {there}, which stands above it or beside it"
        allowed = ONLY.get(here)
        if allowed and there in {"world", *allowed} and not any(f"{name}.".startswith(f"peer.{a}.") for a in allowed):
            yield line, f"{here} uses only {', '.join(sorted(allowed))}"


def _room(module: str) -> str | None:
    """The room of a module of peer; None for others, and for what only starts a peer."""
    parts = module.split(".")
    return parts[1] if parts[0] == "peer" and len(parts) > 1 and not parts[1].startswith("__") else None


def _floor(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def sql_only_in_the_store(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not path.startswith("peer/") or path.startswith("peer/store/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value):
            yield node.lineno, "SQL is written in peer/store/ only; ask a question of store/lookups"


def no_world_in_protocol(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if not path.startswith("protocol/"):
        return
    for line, name in imported(tree):
        # The generator's type: one is handed in.
        if name.partition(".")[0] in BANNED_IN_PROTOCOL and name != "random.Random":
            yield line, f"protocol must not import {name}; the shell hands in what it needs of it"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "hash", "id"):
            yield node.lineno, f"protocol must not call {node.func.id}(): its result differs from process to process"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Random"
            and not node.args
        ):
            yield node.lineno, "Random() without a seed draws one from the system; take the generator as an argument"


def world_only_at_the_edge(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path.startswith("sim/") or path.startswith(THE_WORLD):
        return
    for node, name in used(tree):
        drawn = name.startswith("secrets.") or (name.startswith("random.") and name[len("random.") :].islower())
        if drawn or name in CLOCKS_AND_CHANCE:
            yield node.lineno, f"{name} is for {', '.join(THE_WORLD)} only; use env's clock and chance"


def threads_only_in_system(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path == "peer/world/system.py" or path.startswith("sim/"):
        return
    lines = {line for line, name in imported(tree) if name.startswith("trio.to_thread")}
    lines |= {node.lineno for node, name in used(tree) if name.startswith("trio.to_thread")}
    for line in sorted(lines):
        yield (
            line,
            "trio.to_thread is for peer/world/system.py only; use env.run_blocking, which a simulation runs inline",
        )


def no_vague_file_names(path: str, _tree: ast.Module) -> Iterator[tuple[int, str]]:
    vague = {word for part in Path(path).with_suffix("").parts for word in part.split("_")} & VAGUE_NAMES
    for word in sorted(vague):
        yield 1, f"a file called {word} says nothing of what it owns; name what it owns"


def no_iteration_over_sets(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    if path.startswith("sim/"):
        return
    sets = SetFinder(tree)
    harmless = _consumed_without_order(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.AsyncFor):
            loops = [node.iter]
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp) and node not in harmless:
            loops = [generator.iter for generator in node.generators]
        else:
            continue
        yield from (
            (
                loop.lineno,
                f"the order of {ast.unparse(loop)} differs from process to process; "
                "iterate over sorted(...), or keep the keys of a dict",
            )
            for loop in loops
            if sets.is_set(loop)
        )


def _consumed_without_order(tree: ast.Module) -> set[ast.expr]:
    return {
        argument
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ORDER_DOES_NOT_MATTER
        for argument in node.args
        # With a key, sorted keeps the order of what the key makes equal.
        if not node.keywords
    }


class SetFinder:
    """Says which expressions are sets, as far as one module's text shows.

    A name counts within its function, an attribute anywhere in the module, when it is annotated as a set, or assigned
    sets only. What is passed through a call without an annotation is not seen.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._scope_of: dict[ast.AST, ast.AST] = {}
        self._verdicts: dict[tuple[ast.AST | None, str], bool] = {}
        self._enter(tree, tree)
        for node in ast.walk(tree):
            self._learn(node)

    def is_set(self, node: ast.expr) -> bool:
        match node:
            case ast.Set() | ast.SetComp():
                return True
            case ast.Call(func=ast.Name(id=name), args=args):
                return name in SET_MAKERS or (name in KEEP_ORDER and any(self.is_set(arg) for arg in args))
            case ast.Call(func=ast.Attribute(attr=method, value=owner)):
                return method in SET_METHODS and self.is_set(owner)
            case ast.BinOp(op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor(), left=left, right=right):
                return self.is_set(left) or self.is_set(right) or self._is_keys(left)
            case ast.IfExp(body=body, orelse=orelse):
                return self.is_set(body) or self.is_set(orelse)
            case ast.Name() | ast.Attribute():
                return self._verdicts.get(self._key(node), False)
        return False

    def _is_keys(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "keys"

    def _enter(self, node: ast.AST, scope: ast.AST) -> None:
        self._scope_of[node] = scope
        inner = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else scope
        for child in ast.iter_child_nodes(node):
            self._enter(child, inner)

    def _key(self, node: ast.expr) -> tuple[ast.AST | None, str]:
        if isinstance(node, ast.Attribute):
            return None, node.attr
        return self._scope_of[node], node.id if isinstance(node, ast.Name) else ""

    def _learn(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=value):
                key = self._key(target)
                self._verdicts[key] = self.is_set(value) and self._verdicts.get(key, True)
            case ast.AnnAssign(target=ast.Name() | ast.Attribute() as target, annotation=annotation):
                self._verdicts[self._key(target)] = _names_a_set(annotation)
                # A field of a class is reached as an attribute.
                if isinstance(target, ast.Name) and _names_a_set(annotation):
                    self._verdicts[None, target.id] = True
            case ast.arg(arg=name, annotation=ast.expr() as annotation):
                self._verdicts[self._scope_of[node], name] = _names_a_set(annotation)


def _names_a_set(annotation: ast.expr) -> bool:
    match annotation:
        case ast.Subscript(value=value):
            return _names_a_set(value)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in SET_TYPES
        case ast.Constant(value=str() as text):
            return _names_a_set(ast.parse(text, mode="eval").body)
    return False


def findings(rule: Rule, sources: dict[str, str]) -> list[str]:
    """What breaks the rule, as `path:line: why`."""
    return [
        f"{path}:{line}: {why}"
        for path, source in sources.items()
        for line, why in sorted(rule(path, ast.parse(source, path)))
    ]


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Every module of the three packages by its path from the project's root."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > len(PACKAGES), f"found no modules below {ROOT}"
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def assert_kept(rule: Rule, sources: dict[str, str]) -> None:
    found = findings(rule, sources)
    assert not found, "\n" + "\n".join(found)


# The rules are kept.


def test_imports_point_from_sim_to_peer_to_protocol(sources: dict[str, str]) -> None:
    assert_kept(arrows, sources)


def test_each_room_of_a_peer_uses_only_rooms_below_it(sources: dict[str, str]) -> None:
    found = {_room(path.removesuffix(".py").replace("/", ".")) for path in sources if path.startswith("peer/")}
    assert found - {None} == set().union(*FLOORS), "FLOORS has every room, and no other"
    assert_kept(rooms, sources)


def test_sql_is_written_in_the_store_only(sources: dict[str, str]) -> None:
    assert_kept(sql_only_in_the_store, sources)


def test_no_modules_import_each_other_in_a_circle(sources: dict[str, str]) -> None:
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    uses = {
        module: {
            used
            for _, name in imported(ast.parse(sources[path]))
            for used in (name, name.rpartition(".")[0])
            if used in modules and used != module
        }
        for module, path in modules.items()
    }
    assert circles(uses) == []


def circles(uses: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when everything that leads nowhere has been taken away, again and again."""
    left = dict(uses)
    while leaves := [module for module, used in left.items() if not used & left.keys()]:
        for module in leaves:
            del left[module]
    return sorted(left)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_protocol_touches_nothing_of_the_world(sources: dict[str, str]) -> None:
    assert_kept(no_world_in_protocol, sources)


def test_clocks_and_chance_come_in_only_at_the_edge(sources: dict[str, str]) -> None:
    assert_kept(world_only_at_the_edge, sources)


def test_threads_are_started_only_in_system(sources: dict[str, str]) -> None:
    assert_kept(threads_only_in_system, sources)


def test_no_loop_depends_on_the_order_of_a_set(sources: dict[str, str]) -> None:
    assert_kept(no_iteration_over_sets, sources)


def test_every_file_is_named_after_what_it_owns(sources: dict[str, str]) -> None:
    assert_kept(no_vague_file_names, sources)


# The rules can fail.

BROKEN = [
    (arrows, "protocol/log.py", "import peer.node"),
    (arrows, "protocol/log.py", "from sim.world import World"),
    (arrows, "protocol/log.py", "import httpx"),
    (arrows, "protocol/log.py", "def f():\n    from peer import node"),
    (arrows, "peer/node.py", "from sim import world"),
    (arrows, "peer/node.py", "import tests.peer"),
    (arrows, "sim/world.py", "from tests import world"),
    (rooms, "peer/store/catalog.py", "from peer.gossip.peers import Peers"),
    (rooms, "peer/files/keys.py", "from peer.upkeep.repair import Repair"),
    (rooms, "peer/upkeep/repair.py", "from peer.files.uploads import Uploads"),
    (rooms, "peer/config.py", "from peer.world.env import StoreError"),
    (rooms, "peer/world/env.py", "from peer.cluster import layout"),
    (rooms, "peer/cluster/orders.py", "from peer.world.disk import SystemDisk"),
    (rooms, "peer/http/app.py", "from peer.world.system import SystemEnv"),
    (rooms, "peer/http/app.py", "def f():\n    from peer.node import Node"),
    (sql_only_in_the_store, "peer/files/listing.py", "query = 'SELECT 1 FROM puts'"),
    (sql_only_in_the_store, "peer/node.py", "query = f'UPDATE nodes SET zone = {zone}'"),
    *((no_world_in_protocol, "protocol/log.py", f"import {module}") for module in sorted(BANNED_IN_PROTOCOL)),
    (no_world_in_protocol, "protocol/log.py", "from time import monotonic"),
    (no_world_in_protocol, "protocol/log.py", "import os.path"),
    (no_world_in_protocol, "protocol/log.py", "from random import randrange"),
    (no_world_in_protocol, "protocol/log.py", "from random import Random\nrng = Random()"),
    (no_world_in_protocol, "protocol/log.py", "text = open('file').read()"),
    (no_world_in_protocol, "protocol/log.py", "place = hash('key') % 4096"),
    *(
        (world_only_at_the_edge, "peer/node.py", f"import {name.partition('.')[0]}\nx = {name}()")
        for name in sorted(CLOCKS_AND_CHANCE)
    ),
    (world_only_at_the_edge, "peer/node.py", "import time as t\nclock = t.monotonic"),
    (world_only_at_the_edge, "peer/node.py", "from time import time\nnow = time()"),
    (world_only_at_the_edge, "peer/node.py", "from datetime import datetime as dt, UTC\nnow = dt.now(UTC)"),
    (world_only_at_the_edge, "peer/node.py", "import secrets\ntoken = secrets.token_hex()"),
    (world_only_at_the_edge, "peer/node.py", "import random\npeer = random.choice(peers)"),
    (world_only_at_the_edge, "peer/node.py", "from random import shuffle\nshuffle(peers)"),
    (world_only_at_the_edge, "protocol/log.py", "import datetime\nnow = datetime.datetime.now()"),
    (world_only_at_the_edge, "peer/http/app.py", "import time\ndef f(clock=time.time): ..."),
    (world_only_at_the_edge, "peer/http/app.py", "import time\ndef f(): return time.time()"),
    (world_only_at_the_edge, "peer/http/app.py", "import time\ndef f(clock=time.monotonic): ..."),
    (threads_only_in_system, "peer/node.py", "import trio\nasync def f(): await trio.to_thread.run_sync(g)"),
    (threads_only_in_system, "peer/node.py", "from trio import to_thread"),
    (threads_only_in_system, "peer/cluster/supervisor.py", "from trio.to_thread import run_sync"),
    (no_vague_file_names, "peer/utils.py", ""),
    (no_vague_file_names, "peer/http/helpers.py", ""),
    (no_vague_file_names, "sim/common/world.py", ""),
    (no_vague_file_names, "protocol/log_manager.py", ""),
    *(
        (no_iteration_over_sets, "peer/node.py", text)
        for text in (
            "for x in {1, 2}: ...",
            "for x in set(xs): ...",
            "for x in frozenset(xs): ...",
            "for x in {y for y in xs}: ...",
            "for x in list(set(xs)): ...",
            "for i, x in enumerate(set(xs)): ...",
            "for x in set(a) - b: ...",
            "for x in a.keys() & b.keys(): ...",
            "for x in set(a).union(b): ...",
            "names = [x for x in set(xs)]",
            "names = {x: 1 for x in {1, 2}}",
            "names = [x for y in ys for x in set(y)]",
            "first = next(x for x in set(xs))",
            "names = sorted((x for x in set(xs)), key=len)",
            "def f(peers: set[str]) -> None:\n    for peer in peers: ...",
            "def f(peers: 'frozenset[str]') -> None:\n    for peer in peers: ...",
            "def f():\n    seen = set()\n    for x in seen: ...",
            "class A:\n    peers: frozenset[str]\n    def f(self):\n        for peer in self.peers: ...",
            "class A:\n    def __init__(self): self.ids = set()\n    def f(self): return [i for i in self.ids]",
            "async def f():\n    async for x in {1, 2}: ...",
        )
    ),
]  # fmt: skip
HARMLESS = [
    (arrows, "protocol/log.py", "import msgpack, bisect\nfrom protocol.ops import Put\nfrom . import ops"),
    (arrows, "peer/node.py", "import trio, httpx\nfrom protocol import log\nfrom peer import env"),
    (arrows, "sim/world.py", "from peer import node\nfrom protocol import log\nimport trio"),
    (rooms, "peer/http/app.py", "from peer.world.env import StoreError\nfrom peer.upkeep.queue import Queue"),
    (rooms, "peer/cluster/orders.py", "from peer.cluster.folder import Control\nfrom peer.config import Address"),
    (rooms, "peer/__main__.py", "from peer.cli.main import main"),
    (sql_only_in_the_store, "peer/store/rows.py", "query = 'SELECT 1 FROM puts'"),
    (sql_only_in_the_store, "peer/node.py", "text = 'select a peer, and update it'"),
    (no_world_in_protocol, "protocol/log.py", "from random import Random\ndef f(rng: Random): return rng.random()"),
    (no_world_in_protocol, "peer/world/system.py", "import os, time, random"),
    (world_only_at_the_edge, "peer/world/system.py", "import time\nnow = time.time()"),
    (world_only_at_the_edge, "peer/cli/cluster.py", "import secrets\ntoken = secrets.token_hex()"),
    (world_only_at_the_edge, "peer/node.py", "import random\ndef f(rng: random.Random): return rng.random()"),
    (world_only_at_the_edge, "peer/node.py", "from datetime import datetime, UTC\nx = datetime.fromtimestamp(0, UTC)"),
    (world_only_at_the_edge, "peer/node.py", "def f(time): return time.time()"),
    (world_only_at_the_edge, "peer/world/server.py", "import time\ndef f(*, clock=time.time): return clock()"),
    (threads_only_in_system, "peer/world/system.py", "import trio\nrun = trio.to_thread.run_sync"),
    (threads_only_in_system, "peer/node.py", "import trio\nawait_ = trio.sleep"),
    (no_vague_file_names, "peer/commons_of_peers.py", ""),
    *(
        (no_iteration_over_sets, "peer/node.py", text)
        for text in (
            "for x in sorted({1, 2}): ...",
            "for x in sorted(set(xs)): ...",
            "for x in {1: 2}: ...",
            "for x in a - b: ...",
            "for x in a.keys(): ...",
            "found = any(x > 1 for x in set(xs))",
            "names = sorted(x.name for x in set(xs))",
            "names = {x.name for x in set(xs)}",
            "def f():\n    seen = set()\ndef g(seen: list[int]):\n    for x in seen: ...",
            "def f(xs):\n    seen = set(xs)\n    seen = sorted(seen)\n    for x in seen: ...",
        )
    ),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_each_rule_finds_what_it_is_for(rule: Rule, path: str, source: str) -> None:
    assert findings(rule, {path: source})


@pytest.mark.parametrize(("rule", "path", "source"), HARMLESS)
def test_no_rule_refuses_what_is_right(rule: Rule, path: str, source: str) -> None:
    assert findings(rule, {path: source}) == []
