"""Any object becomes what JSON can say, within bounds, and without ever raising."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from msgspec import Struct

from watchkeeper.logs._errors import describe_exception

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK: Final = "***"
_KEY_LENGTH: Final = 128
_HARMLESS: Final = 32  # what a harmless field takes of a line, by and large
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_AS_TEXT: Final = (UUID, datetime, date, time, Decimal, PurePath)


class Limits(Struct, frozen=True, kw_only=True):
    """How much of a value a line holds.

    Args:
        text: Characters of one string.
        items: Entries of one container.
        depth: Containers in each other.
        total: Characters of everything together.
    """

    text: int = 8192
    items: int = 256
    depth: int = 10
    total: int = 24_000


class _Printing(threading.local):
    busy = False


_printing: Final = _Printing()


def _repr(value: object) -> str:
    # An object whose repr logs itself would never end.
    if _printing.busy:
        return f"<{type(value).__name__}>"
    _printing.busy = True
    try:
        return repr(value)
    finally:
        _printing.busy = False


class Mask(Protocol):
    """What a shaper asks about texts and keys; `Redactor` answers."""

    def bounded(self, value: str, limit: int, /) -> str:
        """Return a text without secrets, and no longer than about the limit."""

    def hides(self, key: str, /) -> bool:
        """Say whether what stands under this key is masked."""

    def is_harmless(self, key: str, value: object, /) -> bool:
        """Say, quickly, that a field may stand as it is; False when in doubt."""


class Shaper:
    """Turns one line's values into plain ones; it remembers what it met, so each line gets a new one.

    Args:
        mask: What to do with texts and keys.
        limits: How much to keep.
    """

    __slots__ = ("_left", "_limits", "_mask", "_open")

    def __init__(self, mask: Mask, limits: Limits) -> None:
        self._mask = mask
        self._limits = limits
        self._left = limits.total
        self._open: set[int] = set()

    def shape(self, value: object, depth: int = 0) -> Any:
        """Return `value` as str, int, float, bool, None, list or dict with string keys."""
        kind = type(value)
        if kind is str:
            return self._string(value)  # type: ignore[arg-type]
        if value is None or kind is bool:
            return value
        try:
            if isinstance(value, int | float):
                return self._number(value)
            return self._other(value, depth)
        except Exception:  # noqa: BLE001 - a foreign object's own methods may raise anything at all
            return f"<unprintable {kind.__name__}>"

    def pair(self, key: object, value: object, depth: int = 0) -> tuple[str, Any]:
        """Return a key as text and its value; what a telling key names is masked."""
        if type(key) is str and self._mask.is_harmless(key, value):
            self._left -= _HARMLESS
            return key, value
        name = self._key(key)
        if self._mask.hides(name) and value is not None and not isinstance(value, bool):
            return name, MASK
        return name, self.shape(value, depth)

    def _key(self, key: object) -> str:
        if isinstance(key, str):
            text = str.__str__(key)
        elif isinstance(key, bytes):
            text = key.decode("utf-8", "backslashreplace")
        else:
            try:
                text = str(key)
            except Exception:  # noqa: BLE001 - as in shape
                text = f"<unprintable {type(key).__name__}>"
        return self._string(text, _KEY_LENGTH)

    def _string(self, value: str, limit: int | None = None) -> str:
        limit = min(limit or self._limits.text, max(self._left, 16))
        text = self._mask.bounded(value, limit)
        if not text.isascii():
            text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        self._left -= len(text)
        return text

    def _number(self, value: float) -> Any:
        self._left -= 8
        if isinstance(value, int):
            number = int(value)
            # Beyond this Python itself refuses to print it (sys.set_int_max_str_digits).
            return number if number.bit_length() <= 1024 else f"<int of {number.bit_length()} bits>"
        real = float(value)
        if math.isfinite(real):
            return real
        return "NaN" if math.isnan(real) else ("Infinity" if real > 0 else "-Infinity")

    def _other(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._string(str.__str__(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return self._string(bytes(value[: self._limits.text * 2]).decode("utf-8", "backslashreplace"))
        if isinstance(value, Enum):
            return self.shape(value.value, depth)
        if isinstance(value, _AS_TEXT):
            return self._string(value.isoformat() if isinstance(value, date | time) else str(value))
        if isinstance(value, timedelta):
            return value.total_seconds()
        return self._container(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        if depth >= self._limits.depth:
            return f"<{type(value).__name__}, too deep>"
        if self._left <= 0:
            return "<left out>"
        if id(value) in self._open:
            return f"<{type(value).__name__}, contains itself>"
        self._open.add(id(value))
        try:
            return self._inside(value, depth)
        finally:
            self._open.discard(id(value))

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseException):
            return self._mapping(describe_exception(value).items(), depth)
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if isinstance(value, list | tuple | AbstractSet) and not hasattr(value, "_fields"):
            return self._sequence(value, depth)
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, tuple):
            names: Iterable[str] = value._fields  # type: ignore[attr-defined]
        elif isinstance(value, Struct):
            names = value.__struct_fields__
        elif is_dataclass(value) and not isinstance(value, type):
            # A field that its class keeps out of the repr is kept out of the line as well.
            names = [field.name for field in dataclass_fields(value) if field.repr]
        else:
            return self._string(_repr(value))
        return self._mapping(((name, getattr(value, name)) for name in names), depth)

    def _mapping(self, items: Iterable[tuple[object, object]], depth: int) -> dict[str, Any]:
        shaped: dict[str, Any] = {}
        for key, value in islice(items, self._limits.items):
            name, plain = self.pair(key, value, depth + 1)
            shaped[name] = plain
        return shaped

    def _sequence(self, values: Iterable[object], depth: int) -> list[Any]:
        return [self._item(value, depth + 1) for value in islice(values, self._limits.items)]

    def _item(self, value: object, depth: int) -> Any:
        # ASGI headers and the like: a list of (name, value).
        if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str | bytes):
            return list(self.pair(value[0], value[1], depth))
        return self.shape(value, depth)
