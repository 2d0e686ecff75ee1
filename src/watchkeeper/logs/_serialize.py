"""Serialization of any object as plain data that JSON can hold: bounded, masked, and without raising."""

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
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec import Struct

from watchkeeper.logs._exceptions import describe_exception
from watchkeeper.logs.redaction._patterns import MASK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from watchkeeper.logs.redaction._redactor import Redactor

_MAX_KEY: Final = 128
_MAX_INT_BITS: Final = 1024  # Python itself refuses to print much longer ones (sys.set_int_max_str_digits)
_HARMLESS_SIZE: Final = 32  # size that is counted for a harmless field
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_AS_TEXT: Final = (UUID, datetime, date, time, Decimal, PurePath)


class Limits(Struct, frozen=True, kw_only=True):
    """How much of a value is kept."""

    text: int = 8192  # characters of one string
    items: int = 256  # entries of one container
    depth: int = 10  # nested containers
    total: int = 24_000  # characters altogether


class _Printing(threading.local):
    active = False


_printing: Final = _Printing()


def _repr(value: object) -> str:
    # A __repr__ that logs its own object would recurse forever.
    if _printing.active:
        return f"<{type(value).__name__}>"
    _printing.active = True
    try:
        return repr(value)
    finally:
        _printing.active = False


class Serializer:
    """Serializes the values of one line; it counts what it has kept, so each line needs a new one."""

    __slots__ = ("_left", "_limits", "_open", "_redactor")

    def __init__(self, redactor: Redactor, limits: Limits) -> None:
        self._redactor = redactor
        self._limits = limits
        self._left = limits.total
        self._open: set[int] = set()  # ids of the containers that are being serialized, to detect cycles

    def serialize(self, value: object, depth: int = 0) -> Any:
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
        except Exception:  # noqa: BLE001 - the methods of an unknown object may raise anything
            return f"<unprintable {kind.__name__}>"

    def serialize_pair(self, key: object, value: object, depth: int = 0) -> tuple[str, Any]:
        """Return a key as text, and its value, masked if the key names a secret."""
        if type(key) is str and self._redactor.is_harmless(key, value):
            self._left -= _HARMLESS_SIZE
            return key, value
        name = self._key(key)
        if self._redactor.hides(name) and value is not None and not isinstance(value, bool):
            return name, MASK
        return name, self.serialize(value, depth)

    def _key(self, key: object) -> str:
        if isinstance(key, str):
            text = str.__str__(key)
        elif isinstance(key, bytes):
            text = key.decode("utf-8", "backslashreplace")
        else:
            try:
                text = str(key)
            except Exception:  # noqa: BLE001 - as in serialize
                text = f"<unprintable {type(key).__name__}>"
        return self._string(text, _MAX_KEY)

    def _string(self, value: str, limit: int | None = None) -> str:
        limit = min(limit or self._limits.text, max(self._left, 16))
        text = self._redactor.bounded(value, limit)
        if not text.isascii():
            text = _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        self._left -= len(text)
        return text

    def _number(self, value: float) -> Any:
        self._left -= 8
        if isinstance(value, int):
            number = int(value)
            bits = number.bit_length()
            return number if bits <= _MAX_INT_BITS else f"<int of {bits} bits>"
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
            return self.serialize(value.value, depth)
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
            return self._content(value, depth)
        finally:
            self._open.discard(id(value))

    def _content(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseException):
            return self._mapping(describe_exception(value).items(), depth)
        if isinstance(value, Mapping):
            return self._mapping(value.items(), depth)
        if isinstance(value, list | tuple | AbstractSet) and not hasattr(value, "_fields"):
            return [self._item(item, depth + 1) for item in islice(value, self._limits.items)]
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        if isinstance(value, tuple):
            names: Iterable[str] = value._fields  # type: ignore[attr-defined]
        elif isinstance(value, Struct):
            names = value.__struct_fields__
        elif is_dataclass(value) and not isinstance(value, type):
            # A field that its class hides from the repr is hidden here too.
            names = [field.name for field in dataclass_fields(value) if field.repr]
        else:
            return self._string(_repr(value))
        return self._mapping(((name, getattr(value, name)) for name in names), depth)

    def _mapping(self, items: Iterable[tuple[object, object]], depth: int) -> dict[str, Any]:
        return dict(
            self.serialize_pair(key, value, depth + 1) for key, value in islice(items, self._limits.items)
        )

    def _item(self, value: object, depth: int) -> Any:
        # A list of (name, value), such as ASGI headers: the name may require masking.
        if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str | bytes):
            return list(self.serialize_pair(value[0], value[1], depth))
        return self.serialize(value, depth)
