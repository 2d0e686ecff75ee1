"""The contents of the wheels of the library and the apps."""

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from flit_core import buildapi; buildapi.build_wheel(sys.argv[1])"


class Built:
    """A wheel of this checkout, opened."""

    def __init__(self, project: Path, package: str, folder: Path) -> None:
        folder.mkdir()
        subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=project, check=True)
        (wheel,) = folder.iterdir()
        self.source = project / "src" / package
        with zipfile.ZipFile(wheel) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}

    def about(self, name: str) -> str:
        """A file of the wheel's metadata."""
        (found,) = [path for path in self.files if path.endswith(f".dist-info/{name}")]
        return self.files[found].decode()

    @property
    def metadata(self) -> Message:
        """The core metadata."""
        return HeaderParser().parsestr(self.about("METADATA"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The library's wheel."""
    return Built(ROOT, "watchkeeper", tmp_path_factory.mktemp("library") / "wheel")


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The backend's wheel."""
    return Built(ROOT / "apps/backend", "realestate", tmp_path_factory.mktemp("backend") / "wheel")


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The traffic client's wheel."""
    return Built(ROOT / "apps/traffic", "realestate_traffic", tmp_path_factory.mktemp("traffic") / "wheel")


@pytest.fixture(params=["library", "backend", "traffic"])
def built(request: pytest.FixtureRequest) -> Built:
    """Each wheel."""
    found: Built = request.getfixturevalue(request.param)
    return found


def test_a_wheel_holds_its_package_and_nothing_else(built: Built) -> None:
    """It contains every file of the package, SQL and typing marker included, and nothing else."""
    packed = {name for name in built.files if ".dist-info/" not in name}
    source = built.source.parent
    here = {str(path.relative_to(source)) for path in built.source.rglob("*") if path.is_file()}
    assert packed == {name for name in here if "__pycache__" not in name}
    assert f"{built.source.name}/py.typed" in packed
    sql = [name for name in packed if name.endswith(".sql") and "/sql/" in name]
    assert bool(sql) == (built.source.name != "realestate_traffic")


def test_a_wheel_carries_its_licence_and_python_version(built: Built) -> None:
    """Apache-2.0, by its identifier and with its text; dev.py requires the same Python."""
    assert built.metadata["Requires-Python"] == ">=3.11"
    assert built.metadata["License-Expression"] == "Apache-2.0"
    assert built.about("licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wheel", "name", "command", "needs"),
    [
        ("library", "watchkeeper", "watchkeeper=watchkeeper.cli:main", "msgspec"),
        ("backend", "realestate-backend", "realestate-backend=realestate.__main__:main", "watchkeeper[all]"),
        (
            "traffic",
            "realestate-traffic",
            "realestate-traffic=realestate_traffic.__main__:main",
            "realestate-backend",
        ),
    ],
)
def test_a_wheel_installs_its_command_and_what_it_needs(
    request: pytest.FixtureRequest, wheel: str, name: str, command: str, needs: str
) -> None:
    """Each is a distribution of its own."""
    found: Built = request.getfixturevalue(wheel)
    assert found.metadata["Name"] == name
    assert command in found.about("entry_points.txt")
    assert any(line.startswith(needs) for line in found.metadata.get_all("Requires-Dist", []))


def test_the_core_needs_no_more_than_three_packages(library: Built) -> None:
    """A service does not install what it does not use: the rest are extras."""
    needed = [line for line in library.metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line.split(">=")[0] for line in needed] == ["msgspec", "prometheus-client", "structlog"]
