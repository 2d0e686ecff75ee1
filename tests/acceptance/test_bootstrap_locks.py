"""The lock files: complete, hashed, within the packages' ranges, and without URLs."""

import json
import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-test.lock")
ALL_LOCKS = (*LOCKS, "requirements-bench.lock")  # the bench's packages are not in the test environment
PROJECTS = ("pyproject.toml", "apps/backend/pyproject.toml", "apps/traffic/pyproject.toml")
OURS = {"watchkeeper", "realestate-backend"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pin:
    """One package of a lock file."""

    name: str
    version: Version
    marker: Marker | None
    hashes: tuple[str, ...]


def read_lock(name: str) -> list[Pin]:
    """Read a lock file that contains only pins, markers and hashes."""
    pins = []
    for entry in (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        pinned, *hashes = re.split(r"\s+--hash=", entry.strip())
        requirement = Requirement(pinned)
        (exact,) = requirement.specifier
        assert exact.operator == "=="
        pins.append(
            Pin(
                name=canonicalize_name(requirement.name),
                version=Version(exact.version),
                marker=requirement.marker,
                hashes=tuple(hashes),
            )
        )
    return pins


def installed_here(pins: list[Pin]) -> dict[str, Version]:
    """Return the pins that apply to this Python on this machine."""
    return {pin.name: pin.version for pin in pins if pin.marker is None or pin.marker.evaluate()}


def declared(project: str) -> list[Requirement]:
    """Return the requirements of a project, with all its extras."""
    table = tomllib.loads((ROOT / project).read_text(encoding="utf-8"))["project"]
    extras = table.get("optional-dependencies", {}).values()
    found = [
        Requirement(line) for line in (*table["dependencies"], *(line for extra in extras for line in extra))
    ]
    return [requirement for requirement in found if requirement.name not in OURS]


def asked_for(name: str) -> set[str]:
    """Return the packages that a .in file names."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(Requirement(line).name) for line in lines if line and line[0] not in "#-"}


@pytest.mark.parametrize("lock", ALL_LOCKS)
def test_every_pin_has_its_hashes(lock: str) -> None:
    """Without one, pip refuses the whole lock file; only SHA-256 counts."""
    assert [pin.name for pin in read_lock(lock) if not pin.hashes] == []
    hashes = [digest for pin in read_lock(lock) for digest in pin.hashes]
    assert [digest for digest in hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)] == []


@pytest.mark.parametrize(
    "lock", [*ALL_LOCKS, "requirements.in", "requirements-test.in", "requirements-bench.in"]
)
def test_no_file_names_an_address(lock: str) -> None:
    """The user's pip configuration decides where packages come from."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert re.findall(r"://|--(?:extra-)?index|--find-links|--trusted", text) == []


@pytest.mark.parametrize("lock", ALL_LOCKS)
@pytest.mark.parametrize("project", PROJECTS)
def test_the_pins_are_in_the_ranges_of_the_packages(lock: str, project: str) -> None:
    """The pins are within the ranges of the metadata, for every extra."""
    pins = {pin.name: pin.version for pin in read_lock(lock)}
    wanted = declared(project)
    assert wanted != []
    outside = [str(one) for one in wanted if not one.specifier.contains(pins[canonicalize_name(one.name)])]
    assert outside == []


@pytest.mark.parametrize("project", PROJECTS)
def test_requirements_in_names_what_the_packages_need(project: str) -> None:
    """The lock file is compiled from it, so a missing name is not pinned reliably."""
    assert {canonicalize_name(one.name) for one in declared(project)} - asked_for("requirements.in") == set()


def test_requirements_in_names_nothing_else() -> None:
    """A package that is no longer needed is not pinned; flit_core builds ours."""
    needed = {canonicalize_name(one.name) for project in PROJECTS for one in declared(project)}
    assert asked_for("requirements.in") - needed == {"flit-core"}


@pytest.mark.parametrize("purpose", ["test", "bench"])
def test_the_other_locks_hold_the_same_pins_and_more(purpose: str) -> None:
    """Tests and bench use the same versions as serve."""
    served = set(installed_here(read_lock("requirements.lock")).items())
    other = set(installed_here(read_lock(f"requirements-{purpose}.lock")).items())
    assert served - other == set()
    assert asked_for(f"requirements-{purpose}.in") - {name for name, _ in other} == set()


def test_the_bench_measures_with_the_versions_that_the_tests_run_with() -> None:
    """A framework that both use has one version."""
    tested, measured = (
        installed_here(read_lock(f"requirements-{purpose}.lock")) for purpose in ("test", "bench")
    )
    assert [name for name in tested.keys() & measured.keys() if tested[name] != measured[name]] == []


def test_the_bench_pins_its_peers_for_node_without_an_address() -> None:
    """Their hashes are in the lock file; the user's npm configuration decides where they come from."""
    lock = json.loads((ROOT / "bench/node/package-lock.json").read_text(encoding="utf-8"))
    package = json.loads((ROOT / "bench/node/package.json").read_text(encoding="utf-8"))
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert lock["packages"][""]["dependencies"] == package["dependencies"]
    assert [
        version for version in package["dependencies"].values() if not re.fullmatch(r"[\d.]+", version)
    ] == []
    assert [name for name, entry in packages.items() if "integrity" not in entry or "resolved" in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_closed(lock: str) -> None:
    """Each dependency of a pinned package is pinned too, in a matching version."""
    pins = installed_here(read_lock(lock))
    missing, looked_at = [], 0
    for name in pins:
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        looked_at += 1
        for needed in map(Requirement, lines):
            version = pins.get(canonicalize_name(needed.name))
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and (version is None or not needed.specifier.contains(version, prereleases=True)):
                missing.append(f"{name} needs {needed}")
    assert missing == []
    assert looked_at == len(pins)
