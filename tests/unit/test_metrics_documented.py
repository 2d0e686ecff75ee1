import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DECLARE: Final = {"counter", "gauge", "histogram"}


def _declared() -> dict[str, tuple[str, ...]]:
    """Return every metric that the library declares with a literal name, and its labels."""
    found = {}
    for path in (ROOT / "src/watchkeeper").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=kind), args=[ast.Constant(value=str(name)), _, *labels]
                ):
                    if kind in DECLARE:
                        found[name] = tuple(ast.literal_eval(labels[0])) if labels else ()
    return found


def _documented() -> dict[str, tuple[str, ...]]:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+ \|([^|]*)\|", page, re.MULTILINE)
    return {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_every_metric_of_the_library_is_documented_with_its_labels() -> None:
    """The page lists exactly the metrics that are exposed."""
    declared = _declared()
    assert "http_requests_total" in declared
    # Its name depends on the unit, so it is not a literal.
    assert declared | {"http_request_duration_seconds": ("method", "route")} == _documented()
