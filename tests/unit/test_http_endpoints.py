import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.asgi import LOCAL_HOST, Watched, fetch, response_body, response_start, sends, watch
from watchkeeper.exceptions import DatabaseUnavailableError
from watchkeeper.health._runner import CheckRunner
from watchkeeper.settings import Secret

TOKEN = "t0ken-of-the-test"
BEARER = (b"authorization", b"Bearer " + TOKEN.encode())


class _Check:
    """A check whose result can be changed."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.error = error

    async def __call__(self) -> None:
        if self.error is not None:
            raise self.error


_app = sends(response_start(299), response_body(b"the app"))


def _watch(folder: Path, *checks: _Check, token: str | None = None, **more: Any) -> Watched:
    secret = None if token is None else Secret(token)
    return watch(_app, folder, checks=CheckRunner(checks, ttl=timedelta(0)), metrics_token=secret, **more)


async def test_health_says_connected_while_the_database_answers(tmp_path: Path) -> None:
    """Exactly the contract's bytes, with `no-store`."""
    reply = await fetch(_watch(tmp_path, _Check("db")).app, "/health")
    assert (reply.status, reply.body) == (200, b'{"status":"ok","db":"connected"}')
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-length"] == str(len(reply.body))


async def test_health_says_disconnected_without_a_reason(tmp_path: Path) -> None:
    """503 with the same keys and no reason: an error text may hold hosts and passwords."""
    down = DatabaseUnavailableError("postgresql://user:pw@db.internal/x refused")
    watched = _watch(tmp_path, _Check("db", down), _Check("moltbot"), token=TOKEN)
    reply = await fetch(watched.app, "/health", headers=[LOCAL_HOST, BEARER])
    assert (reply.status, reply.body) == (503, b'{"status":"error","db":"disconnected"}')


async def test_health_without_a_database_runs_no_check(tmp_path: Path) -> None:
    """A service without a database reports nothing about one."""
    reply = await fetch(_watch(tmp_path, _Check("moltbot", OSError())).app, "/health")
    assert (reply.status, reply.body) == (200, b'{"status":"ok"}')
    bare = await fetch(watch(_app, tmp_path).app, "/health/detailed")
    assert (bare.status, bare.body) == (200, b'{"status":"ok","checks":{}}')


async def test_detailed_health_names_every_check(tmp_path: Path) -> None:
    """One boolean per check; one failure makes the service degraded."""
    gateway = _Check("moltbot")
    watched = _watch(tmp_path, _Check("db"), gateway)
    reply = await fetch(watched.app, "/health/detailed")
    assert (reply.status, reply.body) == (200, b'{"status":"ok","checks":{"db":true,"moltbot":true}}')
    gateway.error = OSError("http://gateway.internal:18789 refused")
    reply = await fetch(watched.app, "/health/detailed")
    assert (reply.status, reply.body) == (503, b'{"status":"degraded","checks":{"db":true,"moltbot":false}}')


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Basic " + TOKEN.encode())],
        [BEARER, BEARER],
        [(b"authorization", TOKEN.encode())],
    ],
)
async def test_details_need_the_token(tmp_path: Path, headers: list[tuple[bytes, bytes]]) -> None:
    """Without exactly one right token a client sees what the public sees."""
    watched = _watch(tmp_path, _Check("db", OSError("db.internal")), token=TOKEN)
    reply = await fetch(watched.app, "/health/detailed", headers=[LOCAL_HOST, *headers])
    assert (reply.status, reply.body) == (503, b'{"status":"degraded","checks":{"db":false}}')


async def test_details_are_closed_without_a_configured_token(tmp_path: Path) -> None:
    """An unset token is not an empty one."""
    watched = _watch(tmp_path, _Check("db"))
    for value in (b"Bearer ", b"Bearer", b"", b"Bearer None"):
        reply = await fetch(watched.app, "/health/detailed", headers=[LOCAL_HOST, (b"authorization", value)])
        assert set(reply.json) == {"status", "checks"}


async def test_details_say_why_without_secrets(tmp_path: Path) -> None:
    """They have the time, latency and error of each check, and the keeper's details; secrets are masked."""

    async def details() -> dict[str, Any]:
        return {"uptime": 12.5}

    down = OSError("refused by db.internal with s3cret-value")
    watched = _watch(tmp_path, _Check("db", down), _Check("moltbot"), token=TOKEN, details=details)
    reply = await fetch(watched.app, "/health/detailed", headers=[LOCAL_HOST, BEARER])
    logged = reply.json["details"]
    assert reply.status == 503
    assert logged["uptime"] == 12.5
    assert logged["checks"]["moltbot"]["ok"] is True
    assert logged["checks"]["moltbot"]["error"] is None
    assert logged["checks"]["db"]["error"].startswith("OSError: refused by db.internal with ")
    assert "s3cret-value" not in reply.body.decode()
    assert abs(logged["checks"]["db"]["checkedAt"] - time.time()) < 30
    assert 0 <= logged["checks"]["db"]["latencyMs"] < 1000


async def test_livez_runs_no_check(tmp_path: Path) -> None:
    """A process that can answer is alive, whatever the state of its database."""
    watched = _watch(tmp_path, _Check("db", OSError()), ready=lambda: asyncio.sleep(3600, {"db": False}))
    reply = await fetch(watched.app, "/livez")
    assert (reply.status, reply.body) == (200, b'{"status":"ok"}')


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [
        ({"accepting": True, "db": True}, 200, b'{"status":"ok","checks":{"accepting":true,"db":true}}'),
        ({"accepting": False, "db": True}, 503, b'{"status":"error","checks":{"accepting":false,"db":true}}'),
        ({}, 200, b'{"status":"ok","checks":{}}'),
    ],
)
async def test_readyz_needs_every_condition(
    tmp_path: Path, state: dict[str, bool], status: int, body: bytes
) -> None:
    """One false condition makes the service not ready; the body has booleans only."""
    reply = await fetch(_watch(tmp_path, ready=lambda: asyncio.sleep(0, state)).app, "/readyz")
    assert (reply.status, reply.body) == (status, body)


async def test_metrics_are_open_to_this_machine(tmp_path: Path) -> None:
    """Without a token a direct local scrape gets text, or OpenMetrics if it asks for it."""
    watched = _watch(tmp_path)
    reply = await fetch(watched.app, "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# TYPE http_requests_total counter" in reply.body
    headers = [
        LOCAL_HOST,
        (b"accept", b"application/openmetrics-text;version=1.0.0"),
        (b"accept", b"*/*;q=0.1"),
    ]
    reply = await fetch(watched.app, "/metrics", headers=headers)
    assert reply.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert reply.body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "more",
    [
        {"client": ("10.0.0.7", 1)},
        {"client": None},
        {"http_version": "1.0"},
        {"headers": [(b"host", b"metrics.example")]},
        {"headers": [LOCAL_HOST, (b"x-forwarded-for", b"127.0.0.1")]},
        {"headers": [(b"host", b"metrics.example"), (b"authorization", b"Bearer ")]},
    ],
)
async def test_metrics_are_closed_to_other_clients(tmp_path: Path, more: dict[str, Any]) -> None:
    """403 with a message that says what would open them, and no metrics."""
    reply = await fetch(_watch(tmp_path).app, "/metrics", **more)
    assert reply.status == 403
    assert reply.json["error"]["code"] == "forbidden"
    assert "set METRICS_TOKEN" in reply.json["error"]["message"]
    assert reply.json["error"]["requestId"] == reply.headers["x-request-id"]
    assert set(reply.json) == {"error"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "backend"])  # noqa: S104 - a setting
async def test_metrics_of_a_service_off_loopback_need_a_token(tmp_path: Path, host: str) -> None:
    """Without one /metrics is closed, even to a scrape from this machine."""
    assert (await fetch(_watch(tmp_path, host=host).app, "/metrics")).status == 403


async def test_a_token_is_required_once_it_is_set(tmp_path: Path) -> None:
    """For local clients too: 401 explains it, and the right token is enough from anywhere."""
    watched = _watch(tmp_path, token=TOKEN, host="0.0.0.0")  # noqa: S104 - a setting
    reply = await fetch(watched.app, "/metrics")
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == 'Bearer realm="metrics"'
    assert reply.json["error"]["code"] == "unauthorized"
    assert TOKEN not in reply.body.decode()
    outside: dict[str, Any] = {"client": ("10.0.0.7", 1), "http_version": "1.0"}
    headers = [(b"host", b"x"), (b"x-forwarded-for", b"10.0.0.9"), BEARER]
    assert (await fetch(watched.app, "/metrics", headers=headers, **outside)).status == 200


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"Bearer " + TOKEN.encode(), 200),
        (b"bearer " + TOKEN.encode(), 200),
        (b"BEARER   " + TOKEN.encode() + b" ", 200),
        (b"Bearer " + TOKEN.encode()[:-1], 401),
        (b"Bearer " + TOKEN.encode() + b"x", 401),
        (b"Bearer " + TOKEN.upper().encode(), 401),
        (b"Bearer", 401),
        (b"Bearer ", 401),
        (b"Bearer \xff\xfe\x00", 401),
        (b"Bearer a b", 401),
        (b"Bearer " + TOKEN.encode() + b", Bearer x", 401),
        (b"Basic " + TOKEN.encode(), 401),
        (b"", 401),
        (TOKEN.encode(), 401),
        (b"Bearer " + b"x" * 100_000, 401),
    ],
)
async def test_the_token_is_read_strictly(tmp_path: Path, value: bytes, status: int) -> None:
    """The scheme in any case, one token, nothing else (RFC 6750, 2.1)."""
    watched = _watch(tmp_path, token=TOKEN)
    assert (
        await fetch(watched.app, "/metrics", headers=[LOCAL_HOST, (b"authorization", value)])
    ).status == status


async def test_two_authorization_headers_are_refused(tmp_path: Path) -> None:
    """Even if one is right: a proxy may have checked the other."""
    watched = _watch(tmp_path, token=TOKEN)
    headers = [LOCAL_HOST, BEARER, (b"authorization", b"Bearer other")]
    assert (await fetch(watched.app, "/metrics", headers=headers)).status == 401
    assert (await fetch(watched.app, "/metrics", headers=headers[::-1])).status == 401


PATHS = ("/health", "/health/detailed", "/livez", "/readyz", "/metrics")


@pytest.mark.parametrize("path", PATHS)
async def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path, path: str) -> None:
    """Some load balancers probe with HEAD."""
    watched = _watch(tmp_path, _Check("db"))
    got = await fetch(watched.app, path)
    head = await fetch(watched.app, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 10


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "FOO"])
async def test_other_methods_are_405(tmp_path: Path, path: str, method: str) -> None:
    """With Allow and the error body; counted under the endpoint's path."""
    watched = _watch(tmp_path, _Check("db"))
    reply = await fetch(watched.app, path, method)
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
    assert reply.json == {
        "error": {
            "code": "method_not_allowed",
            "message": "Only GET and HEAD are allowed.",
            "requestId": reply.headers["x-request-id"],
        }
    }
    counted = method if method in {"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} else "_OTHER"
    assert watched.count(path, 405, counted) == 1.0
    assert [line["route"] for line in watched.requests()] == [path]


@pytest.mark.parametrize(
    "path",
    ["/health/", "//health", "/Health", "/health/detailed/x", "/metrics/", "/metrics.json", "/healthz", ""],
)
async def test_endpoints_match_exact_paths_only(tmp_path: Path, path: str) -> None:
    """All other paths are the app's."""
    assert (await fetch(_watch(tmp_path).app, path)).status == 299


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/api/livez", "/api", 200),
        ("/livez", "/api", 200),
        ("/apilivez", "/api", 299),
        ("/api/api/livez", "/api", 299),
        ("/api/livez", "", 299),
        ("/livez", "/", 200),
    ],
)
async def test_endpoints_are_below_the_root_path(tmp_path: Path, path: str, root: str, status: int) -> None:
    """Uvicorn puts the root path before the path, granian leaves it out; both work."""
    watched = _watch(tmp_path)
    assert (await fetch(watched.app, path, root_path=root)).status == status
    if status == 200:
        assert watched.count("/livez", 200) == 1.0


async def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    """Then /metrics is 404, without the app's answer; requests are logged, but not counted."""
    watched = _watch(tmp_path, metrics=False, token=TOKEN)
    reply = await fetch(watched.app, "/metrics", headers=[LOCAL_HOST, BEARER])
    assert (reply.status, reply.json["error"]["code"]) == (404, "not_found")
    assert (await fetch(watched.app, "/livez")).status == 200
    assert (await fetch(watched.app, "/other")).status == 299
    assert [line["url"] for line in watched.requests()] == ["/metrics", "/other"]
    assert watched.routes() == set()


async def test_livez_cannot_be_switched_off(tmp_path: Path) -> None:
    """An orchestrator needs it to keep the process alive."""
    watched = _watch(tmp_path, _Check("db"), health=False)
    available = [path for path in PATHS if (await fetch(watched.app, path)).status == 200]
    assert available == ["/livez", "/metrics"]


async def test_gauges_are_refreshed_before_a_scrape(tmp_path: Path) -> None:
    """All refreshes run at the same time."""
    together = asyncio.Barrier(2)
    met: list[int] = []

    async def one() -> None:
        met.append(await together.wait())

    async def other() -> None:
        await one()

    watched = _watch(tmp_path, before_scrape=(one, other))
    assert (await fetch(watched.app, "/metrics")).status == 200
    assert sorted(met) == [0, 1]


async def test_a_scrape_survives_a_refresh_that_fails_or_hangs(tmp_path: Path) -> None:
    """It goes on after a second at most, with a line that names the refresh."""

    async def broken() -> None:
        raise DatabaseUnavailableError("no database")

    async def stuck() -> None:
        await asyncio.Event().wait()

    watched = _watch(tmp_path, before_scrape=(broken, stuck))
    start = time.monotonic()
    reply = await fetch(watched.app, "/metrics")
    assert reply.status == 200
    assert time.monotonic() - start > 0.9
    logged = [line["error"]["type"].split(".")[-1] for line in watched.lines() if line["level"] == "error"]
    assert sorted(logged) == ["DatabaseUnavailableError", "TimeoutError"]


async def test_an_outage_of_a_refresh_is_logged_at_its_start_and_end(tmp_path: Path) -> None:
    """Once each, however many scrapes come in between."""
    down: set[str] = set()

    async def gauges() -> None:
        if "gauges" in down:
            raise DatabaseUnavailableError(f"no database {time.monotonic()}")

    class Pool:
        async def __call__(self) -> None:
            if "pool" in down:
                raise OSError("gone")

    watched = _watch(tmp_path, before_scrape=(gauges, Pool()))
    for state in ((), ("gauges",), ("gauges",), ("gauges", "pool"), ("pool",), (), (), ("pool",)):
        down = set(state)
        await asyncio.gather(*(fetch(watched.app, "/metrics") for _ in range(3)))
    logged = [
        (line["level"], line["name"].split(".")[-1], line["status"])
        for line in watched.lines()
        if line.get("type") == "refresh"
    ]
    assert logged == [
        ("error", "gauges", "failed"),
        ("error", "Pool", "failed"),
        ("info", "gauges", "resumed"),
        ("info", "Pool", "resumed"),
        ("error", "Pool", "failed"),
    ]
    message = next(line["msg"] for line in watched.lines() if line["level"] == "error")
    assert message.endswith("<locals>.gauges failed before a scrape: /metrics is served without it.")


async def test_successful_probes_and_scrapes_are_counted_and_not_logged(tmp_path: Path) -> None:
    """They would be most of the log."""
    watched = _watch(tmp_path, _Check("db"))
    for path in PATHS:
        await fetch(watched.app, path)
        assert watched.count(path, 200) == 1.0
    assert watched.requests() == []


async def test_probes_and_scrapes_that_fail_are_logged(tmp_path: Path) -> None:
    """A 503 of /health has a line."""
    watched = _watch(tmp_path, _Check("db", OSError()))
    for path in ("/health", "/health/detailed"):
        await fetch(watched.app, path)
    await fetch(watched.app, "/metrics", client=None)
    logged = [(line["route"], line["statusCode"], line["outcome"]) for line in watched.requests()]
    assert logged == [
        ("/health", 503, "completed"),
        ("/health/detailed", 503, "completed"),
        ("/metrics", 403, "completed"),
    ]


async def test_probe_lines_are_a_setting(tmp_path: Path) -> None:
    """With it successful probes are logged too."""
    watched = _watch(tmp_path, probe_lines=True)
    await fetch(watched.app, "/livez")
    assert [line["url"] for line in watched.requests()] == ["/livez"]


async def test_a_probe_that_breaks_gets_the_error_body(tmp_path: Path) -> None:
    """An exception in an endpoint is a 500 with a line, like any other."""

    async def ready() -> dict[str, bool]:
        raise RuntimeError("bug")

    watched = _watch(tmp_path, ready=ready)
    reply = await fetch(watched.app, "/readyz")
    assert (reply.status, reply.json["error"]["code"]) == (500, "internal_error")
    assert watched.count("/readyz", 500) == 1.0
    assert [line["level"] for line in watched.lines()] == ["error", "info"]
