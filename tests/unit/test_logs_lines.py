import asyncio
import base64
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from support.lines import LineFile, parse_line, raised, request_line
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.logs import Redactor, RequestContext, line_handler
from watchkeeper.logs._context import bind_request, unbind_request
from watchkeeper.logs._levels import LEVELS, parse_level
from watchkeeper.logs._logging import Logging
from watchkeeper.logs._render import MAX_LINE

CANONICAL = ["level", "time", "service", "env"]


def test_lines_start_with_the_canonical_keys(shop: Logging, lines: LineFile) -> None:
    """Level, time, service and env come first, in this order, then the event's fields in theirs."""
    shop.event("warn", type="job", name="retention", status="scheduled")
    (line,) = lines.read()
    assert list(line) == [*CANONICAL, "type", "name", "status"]
    assert [line[key] for key in ("level", "service", "env")] == ["warn", "shop", "test"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_request_line_has_the_keys_of_the_contract(shop: Logging, lines: LineFile) -> None:
    """Keys, order and types are those of the contract; the duration is in milliseconds."""
    shop.log_request(request_line())
    (line,) = lines.read()
    assert list(line) == [
        *CANONICAL,
        *("type", "method", "url", "statusCode", "duration", "requestId"),
        *("route", "outcome", "trace_id", "span_id", "bytes"),
    ]
    shown = [line[key] for key in ("level", "type", "statusCode", "duration", "bytes")]
    assert shown == ["info", "request", 200, 12.345, 512]


def test_request_lines_follow_the_level(shop: Logging, lines: LineFile) -> None:
    """With LOG_LEVEL above info no request line is written."""
    shop.set_level("warn")
    shop.log_request(request_line())
    assert lines.read() == []


@pytest.mark.parametrize(
    ("given", "level"),
    [("INFO", "info"), ("Warning", "warn"), ("CRITICAL", "fatal"), (" trace ", "trace"), ("NOTSET", "trace")],
)
def test_levels_accept_the_names_of_the_contract_and_of_python(given: str, level: str) -> None:
    """Case and surrounding space do not matter."""
    assert parse_level(given) == level


def test_unknown_level_is_refused_with_the_choices() -> None:
    """The message lists the levels and suggests the nearest."""
    with pytest.raises(
        ConfigurationError, match=r"trace, debug, info, warn, error, fatal.*Did you mean debug\?"
    ):
        parse_level("debgu")
    with pytest.raises(ConfigurationError, match=r"such as WARNING\)\.$"):
        Logging(service="shop", env="test", level="47")


def test_structlog_events_become_lines(shop: Logging, lines: LineFile) -> None:
    """Text becomes msg, keywords become keys, bound values and the logger's name are there."""
    structlog.get_logger("tools").bind(tool="search").info("called %s", "it", count=3)
    shop.logger.warning("text", key=1)
    first, second = lines.read()
    assert list(first) == [*CANONICAL, "msg", "logger", "tool", "count"]
    assert (first["msg"], first["logger"], first["count"]) == ("called it", "tools", 3)
    assert (second["level"], second["msg"], second["key"]) == ("warn", "text", 1)
    assert "logger" not in second


@pytest.mark.parametrize(
    "method", ["trace", "debug", "info", "warn", "warning", "error", "fatal", "critical", "msg"]
)
async def test_structlog_has_every_level_sync_and_async(shop: Logging, lines: LineFile, method: str) -> None:
    """Each method and its async twin write the level's label."""
    shop.set_level("trace")
    log = structlog.get_logger()
    getattr(log, method)("one")
    await getattr(log, f"a{method}")("two")
    expected = {"warning": "warn", "critical": "fatal", "msg": "info"}.get(method, method)
    assert [(line["level"], line["msg"]) for line in lines.read()] == [(expected, "one"), (expected, "two")]


@pytest.mark.usefixtures("shop")
def test_structlog_log_accepts_a_name_or_a_number(lines: LineFile) -> None:
    """As the standard library's log() and structlog's own do."""
    log = structlog.get_logger()
    log.log(logging.ERROR, "number")
    log.log("Warning", "name")
    log.log("no such level", "unknown")
    assert [line["level"] for line in lines.read()] == ["error", "warn", "info"]


def test_structlog_logs_the_current_exception(shop: Logging, lines: LineFile) -> None:
    """exception(), exc_info=True, an instance and a tuple give the same structured error."""
    log = shop.logger
    error = raised(KeyError("spare"))
    try:
        raise error
    except KeyError:
        log.exception("a")
        log.warning("b", exc_info=True)
    log.warning("c", exc_info=error)
    log.warning("d", exc_info=(type(error), error, None))
    log.warning("e", exc_info=())
    described = [line.get("error") for line in lines.read()]
    assert [error["type"] if error else None for error in described] == ["KeyError"] * 4 + [None]


@pytest.mark.usefixtures("shop")
def test_wrapped_logger_of_the_standard_library_writes_one_line(lines: LineFile) -> None:
    """structlog.wrap_logger(logging.getLogger(...)) does not put a line within a line."""
    structlog.wrap_logger(logging.getLogger("wrapped")).warning("text", key=1)
    (line,) = lines.read()
    assert (line["level"], line["msg"], line["logger"], line["key"]) == ("warn", "text", "wrapped", 1)


@pytest.mark.usefixtures("shop")
def test_structlog_adds_the_stack_of_the_call(lines: LineFile) -> None:
    """stack_info=True adds it as text."""
    structlog.get_logger().info("here", stack_info=True)
    assert "test_structlog_adds_the_stack_of_the_call" in lines.read()[0]["stack"]


def test_wrong_placeholder_does_not_cost_the_line(shop: Logging, lines: LineFile) -> None:
    """Both APIs write the text and the arguments that do not fit it."""
    structlog.get_logger().info("50% of %d", "x")
    structlog.get_logger().info("%(a)s and %(b)s", {"a": 1, "b": 2})
    record = logging.makeLogRecord({"levelno": 40, "msg": "50%% of %d", "args": ("x",)})
    shop._stdlib._handler.handle(record)
    assert [line["msg"] for line in lines.read()] == ["50% of %d ('x',)", "1 and 2", "50%% of %d ('x',)"]


def test_level_changes_at_run_time_for_every_logger(shop: Logging, lines: LineFile) -> None:
    """Loggers made before set_level follow and report it, and so do the libraries' loggers."""
    bound = structlog.get_logger().bind(a=1)
    library = logging.getLogger("some.library")
    for level in ("error", "trace"):
        shop.set_level(level)
        assert bound.get_effective_level() == bound.getEffectiveLevel() == LEVELS[level]
        assert bound.is_enabled_for(20) == bound.isEnabledFor(20) == (level == "trace")
        bound.info("ours")
        library.debug("theirs")
        library.log(LEVELS["trace"], "theirs")
    shown = [(line["level"], line["msg"]) for line in lines.read()]
    assert shown == [("info", "ours"), ("debug", "theirs"), ("trace", "theirs")]


def test_field_cannot_replace_a_canonical_key(shop: Logging, lines: LineFile) -> None:
    """It is written under its name with `_` appended, and no key occurs twice."""
    structlog.get_logger().info("text", level="mine", time="mine", service="mine", msg="mine")
    shop.event("info", msg="text", env="mine")
    first, second = lines.read()
    assert (first["level"], first["msg"], first["service"]) == ("info", "text", "shop")
    assert [first[key] for key in ("level_", "time_", "service_", "msg_")] == ["mine"] * 4
    assert (second["env"], second["env_"]) == ("test", "mine")


@pytest.mark.usefixtures("shop")
def test_records_of_the_standard_library_become_lines(lines: LineFile) -> None:
    """Message, logger, extra, exception and stack; the level becomes its label."""
    library = logging.getLogger("lib")
    library.warning("took %d ms", 12, extra={"query": {"rows": 3}, "password": "x"})
    library.critical("failed", exc_info=raised(ValueError("bad")), stack_info=True)
    first, second = lines.read()
    assert list(first) == [*CANONICAL, "msg", "logger", "query", "password"]
    shown = [first[key] for key in ("level", "msg", "query", "password")]
    assert shown == ["warn", "took 12 ms", {"rows": 3}, "***"]
    assert (second["level"], second["error"]["message"]) == ("fatal", "bad")
    assert "Stack (most recent call last)" in second["stack"]


@pytest.mark.parametrize(
    ("number", "label"),
    [(1, "trace"), (9, "trace"), (10, "debug"), (25, "info"), (30, "warn"), (45, "error"), (60, "fatal")],
)
def test_level_between_two_is_the_lower(shop: Logging, lines: LineFile, number: int, label: str) -> None:
    """Libraries define levels of their own."""
    shop.set_level("trace")
    logging.getLogger("lib").setLevel(1)
    logging.getLogger().setLevel(1)
    shop._stdlib._handler.setLevel(1)
    logging.getLogger("lib").log(number, "text")
    assert lines.read()[0]["level"] == label


@pytest.mark.usefixtures("shop")
def test_formatted_traceback_from_another_process_is_kept(lines: LineFile) -> None:
    """A record that crossed a queue has its traceback as text only."""
    record = logging.makeLogRecord({"name": "lib", "levelno": 40, "msg": "x", "exc_text": "Traceback: y"})
    logging.getLogger("lib").handle(record)
    assert lines.read()[0]["stack"] == "Traceback: y"


@pytest.mark.usefixtures("shop")
def test_warning_is_one_line(lines: LineFile) -> None:
    """warnings.warn() logs through the logger py.warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines.read()
    assert (line["level"], line["logger"]) == ("warn", "py.warnings")
    assert "DeprecationWarning: old thing" in line["msg"]


def test_records_are_written_once(shop: Logging, lines: LineFile, capfd: pytest.CaptureFixture[str]) -> None:
    """Console handlers of the root, servers and libraries are removed; a second install adds none."""
    noisy = logging.getLogger("noisy.library")
    noisy.addHandler(logging.StreamHandler(sys.stderr))
    noisy.propagate = False
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("uvicorn").propagate = False
    shop.install()
    noisy.warning("one")
    logging.getLogger("uvicorn.error").error("two")
    logging.getLogger("uvicorn.access").info("three")
    logging.getLogger("_granian").error("four")
    assert [line["msg"] for line in lines.read()] == ["one", "two", "four"]
    assert capfd.readouterr() == ("", "")


def test_last_installed_logging_writes_each_record(shop: Logging, lines: LineFile, tmp_path: Path) -> None:
    """Two keepers in one process: the second takes over, and they may be uninstalled in any order."""
    other = LineFile(tmp_path / "other")
    second = Logging(service="second", env="test", sink=other.sink)
    second.install()
    logging.getLogger("lib").warning("to the second")
    second.uninstall()
    logging.getLogger("lib").warning("to the first")
    second.install()
    shop.uninstall()
    logging.getLogger("lib").warning("to the second again")
    structlog.get_logger().warning("this too")
    second.uninstall()
    logging.getLogger("lib").warning("to neither")
    assert [line["msg"] for line in lines.read()] == ["to the first"]
    assert [line["msg"] for line in other.read()] == ["to the second", "to the second again", "this too"]
    other.close()


def test_handlers_that_write_to_files_stay(shop: Logging, lines: LineFile, tmp_path: Path) -> None:
    """A file handler still gets its records, also a server's; an access log goes nowhere else."""
    handler = logging.FileHandler(tmp_path / "app.log")
    loggers = [logging.getLogger(name) for name in ("app.with.file", "gunicorn.error", "gunicorn.access")]
    for logger in loggers:
        logger.addHandler(handler)
    shop.install()
    for logger in loggers:
        logger.error("both")
        logger.removeHandler(handler)
    handler.close()
    assert (tmp_path / "app.log").read_text() == "both\nboth\nboth\n"
    assert [line["msg"] for line in lines.read()] == ["both", "both"]


def test_uninstall_restores_everything(lines: LineFile) -> None:
    """Handlers, propagation, levels, structlog and the hooks are as before."""
    import threading  # noqa: PLC0415 - only for its hook

    server, console = logging.getLogger("uvicorn.access"), logging.StreamHandler(sys.stdout)
    server.addHandler(console)
    server.propagate = False
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    root = logging.getLogger()

    def state() -> list[Any]:
        return [
            list(root.handlers),
            root.level,
            list(server.handlers),
            (server.propagate, server.disabled),
            structlog.get_config(),
            (sys.excepthook, threading.excepthook, sys.unraisablehook),
        ]

    before = state()
    shop = Logging(service="shop", env="test", sink=lines.sink)
    shop.install()
    assert state() != before
    shop.uninstall()
    shop.uninstall()
    after = state()
    structlog.reset_defaults()
    server.removeHandler(console)
    assert after == before


def test_every_line_of_a_request_has_its_ids(shop: Logging, lines: LineFile) -> None:
    """All APIs add the known ids at the end; an explicit value wins, and after the request there are none."""
    token = bind_request(RequestContext(request_id="r-1", trace_id="a" * 32, span_id="b" * 16))
    shop.event("info", msg="event")
    structlog.get_logger().info("structlog")
    logging.getLogger("lib").info("stdlib")
    shop.event("info", msg="explicit", requestId="mine")
    unbind_request(token)
    token = bind_request(RequestContext(request_id="r-1"))
    shop.event("info", msg="no trace")
    unbind_request(token)
    shop.event("loud", msg="after")
    *within, explicit, untraced, after = lines.read()
    for line in within:
        assert list(line)[-3:] == ["requestId", "trace_id", "span_id"]
        assert [line[key] for key in ("requestId", "trace_id", "span_id")] == ["r-1", "a" * 32, "b" * 16]
    assert explicit["requestId"] == "mine"
    assert list(untraced)[-2:] == ["msg", "requestId"]
    assert "requestId" not in after
    assert after["level"] == "info"


@pytest.mark.usefixtures("shop")
def test_structlog_context_variables_are_in_the_line(lines: LineFile) -> None:
    """What a service binds with structlog.contextvars."""
    with structlog.contextvars.bound_contextvars(tenant="kigali"):
        structlog.get_logger().info("text")
    assert lines.read()[0]["tenant"] == "kigali"


@pytest.mark.parametrize("fields", [{"text": "ä" * 500_000}, {f"k{i}": "v" * 300 for i in range(2000)}])
def test_line_is_bounded(shop: Logging, lines: LineFile, fields: dict[str, object]) -> None:
    """However much is logged, a line has at most MAX_LINE bytes and says that something is missing."""
    shop.event("info", **fields)
    assert len(lines.raw().encode()) <= MAX_LINE
    (line,) = lines.read()
    assert list(line)[:4] == CANONICAL
    assert "characters more" in lines.raw() or "left out" in lines.raw()


def test_line_handler_writes_lines_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """`line_handler` is what a --log-config names."""
    handler = line_handler(service="shop", env="test")
    handler.handle(logging.makeLogRecord({"name": "_granian", "levelno": 20, "msg": "Spawning worker-1"}))
    line = parse_line(capfd.readouterr().out)
    assert (line["service"], line["msg"], line["logger"]) == ("shop", "Spawning worker-1", "_granian")


async def test_lines_of_a_turn_are_in_order(shop: Logging, lines: LineFile) -> None:
    """Request lines are rendered at the end of the turn, but before any later line."""
    calls: tuple[Callable[[], Any], ...] = (
        lambda: shop.event("info", msg="event"),
        lambda: shop.logger.info("keeper"),
        lambda: structlog.get_logger().info("structlog"),
        lambda: logging.getLogger("shop").info("stdlib"),
    )
    for number, call in enumerate(calls):
        shop.log_request(request_line(status=200 + number))
        call()
    seen = [line.get("statusCode", line.get("msg")) for line in lines.read()]
    assert seen == [200, "event", 201, "keeper", 202, "structlog", 203, "stdlib"]


@pytest.mark.parametrize(
    ("unusual", "expected"),
    [
        ({"url": "/\ud800"}, {"url": "/\\ud800"}),
        ({"url": "/items?token=abcdefgh"}, {"url": "/items?token=***"}),
        ({"request_id": "s3cr3t-of-the-shop"}, {"requestId": "***"}),
        ({"method": "X" * 5000}, {}),
        ({"status": object()}, {}),
        ({"route": None}, {"route": None}),
        ({"url": "/\x7f"}, {}),
    ],
    ids=["surrogate", "secret", "secret id", "long", "no status", "no route", "control"],
)
async def test_unusual_request_does_not_affect_the_other_lines_of_its_turn(
    shop: Logging, lines: LineFile, unusual: dict[str, Any], expected: dict[str, Any]
) -> None:
    """All are written, in order; the unusual one is rendered by itself."""
    for number in range(5):
        shop.log_request(request_line(**{"span_id": f"{number:016x}"} | (unusual if number == 2 else {})))
    await asyncio.sleep(0)
    found = lines.read()
    assert [line["span_id"] for line in found] == [f"{number:016x}" for number in range(5)]
    assert found[2] | expected == found[2]
    assert all(line["url"] == "/api/listings/7" for line in (*found[:2], *found[3:]))


async def test_threads_beside_the_loop_lose_no_request_line(shop: Logging, lines: LineFile) -> None:
    """Any thread may render what has been deferred, and none renders a line twice."""

    def log_requests(thread: int) -> None:
        for number in range(500):
            shop.log_request(request_line(span_id=f"{thread}-{number}"))

    others = [asyncio.to_thread(log_requests, thread) for thread in (1, 2, 3)]
    waiting = asyncio.gather(*others)
    for number in range(500):
        shop.log_request(request_line(span_id=f"0-{number}"))
        await asyncio.sleep(0)
    await waiting
    seen = [line["span_id"] for line in lines.read()]
    assert sorted(seen) == sorted(f"{thread}-{number}" for thread in range(4) for number in range(500))


TOKENS = {
    "github": "ghp_" + "A1b2C3d4E5f6" * 3,
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "gitlab": "glpat-" + "x1Y2z3W4x1Y2z3W4abcd",
    "stripe": "sk_" + "live_abcdefghij0123456789ABCD",
    "google": "AIza" + "SyA1B2C3D4E5F6G7H8I9J0K1L2M3N4O5P6Q",
    "slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "jwt": "a.eyJhbGciOiJIUzI1NiJ9.eyJzdWIi",
    "registered": "s3cr3t-of-the-shop",
    "registered, hex": b"s3cr3t-of-the-shop".hex(),
    "registered, base64": base64.b64encode(b"s3cr3t-of-the-shop").decode().rstrip("="),
}


@pytest.mark.parametrize("field", ["url", "request_id", "method", "route"])
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_no_request_field_shows_a_credential(shop: Logging, lines: LineFile, field: str, token: str) -> None:
    """Each kind, in every form, is masked as in any other line."""
    shop.log_request(request_line(**{field: f"/x/{token}" if field in {"url", "route"} else token}))
    assert token not in lines.raw()
    assert "***" in lines.raw()


def test_trace_id_that_is_a_secret_is_masked(lines: LineFile) -> None:
    """Many secrets have 32 hex digits too."""
    secret = "0123456789abcdef" * 2
    shop = Logging(service="shop", env="test", sink=lines.sink, redactor=Redactor([secret]))
    shop.log_request(request_line(trace_id=secret))
    assert secret not in lines.raw()


@pytest.mark.parametrize("field", ["request_id", "trace_id"])
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
async def test_only_a_credential_is_masked(shop: Logging, lines: LineFile, field: str, token: str) -> None:
    """The ids of a turn are searched together; the others are shown as they are."""
    ids = [f"{number:032x}" for number in range(5)]
    for number, one in enumerate(ids):
        shop.log_request(request_line(**{field: token if number == 2 else one}))
    await asyncio.sleep(0)
    assert token not in lines.raw()
    shown = [line[{"request_id": "requestId"}.get(field, field)] for line in lines.read()]
    assert shown[:2] + shown[3:] == ids[:2] + ids[3:]


async def test_interrupt_keeps_lines(shop: Logging, lines: LineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a signal handler raises is raised, and the lines are rendered later."""

    def interrupted(_lines: object) -> bytes:
        raise KeyboardInterrupt

    for number in range(5):
        shop.log_request(request_line(status=200 + number))
    with monkeypatch.context() as patch:
        patch.setattr(shop.sink, "render_deferred", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shop.sink.flush_deferred()
    assert [line["statusCode"] for line in lines.read()] == [200, 201, 202, 203, 204]


def test_two_loggings_may_share_a_sink(shop: Logging, lines: LineFile) -> None:
    """Each has its own service and its own secrets."""
    other = Logging(service="other", env="test", sink=lines.sink, redactor=Redactor(["of-the-other-one"]))
    shop.log_request(request_line())
    other.log_request(request_line(url="/of-the-other-one"))
    shown = [(line["service"], line["url"]) for line in lines.read()]
    assert shown == [("shop", "/api/listings/7"), ("other", "/***")]


def test_caches_of_request_lines_are_bounded(shop: Logging, lines: LineFile) -> None:
    """Paths that contain ids do not stay in memory."""
    for number in range(1500):
        shop.log_request(request_line(url=f"/api/listings/{number}", route=f"/{number}"))
    assert len(lines.read()) == 1500
    assert len(shop._request_lines._clean_urls) <= 1024
    assert len(shop._request_lines._clean_routes) <= 1024
