"""Decisions of dev.py that start no process."""

import ast
import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "dev.py"
PROJECT = '[build-system]\nrequires = []\n[project]\nname = "small"\n[tool.ruff]\nline-length = 100\n'


def load(path: Path) -> ModuleType:
    """Import dev.py from its path."""
    spec = importlib.util.spec_from_file_location("dev_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dev(tmp_path: Path) -> Any:
    """The script in a small checkout whose environment counts as finished."""
    root = tmp_path / "checkout"
    for project in (root, root / "apps/backend", root / "apps/traffic"):
        project.mkdir(parents=True)
        (project / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    (root / "requirements.lock").write_text("one==1\n", encoding="utf-8")
    shutil.copy(SCRIPT, root)
    module: Any = load(root / "dev.py")
    module.SERVE.python.parent.mkdir(parents=True)
    module.SERVE.python.touch(mode=0o755)
    module.SERVE.stamp.write_text(module.SERVE.fingerprint(), encoding="ascii")
    return module


def test_syntax_is_readable_to_python_3_6() -> None:
    """An older Python must get as far as the message that names the required version."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    kinds = [type(statement) for statement in tree.body]
    checks = kinds.index(ast.If)
    assert ast.FunctionDef not in kinds[:checks]
    assert ast.ClassDef not in kinds[:checks]
    imported = {
        alias.name for line in tree.body[:checks] if isinstance(line, ast.Import) for alias in line.names
    }
    assert imported.isdisjoint({"tomllib", "fcntl", "graphlib", "zoneinfo", "dataclasses"})
    assert [line for line in tree.body if isinstance(line, ast.ImportFrom)] == []


def test_only_the_standard_library_is_imported() -> None:
    """A bare machine has nothing else."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imported = {alias.name for line in ast.walk(tree) if isinstance(line, ast.Import) for alias in line.names}
    assert imported - sys.stdlib_module_names == set()


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("requirements.lock", "one==1", "one==2"),
        ("pyproject.toml", '"small"', '"large"'),
        ("apps/backend/pyproject.toml", "requires = []", 'requires = ["flit_core"]'),
    ],
)
def test_changed_inputs_require_a_new_environment(dev: Any, file: str, before: str, after: str) -> None:
    """Pins, metadata and the build system are inputs."""
    path = dev.ROOT / file
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    assert not dev.SERVE.is_current()


def test_linter_setting_requires_no_new_environment(dev: Any) -> None:
    """Tool settings share a file with the metadata, but change nothing that is installed."""
    path = dev.ROOT / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("100", "110"), encoding="utf-8")
    assert dev.SERVE.is_current()


def test_moved_or_broken_environment_is_not_current(dev: Any, tmp_path: Path) -> None:
    """Console scripts contain the folder; and a system upgrade may remove the Python that it links to."""
    moved: Any = load(shutil.copytree(dev.ROOT, tmp_path / "moved") / "dev.py")
    assert moved.SERVE.stamp.read_text("ascii") == dev.SERVE.fingerprint()
    assert not moved.SERVE.is_current()
    assert dev.SERVE.is_current()
    dev.SERVE.python.unlink()
    dev.SERVE.python.symlink_to(dev.ROOT / "removed-python")
    assert not dev.SERVE.is_current()


@pytest.mark.parametrize("stamp", [b"", b"\xff\xfe", b"0" * 64])
def test_damaged_stamp_does_not_count_as_finished(dev: Any, stamp: bytes) -> None:
    """A crash may leave an empty or partial file."""
    dev.SERVE.stamp.write_bytes(stamp)
    assert not dev.SERVE.is_current()


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_clear_removes_folders_files_and_links(dev: Any, tmp_path: Path, kind: str) -> None:
    """A link is removed, never followed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind != "folder":
        shutil.rmtree(dev.SERVE.folder)
    if kind == "file":
        dev.SERVE.folder.touch()
    if kind == "link":
        dev.SERVE.folder.symlink_to(elsewhere)
    dev.clear(dev.SERVE)
    assert ".venv" not in [path.name for path in dev.ROOT.iterdir()]
    assert elsewhere.is_dir()


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "does not match its hash in requirements.lock",
        ),
        (
            "WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution found for one==1",
            "pip could not reach its package index: check the network",
        ),
        ("ERROR: HTTP error 503 Server Error: Busy for url", "pip could not reach its package index"),
        (
            "ERROR: No matching distribution found for one==1 (from -r x)",
            f"has no wheel of one==1 for Python {platform.python_version()} on {platform.machine()}",
        ),
        (
            "PermissionError: [Errno 13] Permission denied: '/x'",
            "you cannot write there: ask its owner to run",
        ),
        ("something else", "the set-up of .venv failed, see above"),
    ],
)
def test_known_failures_have_a_message(dev: Any, output: str, sentence: str) -> None:
    """The first cause counts: an unreachable network also ends in a package that is not found."""
    assert sentence in dev.SERVE.explain(f"Collecting one\n{output}\n")


@pytest.mark.parametrize("command", [(), ("help",), ("--help",), ("-h",)])
def test_help_names_commands(dev: Any, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    """Without a command it explains itself and starts nothing."""
    assert dev.main(*command) == 0
    shown = capsys.readouterr().out
    assert [name for name in dev.COMMANDS if f"python3 dev.py {name} " not in shown] == []


def test_environments_have_separate_folders_and_existing_locks() -> None:
    """They share pins, but no packages."""
    script: Any = load(SCRIPT)
    environments = (script.SERVE, script.TEST, script.BENCH)
    assert len({environment.folder for environment in environments}) == len(environments)
    assert [environment.lock.name for environment in environments if not environment.lock.is_file()] == []


def test_environments_are_built_by_the_base_python(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of an environment may be cleared while it runs."""
    for environment in (dev.SERVE, dev.TEST, dev.BENCH):
        monkeypatch.setattr(sys, "prefix", str(environment.folder))
        assert dev.base_python().startswith(f"{sys.base_prefix}/bin/python3")


def test_bench_runs_the_checkouts_package(dev: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It runs in the root of the checkout with its own environment, wherever it is started."""
    monkeypatch.chdir(tmp_path)
    calls: list[Any] = []
    monkeypatch.setattr(dev, "acquire", calls.append)
    monkeypatch.setattr(dev.os, "execv", lambda python, program: calls.append((python, program, Path.cwd())))
    dev.main("bench", "--quick")
    python = dev.BENCH.python
    assert calls == [dev.BENCH, (python, [str(python), "-m", "bench", "--quick"], dev.ROOT)]


def test_wrong_command_line_is_refused(dev: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command shows the usage; a path that `check` would ignore is an error."""
    assert dev.main("check", "src") == 1
    assert "check takes no arguments" in capsys.readouterr().err
    assert dev.main("tets") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no command 'tets'" in captured.err
    assert "python3 dev.py serve" in captured.err


def test_failed_file_operation_has_a_message(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops not only pip."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    dev.SERVE.stamp.unlink()
    monkeypatch.setattr(dev, "build", fail)
    with pytest.raises(dev.SetupError, match="the disk is full"):
        dev.acquire(dev.SERVE)
