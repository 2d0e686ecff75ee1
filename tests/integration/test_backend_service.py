"""The whole backend: its start, secrets, OpenAPI description and commands."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import realestate
from realestate import app as app_module
from realestate.__main__ import USAGE, main
from realestate.made_secrets import FILE_NAME, read_secrets
from realestate.monitoring import keeper
from realestate.settings import SERVICE
from support.backend import (
    AUTHORIZED,
    InProcess,
    Program,
    environment,
    in_process,
    refusal,
    rows,
    run_command,
    running_program,
    sign,
)
from support.postgres import DatabaseUrls

HOUSE = {"title": "House in Kigali", "type": "house", "price_amount": 85_000_000}


def test_first_start_generates_secrets_that_work(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """`serve` generates missing secrets, says on stderr where they are, and shows none of them."""
    environ = environment(database_urls, tmp_path, SERVICE_TOKEN="", WEBHOOK_SECRETS="")
    path = tmp_path / SERVICE / FILE_NAME
    with running_program(environ, database_urls) as program:
        program.wait_until_ready()
        made = read_secrets(path)
        token, secret = made["SERVICE_TOKEN"], made["WEBHOOK_SECRETS"].removeprefix("moltbot=")
        assert f"realestate: generated SERVICE_TOKEN and WEBHOOK_SECRETS in {path}" in program.errors
        assert program.deliver({"id": "1"}, secret=secret).status_code == 200
        called = program.post(
            "/api/tools/listing.search", content=b"{}", headers={"Authorization": f"Bearer {token}"}
        )
        assert called.status_code == 200
        # In a URL, it is masked in the line.
        program.get(f"/api/listings/search?text={token}")
    everything = json.dumps(program.lines) + "".join(program.errors)
    assert token not in everything
    assert secret not in everything


def test_unusable_setting_is_one_sentence(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The start ends at once with the fix, without a traceback."""
    environ = environment(database_urls, tmp_path, WEBHOOK_SECRETS="hidden")
    done = run_command(environ, "serve")
    assert done.returncode == 1
    assert done.stderr.startswith("realestate: WEBHOOK_SECRETS, entry 1: write source=secret")
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


@pytest.mark.parametrize("arguments", [[], ["dance"], ["serve", "faster"]])
def test_command_that_does_not_exist_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and the usage on stderr."""
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", USAGE)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["help"], ["serve", "--help"], ["serve", "-h"], ["serve", "now", "-h"]]
)
def test_help_is_no_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help is on stdout, also after a command without its own."""
    assert main(arguments) == 0
    assert capsys.readouterr() == (USAGE, "")


def test_other_servers_make_the_app_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    """`realestate.app:create` has no side effects: it generates no secrets and opens nothing."""
    for name, value in environment(database_urls, tmp_path, SERVICE_TOKEN="").items():
        monkeypatch.setenv(name, value)
    assert callable(app_module.create())
    assert keeper().settings.service == SERVICE
    assert list(tmp_path.iterdir()) == []


async def test_head_is_get_without_the_body(backend: InProcess) -> None:
    """HEAD has the status and the headers of GET, in process as over the network."""
    get = await backend.client.get("/api/listings/search")
    head = await backend.client.head("/api/listings/search")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert (await backend.client.head("/api/listings/nope")).status_code == 404
    assert (await backend.client.head("/api/tools/listing.search")).status_code == 405
    samples = await backend.scrape()
    labels = {"method": "HEAD", "route": "/api/listings/search", "status": "200"}
    assert samples.get("http_requests_total", **labels) == 1


def test_head_keeps_the_connection(program: Program) -> None:
    """The server gets the response that it expects for HEAD, and logs no error."""
    with httpx.Client(base_url=program.url) as client:
        head = client.head("/api/listings/search")
        assert client.get("/api/listings/search").status_code == 200
    line = program.line_of(head.headers["X-Request-ID"])
    assert (line["method"], line["outcome"], line["route"]) == ("HEAD", "completed", "/api/listings/search")
    assert not [one for one in program.lines if one["level"] == "error"]


async def test_openapi_describes_every_endpoint(backend: InProcess) -> None:
    """Each path has its body and its errors, as the service responds."""
    answer = await backend.client.get("/schema/openapi.json")
    assert answer.status_code == 200
    schema: dict[str, Any] = answer.json()
    assert schema["info"]["version"] == realestate.__version__
    assert set(schema["paths"]) == {
        "/api/webhooks/{source}",
        "/api/tools/{tool}",
        "/api/pairing/{channel}/request",
        "/api/pairing/{channel}/confirm",
        "/api/listings",
        "/api/listings/{listing_id}",
        "/api/listings/search",
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert (method == "post") == ("requestBody" in operation), path
            refused = operation["responses"]["400"]["content"]["application/json"]["schema"]
            assert refused == {"$ref": "#/components/schemas/ErrorBody"}, path
    yaml = await backend.client.get("/schema/openapi.yaml")
    assert yaml.text.startswith(("info:", "components:", "openapi:"))


async def test_unexpected_error_is_one_line_with_its_traceback(
    backend: InProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    """The caller gets a bare 500, the log one line with type, message and stack."""
    await backend.rows("ALTER TABLE inbound_events RENAME TO elsewhere")
    backend.lines(capfd)
    answer = await backend.deliver({"id": "1"})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "elsewhere" not in answer.text
    lines = backend.lines(capfd)
    [fault] = [line for line in lines if line["level"] == "error"]
    assert fault["error"]["type"] == "psycopg.errors.UndefinedTable"
    assert "inbound_events" in fault["error"]["message"]
    assert fault["error"]["stack"]
    assert fault["requestId"] == answer.headers["X-Request-ID"]
    assert [line["statusCode"] for line in lines if line.get("type") == "request"] == [500]


async def test_refusals_write_no_error(backend: InProcess, capfd: pytest.CaptureFixture[str]) -> None:
    """Mistakes of callers are in the request lines, at info, and nowhere else."""
    backend.lines(capfd)
    await backend.deliver(b"not json")
    await backend.call("admin.decision", {})
    await backend.client.get("/nothing")
    lines = backend.lines(capfd)
    assert [(line["level"], line["type"]) for line in lines] == [("info", "request")] * 3


async def test_unavailable_database_is_503_everywhere(backend: InProcess) -> None:
    """Every endpoint that needs it responds at once, with Retry-After; none logs an error."""
    await backend.backend.database.close()
    began = time.monotonic()
    answers = [
        await backend.deliver({"id": "1"}),
        await backend.call("listing.search"),
        await backend.call("listing.search", {"limit": 0}),
        await backend.pair("telegram", "request", peer_id="42"),
        await backend.pair("telegram", "confirm", peer_id="42", code="x"),
        await backend.client.post("/api/listings", headers=AUTHORIZED, json=HOUSE),
        await backend.client.get("/api/listings/search"),
        await backend.client.get("/api/listings/00000000-0000-4000-8000-000000000000"),
    ]
    assert time.monotonic() - began < 30
    for answer in answers:
        assert refusal(answer) == (503, "database_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    samples = await backend.scrape()
    assert samples.get("webhook_failures_total", source="moltbot") == 1
    assert samples.get("tool_calls_total", tool="listing.search", status="error") == 2
    assert samples.get("pairing_failures_total", channel="telegram") == 0
    assert samples.get("active_sessions") is None


async def test_active_sessions_are_counted_in_the_database(backend: InProcess) -> None:
    """Sessions touched within 30 minutes count, whichever worker touched them."""
    assert (await backend.scrape()).get("active_sessions") == 0
    for peer in ("1", "2", "3"):
        await backend.deliver({"id": peer, "channel": "webchat", "peer_id": peer})
    await backend.rows("UPDATE chat_sessions SET updated_at = now() - interval '29 min' WHERE peer_id = '2'")
    await backend.rows("UPDATE chat_sessions SET updated_at = now() - interval '31 min' WHERE peer_id = '3'")
    assert (await backend.scrape()).get("active_sessions") == 2


async def test_without_sources_every_delivery_is_unknown(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """A service without webhook secrets accepts nothing, and no series is made."""
    environ = environment(database_urls, tmp_path, WEBHOOK_SECRETS="")
    async with in_process(environ, database_urls) as backend:
        body = b'{"id":"1"}'
        answer = await backend.client.post("/api/webhooks/moltbot", content=body, headers=sign(body))
        assert answer.status_code == 404
        samples = await backend.scrape()
        assert not samples.series("webhook_failures_total")


async def test_reading_works_without_a_configured_token(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """A request with a credential gets the answer that the service has no token."""
    environ = environment(database_urls, tmp_path, SERVICE_TOKEN="")
    async with in_process(environ, database_urls) as backend:
        assert (await backend.client.get("/api/listings/search")).status_code == 200
        assert (await backend.client.get("/api/listings/search", headers=AUTHORIZED)).status_code == 503


def test_service_role_has_the_least_rights(database_urls: DatabaseUrls) -> None:
    """It owns no table, deletes no listing and no pairing, and truncates nothing."""
    granted = rows(
        database_urls,
        "SELECT table_name, string_agg(privilege_type, ' ' ORDER BY privilege_type) AS granted"
        " FROM information_schema.table_privileges WHERE grantee = 'keeper' GROUP BY table_name",
    )
    ours = {row["table_name"]: row["granted"] for row in granted}
    assert ours["listings"] == ours["pairing"] == "INSERT SELECT UPDATE"
    assert ours["chat_sessions"] == ours["inbound_events"] == "DELETE INSERT SELECT UPDATE"
    owners = rows(database_urls, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
    assert [row["tableowner"] for row in owners] == ["keeper_owner"]


def test_age_columns_are_indexed(database_urls: DatabaseUrls) -> None:
    """Retention finds old rows by an index on each policy's age column."""
    indexes = rows(database_urls, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'")
    defined = {
        row["indexdef"].split(" USING ")[0].split(" ON ")[1] + row["indexdef"].split("btree ")[1]
        for row in indexes
    }
    assert "public.inbound_events(received_at)" in defined
    assert "public.chat_sessions(updated_at)" in defined
