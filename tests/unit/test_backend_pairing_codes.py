import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from realestate.pairing_codes import (
    ALPHABET,
    CODE_LENGTH,
    LOCKED_FOR,
    MAX_ATTEMPTS,
    Outcome,
    Pair,
    decide,
    hash_code,
    make_code,
    pseudonym,
)
from watchkeeper.settings import Secret

TOKEN = Secret("token")
NOW = datetime(2027, 1, 1, tzinfo=UTC)
RIGHT = hash_code(TOKEN, "telegram", "42", "ABCD2345")
WRONG = hash_code(TOKEN, "telegram", "42", "ABCD2346")
FRESH = Pair(
    code_hash=RIGHT,
    requested_at=NOW,
    expires_at=NOW + timedelta(minutes=10),
    attempts=0,
    last_attempt_at=None,
    locked_until=None,
    approved_at=None,
    now=NOW,
)


def test_codes_are_long_unambiguous_and_different() -> None:
    """Eight characters that are easy to tell apart, without a repeat."""
    codes = {make_code() for _ in range(200)}
    assert len(codes) == 200
    assert {len(code) for code in codes} == {CODE_LENGTH}
    assert set("".join(codes)) == set(ALPHABET)
    assert not set(ALPHABET) & set("01OI")


@pytest.mark.parametrize("typed", ["ABCD2345", "abcd2345", "ABCD-2345", " ab cd 23 45 "])
def test_how_a_code_is_typed_does_not_matter(typed: str) -> None:
    """Case, blanks and hyphens do not count."""
    assert hash_code(TOKEN, "telegram", "42", typed) == RIGHT


@pytest.mark.parametrize(
    ("token", "channel", "peer", "code"),
    [
        ("other", "telegram", "42", "ABCD2345"),
        ("token", "whatsapp", "42", "ABCD2345"),
        ("token", "telegram", "43", "ABCD2345"),
        ("token", "telegram", "4", "2ABCD2345"),
        ("token", "telegram", "42", "ABCD234"),
    ],
)
def test_code_is_good_for_its_peer_only(token: str, channel: str, peer: str, code: str) -> None:
    """Another token, channel, peer or code has another hash, and so has another split between them."""
    assert hash_code(Secret(token), channel, peer, code) != RIGHT


def test_pseudonym_can_be_computed_in_a_shell() -> None:
    """As in the README: one HMAC under the token, cut to 16 digits."""
    digest = hmac.new(b"token", b"realestate pairing peer\0telegram\x0042", hashlib.sha256).hexdigest()
    assert pseudonym(TOKEN, "telegram", "42") == f"telegram:{digest[:16]}"


@pytest.mark.parametrize(
    ("token", "channel", "peer"),
    [("other", "telegram", "42"), ("token", "whatsapp", "42"), ("token", "telegram", "43")],
)
def test_pseudonym_belongs_to_one_peer_and_token(token: str, channel: str, peer: str) -> None:
    """Another token, channel or peer has another digest, not only another channel before it."""
    ours, theirs = pseudonym(TOKEN, "telegram", "42"), pseudonym(Secret(token), channel, peer)
    assert theirs.startswith(f"{channel}:")
    assert theirs.partition(":")[2] != ours.partition(":")[2]


def test_right_code_approves() -> None:
    """The right code in time is an approval, which resets the wrong attempts."""
    verdict = decide(replace(FRESH, attempts=4, last_attempt_at=NOW), RIGHT)
    assert (verdict.outcome, verdict.attempts, verdict.locked_until) == (Outcome.APPROVED, 0, None)


def test_peer_without_a_code_gets_the_same_answer_as_a_wrong_code() -> None:
    """A guess does not reveal whether the peer requested a code."""
    assert decide(None, RIGHT).outcome is Outcome.WRONG
    assert decide(FRESH, WRONG).outcome is Outcome.WRONG


def test_fifth_wrong_code_locks_out() -> None:
    """Each wrong code counts; the last allowed one starts the lock-out."""
    pair = FRESH
    for attempt in range(1, MAX_ATTEMPTS + 1):
        verdict = decide(pair, WRONG)
        assert (verdict.outcome, verdict.attempts) == (Outcome.WRONG, attempt)
        assert (verdict.locked_until is not None) == (attempt == MAX_ATTEMPTS)
        pair = replace(
            pair, attempts=verdict.attempts, last_attempt_at=NOW, locked_until=verdict.locked_until
        )
    assert decide(pair, RIGHT).outcome is Outcome.LOCKED
    assert pair.locked_for == LOCKED_FOR


def test_lock_out_ends_by_itself() -> None:
    """The count then starts at 0 again."""
    later = replace(
        FRESH,
        attempts=MAX_ATTEMPTS,
        last_attempt_at=NOW - LOCKED_FOR,
        locked_until=NOW,
        expires_at=NOW + timedelta(minutes=1),
    )
    assert later.locked_for == timedelta(0)
    assert decide(later, RIGHT).outcome is Outcome.APPROVED
    assert decide(later, WRONG).attempts == 1


def test_15_quiet_minutes_reset_the_wrong_attempts() -> None:
    """Attempts are counted together within 15 minutes only."""
    assert replace(FRESH, attempts=4, last_attempt_at=NOW - LOCKED_FOR).counting_attempts == 0
    assert replace(FRESH, attempts=4, last_attempt_at=NOW - timedelta(minutes=1)).counting_attempts == 4


@pytest.mark.parametrize("given", [RIGHT, WRONG])
def test_expired_code_is_expired_whatever_is_typed(given: bytes) -> None:
    """Attempts at an expired code do not lock the peer out."""
    verdict = decide(replace(FRESH, expires_at=NOW, attempts=3), given)
    assert (verdict.outcome, verdict.attempts, verdict.locked_until) == (Outcome.EXPIRED, 3, None)
