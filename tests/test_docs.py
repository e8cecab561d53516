"""What documents and docstrings name exists: files, modules, classes and their members, commands and their options."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from peer.cli.main import minidfs
from peer.http.app import CLIENT_ROUTES
from sim.__main__ import sim

ROOT = Path(__file__).parent.parent
PACKAGES = ("protocol", "peer", "sim", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMANDS = {"minidfs": minidfs, "sim": sim}

QUOTED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
PATH = re.compile(r"(?:protocol|peer|sim|tests|docs|\.ci)/[\w./-]*\w/?")
ADDRESS = re.compile(r"https?://\S+|(?<![\w.])/[\w./{}-]+")
"""Of HTTP: what its last part is called is no module."""
DOTTED = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)+")
PLACEHOLDER = re.compile(r"[<…*{A-Z]")


@dataclass
class Names:
    """What there is in the code: modules with what stands in them, and classes with their members, bases included."""

    modules: dict[str, set[str]] = field(default_factory=dict)
    classes: dict[str, set[str]] = field(default_factory=dict)


def read_names(sources: Iterable[tuple[str, str]]) -> Names:
    names, bases = Names(), dict[str, list[str]]()
    for path, text in sources:
        tree = ast.parse(text, path)
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names.modules[module] = set(_defined(tree.body))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names.classes.setdefault(node.name, set()).update(_members(node))
                bases.setdefault(node.name, []).extend(base.id for base in node.bases if isinstance(base, ast.Name))
    for _ in range(3):
        for name, its in bases.items():
            for base in its:
                names.classes[name] |= names.classes.get(base, set())
    return names


def _defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.If):
            yield from _defined(node.body)


def _members(cls: ast.ClassDef) -> Iterator[str]:
    yield from _defined(cls.body)
    for node in ast.walk(cls):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


def wrong_names(text: str, names: Names) -> list[str]:
    """The quoted names in a text that begin with a module or class of ours and go on with what it does not have."""
    quoted = [match for code in QUOTED.findall(text) for match in DOTTED.findall(ADDRESS.sub("", PATH.sub("", code)))]
    return [name for name in dict.fromkeys(quoted) if not _is_known(name.split("."), names)]


def _is_known(parts: list[str], names: Names) -> bool:
    if parts[-1] == "py":
        return any(module.endswith(f".{parts[-2]}") for module in names.modules)
    if parts[0] in PACKAGES:
        for end in range(len(parts), 0, -1):
            if ".".join(parts[:end]) in names.modules:
                rest = parts[end:]
                return not rest or (rest[0] in names.modules[".".join(parts[:end])] and _is_known(rest, names))
        return (ROOT / "/".join(parts)).exists()
    if len(parts) > 1 and parts[0] in names.classes:
        return parts[1] in names.classes[parts[0]]
    ours = [defined for module, defined in names.modules.items() if module.rpartition(".")[2] == parts[0]]
    return len(parts) == 1 or not ours or any(parts[1] in defined for defined in ours)


def wrong_paths(text: str) -> list[str]:
    """The paths in a text, in quotes or as targets of links, where nothing is."""
    quoted = [path for code in QUOTED.findall(text) for path in PATH.findall(code) if not PLACEHOLDER.search(code)]
    return [path for path in dict.fromkeys(quoted) if not (ROOT / path.split("::")[0]).exists()]


def wrong_commands(text: str) -> list[str]:
    """The indented or quoted commands of ours in a text that name a subcommand or an option there is not."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")] + QUOTED.findall(text)
    lines += [line.strip() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = []
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part.partition("#")[0].replace("'", ""))
            name = words[0].rpartition("/")[2] if words else ""
            if words[:2] == ["python", "-m"] and len(words) > 2 and words[2] in COMMANDS:
                name, words = words[2], words[2:]
            if name in COMMANDS and (why := _objection(COMMANDS[name], words[1:])):
                found.append(f"{part.strip()}: {why}")
    return found


def _objection(command: click.Command, words: list[str]) -> str | None:
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word.startswith("-"):
            options = {
                option: parameter
                for parameter in command.params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            option = options.get(word.partition("=")[0])
            if option is None and word not in ("--help", "-h"):
                return f"{command.name} has no option {word}"
            is_value = isinstance(option, click.Option) and not option.is_flag and "=" not in word
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return f"{command.name} has no command {word}"
            command = command.commands[word]
    return None


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def names(sources: dict[str, str]) -> Names:
    return read_names(sources.items())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(document: Path, names: Names) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link, _ in LINK.findall(text) if not (document.parent / link).exists()]
    assert [wrong_paths(text), wrong_names(text, names), wrong_commands(text), links] == [[], [], [], []]


def test_what_docstrings_and_comments_name_exists(sources: dict[str, str], names: Names) -> None:
    for path, source in sources.items():
        if path == "tests/test_docs.py":
            continue
        docs = "\n".join(
            node.value
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "`" in node.value
        )
        docs += "\n".join(re.findall(r"#.*`.*", source))
        assert [wrong_paths(docs), wrong_names(docs, names)] == [[], []], path


def test_documents_that_errors_point_to_exist(sources: dict[str, str]) -> None:
    named = [path for source in sources.values() for path in re.findall(r"\bdocs/\w+\.md\b|\b[A-Z]+\.md\b", source)]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_list_of_endpoints_has_every_route_of_clients() -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    paths = [route.path for route in CLIENT_ROUTES]
    assert len(paths) > 8
    assert [path for path in paths if f" {path}`" not in text.replace("{id}", "{node_id}")] == []


def test_the_picture_of_the_rooms_is_what_the_imports_are() -> None:
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.picture(), "run nox -s draw"
    assert [path for path, _ in drawing.WAY if not (ROOT / path).exists()] == []


# The checks can fail.


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("path", "see `peer/nowhere.py`"),
        ("path", "see `tests/peer/test_nothing.py::test_a`"),
        ("name", "see `Replica.forget_everything`"),
        ("name", "see `catalog.forget_everything`"),
        ("name", "see `protocol.catalog.forget_everything`"),
        ("name", "see `peer.world.env.Nothing`"),
        ("command", "    minidfs clusters"),
        ("command", "    .venv/bin/minidfs cluster --node 3"),
        ("command", "call `sim run --seed 1`"),
        ("command", "```sh\n.venv/bin/sim no_such\n```"),
    ],
)
def test_each_check_finds_what_it_is_for(check: str, text: str, names: Names) -> None:
    found = {"path": wrong_paths(text), "name": wrong_names(text, names), "command": wrong_commands(text)}
    assert found[check]


@pytest.mark.parametrize(
    "text",
    [
        "see `peer/node.py` and `tests/e2e/`, `chunks/<hash>.<n>`, `peer/{client,node}.py`",
        "`Replica.hear`, `catalog.apply`, `peer.world.env.Env`, `Database.write`, `os.fsync`, `Repair.wake`",
        "    .venv/bin/minidfs cluster --nodes 3 && curl http://localhost",
        "`sim run --seeds 1..100`",
    ],
)
def test_no_check_refuses_what_is_right(text: str, names: Names) -> None:
    assert [wrong_paths(text), wrong_names(text, names), wrong_commands(text)] == [[], [], []]
