import asyncio
import gc
import logging
import sys
import threading
import warnings
from typing import Any, Never

import pytest
import structlog

from support.lines import LineFile, raised
from watchkeeper.logs import RequestContext
from watchkeeper.logs._context import bind_request, unbind_request
from watchkeeper.logs._exceptions import claim_exception, describe_exception
from watchkeeper.logs._logging import Logging


class ShopError(Exception):
    """An error of the service's own."""


class Unprintable(Exception):  # noqa: N818 - a test's own
    """Its str() raises."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Frozen(Exception):  # noqa: N818 - a test's own
    """Its attributes cannot be set."""

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise RuntimeError("no attributes")


def deeper(depth: int) -> Never:
    """Raise below this many frames."""
    if depth:
        deeper(depth - 1)
    raise ShopError("deep down")


def test_an_exception_has_type_message_and_frames() -> None:
    """The outermost frame comes first; each has file, line, function and the line of code."""
    with pytest.raises(ShopError, match="deep down") as caught:
        deeper(2)
    error = describe_exception(caught.value)
    assert list(error) == ["type", "message", "stack"]
    assert (error["type"], error["message"]) == (f"{__name__}.ShopError", "deep down")
    assert [frame["function"] for frame in error["stack"][1:]] == ["deeper"] * 3
    assert error["stack"][-1]["code"] == 'raise ShopError("deep down")'
    assert error["stack"][-1]["file"] == __file__
    assert error["stack"][-1]["line"] == deeper.__code__.co_firstlineno + 4


def test_long_stack_keeps_both_ends() -> None:
    """Endless recursion shows how many frames are left out in the middle."""
    with pytest.raises(ShopError, match="deep down") as caught:
        deeper(300)
    stack = describe_exception(caught.value)["stack"]
    assert len(stack) == 41
    assert stack[0]["function"] == "test_long_stack_keeps_both_ends"
    assert stack[8] == {"omitted": 262}
    assert stack[-1]["function"] == "deeper"


def test_long_line_of_code_is_left_out() -> None:
    """It is never cut, because half of a secret would not be recognised."""
    source = f"x = 1 / 0  # {'long ' * 200}"
    try:
        exec(compile(source, __file__, "exec"))  # noqa: S102 - the test's own source
    except ZeroDivisionError as error:
        frame = describe_exception(error)["stack"][-1]
    assert "long" not in frame.get("code", "")


def test_causes_are_listed_nearest_first() -> None:
    """An explicit cause, then its context; `from None` hides the context."""
    root = raised(KeyError("root"))
    middle = raised(ValueError("middle"))
    middle.__context__ = root
    top = raised(ShopError("top"), cause=middle)
    assert [cause["message"] for cause in describe_exception(top)["causes"]] == ["middle", "'root'"]
    middle.__suppress_context__ = True
    assert [cause["message"] for cause in describe_exception(top)["causes"]] == ["middle"]


def test_chain_of_causes_is_bounded() -> None:
    """A cycle ends where it closes, and a long chain after eight causes."""
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert [cause["message"] for cause in describe_exception(one)["causes"]] == ["two"]
    chain = ValueError("0")
    for number in range(1, 50):
        longer = ValueError(str(number))
        longer.__cause__ = chain
        chain = longer
    assert len(describe_exception(chain)["causes"]) == 8


def test_group_describes_its_members() -> None:
    """Each member has its own notes and causes; the whole description is bounded."""
    member = raised(ValueError("inner"), cause=KeyError("root"))
    member.add_note("while fetching 7")
    group = ExceptionGroup("several", [member, ExceptionGroup("deeper", [KeyError("k")])])  # type: ignore[type-var]
    error = describe_exception(group)
    assert (error["type"], error["message"]) == ("ExceptionGroup", "several")
    assert error["exceptions"][0]["notes"] == ["while fetching 7"]
    assert error["exceptions"][0]["causes"] == [{"type": "KeyError", "message": "'root'", "stack": []}]
    assert error["exceptions"][1]["exceptions"][0]["type"] == "KeyError"
    many = ExceptionGroup("many", [ValueError(str(number)) for number in range(100)])
    assert len(describe_exception(many)["exceptions"]) == 8
    wide = ExceptionGroup("0", [ExceptionGroup("1", [ValueError("2")] * 50)] * 50)
    assert str(describe_exception(wide)).count("'stack'") <= 32
    for number in range(100):
        group = ExceptionGroup(str(number), [group])
    assert str(describe_exception(group)).count("ExceptionGroup") < 10


def test_exception_whose_text_raises_is_described() -> None:
    """Its message names its type."""
    assert describe_exception(raised(Unprintable()))["message"] == "<unprintable Unprintable>"


@pytest.mark.parametrize(
    "log", [logging.getLogger("shop"), structlog.get_logger("shop")], ids=["stdlib", "structlog"]
)
def test_an_exception_is_logged_once_on_its_way_up(shop: Logging, lines: LineFile, log: Any) -> None:
    """Neither the middleware nor the server logs what the service logged, but the service may do so twice."""
    error = raised(ShopError("boom"))
    log.error("failed to sell", exc_info=error)
    log.error("failed again", exc_info=error)
    shop.exception(error, message="unhandled")
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    logged = [(line["msg"], line["error"]["message"]) for line in lines.read()]
    assert logged == [("failed to sell", "boom"), ("failed again", "boom")]


def test_a_warning_about_an_exception_does_not_claim_it(shop: Logging, lines: LineFile) -> None:
    """A retry that is logged as a warning does not hide the error that follows."""
    error = raised(ShopError("boom"))
    shop.logger.warning("trying again", exc_info=error)
    logging.getLogger("shop").warning("trying again", exc_info=error)
    shop.exception(error, message="gave up")
    assert [line["level"] for line in lines.read()] == ["warn", "warn", "error"]


def test_one_instance_in_several_requests_is_logged_in_each() -> None:
    """A failed future raises the same instance wherever it is awaited."""
    error = ShopError("shared")
    claims = []
    for request in ("a", "b", "a", "b"):
        token = bind_request(RequestContext(request_id=request))
        claims.append(claim_exception(error))
        unbind_request(token)
    assert claims == [True, True, False, False]
    assert not claim_exception(error)


def test_claims_of_an_exception_are_bounded() -> None:
    """An exception that lives forever keeps a bounded number of marks."""
    error = ShopError("for ever")
    for number in range(1000):
        token = bind_request(RequestContext(request_id=str(number)))
        claim_exception(error)
        unbind_request(token)
    assert len(str(vars(error))) < 400


def test_exception_that_cannot_be_marked_is_logged() -> None:
    """Logged twice is better than never."""
    error = Frozen()
    assert claim_exception(error)
    assert claim_exception(error)


def test_granian_report_of_a_claimed_exception_is_dropped(shop: Logging, lines: LineFile) -> None:
    """Rust code prints it; the report of an exception that has not just been logged is kept."""
    server = logging.getLogger("_granian.workers")
    text = "Application callable raised an exception\nTraceback (most recent call last):\n  File x\n{}: {}"
    report = text.format(f"{__name__}.ShopError", "under granian")
    server.error(report)
    shop.exception(raised(ShopError("under granian")), message="unhandled")
    server.error(report)
    server.error(report)
    assert [line["msg"] for line in lines.read()] == [report, "unhandled", report]


def test_exception_below_the_threshold_is_not_claimed(shop: Logging, lines: LineFile) -> None:
    """A line that is not written must not suppress another."""
    error = raised(ShopError("boom"))
    shop.set_level("fatal")
    shop.exception(error, message="hidden")
    shop.set_level("info")
    shop.exception(error, message="shown", level="critical", table="listings")
    (line,) = lines.read()
    assert (line["level"], line["msg"], line["table"]) == ("fatal", "shown", "listings")
    assert list(line)[-1] == "error"


@pytest.mark.usefixtures("shop")
def test_an_uncaught_exception_is_one_line(lines: LineFile, capfd: pytest.CaptureFixture[str]) -> None:
    """The hook of the main thread writes a fatal line, and no traceback."""
    error = raised(ShopError("boom"))
    sys.excepthook(type(error), error, error.__traceback__)
    (line,) = lines.read()
    assert (line["level"], line["msg"], line["error"]["message"]) == ("fatal", "Uncaught exception", "boom")
    assert capfd.readouterr() == ("", "")


def test_keyboard_interrupt_goes_to_the_previous_hook(lines: LineFile) -> None:
    """Ctrl-C is no error of the service."""
    seen: list[type[BaseException]] = []
    before, sys.excepthook = sys.excepthook, lambda kind, *_: seen.append(kind)
    shop = Logging(service="shop", env="test", sink=lines.sink)
    shop.install()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    shop.uninstall()
    sys.excepthook = before
    assert seen == [KeyboardInterrupt]
    assert lines.read() == []


@pytest.mark.usefixtures("shop")
def test_an_exception_in_a_thread_is_one_line(lines: LineFile) -> None:
    """It names the thread; SystemExit only ends its thread."""
    for target in (lambda: deeper(1), sys.exit):
        thread = threading.Thread(target=target, name="seller")
        thread.start()
        thread.join()
    (line,) = lines.read()
    assert (line["level"], line["thread"], line["error"]["message"]) == ("error", "seller", "deep down")


@pytest.mark.usefixtures("shop")
def test_unraisable_exception_is_one_line(lines: LineFile) -> None:
    """One in a finalizer, with the object, and a report without an exception."""

    class Falling:
        def __del__(self) -> None:
            raise ShopError("in a finaliser")

    Falling()
    gc.collect()
    args = type("Args", (), {"exc_value": None, "err_msg": "Exception ignored", "object": 7})
    sys.unraisablehook(args)  # type: ignore[arg-type]
    first, second = lines.read()
    assert (first["level"], first["error"]["message"]) == ("error", "in a finaliser")
    assert "__del__" in first["object"]
    assert (second["msg"], second["object"]) == ("Exception ignored", 7)


@pytest.mark.usefixtures("shop")
async def test_unretrieved_task_exception_is_one_line(lines: LineFile) -> None:
    """The logger of asyncio reports it, as it does for callbacks."""

    async def fail() -> None:
        raise ShopError("in a task")

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    asyncio.get_running_loop().call_soon(deeper, 0)
    await asyncio.sleep(0.01)
    gc.collect()
    await asyncio.sleep(0)
    messages = {line["error"]["message"]: line for line in lines.read()}
    assert set(messages) == {"in a task", "deep down"}
    assert messages["in a task"]["logger"] == "asyncio"


def test_uninstall_keeps_hooks_installed_later(lines: LineFile) -> None:
    """uninstall() removes only its own hooks."""
    before = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    shop = Logging(service="shop", env="test", sink=lines.sink)
    shop.install()

    def others(*_: object) -> None:
        """Do nothing."""

    sys.excepthook = threading.excepthook = sys.unraisablehook = others
    shop.uninstall()
    after = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    sys.excepthook, threading.excepthook, sys.unraisablehook = before
    assert after == (others,) * 3


def test_uninstall_keeps_warnings_captured_before(lines: LineFile) -> None:
    """A service that called logging.captureWarnings(True) itself still has them captured."""
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        shop = Logging(service="shop", env="test", sink=lines.sink)
        shop.install()
        shop.uninstall()
        still = getattr(logging, "_warnings_showwarning", None)
        logging.captureWarnings(False)
    assert still is not None
