"""Named queries and the format of their files."""

from pathlib import Path

import pytest

import watchkeeper
from watchkeeper.database import Queries
from watchkeeper.exceptions import ConfigurationError

GOOD = """
-- What this file is about.

-- name: first
-- Says one.
SELECT 1;

-- name: second_one
-- Says two,
-- on two lines.
SELECT '--', -- with a remark
    2
"""


def test_a_query_is_found_by_its_name() -> None:
    """Comment lines and the final semicolon are removed; the rest is unchanged."""
    queries = Queries(GOOD, source="good.sql")
    assert queries["first"] == "SELECT 1"
    assert queries["second_one"] == "SELECT '--', -- with a remark\n    2"


def test_an_unknown_name_gets_the_near_miss() -> None:
    """The error suggests the name that was probably meant."""
    queries = Queries(GOOD, source="good.sql")
    with pytest.raises(ConfigurationError, match=r"good\.sql has no query 'frist'\. Did you mean 'first'\?"):
        queries["frist"]
    with pytest.raises(ConfigurationError, match=r"has no query 'x'\.$"):
        queries["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-- name: a\n-- A.\nSELECT 1\n-- name: a\n-- A.\nSELECT 2", "the query 'a' is defined twice"),
        ("-- name: a\nSELECT 1", "the query 'a' has no description"),
        ("-- name: a\n--\nSELECT 1", "the query 'a' has no description"),
        ("-- name: a\n-- A.\n", "the query 'a' has no SQL"),
        ("-- name: A b\n-- A.\nSELECT 1", "the query 'A b' needs a name"),
        ("-- name:\n-- A.\nSELECT 1", "the query '' needs a name"),
        ("SELECT 1;\n-- name: a\n-- A.\nSELECT 1", "SQL before the first"),
    ],
)
def test_a_malformed_file_is_refused(text: str, message: str) -> None:
    """The error names the file and the query."""
    with pytest.raises(ConfigurationError, match=rf"bad\.sql: .*{message}"):
        Queries(text, source="bad.sql")


def test_a_services_own_queries_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service loads its own queries the same way."""
    (tmp_path / "shop" / "sql").mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "sql" / "mine.sql").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert Queries.load("shop", "mine")["first"] == "SELECT 1"


def test_files_are_joined_unless_they_have_a_name_in_common() -> None:
    """A name in both files would be ambiguous."""
    first = Queries("-- name: a\n-- A.\nSELECT 1", source="one.sql")
    second = Queries("-- name: b\n-- B.\nSELECT 2", source="two.sql")
    both = first | second
    assert [(name, both[name]) for name in both] == [("a", "SELECT 1"), ("b", "SELECT 2")]
    with pytest.raises(ConfigurationError, match=r"one\.sql, two\.sql has no query 'c'"):
        _ = both["c"]
    with pytest.raises(ConfigurationError, match=r"one\.sql, two\.sql, two\.sql: the query 'b' is in both"):
        _ = both | second


def test_every_query_file_of_the_library_loads() -> None:
    """Each file of the library is well-formed."""
    root = Path(watchkeeper.__file__).parent
    found = sorted(root.rglob("sql/*.sql"))
    assert root / "audit/sql/audit.sql" in found
    for path in found:
        Queries.load(".".join(("watchkeeper", *path.parent.parent.relative_to(root).parts)), path.stem)
