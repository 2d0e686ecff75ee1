import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from support.backend import SECRET, InProcess, environment, in_process, refusal, sign, unique
from support.postgres import DatabaseUrls


async def failures(backend: InProcess, source: str = "moltbot") -> float | None:
    """Return `webhook_failures_total` of a source."""
    return (await backend.scrape()).get("webhook_failures_total", source=source)


async def test_event_is_stored_audited_and_touches_its_session(backend: InProcess) -> None:
    """A signed event is stored as it was sent, with its session and its audit entry."""
    event = {"id": "evt-1", "type": "message", "channel": "telegram", "peer_id": "42", "agent_id": "moltbot"}
    answer = await backend.deliver({**event, "data": {"text": "Muraho \u2600", "n": [1, 2.5, None]}})
    assert (answer.status_code, answer.json()) == (200, {"duplicate": False})
    [stored] = await backend.rows("SELECT * FROM inbound_events")
    assert (stored["id"], stored["source"]) == ("evt-1", "moltbot")
    assert stored["payload"]["data"] == {"text": "Muraho \u2600", "n": [1, 2.5, None]}
    [session] = await backend.rows("SELECT * FROM chat_sessions")
    assert (session["channel"], session["peer_id"], session["agent_id"]) == ("telegram", "42", "moltbot")
    [entry] = await backend.entries("webhook.received")
    assert (entry["actor_type"], entry["actor_id"]) == ("system", "webhook:moltbot")
    assert (entry["entity"], entry["entity_id"]) == ("inbound_events", "evt-1")
    assert entry["payload"] == {"source": "moltbot", "type": "message", "session": str(session["id"])}
    assert await failures(backend) == 0


async def test_event_without_a_session_touches_none(backend: InProcess) -> None:
    """An event needs only an id."""
    assert (await backend.deliver({"id": "evt-1"})).status_code == 200
    assert await backend.rows("SELECT * FROM chat_sessions") == []


async def test_later_event_touches_the_same_session(backend: InProcess) -> None:
    """A peer has one session: its time is updated, and it keeps its agent if the event names none."""
    talk = {"channel": "webchat", "peer_id": "p"}
    await backend.deliver({"id": "1", **talk, "agent_id": "a"})
    await backend.rows("UPDATE chat_sessions SET updated_at = now() - interval '1 day'")
    await backend.deliver({"id": "2", **talk})
    [session] = await backend.rows("SELECT *, now() - updated_at AS age FROM chat_sessions")
    assert session["age"].total_seconds() < 60
    assert session["agent_id"] == "a"


async def test_repeat_is_a_duplicate_stored_once(backend: InProcess) -> None:
    """A repeat is a success without an effect."""
    first = await backend.deliver({"id": "evt-1", "n": 1})
    again = await backend.deliver({"id": "evt-1", "n": 2})
    assert (first.json(), again.json()) == ({"duplicate": False}, {"duplicate": True})
    assert again.status_code == 200
    [stored] = await backend.rows("SELECT payload FROM inbound_events")
    assert stored["payload"]["n"] == 1
    assert len(await backend.entries("webhook.received")) == 1
    assert await failures(backend) == 0


async def test_concurrent_repeats_are_stored_once(backend: InProcess) -> None:
    """Of twenty deliveries of one event at once, one is the first."""
    event = {"id": "evt-1", "channel": "telegram", "peer_id": "42"}
    answers = await asyncio.gather(*(backend.deliver(event) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["duplicate"] for answer in answers) == [False, *[True] * 19]
    assert len(await backend.rows("SELECT id FROM inbound_events")) == 1
    assert len(await backend.entries("webhook.received")) == 1


async def test_concurrent_events_of_one_peer_share_its_session(backend: InProcess) -> None:
    """Different events at the same time make one session."""
    talk = {"channel": "telegram", "peer_id": "42"}
    answers = await asyncio.gather(*(backend.deliver({"id": f"{n}", **talk}) for n in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(await backend.rows("SELECT id FROM chat_sessions")) == 1


@pytest.mark.parametrize(
    ("signing", "code"),
    [
        ({"secret": "forged"}, "bad_signature"),
        ({"timestamp": time.time() - 400}, "stale_timestamp"),
        ({"timestamp": time.time() + 86_400}, "stale_timestamp"),
        ({"timestamp": "soon"}, "bad_timestamp"),
    ],
)
async def test_forged_and_stale_deliveries_are_401_and_count(
    backend: InProcess, signing: dict[str, Any], code: str
) -> None:
    """They are refused, counted and not stored."""
    answer = await backend.deliver({"id": "evt-1"}, **signing)
    assert refusal(answer) == (401, code)
    assert await backend.rows("SELECT id FROM inbound_events") == []
    assert await failures(backend) == 1


@pytest.mark.parametrize("missing", ["X-Webhook-Timestamp", "X-Webhook-Signature"])
async def test_delivery_without_a_header_is_401_and_counts(backend: InProcess, missing: str) -> None:
    """Both headers are needed."""
    headers = {name: value for name, value in sign(b"{}").items() if name != missing}
    answer = await backend.client.post("/api/webhooks/moltbot", content=b"{}", headers=headers)
    assert answer.status_code == 401
    assert missing in answer.json()["error"]["message"]
    assert await failures(backend) == 1


@pytest.mark.parametrize("doubled", ["X-Webhook-Timestamp", "X-Webhook-Signature"])
async def test_delivery_with_a_header_twice_is_401_and_counts(backend: InProcess, doubled: str) -> None:
    """Also if both values are the same, and in either order."""
    good = sign(b'{"id":"evt-1"}')
    right, wrong = good[doubled], f"{good[doubled]}0"
    for count, pair in enumerate([(right, right), (right, wrong), (wrong, right)], start=1):
        headers = [(name, value) for name, value in good.items() if name != doubled]
        headers += [(doubled, value) for value in pair]
        answer = await backend.client.post(
            "/api/webhooks/moltbot", content=b'{"id":"evt-1"}', headers=headers
        )
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (401, "duplicate_header")
        assert doubled in error["message"]
        assert await failures(backend) == count
    assert await backend.rows("SELECT id FROM inbound_events") == []


async def test_malformed_events_are_400_and_count(backend: InProcess) -> None:
    """The sender's fault, reported with the request id and nothing internal."""
    malformed = [
        b"",
        b"not json",
        b'{"id":NaN}',
        b'{"id":"1","n":NaN}',
        b'{"id":"1","n":1e999}',
        b'{"id":"1","n":1e-20000}',  # more digits than jsonb stores
        b'{"id":5}',
        b"{}",
        b'["id"]',
        b'{"id":"1","text":"\\u0000"}',
        b'{"id":"1","text":"\\ud800"}',
        b'{"id":"1","text":"\xff"}',
        b'{"id":"' + b"x" * 201 + b'"}',
        b'{"id":"1","deep":' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"id":"1","deep":' + b"[" * 200_000,
        b'{"id":"1","channel":"fax","peer_id":"1"}',
        b'{"id":"1","channel":"telegram"}',
    ]
    for count, body in enumerate(malformed, start=1):
        answer = await backend.deliver(body)
        error = answer.json()["error"]
        assert (answer.status_code, await failures(backend)) == (400, count), body[:40]
        assert error["code"] in {"invalid_json", "invalid_request"}
        assert error["requestId"] == answer.headers["X-Request-ID"]
        assert "Traceback" not in answer.text
    assert await backend.rows("SELECT id FROM inbound_events") == []


async def test_unknown_source_is_404_without_a_series(backend: InProcess) -> None:
    """A source that is not configured is refused, even with a valid signature."""
    answer = await backend.deliver({"id": "evt-1"}, source="stranger")
    assert refusal(answer) == (404, "unknown_source")
    assert await failures(backend, "stranger") is None


async def test_body_over_the_limit_is_413_and_counts(backend: InProcess) -> None:
    """Also if it is signed."""
    answer = await backend.deliver(b'{"id":"1","fill":"' + b"x" * 1024 * 1024 + b'"}')
    assert refusal(answer) == (413, "body_too_large")
    assert await failures(backend) == 1
    samples = await backend.scrape()
    route = "/api/webhooks/{source}"
    assert samples.get("http_requests_total", method="POST", route=route, status="413") == 1


async def test_other_sources_event_of_the_same_id_is_409(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """An id belongs to the source that used it first: another's event is not taken for a repeat."""
    environ = environment(database_urls, tmp_path, WEBHOOK_SECRETS=f"moltbot={SECRET},other=second")
    async with in_process(environ, database_urls) as backend:
        assert (await backend.deliver({"id": "evt-1"})).status_code == 200
        answer = await backend.deliver({"id": "evt-1"}, source="other", secret="second")
        assert refusal(answer) == (409, "event_id_taken")
        assert await failures(backend, "other") == 1
        assert await failures(backend, "moltbot") == 0


async def test_both_secrets_of_a_rotation_are_valid(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The old and the new secret sign."""
    environ = environment(database_urls, tmp_path, WEBHOOK_SECRETS="moltbot=new,moltbot=old")
    async with in_process(environ, database_urls) as backend:
        assert (await backend.deliver({"id": "1"}, secret="new")).status_code == 200
        assert (await backend.deliver({"id": "2"}, secret="old")).status_code == 200
        assert (await backend.deliver({"id": "3"}, secret="older")).status_code == 401


async def test_event_is_rolled_back_if_its_audit_entry_fails(backend: InProcess) -> None:
    """Without the entry there is no event and no session."""
    await backend.refuse_audit("action <> 'webhook.received'")
    answer = await backend.deliver({"id": "evt-1", "channel": "telegram", "peer_id": "42"})
    assert refusal(answer) == (500, "internal_error")
    assert "broken" not in answer.text
    assert await backend.rows("SELECT id FROM inbound_events") == []
    assert await backend.rows("SELECT id FROM chat_sessions") == []
    assert await failures(backend) == 1


async def test_other_methods_are_no_deliveries(backend: InProcess) -> None:
    """They are 405 and no failure of the source."""
    answer = await backend.client.get("/api/webhooks/moltbot")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert await failures(backend) == 0


async def test_source_is_found_with_a_trailing_slash(backend: InProcess) -> None:
    """A slash changes neither the route nor the count."""
    answer = await backend.client.post(
        "/api//webhooks/moltbot/", content=b"{}", headers=sign(b"{}", secret="x")
    )
    assert answer.status_code == 401
    assert await failures(backend) == 1


async def test_nothing_of_the_peer_is_in_the_audit_log(backend: InProcess) -> None:
    """The audit log is kept forever."""
    peer = unique("peer")
    await backend.deliver({"id": "evt-1", "channel": "whatsapp", "peer_id": peer})
    assert await backend.rows("SELECT id FROM audit_log WHERE audit_log::text LIKE %s", f"%{peer}%") == []
