"""Masking of registered secrets, of values under telling keys, and of what looks like a credential."""

from __future__ import annotations

import base64
import re
from functools import cached_property
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_plus

from watchkeeper.logs.redaction._patterns import (
    CREDENTIAL_START,
    DEFAULT_KEYS,
    MASK,
    mask_credentials,
    names_secret,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_MIN_LENGTH: Final = 4
_LONG: Final = 12
_MAX_CACHED: Final = 4096
_MAX_CACHED_TEXT: Final = 256
_MAX_CACHED_KEY: Final = 64
_MAX_EXACT_INT: Final = 1 << 53
# A path of ids and words: no query, and no segment long enough for a token.
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]{0,40})+").fullmatch
# Nearly all ids are hex digits, one a line here; each known kind of credential has other letters.
_HEX: Final = re.compile(r"[0-9a-f\n-]+").fullmatch


class Redactor:
    """Masks secrets with `***`, after formatting: in text, in URLs and under keys.

    A registered secret of 12 or more characters is masked everywhere, also percent-encoded, escaped or inside
    base64. A shorter one is masked only as a whole word, so that a database password `listing` does not make
    `listings` unreadable. One of fewer than 4 characters is left to the keys and patterns.

    Args:
        secrets: Values that must not appear in any line; default none.
        keys: Names whose values are masked, regardless of case and separators, also as the last part of a
            longer name (`X-Api-Key`, `accessToken`); default `DEFAULT_KEYS`.
    """

    def __init__(self, secrets: Iterable[str] = (), *, keys: Iterable[str] = DEFAULT_KEYS) -> None:
        self._keys = frozenset(re.sub(r"[_\-. ]", "", key.lower()) for key in keys)
        self._hidden: dict[str, bool] = {}
        self._clean: set[str] = set()
        self._clean_paths: set[str] = set()
        secrets = {secret for secret in secrets if len(secret) >= _MIN_LENGTH}
        forms: set[str] = set().union(*map(_forms_of, secrets))
        self._forms = tuple(sorted(forms, key=len, reverse=True))
        self._any_form = re.compile("|".join(_bounded(form, re.escape(form)) for form in self._forms))
        self.knows_secrets: Final = bool(secrets)
        # The longest is percent-encoded: three characters a byte.
        self._longest = max((3 * len(_utf8(form)) for form in forms), default=0)

    def text(self, value: str) -> str:
        """Return text with its secrets masked."""
        # Most texts of a service recur, and one without secrets stays so.
        if value in self._clean:
            return value
        redacted = mask_credentials(self._mask_registered(value))
        if redacted == value and len(value) <= _MAX_CACHED_TEXT and value.isascii():
            if len(self._clean) >= _MAX_CACHED:
                self._clean.clear()
            self._clean.add(value)
        return redacted

    def bounded(self, value: str, limit: int) -> str:
        """Return text with its secrets masked, cut to about `limit` characters."""
        if len(value) <= limit:
            return self.text(value)
        # Leave out the end of the cut text too: it may be the first half of a secret.
        start = self.text(value[: limit + self._longest])
        kept = start[: min(limit, max(0, len(start) - self._longest))]
        return f"{kept}...<{len(value) - limit} characters more>"

    def url(self, path_and_query: str) -> str:
        """Return a path and query with their secrets masked; a plain path costs next to nothing."""
        if path_and_query in self._clean_paths:
            return path_and_query
        if not _PLAIN_PATH(path_and_query) or not self.is_plain(path_and_query):
            return self.text(path_and_query)
        if len(self._clean_paths) >= _MAX_CACHED:
            self._clean_paths.clear()
        if len(path_and_query) <= _MAX_CACHED_TEXT:
            self._clean_paths.add(path_and_query)
        return path_and_query

    def is_plain(self, value: str) -> bool:
        """Return whether ids or a path certainly hold no registered secret or known kind of credential."""
        return (_HEX(value) is not None or CREDENTIAL_START.search(value) is None) and not self._knows(value)

    def is_harmless(self, key: str, value: object) -> bool:
        """Return whether a field needs no masking, if that is quick to tell; it is for most fields."""
        if self._hidden.get(key, True):
            return False
        kind = type(value)
        if kind is str:
            return value in self._clean
        return kind is bool or value is None or (kind is int and -_MAX_EXACT_INT < value < _MAX_EXACT_INT)  # type: ignore[operator]

    def hides(self, key: str) -> bool:
        """Return whether the value under `key` is masked."""
        known = self._hidden.get(key)
        if known is None:
            known = names_secret(key, self._keys)
            if not known and not (key.isascii() and len(key) <= _MAX_CACHED_KEY and self.text(key) == key):
                return False  # not cached, so not harmless either: the key itself needs masking or escaping
            if len(self._hidden) >= _MAX_CACHED:
                self._hidden.clear()
            self._hidden[key] = known
        return known

    def _knows(self, value: str) -> bool:
        return any(form in value for form in self._forms)

    def _mask_registered(self, value: str) -> str:
        if self._knows(value):
            value = self._any_form.sub(MASK, value)
        # Any character may be percent-encoded, and a space may be a plus. Decoding finds a secret quickly;
        # only then the slow pattern runs, which masks the secret and leaves everything else as it was sent.
        if "%" in value and (self._knows(unquote(value)) or self._knows(unquote_plus(value))):
            value = self._any_encoded_form.sub(MASK, value)
        return value

    @cached_property
    def _any_encoded_form(self) -> re.Pattern[str]:
        return re.compile("|".join(_bounded(form, _percent_encoded(form)) for form in self._forms))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _forms_of(secret: str) -> set[str]:
    plain = _utf8(secret)
    forms = {secret, repr(secret)[1:-1], plain.hex()}
    if len(plain) >= _LONG:
        # Within the base64 of a longer text (user:secret) it has three forms, by where it starts. A digit
        # holds 6 bits; only digits that hold nothing but the secret are the same in every text.
        for shift in (0, 1, 2):
            digits = base64.b64encode(b"\0" * shift + plain).decode()
            inner = digits[-(-8 * shift // 6) : 8 * (shift + len(plain)) // 6]
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    else:
        forms.add(base64.b64encode(plain).decode().rstrip("="))
    return {form for form in forms if len(form) >= _MIN_LENGTH}


def _bounded(form: str, pattern: str) -> str:
    """Return a pattern that matches a short form only as a whole word."""
    if len(form) >= _LONG:
        return pattern
    # The letter before it may be the end of an escape (%0A).
    return rf"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{{2}})){pattern}(?![A-Za-z0-9])"


def _percent_encoded(form: str) -> str:
    """Return a pattern for a form of which any character may be percent-encoded."""
    return "".join(
        f"(?:{re.escape(character)}{'|[+]' if character == ' ' else ''}"
        f"|(?i:{''.join(f'%{byte:02x}' for byte in _utf8(character))}))"
        for character in form
    )
