from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/watchkeeper"
# Who may import whom, beside exceptions and settings, which everybody may.
ARROWS = {
    "logs": set[str](),
    "metrics": set[str](),
    "health": {"logs", "metrics"},
    "database": {"health", "logs", "metrics"},
    "audit": {"database", "health", "logs", "metrics"},
    "http": {"health", "logs", "metrics"},
    "retention": {"audit", "database", "health", "logs", "metrics"},
    "keeper": {"http", "retention", "audit", "database", "health", "logs", "metrics"},
    "server": {"keeper", "http", "retention", "audit", "database", "health", "logs", "metrics"},
    "cli": {"keeper", "http", "retention", "audit", "database", "health", "logs", "metrics"},
}
FRAMEWORKS = {"starlette", "fastapi", "litestar", "quart", "django", "flask"}


def _modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path: Path) -> None:
    """A module imports from its own room, from rooms below it, and from the two that everybody may use."""
    room = _room(path)
    own = {name.split(".")[1] for name in _imports(path) if name.startswith("watchkeeper.")}
    allowed = ARROWS.get(room, set()) | {room, "exceptions", "settings"}
    if room != "__init__":
        assert own - allowed == set()


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_library_imports_no_web_framework(path: Path) -> None:
    """The edge is pure ASGI: what the service is written with is the service's own choice."""
    assert {name.split(".")[0] for name in _imports(path)} & FRAMEWORKS == set()


def test_every_room_is_on_the_map() -> None:
    """A new package is entered in the arrows above and in docs/architecture.md."""
    rooms = {_room(path) for path in _modules()} - {"__init__", "exceptions", "settings"}
    page = (SOURCE.parents[1] / "docs/architecture.md").read_text()
    assert rooms - set(ARROWS) == set()
    assert {room for room in rooms if f"{room}/" not in page and f"{room}.py" not in page} == set()
