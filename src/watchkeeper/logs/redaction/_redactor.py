"""Nothing secret leaves in a line: registered values, telling keys, and whatever looks like a credential."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from watchkeeper.logs._plain import Limits, Shaper
from watchkeeper.logs.redaction._patterns import KEYS, MASK, TELLING, mask_credentials, names_secret

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_KEYS: Final = frozenset(KEYS)
_SHORTEST: Final = 4
_LONG: Final = 12
_REMEMBERED: Final = 4096
_LONG_KEY: Final = 64
_SMALL: Final = 1 << 53
_ESCAPE: Final = 3  # %41
_ESCAPES: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
# A path of ids and words: no query, no long run that may be a token.
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]{0,40})+").fullmatch
# Ids of hex digits, one a line, as nearly all are: each known kind of credential has other letters.
_HEX: Final = re.compile(r"[0-9a-f\n-]+").fullmatch


class Redactor:
    """Masks secrets with `***`, after formatting: in text, URLs, and deep in values.

    A registered secret of 12 or more characters is masked wherever it stands, also percent-encoded, escaped
    or inside base64; a shorter one only where it stands by itself, so that a database password `listing` does
    not make `listings` unreadable; one of fewer than 4 characters is left to the keys and patterns.

    Args:
        secrets: Values that may never be seen.
        keys: Names whose value is masked, without regard to case and separators, also as the last part of a
            longer name (`X-Api-Key`, `accessToken`); default `DEFAULT_KEYS`.
    """

    def __init__(self, secrets: Iterable[str] = (), *, keys: Iterable[str] = DEFAULT_KEYS) -> None:
        self._keys = frozenset(re.sub(r"[_\-. ]", "", key.lower()) for key in keys)
        self._hidden: dict[str, bool] = {}
        self._clean: set[str] = set()
        self._clean_paths: set[str] = set()
        forms: set[str] = set()
        shown: set[str] = set()
        for secret in secrets:
            if len(secret) >= _SHORTEST:
                forms |= _forms_of(secret)
                shown.add(secret)
        ordered = sorted(forms, key=len, reverse=True)
        self._forms = tuple(ordered)
        self._shown = tuple(shown)
        self.knows_secrets: Final = bool(shown)
        encoded = max((_ESCAPE * len(secret.encode("utf-8", "surrogatepass")) for secret in shown), default=0)
        self._margin = max([encoded, *map(len, ordered)])
        self._any_form = re.compile("|".join(map(_pattern_of, ordered)))

    def text(self, value: str) -> str:
        """Return running text with its secrets masked."""
        # Most texts of a service come again and again: what was clean once is clean for good.
        if value in self._clean:
            return value
        redacted = mask_credentials(self._without_registered(value))
        if redacted == value and len(value) <= 256 and value.isascii():
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean.add(value)
        return redacted

    def bounded(self, value: str, limit: int) -> str:
        """Return text with its secrets masked and no longer than about `limit`, saying what was cut."""
        if len(value) <= limit:
            return self.text(value)
        # A secret that the cut divides must not show its first half: what may hold one goes as well.
        start = self.text(value[: limit + self._margin])
        kept = start[: min(limit, max(0, len(start) - self._margin))]
        return f"{kept}...<{len(value) - limit} characters more>"

    def url(self, path_and_query: str) -> str:
        """Return a path with its query, as a request line shows it; a plain path costs next to nothing."""
        if path_and_query in self._clean_paths:
            return path_and_query
        if not _PLAIN_PATH(path_and_query) or not self.is_plain(path_and_query):
            return self.text(path_and_query)
        if len(self._clean_paths) >= _REMEMBERED:
            self._clean_paths.clear()
        if len(path_and_query) <= 256:
            self._clean_paths.add(path_and_query)
        return path_and_query

    def is_plain(self, value: str) -> bool:
        """Say whether ids or a path surely hold no secret: neither a registered one nor a known kind."""
        return (_HEX(value) is not None or TELLING.search(value) is None) and not any(
            form in value for form in self._forms
        )

    def value(self, value: object) -> Any:
        """Return any value as plain data (what JSON can say) with its secrets masked, however deep."""
        return Shaper(self, Limits(total=1_000_000)).shape(value)

    def is_harmless(self, key: str, value: object) -> bool:
        """Say whether a field may stand as it is: what most fields of most lines are, found out quickly."""
        if self._hidden.get(key, True):
            return False
        kind = type(value)
        if kind is str:
            return value in self._clean
        return kind is bool or value is None or (kind is int and -_SMALL < value < _SMALL)  # type: ignore[operator]

    def hides(self, key: str) -> bool:
        """Say whether what stands under `key` is masked."""
        known = self._hidden.get(key)
        if known is None:
            known = names_secret(key, self._keys)
            if not known and not (key.isascii() and len(key) <= _LONG_KEY and self.text(key) == key):
                return False  # not remembered: such a key needs more than a look each time
            if len(self._hidden) >= _REMEMBERED:
                self._hidden.clear()
            self._hidden[key] = known
        return known

    def _without_registered(self, value: str) -> str:
        for form in self._forms:
            if form in value:
                value = self._any_form.sub(MASK, value)
                break
        if "%" in value and self._shown:
            # Which characters are percent-encoded is the writer's choice: what counts is what it decodes to.
            value = self._without_encoded(value, value)
            if "+" in value:
                value = self._without_encoded(value, value.replace("+", " "))
        return value

    def _without_encoded(self, value: str, encoded: str) -> str:
        """Mask in `value` what `encoded`, of the same length, decodes to; all else stays as it was sent."""
        # Undecodable bytes one by one, as `_starts_of` counts them.
        decoded = unquote(encoded, errors="surrogateescape")
        spans = [found.span() for found in self._any_form.finditer(decoded)]
        if not spans:
            return value
        starts = _starts_of(encoded)
        kept = 0
        pieces: list[str] = []
        for start, end in spans:
            pieces += (value[kept : starts[start]], MASK)
            kept = starts[end]
        return "".join((*pieces, value[kept:]))


def _starts_of(encoded: str) -> list[int]:
    """Return where in `encoded` each character of what it decodes to begins, and its end."""
    starts: list[int] = []
    done = 0
    for run in _ESCAPES.finditer(encoded):
        starts += range(done, run.start())
        done = run.start()
        for character in unquote(run[0], errors="surrogateescape"):
            starts.append(done)
            done += _ESCAPE * len(character.encode("utf-8", "surrogateescape"))
    return [*starts, *range(done, len(encoded) + 1)]


def _forms_of(secret: str) -> set[str]:
    plain = secret.encode("utf-8", "surrogatepass")
    forms = {secret, repr(secret)[1:-1], plain.hex()}
    if len(plain) >= _LONG:
        # Inside a longer text (user:secret) base64 depends on where the secret begins: three ways. Only the
        # digits that are of the secret alone count, each holds 6 bits.
        for shift in (0, 1, 2):
            digits = base64.b64encode(b"\0" * shift + plain).decode()
            inner = digits[-(-8 * shift // 6) : 8 * (shift + len(plain)) // 6]
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    else:
        forms.add(base64.b64encode(plain).decode().rstrip("="))
    return {form for form in forms if len(form) >= _SHORTEST}


def _pattern_of(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _LONG else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"
