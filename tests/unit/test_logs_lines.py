from __future__ import annotations

import asyncio
import base64
import logging
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from support.lines import LineFile, parse_line, raised
from watchkeeper.exceptions import ConfigurationError
from watchkeeper.logs import Redactor, RequestContext, line_handler
from watchkeeper.logs._context import bind_request, unbind_request
from watchkeeper.logs._levels import LEVELS, parse_level
from watchkeeper.logs._logging import Logging
from watchkeeper.logs._render import MAX_LINE
from watchkeeper.logs._request_line import RequestLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANONICAL = ["level", "time", "service", "env"]
REQUEST: dict[str, Any] = {
    "method": "GET",
    "url": "/api/listings/7",
    "status": 200,
    "duration": 12.345,
    "request_id": "r-1",
    "route": "/api/listings/{id}",
    "outcome": "completed",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "bytes_sent": 512,
}


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[LineFile]:
    """Lines that are written to a file."""
    file = LineFile(tmp_path / "lines")
    yield file
    file.close()


@pytest.fixture
def owner(lines: LineFile) -> Iterator[Logging]:
    """An installed owner of the lines."""
    logs = Logging(service="shop", env="test", sink=lines.sink, redactor=Redactor(["s3cr3t-of-the-shop"]))
    logs.install()
    yield logs
    logs.uninstall()


def test_every_line_begins_with_the_canonical_keys(owner: Logging, lines: LineFile) -> None:
    """Level, time, service and env come first and in this order, then the event's own fields in theirs."""
    owner.event("warn", type="job", name="retention", status="scheduled")
    (line,) = lines.read()
    assert list(line) == [*CANONICAL, "type", "name", "status"]
    assert [line[key] for key in ("level", "service", "env")] == ["warn", "shop", "test"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_a_request_line_has_the_keys_of_the_contract(owner: Logging, lines: LineFile) -> None:
    """Keys, order and types are those of the contract; the duration is in milliseconds."""
    owner.log_request(RequestLine(**REQUEST))
    (line,) = lines.read()
    assert list(line) == [
        *CANONICAL,
        *("type", "method", "url", "statusCode", "duration", "requestId"),
        *("route", "outcome", "trace_id", "span_id", "bytes"),
    ]
    assert line["level"] == "info"
    assert line["type"] == "request"
    assert line["statusCode"] == 200
    assert line["duration"] == 12.345
    assert line["bytes"] == 512


@pytest.mark.parametrize("url", ["/a\ud800b", "/a\x7f\x1b[31m", "/\u202egnp.exe", "/" + "x" * 100_000])
def test_an_odd_request_has_the_same_keys_as_any_other(owner: Logging, lines: LineFile, url: str) -> None:
    """What takes the long way (surrogates, control characters, endless URLs) comes out in the same form."""
    owner.log_request(RequestLine(**REQUEST))
    owner.log_request(RequestLine(**{**REQUEST, "url": url}))
    plain, odd = lines.read()
    assert list(odd) == list(plain)
    assert lines.raw().isascii()


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_a_request_line_is_info_whatever_its_status(owner: Logging, lines: LineFile, status: int) -> None:
    """The status is data; the level says how urgent the line is, and a request line is not."""
    owner.log_request(RequestLine(**{**REQUEST, "status": status}))
    assert lines.read()[0]["level"] == "info"


def test_request_lines_follow_the_level(owner: Logging, lines: LineFile) -> None:
    """With LOG_LEVEL above info no request line is written."""
    owner.set_level("warn")
    owner.log_request(RequestLine(**REQUEST))
    assert lines.read() == []


@pytest.mark.parametrize(
    ("given", "level"),
    [("INFO", "info"), ("Warning", "warn"), ("CRITICAL", "fatal"), (" trace ", "trace"), ("NOTSET", "trace")],
)
def test_levels_take_the_names_of_the_contract_and_of_python(given: str, level: str) -> None:
    """Case and surrounding space do not matter."""
    assert parse_level(given) == level


def test_an_unknown_level_is_refused_with_the_choices() -> None:
    """The message lists the levels and names the one that was probably meant."""
    with pytest.raises(
        ConfigurationError, match=r"trace, debug, info, warn, error, fatal.*Did you mean debug\?"
    ):
        parse_level("debgu")
    with pytest.raises(ConfigurationError, match=r"such as WARNING\)\.$"):
        Logging(service="shop", env="test", level="47")


def test_structlog_is_the_logging_api(owner: Logging, lines: LineFile) -> None:
    """Text becomes msg, keywords become keys, bound values and the logger's name are there."""
    structlog.get_logger("tools").bind(tool="search").info("called %s", "it", count=3)
    owner.logger.warning("text", key=1)
    first, second = lines.read()
    assert list(first) == [*CANONICAL, "msg", "logger", "tool", "count"]
    assert (first["msg"], first["logger"], first["count"]) == ("called it", "tools", 3)
    assert (second["level"], second["msg"], second["key"]) == ("warn", "text", 1)
    assert "logger" not in second


@pytest.mark.parametrize(
    "method", ["trace", "debug", "info", "warn", "warning", "error", "fatal", "critical", "msg"]
)
async def test_structlog_has_every_level_sync_and_async(owner: Logging, lines: LineFile, method: str) -> None:
    """Each method writes its level's label; the async twin does the same."""
    owner.set_level("trace")
    log = structlog.get_logger()
    getattr(log, method)("one")
    await getattr(log, f"a{method}")("two")
    expected = {"warning": "warn", "critical": "fatal", "msg": "info"}.get(method, method)
    assert [(line["level"], line["msg"]) for line in lines.read()] == [(expected, "one"), (expected, "two")]


@pytest.mark.usefixtures("owner")
def test_structlog_log_takes_a_name_or_a_number(lines: LineFile) -> None:
    """As the standard library's log() and structlog's own do."""
    log = structlog.get_logger()
    log.log(logging.ERROR, "number")
    log.log("Warning", "name")
    log.log("no such level", "unknown")
    assert [line["level"] for line in lines.read()] == ["error", "warn", "info"]


def test_structlog_logs_the_exception_that_is_being_handled(owner: Logging, lines: LineFile) -> None:
    """exception(), exc_info=True, an instance and a tuple all give the same structured error."""
    log = owner.logger
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


@pytest.mark.usefixtures("owner")
def test_a_logger_of_the_standard_library_can_be_wrapped(lines: LineFile) -> None:
    """structlog.wrap_logger(logging.getLogger(...)) gives a line, not a line within a line."""
    structlog.wrap_logger(logging.getLogger("wrapped")).warning("text", key=1)
    (line,) = lines.read()
    assert (line["level"], line["msg"], line["logger"], line["key"]) == ("warn", "text", "wrapped", 1)


@pytest.mark.usefixtures("owner")
def test_structlog_can_add_where_it_was_called(lines: LineFile) -> None:
    """stack_info=True adds the stack of the call, as text."""
    structlog.get_logger().info("here", stack_info=True)
    assert "test_structlog_can_add_where_it_was_called" in lines.read()[0]["stack"]


def test_a_wrong_placeholder_does_not_cost_the_line(owner: Logging, lines: LineFile) -> None:
    """Both APIs write the text and its arguments when they do not fit together."""
    structlog.get_logger().info("50% of %d", "x")
    structlog.get_logger().info("%(a)s and %(b)s", {"a": 1, "b": 2})
    record = logging.makeLogRecord({"levelno": 40, "msg": "50%% of %d", "args": ("x",)})
    owner._stdlib._handler.handle(record)
    assert [line["msg"] for line in lines.read()] == ["50% of %d ('x',)", "1 and 2", "50%% of %d ('x',)"]


def test_loggers_say_whether_a_level_is_written(owner: Logging) -> None:
    """Both names of both methods answer with the level that is set now."""
    log = owner.logger.bind()
    assert log.is_enabled_for(20)
    assert not log.isEnabledFor(10)
    owner.set_level("debug")
    assert log.isEnabledFor(10)
    assert log.get_effective_level() == log.getEffectiveLevel() == 10


def test_the_level_changes_at_run_time_for_every_logger(owner: Logging, lines: LineFile) -> None:
    """A logger made before set_level follows it, and so do the libraries' loggers."""
    bound = structlog.get_logger().bind(a=1)
    library = logging.getLogger("lib.of.somebody")
    for level in ("error", "trace"):
        owner.set_level(level)
        bound.info("ours")
        library.debug("theirs")
        library.log(LEVELS["trace"], "theirs")
    assert [(line["level"], line["msg"]) for line in lines.read()] == [
        ("info", "ours"),
        ("debug", "theirs"),
        ("trace", "theirs"),
    ]


def test_a_field_cannot_take_the_place_of_a_canonical_key(owner: Logging, lines: LineFile) -> None:
    """It keeps its value under a name of its own, and no key stands twice."""
    structlog.get_logger().info("text", level="mine", time="mine", service="mine", msg="mine")
    owner.event("info", msg="text", env="mine")
    first, second = lines.read()
    assert (first["level"], first["msg"], first["service"]) == ("info", "text", "shop")
    assert [first[key] for key in ("level_", "time_", "service_", "msg_")] == ["mine"] * 4
    assert (second["env"], second["env_"]) == ("test", "mine")


@pytest.mark.usefixtures("owner")
def test_the_standard_librarys_records_come_out_in_the_same_form(lines: LineFile) -> None:
    """Message, logger, extra, exception and stack; the level becomes its label."""
    library = logging.getLogger("lib")
    library.warning("took %d ms", 12, extra={"query": {"rows": 3}, "password": "x"})
    library.critical("failed", exc_info=raised(ValueError("bad")), stack_info=True)
    first, second = lines.read()
    assert list(first) == [*CANONICAL, "msg", "logger", "query", "password"]
    assert (first["level"], first["msg"], first["query"], first["password"]) == (
        "warn",
        "took 12 ms",
        {"rows": 3},
        "***",
    )
    assert (second["level"], second["error"]["message"]) == ("fatal", "bad")
    assert "Stack (most recent call last)" in second["stack"]


@pytest.mark.parametrize(
    ("number", "label"),
    [(1, "trace"), (9, "trace"), (10, "debug"), (25, "info"), (30, "warn"), (45, "error"), (60, "fatal")],
)
def test_a_level_between_two_takes_the_lower_ones_label(
    owner: Logging, lines: LineFile, number: int, label: str
) -> None:
    """Libraries invent levels of their own."""
    owner.set_level("trace")
    logging.getLogger("lib").setLevel(1)
    logging.getLogger().setLevel(1)
    owner._stdlib._handler.setLevel(1)
    logging.getLogger("lib").log(number, "text")
    assert lines.read()[0]["level"] == label


@pytest.mark.usefixtures("owner")
def test_a_formatted_traceback_from_another_process_is_kept(lines: LineFile) -> None:
    """A record that crossed a queue carries its traceback as text only."""
    record = logging.makeLogRecord({"name": "lib", "levelno": 40, "msg": "x", "exc_text": "Traceback: y"})
    logging.getLogger("lib").handle(record)
    assert lines.read()[0]["stack"] == "Traceback: y"


@pytest.mark.usefixtures("owner")
def test_a_warning_is_one_line(lines: LineFile) -> None:
    """warnings.warn() comes through the logger py.warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines.read()
    assert (line["level"], line["logger"]) == ("warn", "py.warnings")
    assert "DeprecationWarning: old thing" in line["msg"]


def test_each_record_comes_out_once(
    owner: Logging, lines: LineFile, capfd: pytest.CaptureFixture[str]
) -> None:
    """Console handlers of the root, of servers and of libraries are gone; a second install adds nothing."""
    noisy = logging.getLogger("noisy.library")
    noisy.addHandler(logging.StreamHandler(sys.stderr))
    noisy.propagate = False
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("uvicorn").propagate = False
    owner.install()
    noisy.warning("one")
    logging.getLogger("uvicorn.error").error("two")
    logging.getLogger("uvicorn.access").info("three")
    logging.getLogger("_granian").error("four")
    assert [line["msg"] for line in lines.read()] == ["one", "two", "four"]
    assert capfd.readouterr() == ("", "")


def test_the_last_owner_writes_each_record_once(owner: Logging, lines: LineFile, tmp_path: Path) -> None:
    """Two keepers in one process: the second takes over, and gives back in whatever order they end."""
    other = LineFile(tmp_path / "other")
    second = Logging(service="second", env="test", sink=other.sink)
    second.install()
    logging.getLogger("lib").warning("to the second")
    second.uninstall()
    logging.getLogger("lib").warning("to the first")
    second.install()
    owner.uninstall()
    logging.getLogger("lib").warning("to the second again")
    structlog.get_logger().warning("this too")
    second.uninstall()
    logging.getLogger("lib").warning("to nobody")
    assert [line["msg"] for line in lines.read()] == ["to the first"]
    assert [line["msg"] for line in other.read()] == ["to the second", "to the second again", "this too"]
    other.close()


def test_an_access_log_into_a_file_stays(owner: Logging, lines: LineFile, tmp_path: Path) -> None:
    """Somebody asked for it (gunicorn --access-logfile); it is not on stdout as well."""
    handler = logging.FileHandler(tmp_path / "access.log")
    access = logging.getLogger("gunicorn.access")
    access.addHandler(handler)
    owner.install()
    access.setLevel("INFO")
    access.info("GET /")
    access.removeHandler(handler)
    handler.close()
    assert (tmp_path / "access.log").read_text() == "GET /\n"
    assert lines.read() == []


def test_handlers_that_write_elsewhere_stay(owner: Logging, lines: LineFile, tmp_path: Path) -> None:
    """A file that somebody set up still gets its records, also a server's."""
    handler = logging.FileHandler(tmp_path / "app.log")
    loggers = [logging.getLogger(name) for name in ("app.with.file", "gunicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
    owner.install()
    for logger in loggers:
        logger.error("both")
        logger.removeHandler(handler)
    handler.close()
    assert (tmp_path / "app.log").read_text() == "both\nboth\n"
    assert [line["msg"] for line in lines.read()] == ["both", "both"]


def test_uninstall_puts_everything_back(lines: LineFile) -> None:
    """Handlers, propagation, levels, structlog and the hooks are as before; what came since is left alone."""
    import threading  # noqa: PLC0415 - only its hook is looked at

    server, console = logging.getLogger("uvicorn.access"), logging.StreamHandler(sys.stdout)
    server.addHandler(console)
    server.propagate = False
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
    logs = Logging(service="shop", env="test", sink=lines.sink)
    logs.install()
    assert state() != before
    logs.uninstall()
    logs.uninstall()
    assert state() == before
    server.removeHandler(console)


def test_the_structlog_configuration_of_before_comes_back(lines: LineFile) -> None:
    """A service that had configured structlog itself has its own configuration again."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    before = structlog.get_config()
    logs = Logging(service="shop", env="test", sink=lines.sink)
    logs.install()
    logs.uninstall()
    after = structlog.get_config()
    structlog.reset_defaults()
    assert after == before


def test_a_request_is_in_every_line_of_it(owner: Logging, lines: LineFile) -> None:
    """All ways to log carry the ids at the end; an explicit value wins, and after the request none does."""
    token = bind_request(RequestContext(request_id="r-1", trace_id="a" * 32, span_id="b" * 16))
    owner.event("info", msg="event")
    structlog.get_logger().info("structlog")
    logging.getLogger("lib").info("stdlib")
    owner.event("info", msg="explicit", requestId="mine")
    unbind_request(token)
    owner.event("info", msg="after")
    *within, explicit, after = lines.read()
    for line in within:
        assert list(line)[-3:] == ["requestId", "trace_id", "span_id"]
        assert [line[key] for key in ("requestId", "trace_id", "span_id")] == ["r-1", "a" * 32, "b" * 16]
    assert explicit["requestId"] == "mine"
    assert "requestId" not in after


def test_a_request_without_a_trace_has_only_its_id(owner: Logging, lines: LineFile) -> None:
    """Empty ids are left out rather than written empty."""
    token = bind_request(RequestContext(request_id="r-1"))
    owner.event("info", msg="event")
    unbind_request(token)
    assert list(lines.read()[0])[-2:] == ["msg", "requestId"]


@pytest.mark.usefixtures("owner")
def test_structlogs_own_context_variables_work(lines: LineFile) -> None:
    """What a service binds with structlog.contextvars is in its lines."""
    with structlog.contextvars.bound_contextvars(tenant="kigali"):
        structlog.get_logger().info("text")
    assert lines.read()[0]["tenant"] == "kigali"


@pytest.mark.parametrize("fields", [{"text": "ä" * 500_000}, {f"k{i}": "v" * 300 for i in range(2000)}])
def test_a_line_has_a_bound(owner: Logging, lines: LineFile, fields: dict[str, object]) -> None:
    """However much is logged, a line is at most MAX_LINE bytes and says that something is missing."""
    owner.event("info", **fields)
    assert len(lines.raw().encode()) <= MAX_LINE
    (line,) = lines.read()
    assert list(line)[:4] == CANONICAL
    assert "characters more" in lines.raw() or "left out" in lines.raw()


def test_an_unknown_level_writes_an_info_line(owner: Logging, lines: LineFile) -> None:
    """Logging never stops the service, not even with a misspelt level."""
    owner.event("loud", msg="text")
    assert lines.read()[0]["level"] == "info"


def test_a_server_can_be_given_a_handler_for_its_own_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    """`line_handler` is what a --log-config names; its records are lines on stdout."""
    handler = line_handler(service="shop", env="test")
    handler.handle(logging.makeLogRecord({"name": "_granian", "levelno": 20, "msg": "Spawning worker-1"}))
    line = parse_line(capfd.readouterr().out)
    assert (line["service"], line["msg"], line["logger"]) == ("shop", "Spawning worker-1", "_granian")


async def test_the_lines_of_a_turn_are_in_order(owner: Logging, lines: LineFile) -> None:
    """Requests are told at the end of the turn, and before whatever came after them."""
    says: tuple[Callable[[], Any], ...] = (
        lambda: owner.event("info", msg="event"),
        lambda: owner.logger.info("keeper"),
        lambda: structlog.get_logger().info("structlog"),
        lambda: logging.getLogger("shop").info("stdlib"),
    )
    for number, say in enumerate(says):
        owner.log_request(RequestLine(**REQUEST | {"status": 200 + number}))
        say()
    told = [line.get("statusCode", line.get("msg")) for line in lines.read()]
    assert told == [200, "event", 201, "keeper", 202, "structlog", 203, "stdlib"]


@pytest.mark.parametrize(
    ("odd", "told"),
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
async def test_an_odd_request_takes_no_other_line_of_its_turn_along(
    owner: Logging, lines: LineFile, odd: dict[str, Any], told: dict[str, Any]
) -> None:
    """All have their line, in order; the odd one's is made with care."""
    for number in range(5):
        owner.log_request(
            RequestLine(**REQUEST | {"span_id": f"{number:016x}"} | (odd if number == 2 else {}))
        )
    await asyncio.sleep(0)
    found = lines.read()
    assert [line["span_id"] for line in found] == [f"{number:016x}" for number in range(5)]
    assert found[2] | told == found[2]
    assert all(line["url"] == REQUEST["url"] for line in (*found[:2], *found[3:]))


async def test_threads_beside_the_loop_lose_no_request(owner: Logging, lines: LineFile) -> None:
    """Whoever comes first makes the lines of all that is gathered; nobody makes one twice."""

    def tell(thread: int) -> None:
        for number in range(500):
            owner.log_request(RequestLine(**REQUEST | {"span_id": f"{thread}-{number}"}))

    others = [asyncio.to_thread(tell, thread) for thread in (1, 2, 3)]
    waiting = asyncio.gather(*others)
    for number in range(500):
        owner.log_request(RequestLine(**REQUEST | {"span_id": f"0-{number}"}))
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
def test_no_field_of_a_request_line_shows_a_credential(
    owner: Logging, lines: LineFile, field: str, token: str
) -> None:
    """Whatever kind it is of, and in whatever form: it is masked as in any other line."""
    owner.log_request(RequestLine(**REQUEST | {field: f"/x/{token}" if field in {"url", "route"} else token}))
    assert token not in lines.raw()
    assert "***" in lines.raw()


def test_a_trace_id_of_a_client_may_be_a_secret_too(lines: LineFile) -> None:
    """Thirty-two hex digits are what many a secret looks like."""
    secret = "0123456789abcdef" * 2
    logs = Logging(service="shop", env="test", sink=lines.sink, redactor=Redactor([secret]))
    logs.log_request(RequestLine(**REQUEST | {"trace_id": secret}))
    assert secret not in lines.raw()


@pytest.mark.parametrize("field", ["request_id", "trace_id"])
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
async def test_a_credential_among_the_ids_of_a_turn_is_masked_alone(
    owner: Logging, lines: LineFile, field: str, token: str
) -> None:
    """All ids of a turn are looked through together; the others are shown as they came."""
    ids = [f"{number:032x}" for number in range(5)]
    for number, one in enumerate(ids):
        owner.log_request(RequestLine(**REQUEST | {field: token if number == 2 else one}))
    await asyncio.sleep(0)
    assert token not in lines.raw()
    shown = [line[{"request_id": "requestId"}.get(field, field)] for line in lines.read()]
    assert shown[:2] + shown[3:] == ids[:2] + ids[3:]


async def test_an_interrupt_loses_no_line_of_the_turn(
    owner: Logging, lines: LineFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal handler raises in the middle is raised, and the lines are made later."""

    def interrupted(_ended: object) -> bytes:
        raise KeyboardInterrupt

    for number in range(5):
        owner.log_request(RequestLine(**REQUEST | {"status": 200 + number}))
    with monkeypatch.context() as patch:
        patch.setattr(owner.sink, "render_deferred", interrupted)
        with pytest.raises(KeyboardInterrupt):
            owner.sink.flush_deferred()
    assert [line["statusCode"] for line in lines.read()] == [200, 201, 202, 203, 204]


def test_two_owners_of_one_sink_have_lines_of_their_own(owner: Logging, lines: LineFile) -> None:
    """Each with its service, and with its own secrets masked."""
    other = Logging(service="other", env="test", sink=lines.sink, redactor=Redactor(["of-the-other-one"]))
    owner.log_request(RequestLine(**REQUEST))
    other.log_request(RequestLine(**REQUEST | {"url": "/of-the-other-one"}))
    assert [(line["service"], line["url"]) for line in lines.read()] == [
        ("shop", REQUEST["url"]),
        ("other", "/***"),
    ]
