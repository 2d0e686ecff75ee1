"""What dev.py decides without starting anything."""

from __future__ import annotations

import ast
import errno
import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "dev.py"
PROJECT = '[build-system]\nrequires = []\n[project]\nname = "small"\n[tool.ruff]\nline-length = 100\n'


def load(path: Path) -> ModuleType:
    """Import dev.py from where it lies."""
    spec = importlib.util.spec_from_file_location("dev_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dev(tmp_path: Path) -> Any:
    """The script in a checkout of its own, with an environment that looks finished."""
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


def test_it_has_only_syntax_that_python_3_6_reads() -> None:
    """An older Python must come as far as the sentence that names the version which is needed."""
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


def test_it_imports_the_standard_library_alone() -> None:
    """There is nothing else on a bare machine."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imported = {alias.name for line in ast.walk(tree) if isinstance(line, ast.Import) for alias in line.names}
    assert imported - sys.stdlib_module_names == set()


def test_a_finished_environment_is_current(dev: Any) -> None:
    """The stamp holds the fingerprint of what is here now."""
    assert dev.SERVE.is_current()


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("requirements.lock", "one==1", "one==2"),
        ("pyproject.toml", '"small"', '"large"'),
        ("apps/backend/pyproject.toml", "requires = []", 'requires = ["flit_core"]'),
    ],
)
def test_a_change_of_what_it_is_made_from_makes_it_again(
    dev: Any, file: str, before: str, after: str
) -> None:
    """Pins, metadata and the build system are what an environment is made from."""
    path = dev.ROOT / file
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
    assert not dev.SERVE.is_current()


def test_a_linter_setting_does_not_make_it_again(dev: Any) -> None:
    """The settings of tools share the file with the metadata, and change nothing that is installed."""
    path = dev.ROOT / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("100", "110"), encoding="utf-8")
    assert dev.SERVE.is_current()


def test_a_moved_checkout_is_made_again(dev: Any, tmp_path: Path) -> None:
    """Console scripts name the folder that they were made for."""
    moved: Any = load(shutil.copytree(dev.ROOT, tmp_path / "moved") / "dev.py")
    assert moved.SERVE.stamp.read_text("ascii") == dev.SERVE.fingerprint()
    assert not moved.SERVE.is_current()


def test_an_environment_whose_python_went_is_made_again(dev: Any) -> None:
    """A system upgrade takes away the Python that the environment points to."""
    dev.SERVE.python.unlink()
    dev.SERVE.python.symlink_to(dev.ROOT / "python-that-went")
    assert not dev.SERVE.is_current()


@pytest.mark.parametrize("stamp", [b"", b"\xff\xfe", b"0" * 64])
def test_a_damaged_stamp_is_no_finished_set_up(dev: Any, stamp: bytes) -> None:
    """A crash may leave an empty or a torn file."""
    dev.SERVE.stamp.write_bytes(stamp)
    assert not dev.SERVE.is_current()


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_whatever_lies_in_the_way_is_cleared(dev: Any, tmp_path: Path, kind: str) -> None:
    """A link is cut, never followed."""
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
            "differs from its hash in requi",
        ),
        (
            "WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution found for one==1",
            "pip did not reach its package index: look at the network",
        ),
        ("ERROR: HTTP error 503 Server Error: Busy for url", "pip did not reach its package index"),
        (
            "ERROR: No matching distribution found for one==1 (from -r x)",
            "has no wheel of one==1 for this machine",
        ),
        ("PermissionError: [Errno 13] Permission denied: '/x'", "you may not write there: let its owner run"),
        ("something else", "the set-up of .venv failed, see above; the next start begins anew"),
    ],
)
def test_what_pip_says_becomes_a_sentence(dev: Any, output: str, sentence: str) -> None:
    """The first cause counts: a network that is away also ends in a package that is not found."""
    assert sentence in dev.explain(f"Collecting one\n{output}\n", dev.SERVE)


def test_a_missing_wheel_names_this_machine(dev: Any) -> None:
    """Python, processor and C library are what decides whether there is a wheel."""
    sentence = dev.explain("ERROR: No matching distribution found for one==1", dev.SERVE)
    assert f"{platform.python_version()}, {platform.machine()}" in sentence


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EROFS, "you may not write there"),
        (errno.EIO, r"the set-up of .*\.venv failed: \[Errno 5\]"),
    ],
)
def test_a_failed_file_operation_becomes_a_sentence(
    dev: Any, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    """Not only pip meets a full disk."""

    def fail(*_: object) -> None:
        raise OSError(number, errno.errorcode[number])

    dev.SERVE.stamp.unlink()
    monkeypatch.setattr(dev, "build", fail)
    with pytest.raises(dev.SetupError, match=sentence):
        dev.occupy(dev.SERVE)


def test_a_mistyped_command_is_answered_with_the_near_one(
    dev: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is that of a wrong command line."""
    assert dev.main("tets") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no command 'tets', did you mean test?" in captured.err
    assert "python3 dev.py serve" in captured.err


@pytest.mark.parametrize("command", [(), ("help",), ("--help",), ("-h",)])
def test_help_names_every_command(
    dev: Any, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """Without a command it explains itself and starts nothing."""
    assert dev.main(*command) == 0
    shown = capsys.readouterr().out
    assert [name for name in dev.COMMANDS if f"python3 dev.py {name} " not in shown] == []


def test_each_environment_has_its_own_folder_and_a_lock_in_the_checkout() -> None:
    """Serving, testing and measuring share pins, and no packages."""
    script: Any = load(SCRIPT)
    environments = (script.SERVE, script.TEST, script.BENCH)
    assert len({environment.folder for environment in environments}) == len(environments)
    assert [environment.lock.name for environment in environments if not environment.lock.is_file()] == []


def test_no_environment_makes_another(dev: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python out of one of them may be cleared with it: the one that it was made from is taken."""
    for environment in (dev.SERVE, dev.TEST, dev.BENCH):
        monkeypatch.setattr(sys, "prefix", str(environment.folder))
        assert dev.choose_python().startswith(f"{sys.base_prefix}/bin/python3")


def test_the_bench_becomes_the_package_in_the_checkout(
    dev: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It runs in the checkout's root, with its own environment's Python, wherever it was started."""
    monkeypatch.chdir(tmp_path)
    became: list[Any] = []
    monkeypatch.setattr(dev, "occupy", became.append)
    monkeypatch.setattr(dev.os, "execv", lambda python, program: became.append((python, program, Path.cwd())))
    dev.main("bench", "--quick")
    python = dev.BENCH.python
    assert became == [dev.BENCH, (python, [str(python), "-m", "bench", "--quick"], dev.ROOT)]


def test_check_takes_no_arguments(dev: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A path behind check would be taken for granted and ignored."""
    assert dev.main("check", "src") == 1
    assert "check takes no arguments" in capsys.readouterr().err
