import base64
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.logs import Redactor
from watchkeeper.logs._serialize import Limits, Serializer

PLAIN = Redactor()


def serialize(redactor: Redactor, value: object) -> Any:
    """Return a value as it comes out in a line."""
    return Serializer(redactor, Limits()).serialize(value)


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nx+y/z=\n-----END RSA PRIVATE KEY-----"
BASIC = base64.b64encode(b"aladdin:opensesame").decode()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abc.def-ghi", "Authorization: ***"),
        ("sent Bearer hunter2, got 401", "sent Bearer ***, got 401"),
        (f"sent Basic {BASIC}", "sent Basic ***"),
        ('Authorization: Digest username="bob", response="dd"', "Authorization: ***"),
        (r"'Cookie: a=\"b\"\r\nHost: x'", r"'Cookie: ***\r\nHost: x'"),
        ("password=hun,t&e)r2 host=db", "password=*** host=db"),
        ("{\"password\": \"hun'te\\\"r2\", 'n': 1}", "{\"password\": \"***\", 'n': 1}"),
        ("httpx.Client(auth=('bob', 'x'))", "httpx.Client(auth=***)"),
        ("Negotiate YIIJvwYGKwYBBQUCoIIJszCCCa+gJDAi", "Negotiate ***"),
        ("postgresql://bob:hunter2@db:5432/shop", "postgresql://bob:***@db:5432/shop"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("amqp://bob:p/w@d@mq/v", "amqp://bob:***@mq/v"),
        ("https://ghtoken@github.com/x", "https://***@github.com/x"),
        ("two https://a:b@c and https://d:e@f end", "two https://a:***@c and https://d:***@f end"),
        ("GET /cb?token=abc&page=2", "GET /cb?token=***&page=2"),
        ("/x?a=1&access_token=abc#top", "/x?a=1&access_token=***#top"),
        ("/x?sig=abc;code=12&X-Amz-Signature=dd", "/x?sig=***;code=***&X-Amz-Signature=***"),
        ("password=hunter2", "password=***"),
        ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
        ("password: 'hun ter2', next: 1", "password: '***', next: 1"),
        ("{'db_password': 'hunter2', 'n': 1}", "{'db_password': '***', 'n': 1}"),
        ('{"apiKey": "hunter2"}', '{"apiKey": "***"}'),
        (r"{\"secret\":\"hunter2\"}", r"{\"secret\":\"***\"}"),
        ("User(name='bob', token='hunter2')", "User(name='bob', token='***')"),
        ("[(b'authorization', b'Bearer abc'), (b'a', b'b')]", "[(b'authorization', b'***'), (b'a', b'b')]"),
        ("('Cookie', 'id=hunter2; x=y')", "('Cookie', '***')"),
        ("Cookie: id=hunter2; theme=dark\nHost: x", "Cookie: ***\nHost: x"),
        ("client_secret=hunter2", "client_secret=***"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
        (f"key:\n{PEM}\nend", "key:\n-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\nend"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEow", "-----BEGIN PRIVATE KEY-----***"),
        (f"got {JWT}!", "got ***!"),
        ("ghp_0123456789abcdefghij0123456789abcdef", "***"),
        ("glpat-0123456789abcdefghij", "***"),
        ("xoxb-123456789012-abcdef", "***"),
        ("sk_live_0123456789abcdef", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        (f"AIza{'x' * 35}", "***"),
        (f"POST https://api.telegram.org/bot123456789:{'A' * 35}/sendMessage", "POST https://api.telegram.org/***/sendMessage"),
        ("X-Webhook-Signature: sha256=abcdef", "X-Webhook-Signature: ***"),
    ],
)  # fmt: skip
def test_credentials_in_text_are_masked(text: str, masked: str) -> None:
    """In every form; the text around them stays readable."""
    assert PLAIN.text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        *("Bearer token missing", "Basic validation failed", "basic authentication is off"),
        *("digest mismatch", "max_tokens=500 and 12 tokens: fine", "secretary: Bob", "a = b"),
        "the author: Bob, authority=high",
        "listing approved: 3 bedrooms, price=1000",
        "https://example.org:8080/@name/x",
        "https://example.org/a@b",
        "mailto bob@example.org",
        *("12:30:45 started", "robot: 47 abandoned", "cookies are off", "ghost of a xoxo"),
        *("/api/listings/search?q=house&page=2&keyword=pool", "statement=SELECT 1"),
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    """A word that only starts or ends like a telling one masks nothing."""
    assert PLAIN.text(text) == text


@pytest.mark.parametrize(
    "key",
    [
        *("password", "PASSWORD", "db_password", "passwd", "passphrase", "pwd", "secret", "clientSecret"),
        *("token", "access-token", "Authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "api_key"),
        *("X-Api-Key", "apikey", "privateKey", "secret_access_key", "credentials", "X-Webhook-Signature"),
        *("jwt", "otp", "csrf_token", "password_hash", "auth", "X-Auth", "accesstoken", "refreshToken"),
    ],
)
def test_values_under_telling_keys_are_masked(key: str) -> None:
    """Case and separators do not matter, and a longer name counts by its last word."""
    assert serialize(PLAIN, {key: "hunter2", "n": {key: ["hunter2"]}}) == {key: "***", "n": {key: "***"}}


@pytest.mark.parametrize(
    "key", ["key", "tokens", "max_tokens", "author", "oauth", "id", "code", "secretary", "keyboard", "n", ""]
)
def test_values_under_other_keys_are_shown(key: str) -> None:
    """Also under those that only contain a telling word."""
    assert serialize(PLAIN, {key: "v"}) == {key: "v"}


def test_keys_can_be_chosen() -> None:
    """A service names its own, in any spelling."""
    redactor = Redactor(keys=["peer-id"])
    assert serialize(redactor, {"peerId": "x", "token": "y"}) == {"peerId": "***", "token": "y"}


SECRET = "aK3+/9 zQ&é\"'\\x7-long"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        repr(SECRET)[1:-1],
        repr({"x": SECRET})[7:-2],
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        *(base64.b64encode(b"u" * shift + SECRET.encode() + b"tail").decode() for shift in range(4)),
    ],
)
def test_registered_secret_is_masked_in_every_form(form: str) -> None:
    """As it is, percent-encoded, escaped, in hex, and inside base64 wherever it starts there."""
    redactor = Redactor([SECRET])
    for text in (form, f"before {form} after", f"x{form}y"):
        redacted = redactor.text(text)
        assert "***" in redacted
        assert form[4:-8] not in redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/nope?q=hello%0a%1b[0m&x=CANARY%2Dmet-0123", "/nope?q=hello%0a%1b[0m&x=***"),
        ("/%ff%C3%A9%zz%?x=%43ANARY-met-0123%0A&y=a+b", "/%ff%C3%A9%zz%?x=***%0A&y=a+b"),
        ("/%43ANARY%2Dmet-0123/%C3%A9%43ANARY-met-0123%e9", "/***/%C3%A9***%e9"),
        ("/x?a=caf%C3%A9+au%20lait&b=%2B+%43ANARY-met-0123", "/x?a=***&b=%2B+***"),
    ],
)
def test_only_the_encoded_secret_is_masked(text: str, shown: str) -> None:
    """Other escapes stay as sent: a line never shows the line break of a %0a."""
    assert Redactor(["CANARY-met-0123", "café au lait"]).text(text) == shown


@given(st.text(max_size=20), st.text(max_size=20), st.sets(st.integers(0, 14)))
def test_text_around_an_encoded_secret_is_unchanged(before: str, after: str, escaped: set[int]) -> None:
    """Whichever of its characters are percent-encoded, and whatever is encoded next to it."""
    secret = "".join(
        f"%{ord(sign):02x}" if at in escaped else sign for at, sign in enumerate("kJ7~kJ7~kJ7~kJ7")
    )
    left, right = quote(before, errors="replace"), quote(after, errors="replace")
    shown = Redactor(["kJ7~kJ7~kJ7~kJ7"]).text(f"{left}%00{secret}%00{right}")
    assert shown == f"{PLAIN.text(left)}%00***%00{PLAIN.text(right)}"


def test_short_secret_is_masked_only_as_a_whole_word() -> None:
    """A database password `listing` must not make the log unreadable; three letters are left to the keys."""
    redactor = Redactor(["listing", "abc"])
    assert redactor.text("listings, relisting: listing!") == "listings, relisting: ***!"
    assert redactor.text("abc") == "abc"


def test_longer_secret_is_masked_before_one_within_it() -> None:
    """A database URL and the password in it are both registered: no part of the URL is left."""
    redactor = Redactor(["s3cr3t-password", "postgresql://bob:s3cr3t-password@db/shop"])
    assert redactor.text("at postgresql://bob:s3cr3t-password@db/shop.") == "at ***."


@given(st.text(min_size=12, max_size=30), st.text(max_size=50), st.text(max_size=50))
def test_long_secret_is_always_masked(secret: str, before: str, after: str) -> None:
    """Whatever it consists of and whatever surrounds it."""
    redacted = Redactor([secret]).text(before + secret + after)
    assert secret not in redacted or secret in "***"


@given(st.text(max_size=200))
def test_redaction_is_idempotent(text: str) -> None:
    """Redacting a redacted text changes nothing."""
    once = PLAIN.text(text)
    assert PLAIN.text(once) == once


@given(st.text("0123456789abcdef-\n", max_size=100))
def test_ids_of_hex_digits_are_plain(ids: str) -> None:
    """They need no search for known kinds; a registered secret may still be one of them."""
    assert PLAIN.text(ids) == ids
    assert PLAIN.is_plain(ids)
    assert Redactor(["0badc0ffee"]).is_plain(ids) is ("0badc0ffee" not in ids)
    assert not Redactor(["0badc0ffee"]).is_plain(f"{ids}0badc0ffee")


@given(st.integers(0, 60), st.integers(20, 40), st.sampled_from(["", "token=", "https://u:", "Bearer "]))
def test_cut_text_never_shows_a_part_of_a_secret(offset: int, limit: int, before: str) -> None:
    """The limit may fall anywhere in it."""
    secret = "ABCDEFGHIJKLMNOPQRSTUVWX"
    text = "." * offset + before + secret + "." * 100
    shown = Redactor([secret]).bounded(text, limit)
    assert "ABC" not in shown
    assert len(shown) < limit + 40


@pytest.mark.parametrize("offset", range(0, 41, 5))
def test_cut_text_never_shows_a_part_of_an_encoded_secret(offset: int) -> None:
    """Fully percent-encoded, it is three times as long."""
    secret = "ABCDEFGHIJKLMNOPQRSTUVWX"
    text = "." * offset + "".join(f"%{ord(sign):x}" for sign in secret) + "." * 100
    assert "%41" not in Redactor([secret]).bounded(text, 40)


@pytest.mark.parametrize(
    "text",
    [
        *("://" * 4000, "://a:" * 4000, "https://" + "a" * 8000, "eyJ" * 4000, "-eyJ" * 4000),
        *("password" * 2000, "password=" * 2000, "secret\\\\\\\\'" * 2000, "token: " * 2000),
        *("authorization:" + " " * 8000, "?a=" * 4000, "&" + "a" * 8000 + "=", "bearer " * 2000),
        *("bearer" + " " * 8000, "-----BEGIN PRIVATE KEY-----" * 500, "-----BEGIN " * 1000),
        *("gh" * 6000, "xox" * 4000, "bot1" * 3000, "'auth','" * 2000, "cookie:" + "\t" * 8000),
    ],
    ids=lambda text: text[:12],
)
def test_redaction_takes_linear_time(text: str) -> None:
    """No pattern can be made to backtrack without end."""
    begun = time.process_time()
    PLAIN.text(text)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/api/listings/7", "/api/listings/7"),
        ("/search?q=house", "/search?q=house"),
        ("/cb?code=123&state=x&ok=1", "/cb?code=***&state=***&ok=1"),
        (f"/verify/{JWT}", "/verify/***"),
        ("/a/s3cr3t-of-the-shop/b", "/a/***/b"),
        ("/a/s3cr3t%2Fof%2fshop", "/a/***"),
        ("/a/s%33cr3t/of/shop?b=100%", "/a/***?b=100%"),
        ("http://bob:pw@shop/x", "http://bob:***@shop/x"),
    ],
)
def test_secrets_in_urls_are_masked(url: str, shown: str) -> None:
    """A plain path stays; a query, a token in the path and a registered secret are found."""
    redactor = Redactor(["s3cr3t-of-the-shop", "s3cr3t/of/shop"])
    assert redactor.url(url) == shown
    assert redactor.url(url) == shown


def test_caches_are_bounded() -> None:
    """Ten thousand different texts, keys and paths do not stay in memory."""
    redactor = Redactor(["s3cr3t-of-the-shop"])
    for number in range(10_000):
        redactor.text(f"text {number}")
        redactor.url(f"/path/{number}")
        redactor.hides(f"key{number}")
    assert len(redactor._clean) <= 4096
    assert len(redactor._clean_paths) <= 4096
    assert len(redactor._hidden) <= 4096
