"""Named queries, read from .sql files."""

from __future__ import annotations

import difflib
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Self

from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString

_HEAD: Final = re.compile(r"^-- name: *(.*?) *$", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class Queries:
    """The queries of one file, or of several joined with `|`; `queries["name"]` returns the SQL.

    Each query starts with `-- name: some_name`, followed by at least one comment line that describes it.

    Args:
        text: The file's text.
        source: Name of the file in errors.
    """

    __slots__ = ("_queries", "_source")

    def __init__(self, text: str, *, source: str) -> None:
        self._source = source
        self._queries: dict[str, LiteralString] = {}
        before, *parts = _HEAD.split(text)
        if _sql_of(before):
            raise ConfigurationError(f"{source}: there is SQL before the first '-- name:' line.")
        for name, block in zip(parts[::2], parts[1::2], strict=True):
            self._add(name, block)

    @classmethod
    def load(cls, package: str, name: str) -> Self:
        """Read `name`.sql from the `sql` folder of `package`."""
        return cls((files(package) / "sql" / f"{name}.sql").read_text(encoding="utf-8"), source=f"{name}.sql")

    def __or__(self, other: Self) -> Self:
        """Return the queries of both files, which may have no name in common."""
        both = type(self)("", source=f"{self._source}, {other._source}")
        for name in (*self._queries, *other._queries):
            if name in self._queries and name in other._queries:
                raise ConfigurationError(f"{both._source}: the query {name!r} is in both: rename one.")
        both._queries = {**self._queries, **other._queries}
        return both

    def _add(self, name: str, block: str) -> None:
        where = f"{self._source}: the query {name!r}"
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{where} needs a name of lower-case letters, digits and underscores.")
        if name in self._queries:
            raise ConfigurationError(f"{where} is defined twice: rename one.")
        sql = _sql_of(block)
        if not sql:
            raise ConfigurationError(f"{where} has no SQL.")
        if not re.match(r"\s*-- *\S", block):
            raise ConfigurationError(f"{where} has no description: add a '-- ...' line below its name.")
        # The files are part of the code, as LiteralString demands.
        self._queries[name] = sql

    def __iter__(self) -> Iterator[str]:
        return iter(self._queries)

    def __getitem__(self, name: str) -> LiteralString:
        try:
            return self._queries[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._queries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"{self._source} has no query {name!r}.{hint}") from None


def _sql_of(block: str) -> str:
    lines = [line for line in block.splitlines() if not line.lstrip().startswith("--")]
    return "\n".join(lines).strip().removesuffix(";")
