import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realestate.errors import ApiError
from realestate.signatures import REPLAY_WINDOW_S, check_signature, check_timestamp, sign
from watchkeeper.settings import Secret

NOW = 1_800_000_000


def test_signature_is_hmac_sha256_over_timestamp_and_body() -> None:
    """The signature is the output of `openssl dgst -sha256 -hmac` for the timestamp followed by the body."""
    expected = hmac.new(b"key", b'1800000000{"id":"1"}', hashlib.sha256).hexdigest()
    assert sign("key", "1800000000", b'{"id":"1"}') == f"sha256={expected}"


@given(secret=st.text(min_size=1), body=st.binary())
def test_signature_of_any_secret_and_body_is_accepted(secret: str, body: bytes) -> None:
    """A secret that is not ASCII works too."""
    check_signature([Secret(secret)], "1", body, sign(secret, "1", body))


@pytest.mark.parametrize("signer", ["old", "new"])
def test_both_secrets_are_valid_during_a_rotation(signer: str) -> None:
    """A source may sign with the new secret or the old one."""
    check_signature([Secret("new"), Secret("old")], "5", b"{}", sign(signer, "5", b"{}"))


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "sha256=",
        "sha1=00",
        "sha256=" + "0" * 64,
        sign("key", "5", b"{} "),
        sign("key", "6", b"{}"),
        sign("key", "5", b"{}").upper(),
        "\xff",
    ],
)
def test_forged_signature_is_refused(signature: str) -> None:
    """A signature of another body, timestamp, secret or form is 401, also if it is not ASCII."""
    with pytest.raises(ApiError, match="does not match") as caught:
        check_signature([Secret("key")], "5", b"{}", signature)
    assert (caught.value.status, caught.value.code) == (401, "bad_signature")


def test_missing_header_is_named() -> None:
    """Both the signature and the timestamp are required."""
    with pytest.raises(ApiError, match="X-Webhook-Signature is missing"):
        check_signature([Secret("key")], "5", b"{}", None)
    with pytest.raises(ApiError, match="X-Webhook-Timestamp is missing"):
        check_timestamp(None)


@pytest.mark.parametrize("offset", [-REPLAY_WINDOW_S, 0, REPLAY_WINDOW_S])
def test_timestamp_within_the_window_is_returned(offset: int) -> None:
    """Five minutes before and after allow for clocks and queues."""
    assert check_timestamp(str(NOW + offset), now=NOW) == str(NOW + offset)


@pytest.mark.parametrize("offset", [-REPLAY_WINDOW_S - 1, REPLAY_WINDOW_S + 1])
def test_timestamp_outside_the_window_is_refused(offset: int) -> None:
    """More than five minutes before or after is a replay."""
    with pytest.raises(ApiError, match="more than 300 seconds away") as caught:
        check_timestamp(str(NOW + offset), now=NOW)
    assert (caught.value.status, caught.value.code) == (401, "stale_timestamp")


@pytest.mark.parametrize("timestamp", ["", "soon", "-1", "+5", "1.5", "1e9", " 5", "\u0665", "9" * 5000])
def test_unreadable_timestamp_is_refused(timestamp: str) -> None:
    """A timestamp is a limited number of digits."""
    with pytest.raises(ApiError, match="in digits"):
        check_timestamp(timestamp, now=NOW)
