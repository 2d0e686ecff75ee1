"""The layout: who may import whom, held for every file, typing and local imports included."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
DOCS = SOURCE.parent / "docs"
FRAMEWORKS = {"django", "fastapi", "flask", "litestar", "quart", "starlette"}
# From the bottom to the top; a room imports only from the layers below its own.
LAYERS = [
    {"exceptions"},
    {"settings", "logs", "metrics"},
    {"health"},
    {"http", "database"},
    {"audit"},
    {"retention._model", "retention._queries"},
    {"retention._policy", "retention._holds"},
    {"retention.table"},
    {"retention.archive"},
    {"retention.ledger"},
    {"retention.run"},
    {"retention.plan"},
    {"retention"},
    {"keeper"},
    {"server"},
    {""},  # the public names
    {"cli"},
    {"__main__"},
]
HEIGHTS = {room: height for height, layer in enumerate(LAYERS) for room in layer}
MOST_FLOORS = 10


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


@cache
def _modules() -> dict[str, ast.Module]:
    return {_name(path): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _graph() -> dict[str, set[str]]:
    """Return the modules of ours that each module imports."""
    ours = set(_modules())
    graph = {}
    for name, tree in _modules().items():
        targets = {
            target if target in ours else target.rpartition(".")[0]
            for target in _imported(tree)
            if target.partition(".")[0] == "watchkeeper"
        }
        graph[name] = targets - {name}
    return graph


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    stack = [start]
    while stack:
        new = graph.get(stack.pop(), set()) - seen
        seen |= new
        stack += new
    return seen


def _room(module: str) -> str:
    """Return the layered part of a module, such as `logs` or `retention.run`."""
    _, room, inner, *_ = [*module.split("."), "", ""]
    return f"{room}.{inner}" if f"{room}.{inner}" in HEIGHTS else room


def test_modules_import_one_another_without_a_cycle() -> None:
    """No module imports itself through others, not even for annotations."""
    graph = _graph()
    assert {name for name in graph if name in _reachable(graph, name)} == set()


def test_imports_only_go_down() -> None:
    """A module imports from its own room and from the layers below it."""
    upward = {
        f"{module} -> {target}"
        for module, targets in _graph().items()
        for target in targets
        if _room(module) not in {"", _room(target)}
        and HEIGHTS[_room(module)] <= HEIGHTS.get(_room(target), len(LAYERS))
    }
    assert upward == set()


def test_logs_and_metrics_import_only_the_exceptions() -> None:
    """They can be used by themselves."""
    for room in ("logs", "metrics"):
        targets = {
            _room(target) for name, targets in _graph().items() if _room(name) == room for target in targets
        }
        assert targets <= {room, "exceptions"}


def test_the_library_imports_no_web_framework() -> None:
    """It wraps any ASGI app, whatever the service is written with."""
    imported = {target.partition(".")[0] for tree in _modules().values() for target in _imported(tree)}
    assert imported & FRAMEWORKS == set()


def test_the_longest_chain_of_rooms_is_short() -> None:
    """At most ten packages lie above one another, from the exceptions to the commands."""
    rooms: dict[str, set[str]] = {}
    for module, targets in _graph().items():
        room = _room(module).partition(".")[0]
        rooms.setdefault(room, set()).update({_room(target).partition(".")[0] for target in targets} - {room})
    floors: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        floors[room] = 1 + max((floors[below] for below in rooms[room]), default=0)
    assert max(floors.values()) <= MOST_FLOORS


def test_every_room_is_on_the_map() -> None:
    """Each package and top-level module is in docs/architecture.md."""
    page = (DOCS / "architecture.md").read_text()
    packages = {path.parent.name for path in (SOURCE / "watchkeeper").glob("*/**/__init__.py")}
    modules = {path.name for path in (SOURCE / "watchkeeper").glob("[!_]*.py")}
    missing = {name for name in packages if f"{name.removeprefix('_')}/" not in page}
    assert missing | {name for name in modules if name not in page} == set()


def test_the_public_names_are_those_of_the_docs() -> None:
    """docs/api.md has a heading per public package, and below it a table row per name of its `__all__`."""
    page = DOCS / "api.md"
    documented: dict[str, set[str]] = {}
    for line in page.read_text().splitlines():
        if heading := re.match(r"#+ .*?`?(watchkeeper[\w.]*)`?", line):
            names = documented.setdefault(heading[1], set())
        elif row := re.match(r"\| `(\w+)", line):
            names.add(row[1])
    public = {
        name: set(importlib.import_module(name).__all__)
        for name in _modules()
        if "._" not in name and name.count(".") < 2 and hasattr(importlib.import_module(name), "__all__")
    }
    assert documented == {name: names for name, names in public.items() if names}
