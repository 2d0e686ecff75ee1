"""Patterns of credentials in running text; the time of each grows linearly with the text."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

MASK: Final = "***"

DEFAULT_KEYS: Final = frozenset(
    (
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "token",
        "authorization",
        "cookie",
        "apikey",
        "accesskey",
        "secretkey",
        "privatekey",
        "credential",
        "credentials",
        "signature",
        "jwt",
        "otp",
        "auth",
        "csrf",
        "sessionkey",
    )
)

_WORD: Final = re.compile(r"[A-Z]*[a-z]+|[A-Z]+|[^\W_A-Za-z]+")
_SECRET_WORDS: Final = frozenset(("password", "passwd", "passphrase", "secret"))

# Names that are secret only as query parameters: elsewhere these words are too common.
_PARAMETER_KEYS: Final = frozenset(
    ("code", "key", "sig", "sid", "session", "pin", "state", "assertion", "hmac", "nonce")
)

# Each match of _PAIR and _WHOLE_LINE has one of these, and finding that is ten times as quick as a pattern.
_PAIR_HINTS: Final = (
    "pass",
    "pwd",
    "secret",
    "token",
    "auth",
    "cookie",
    "key",
    "cred",
    "signature",
    "jwt",
    "otp",
    "csrf",
)

_USERINFO: Final = re.compile(r"://([^\s\"'<>\\]+)")
_SCHEME: Final = re.compile(r"(?i)(?<![a-z])(bearer|basic|negotiate)(\s{1,4})([^\s\"',;]+)")
_WORDS_AFTER_SCHEME: Final = frozenset(
    ("token", "tokens", "auth", "authentication", "authorization", "credentials")
)
# An unquoted value ends only at white space: a password may contain any other character.
_PAIR: Final = re.compile(
    r"""(?ix)
    ( pass(?:word|wd|phrase) | pwd | secret | token | (?:api|access|secret|private|session)[_-]?key
      | authorization | cookie | credentials? | signature | jwt | otp | csrf | (?<![a-z])auth(?=[="']) )
    ( \d{0,3} (?:\\{0,4}["'])? \s{0,4} (?: [:=] | (?<=["']), ) \s{0,4} )
    (?: (b?(?P<quote>\\{0,4}["'])) (?: (?!(?P=quote)) (?: \\. | [^\n\\] ) )*
      | [(\[{] [^()\[\]{}\n]* [)\]}]?
      | (?:(?:bearer|basic|negotiate)\s{1,4})? (?!\*\*\*) [^\s"']+ )
    """
)
_WHOLE_LINE: Final = re.compile(
    r"(?i)((?:authorization|cookie)[ \t]{0,4}:[ \t]{0,4})(?=[^\s\"'\\])(?:(?!\\[rn])[^\n])*"
)
_PARAMETER: Final = re.compile(r"([?&;])([^=&;?#\s\"'<>]{1,64})=([^&;#\s\"<>]+)")
_PEM: Final = re.compile(r"(-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY-----).*?(-----END |\Z)", re.DOTALL)
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){0,4}")
_KNOWN_KINDS: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}"
    r"|[sr]k_(?:live|test)_\w{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|bot\d{5,12}:[\w-]{30,})"
)
_KNOWN_HINTS: Final = ("gh", "glpat", "xox", "k_live_", "k_test_", "AKIA", "AIza", "bot")

# Each alternative starts with a letter, not with a set: then `re` searches for the letters, twice as quickly.
CREDENTIAL_START: Final = re.compile(
    r"eyJ|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk_(?:live|test)_|rk_(?:live|test)_|AKIA|AIza|bot\d{5}"
)
"""How each match of _JWT and _KNOWN_KINDS starts."""


def mask_credentials(text: str) -> str:
    """Return `text` with all that looks like a credential masked."""
    lower = text.lower()
    if "://" in lower:
        text = _USERINFO.sub(_mask_userinfo, text)
    if "bearer" in lower or "basic" in lower or "negotiate" in lower:
        text = _SCHEME.sub(_mask_scheme, text)
    if "=" in lower and ("?" in lower or "&" in lower or ";" in lower):
        text = _PARAMETER.sub(_mask_parameter, text)
    if "private key-----" in lower:
        text = _PEM.sub(rf"\1{MASK}\2", text)
    for hint in _PAIR_HINTS:
        if hint in lower:
            text = _WHOLE_LINE.sub(rf"\1{MASK}", text)
            text = _PAIR.sub(rf"\1\2\3{MASK}", text)
            break
    if "eyj" in lower:
        text = _JWT.sub(MASK, text)
    for hint in _KNOWN_HINTS:
        if hint in text:
            return _KNOWN_KINDS.sub(MASK, text)
    return text


def _mask_userinfo(found: re.Match[str]) -> str:
    token = found[1]
    at = token.rfind("@")
    if at < 0:
        return found[0]
    authority_end = min((i for i in map(token.find, "/?#") if i >= 0), default=len(token))
    user, colon, rest = token[:at].partition(":")
    if at > authority_end and (not colon or len(user) > authority_end or rest.split("/", 1)[0].isdigit()):
        # The @ is part of the path (https://host:8080/@name).
        return found[0]
    return f"://{user}:{MASK}{token[at:]}" if colon else f"://{MASK}{token[at:]}"


def _mask_scheme(found: re.Match[str]) -> str:
    scheme, space, value = found.groups()
    if value.lower().rstrip(".:") in _WORDS_AFTER_SCHEME:
        return found[0]
    if scheme.lower() != "bearer" and not _is_credential(value):
        return found[0]
    return f"{scheme}{space}{MASK}"


def _is_credential(value: str) -> bool:
    # "basic" is also an ordinary word: it counts if user:password follows, or something too long for a word.
    try:
        decoded = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return len(value) >= 24
    return b":" in decoded or len(value) >= 24


def _mask_parameter(found: re.Match[str]) -> str:
    before, name, _ = found.groups()
    return f"{before}{name}={MASK}" if names_secret(name) or name.lower() in _PARAMETER_KEYS else found[0]


def names_secret(name: str, keys: frozenset[str] = DEFAULT_KEYS) -> bool:
    """Return whether a key, parameter or header of this name, in any spelling, holds a secret.

    A long key may be the end of the name (`accesstoken`), a short one must be its last word (`X-Auth`, not
    `oauth`). The word password or secret may be anywhere. The keys are in lower case without separators.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    flat = "".join(words)
    if not words or flat in keys or words[-1] in keys or not _SECRET_WORDS.isdisjoint(words):
        return bool(words)
    return any(len(key) > 4 and flat.endswith(key) for key in keys)
