"""Payloads as JSON that PostgreSQL takes, whatever is in them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

# Deeper than any entry that somebody reads, and far from the limits of msgspec and PostgreSQL.
_DEPTH: Final = 32
_INTEGER_BITS: Final = 4096  # some 1200 digits; Python prints and reads 4300


def encode_payload(payload: Mapping[str, object]) -> str:
    r"""Return `payload` as a JSON object that jsonb takes; what it does not take is written out as text.

    That is: objects unknown to msgspec, keys that are no strings, cycles, NUL characters (jsonb refuses
    `\u0000`), lone surrogates, NaN (as null).
    """
    try:
        encoded = _ENCODER.encode(payload)
        text = encoded.decode()
    except (ValueError, TypeError, RecursionError, OverflowError):
        text = ""
    if text and "\\u0000" not in text:
        return text
    return _ENCODER.encode(_plain(payload, ())).decode()


def _plain(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, int):
        return value if value.bit_length() <= _INTEGER_BITS else _text_of(value)
    if isinstance(value, (Mapping, list, tuple, AbstractSet)):
        return _plain_container(value, above)
    if value is None or isinstance(value, float):
        return value
    try:
        known = msgspec.to_builtins(value)
    except Exception:  # noqa: BLE001  # an entry is written whatever an object does when it is looked at
        return _text_of(value)
    return _plain(known, (*above, id(value)))


def _plain_container(
    value: Mapping[object, object] | list[object] | tuple[object, ...] | AbstractSet[object],
    above: tuple[int, ...],
) -> object:
    if id(value) in above:
        return "<cycle>"
    if len(above) >= _DEPTH:
        return "<too deep>"
    inside = (*above, id(value))
    if isinstance(value, Mapping):
        return {_text_of(key): _plain(item, inside) for key, item in value.items()}
    return [_plain(item, inside) for item in value]


def _text_of(value: object) -> str:
    try:
        return _clean(str(value))
    except Exception:  # noqa: BLE001  # the same
        return f"<{type(value).__name__}>"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\u0000")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_text_of)
