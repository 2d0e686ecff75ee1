"""The tests that the contract names, and its section 3 as far as the whole program shows it."""

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from realestate.monitoring import CHANNELS, TOOL_STATUSES, TOOLS
from support.backend import AUTHORIZED, Program, environment, rows, run_command, running_program, unique
from support.postgres import DatabaseUrls, PostgresServer


def keep(environ: Mapping[str, str], *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one of the operator's commands, and check its exit code."""
    done = run_command(environ, "keep", *arguments)
    assert done.returncode == code, done.stderr
    return done


def add_events(urls: DatabaseUrls, **ages: str) -> None:
    """Insert events: their ids, and how long ago each was received."""
    for event, age in ages.items():
        rows(
            urls,
            "INSERT INTO inbound_events (id, source, payload, received_at)"
            " VALUES (%s, 'moltbot', '{}', now() - %s::interval) RETURNING id",
            event,
            age,
        )


def add_sessions(urls: DatabaseUrls, **ages: str) -> None:
    """Insert sessions: their peers, and how long ago each was touched."""
    for peer, age in ages.items():
        rows(
            urls,
            "INSERT INTO chat_sessions (channel, peer_id, updated_at)"
            " VALUES ('telegram', %s, now() - %s::interval) RETURNING id",
            peer,
            age,
        )


def ids(urls: DatabaseUrls, table: str, column: str) -> list[str]:
    """Return the ids that are left in a table."""
    return sorted(row[column] for row in rows(urls, f"SELECT {column} FROM {table}"))  # noqa: S608 - constant names


# The six (here seven) tests that the contract names.


def test_health_is_ok_with_the_database(shared_program: Program) -> None:
    """GET /health returns ok when the database is connected, with exactly the contract's keys."""
    answer = shared_program.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "db": "connected"})


def test_health_is_503_without_the_database(postgres_private: PostgresServer, tmp_path: Path) -> None:
    """GET /health returns 503 after losing the database, with exactly the contract's keys."""
    urls = postgres_private.create_database("wk_template")
    with running_program(environment(urls, tmp_path), urls) as program:
        program.wait_until_ready()
        postgres_private.stop()
        program.eventually(lambda: program.get("/health").status_code == 503 or None, "a 503")
        answer = program.get("/health")
        assert answer.json() == {"status": "error", "db": "disconnected"}


def test_metrics_is_prometheus_format(shared_program: Program) -> None:
    """GET /metrics is Prometheus's text format, with every metric of the contract."""
    answer = shared_program.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    types = {family.name: family.type for family in text_string_to_metric_families(answer.text)}
    expected = {
        "http_requests": "counter",
        "http_request_duration_ms": "histogram",
        "webhook_failures": "counter",
        "tool_calls": "counter",
        "tool_call_duration_ms": "histogram",
        "pairing_failures": "counter",
        "active_sessions": "gauge",
        "db_up": "gauge",
        "retention_last_success_timestamp_seconds": "gauge",
        "retention_policy_since_timestamp_seconds": "gauge",
        "retention_runs": "counter",
        "log_records_dropped": "counter",
        "process_cpu_seconds": "counter",
        "python_info": "gauge",
    }
    assert {name: types.get(name) for name in expected} == expected


def test_http_requests_total_increments(shared_program: Program) -> None:
    """Each request of a route adds one to its series."""
    labels = {"method": "GET", "route": "/api/listings/search", "status": "200"}
    before = shared_program.scrape().get("http_requests_total", **labels) or 0
    for _ in range(3):
        assert shared_program.get("/api/listings/search").status_code == 200
    assert shared_program.scrape().get("http_requests_total", **labels) == before + 3


def test_pruning_removes_old_inbound_events(program: Program, tmp_path: Path) -> None:
    """Events older than 30 days are deleted, younger ones stay."""
    assert program.urls is not None
    add_events(program.urls, old="31 days", older="300 days", young="29 days", new="0")
    keep(environment(program.urls, tmp_path), "retention", "run", "--yes")
    assert ids(program.urls, "inbound_events", "id") == ["new", "young"]


def test_pruning_removes_old_chat_sessions(program: Program, tmp_path: Path) -> None:
    """Sessions not touched for 90 days are deleted, others stay, whatever their creation time."""
    assert program.urls is not None
    add_sessions(program.urls, old="91 days", young="89 days", new="0")
    rows(program.urls, "UPDATE chat_sessions SET created_at = now() - interval '1 year' RETURNING id")
    keep(environment(program.urls, tmp_path), "retention", "run", "--yes")
    assert ids(program.urls, "chat_sessions", "peer_id") == ["new", "young"]


def test_an_audit_entry_is_written_on_prune(program: Program, tmp_path: Path) -> None:
    """Each pruned table has one entry of the retention job, also if no row was deleted."""
    assert program.urls is not None
    add_events(program.urls, old="31 days", older="32 days")
    keep(environment(program.urls, tmp_path), "retention", "run", "--yes")
    entries = rows(program.urls, "SELECT * FROM audit_log WHERE action = 'retention.prune' ORDER BY entity")
    assert [(one["actor_type"], one["actor_id"]) for one in entries] == [("system", "retention-job")] * 2
    assert [(one["entity"], one["payload"]["deleted"]) for one in entries] == [
        ("chat_sessions", 0),
        ("inbound_events", 2),
    ]


# What only the whole program shows.


def test_a_request_is_one_line_with_the_contracts_keys(shared_program: Program) -> None:
    """The line has the contract's keys in its order, then ours, and agrees with the response."""
    request_id = unique("line")
    answer = shared_program.get("/api/listings/search?limit=1", headers={"X-Request-ID": request_id})
    line = shared_program.line_of(request_id)
    assert list(line) == [
        *("level", "time", "service", "env", "type", "method", "url", "statusCode", "duration", "requestId"),
        *("route", "outcome", "trace_id", "span_id", "bytes"),
    ]
    assert (line["level"], line["service"], line["env"]) == ("info", "realestate-backend", "development")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
    assert (line["method"], line["url"]) == ("GET", "/api/listings/search?limit=1")
    assert (line["statusCode"], line["route"], line["outcome"]) == (200, "/api/listings/search", "completed")
    assert line["bytes"] == len(answer.content)
    assert 0 < line["duration"] < 20_000
    assert answer.headers["X-Request-ID"] == request_id
    assert len([one for one in shared_program.lines if one.get("requestId") == request_id]) == 1


def test_scheduled_retention_is_logged_at_the_start(shared_program: Program) -> None:
    """The first line says that it is scheduled for the next 3 AM; a first start is no missed run."""
    line = shared_program.wait_for(type="job", name="retention", status="scheduled")
    due = datetime.fromisoformat(line["due"])
    assert (due.hour, due.minute) == (3, 0)
    assert due.timestamp() > time.time()
    assert shared_program.urls is not None
    assert rows(shared_program.urls, "SELECT id FROM retention_runs") == []


def test_known_series_are_exposed_before_the_first_failure(shared_program: Program) -> None:
    """Known series are exposed at 0 from the start, so the first failure is an increase."""
    samples = shared_program.scrape()
    assert samples.get("webhook_failures_total", source="moltbot") is not None
    for channel in CHANNELS:
        assert samples.get("pairing_failures_total", channel=channel) is not None
    for tool in TOOLS:
        for status in TOOL_STATUSES:
            assert samples.get("tool_calls_total", tool=tool, status=status) is not None
    for table in ("inbound_events", "chat_sessions"):
        assert samples.get("retention_policy_since_timestamp_seconds", table=table) is not None
        for status in ("completed", "failed", "refused"):
            assert samples.get("retention_runs_total", table=table, status=status) is not None


def test_buckets_reach_above_the_alerts_threshold(shared_program: Program) -> None:
    """A quantile can exceed 5 s: there are bounds above it, and the original's below."""
    shared_program.get("/api/listings/search")
    text = shared_program.get("/metrics").text
    for name, first in (("http_request_duration_ms", 10.0), ("tool_call_duration_ms", 50.0)):
        bounds = {float(bound) for bound in re.findall(rf'{name}_bucket{{.*le="([^"]+)"', text)}
        original = {10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0}
        wanted = {bound for bound in original if bound >= first} | {
            10_000.0,
            30_000.0,
            60_000.0,
            float("inf"),
        }
        assert bounds == wanted


def test_routes_are_templates_and_unknown_paths_share_one(shared_program: Program) -> None:
    """No path of a caller becomes a label."""
    for _ in range(3):
        shared_program.get(f"/{unique('path')}")
        shared_program.get(f"/api/listings/{unique('listing')}")
        shared_program.post(f"/api/tools/{unique('tool')}", headers=AUTHORIZED)
    routes = {
        value
        for name, labels in shared_program.scrape().series("http_requests_total")
        for label, value in labels
        if label == "route"
    }
    assert routes <= {
        *("/health", "/health/detailed", "/livez", "/readyz", "/metrics", "unmatched"),
        *("/api/webhooks/{source}", "/api/tools/{tool}", "/api/listings", "/api/listings/search"),
        *("/api/listings/{listing_id}", "/api/pairing/{channel}/request", "/api/pairing/{channel}/confirm"),
        *("/schema/openapi.json", "/schema/openapi.yaml"),
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "backend.example"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "10.0.0.1"},
    ],
)
def test_metrics_without_a_token_answer_to_loopback_only(
    shared_program: Program, headers: dict[str, str]
) -> None:
    """A request through a proxy or for another host gets no metrics."""
    assert shared_program.get("/metrics", headers=headers).status_code in {401, 403, 404}


def test_metrics_token_is_always_required_once_it_is_set(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """Also over loopback; details are shown with the token only."""
    environ = environment(database_urls, tmp_path, METRICS_TOKEN="only-for-prometheus")
    with running_program(environ, database_urls) as program:
        program.wait_until_ready()
        bearer = {"Authorization": "Bearer only-for-prometheus"}
        assert program.get("/metrics").status_code == 401
        assert program.get("/metrics", headers=AUTHORIZED).status_code == 401
        assert program.get("/metrics", headers=bearer).status_code == 200
        assert set(program.get("/health/detailed").json()) == {"status", "checks"}
        assert "details" in program.get("/health/detailed", headers=bearer).json()
        assert set(program.get("/health", headers=bearer).json()) == {"status", "db"}


def test_one_failing_table_does_not_stop_the_other(program: Program, tmp_path: Path) -> None:
    """The failing policy reports its error, the other one runs."""
    urls = program.urls
    assert urls is not None
    add_events(urls, old="31 days")
    add_sessions(urls, old="91 days")
    rows(
        urls,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'not this one'; END$$",
    )
    rows(urls, "CREATE TRIGGER refuse BEFORE DELETE ON inbound_events FOR EACH ROW EXECUTE FUNCTION refuse()")
    keep(environment(urls, tmp_path), "retention", "run", "--yes", code=1)
    assert ids(urls, "inbound_events", "id") == ["old"]
    assert ids(urls, "chat_sessions", "peer_id") == []


@pytest.fixture
def open_state() -> Iterator[Path]:
    """A folder that PostgreSQL's account can reach if root runs the tests; pytest's own cannot."""
    folder = Path(tempfile.mkdtemp(prefix="wk-state-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_webhook_and_an_audited_prune_on_the_embedded_database(open_state: Path) -> None:
    """With nothing but a folder: the program brings its database, accepts an event, and retention runs."""
    environ = {
        "WATCHKEEPER_STATE_DIR": str(open_state),
        "PORT": "0",
        "MOLTBOT_GATEWAY_URL": "http://127.0.0.1:9",
        "SERVICE_TOKEN": "test-service-token",
        "WEBHOOK_SECRETS": "moltbot=test-webhook-secret",
    }
    with running_program(environ) as program:
        program.wait_until_ready()
        event = {"id": "evt-1", "channel": "telegram", "peer_id": "42"}
        assert program.deliver(event).json() == {"duplicate": False}
        assert program.deliver(event).json() == {"duplicate": True}
        assert program.scrape().get("active_sessions") == 1
        keep(environ, "retention", "run", "--yes")
        entries = json.loads(keep(environ, "audit", "list", "--json").stdout)
        samples = program.scrape()
        for table in ("inbound_events", "chat_sessions"):
            last = samples.get("retention_last_success_timestamp_seconds", table=table)
            assert last is not None
            assert abs(last - time.time()) < 60
    pruned = {
        entry["entity"]: entry["payload"]["deleted"]
        for entry in entries
        if entry["action"] == "retention.prune"
    }
    assert pruned == {"inbound_events": 0, "chat_sessions": 0}
    assert program.process.returncode == 0


def test_a_failing_check_of_the_gateway_is_no_error_of_the_service(shared_program: Program) -> None:
    """A 503 of /health/detailed is distinguished by its route."""
    answer = shared_program.get("/health/detailed")
    assert answer.json() == {"status": "degraded", "checks": {"db": True, "moltbot": False}}
    samples = shared_program.scrape()
    assert samples.get("http_requests_total", method="GET", route="/health/detailed", status="503")
    assert samples.total("http_requests_total", status="503", route="/api/listings/search") == 0


def test_own_endpoints_are_for_reading(shared_program: Program) -> None:
    """Probes may be GET or HEAD; anything else is 405 with Allow."""
    with httpx.Client(base_url=shared_program.url) as client:
        for path in ("/health", "/livez", "/readyz", "/metrics"):
            assert client.head(path).status_code == 200
            refused = client.post(path)
            assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
