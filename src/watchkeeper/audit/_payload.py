"""Encodes any payload as JSON that PostgreSQL accepts."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

# Deeper than any readable entry, and far below the limits of msgspec and PostgreSQL.
_DEPTH: Final = 32
_INTEGER_BITS: Final = 4096  # some 1200 digits; Python prints and reads 4300


def encode_payload(payload: Mapping[str, object]) -> str:
    """Return `payload` as a JSON object for jsonb; what JSON or jsonb cannot represent becomes text."""
    try:
        encoded = _ENCODER.encode(payload)
        text = encoded.decode()
    except (ValueError, TypeError, RecursionError, OverflowError):
        text = ""
    if text and "\\u0000" not in text:
        return text
    return _ENCODER.encode(_to_json(payload, ())).decode()


def _to_json(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, str):
        return _escape(value)
    if isinstance(value, int):
        return value if value.bit_length() <= _INTEGER_BITS else _to_text(value)
    if isinstance(value, (Mapping, list, tuple, AbstractSet)):
        return _container_to_json(value, above)
    if value is None or isinstance(value, float):
        return value
    try:
        known = msgspec.to_builtins(value)
    except Exception:  # noqa: BLE001  # the entry is written even if an object raises
        return _to_text(value)
    return _to_json(known, (*above, id(value)))


def _container_to_json(
    value: Mapping[object, object] | list[object] | tuple[object, ...] | AbstractSet[object],
    above: tuple[int, ...],
) -> object:
    if id(value) in above:
        return "<cycle>"
    if len(above) >= _DEPTH:
        return "<too deep>"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return {_to_text(key): _to_json(item, inside) for key, item in value.items()}
    return [_to_json(item, inside) for item in value]


def _to_text(value: object) -> str:
    try:
        return _escape(str(value))
    except Exception:  # noqa: BLE001  # the same
        return f"<{type(value).__name__}>"


def _escape(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_text)
