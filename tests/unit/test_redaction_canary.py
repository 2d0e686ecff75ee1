"""Secrets wherever a service might log one: the whole output is searched for them."""

import base64
import dataclasses
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from support.lines import LineFile, raised, request_line
from watchkeeper.logs import Redactor, RequestContext
from watchkeeper.logs._context import bind_request, unbind_request
from watchkeeper.logs._logging import Logging
from watchkeeper.settings import Secret

REGISTERED = "c4n4ry/Reg+istered=="
UNKNOWN = "c4n4ryUnknown"
ENCODED = base64.b64encode(f"service:{REGISTERED}".encode()).decode()


@pytest.fixture
def shop(lines: LineFile) -> Logging:
    """Return an installed Logging that knows one secret."""
    shop = Logging(service="shop", env="test", sink=lines.sink, redactor=Redactor([REGISTERED]))
    shop.install()
    return shop


@dataclasses.dataclass
class Account:
    """Its repr shows its fields."""

    name: str
    note: str


class Plain:
    """Its repr shows a secret."""

    def __repr__(self) -> str:
        return f"Plain({REGISTERED!r})"


class StoreError(Exception):
    """An exception that is raised with a secret."""


def request(shop: Logging, **changes: Any) -> None:
    """Write a request line with these values."""
    shop.log_request(request_line(**changes))


def in_request_context(shop: Logging) -> None:
    """Write an event in a request whose id is a secret."""
    token = bind_request(RequestContext(request_id=REGISTERED))
    shop.event("info", msg="x")
    unbind_request(token)


def in_a_warning(_shop: Logging) -> None:
    """Warn with a secret in the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn(f"odd {REGISTERED}", stacklevel=1)
        logging.captureWarnings(False)


def in_a_thread(_shop: Logging) -> None:
    """Let a thread fail with a secret."""

    def fail() -> None:
        raise StoreError(REGISTERED)

    thread = threading.Thread(target=fail, name=f"of {REGISTERED}")
    thread.start()
    thread.join()


def in_a_hook(_shop: Logging) -> None:
    """Call the exception hook with a secret."""
    error = raised(StoreError({"password": UNKNOWN}))
    sys.excepthook(type(error), error, error.__traceback__)


LIB = logging.getLogger("lib")
REGISTERED_PLACES: dict[str, Callable[[Logging], object]] = {
    "text of structlog": lambda _: structlog.get_logger().info(f"a {REGISTERED} b"),
    "argument of structlog": lambda _: structlog.get_logger().info("a %s", REGISTERED),
    "field": lambda o: o.event("info", note=REGISTERED),
    "bound field": lambda _: structlog.get_logger().bind(note=REGISTERED).info("x"),
    "key": lambda o: o.event("info", **{REGISTERED: 1}),
    "key within": lambda o: o.event("info", a={REGISTERED: {REGISTERED: [REGISTERED]}}),
    "text of logging": lambda _: LIB.warning("a " + REGISTERED),
    "argument of logging": lambda _: LIB.warning("a %s %r", "x", {"y": REGISTERED}),
    "wrong argument of logging": lambda o: o._stdlib._handler.handle(
        logging.makeLogRecord({"levelno": 40, "msg": "%d", "args": (REGISTERED,)})
    ),
    "extra": lambda _: LIB.warning("x", extra={"note": [REGISTERED], "more": {"n": REGISTERED}}),
    "logger's name": lambda _: logging.getLogger(f"lib.{REGISTERED}").warning("x"),
    "nested": lambda o: o.event("info", a=[{"b": ({"c": {REGISTERED}},)}]),
    "bytes": lambda o: o.event("info", a=REGISTERED.encode(), b=bytearray(REGISTERED.encode())),
    "repr": lambda o: o.event("info", a=Plain(), b=Account("x", REGISTERED)),
    "exception": lambda o: o.exception(raised(StoreError(REGISTERED)), message="x"),
    "exception's message": lambda o: o.exception(raised(StoreError("x")), message=REGISTERED),
    "cause": lambda o: o.exception(raised(StoreError("x"), cause=KeyError(REGISTERED)), message="x"),
    "stack": lambda _: structlog.get_logger().info("x", stack=f"File x\n {REGISTERED}"),
    "exc_text": lambda o: o._stdlib._handler.handle(
        logging.makeLogRecord({"levelno": 40, "msg": "x", "exc_text": f"Traceback\n{REGISTERED}"})
    ),
    "percent-encoded": lambda o: o.event("info", a=f"/x/{quote(REGISTERED, safe='')}"),
    "base64": lambda o: o.event("info", a=f"sent {ENCODED}"),
    "url": lambda o: request(o, url=f"/x/{quote(REGISTERED, safe='')}?a={quote(REGISTERED)}"),
    "request id": lambda o: request(o, request_id=REGISTERED),
    "request context": in_request_context,
    "warning": in_a_warning,
    "thread": in_a_thread,
    "beyond the limit": lambda o: o.event("info", a="x" * 8185 + REGISTERED + "x" * 9000),
    "huge": lambda o: o.event("info", **{f"k{n}": "x" * 900 + REGISTERED for n in range(300)}),
}
UNKNOWN_PLACES: dict[str, Callable[[Logging], object]] = {
    "telling field": lambda o: o.event("info", db_password=UNKNOWN, token=UNKNOWN),
    "telling field within": lambda o: o.event("info", a={"b": [{"clientSecret": {"c": UNKNOWN}}]}),
    "headers as tuples": lambda o: o.event(
        "info", h=[(b"authorization", f"Bearer {UNKNOWN}".encode()), (b"cookie", UNKNOWN.encode())]
    ),
    "headers as dict": lambda o: o.event("info", headers={"Authorization": UNKNOWN, "X-API-Key": UNKNOWN}),
    "headers as text": lambda o: o.event("info", a=f"Cookie: id={UNKNOWN}; b={UNKNOWN}\r\nX: y"),
    "scope as text": lambda _: LIB.warning("%s", {"headers": [(b"authorization", UNKNOWN.encode())]}),
    "bearer": lambda _: LIB.warning("sent Bearer %s", UNKNOWN),
    "basic": lambda o: o.event("info", a=f"Basic {base64.b64encode(f'a:{UNKNOWN}'.encode()).decode()}"),
    "url with a password": lambda o: o.event("info", a=f"at postgresql://bob:{UNKNOWN}@db/shop"),
    "query": lambda o: request(o, url=f"/cb?a=1&token={UNKNOWN}&code={UNKNOWN}"),
    "pair": lambda _: LIB.warning(f"host=db password={UNKNOWN} user=bob"),
    "json in text": lambda _: LIB.warning('{"password": "%s"}', UNKNOWN),
    "repr in text": lambda o: o.event("info", a=f"User(name='x', api_key='{UNKNOWN}')"),
    "exception": lambda o: o.exception(raised(StoreError(f"password='{UNKNOWN}'")), message="x"),
    "cause": lambda o: o.exception(
        raised(StoreError("x"), cause=OSError(f"https://bob:{UNKNOWN}@h/")), message="x"
    ),
    "note": lambda o: o.exception(noted(f"token: {UNKNOWN}"), message="x"),
    "group": lambda o: o.exception(ExceptionGroup("x", [ValueError(f"secret={UNKNOWN}")]), message="x"),
    "hook": in_a_hook,
    "secret object": lambda o: o.event("info", a=Secret(UNKNOWN), b=[Secret(UNKNOWN)]),
    "line of code": lambda o: o.exception(code_with_secret(), message="x"),
}


def noted(note: str) -> Exception:
    """Return an exception with a note."""
    error = StoreError("x")
    error.add_note(note)
    return error


def code_with_secret() -> BaseException:
    """Return an exception whose frame shows a line of code with a secret in it."""
    try:
        int("x", base=len("password=c4n4ryUnknown"))
    except ValueError as error:
        return error
    raise AssertionError("unreachable")


@pytest.mark.parametrize("place", REGISTERED_PLACES)
def test_registered_secret_is_nowhere_in_the_output(shop: Logging, lines: LineFile, place: str) -> None:
    """In no form, and no recognisable part of it; the line is written all the same."""
    REGISTERED_PLACES[place](shop)
    raw = lines.raw()
    assert lines.read()
    for part in ("c4n4ry", "istered", ENCODED[14:], quote(REGISTERED, safe="")[:8]):
        assert part not in raw


@pytest.mark.parametrize("place", UNKNOWN_PLACES)
def test_unregistered_secret_is_masked_by_its_context(shop: Logging, lines: LineFile, place: str) -> None:
    """Its key, its form or its place in a URL gives it away."""
    UNKNOWN_PLACES[place](shop)
    raw = lines.raw()
    assert lines.read()
    assert "***" in raw
    assert UNKNOWN not in raw
    assert base64.b64encode(UNKNOWN.encode()).decode()[:10] not in raw


def test_canaries_appear_where_nothing_masks_them(lines: LineFile) -> None:
    """The search above would find them: without registration and context they are written."""
    shop = Logging(service="shop", env="test", sink=lines.sink)
    shop.event("info", note=REGISTERED, other=UNKNOWN)
    assert REGISTERED in lines.raw()
    assert UNKNOWN in lines.raw()
