import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from realestate.monitoring import TOOL_STATUSES, TOOLS
from support.backend import AUTHORIZED, TOKEN, InProcess, environment, in_process, refusal
from support.postgres import DatabaseUrls

HOUSE: dict[str, Any] = {
    "title": "House in Kigali",
    "type": "house",
    "price_amount": 85_000_000,
    "bedrooms": 3,
    "lat": -1.9441,
    "lng": 30.0619,
}


async def create(backend: InProcess, **changes: Any) -> str:
    """Submit a listing, and return its id."""
    answer = await backend.client.post("/api/listings", json={**HOUSE, **changes}, headers=AUTHORIZED)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def decide(backend: InProcess, listing: str, decision: str, **more: str) -> tuple[int, Any]:
    """Make a decision, and return the status and the result."""
    answer = await backend.call("admin.decision", {"listing_id": listing, "decision": decision, **more})
    body = answer.json()
    return answer.status_code, body["result"] if answer.is_success else body["error"]["code"]


async def calls(backend: InProcess, tool: str) -> dict[str, float | None]:
    """Return `tool_calls_total` of a tool."""
    samples = await backend.scrape()
    return {status: samples.get("tool_calls_total", tool=tool, status=status) for status in TOOL_STATUSES}


async def test_validate_finds_everything_wrong(backend: InProcess) -> None:
    """The call about an invalid listing is ok."""
    answer = await backend.call("listing.validate", {"listing": {"type": "castle", "price_amount": -1}})
    assert (answer.status_code, answer.json()["status"], answer.json()["tool"]) == (
        200,
        "ok",
        "listing.validate",
    )
    result = answer.json()["result"]
    assert result["valid"] is False
    assert [problem["field"] for problem in result["problems"]] == ["title", "type", "price_amount"]
    assert (await backend.call("listing.validate", {"listing": HOUSE})).json()["result"]["valid"] is True


async def test_dedupe_finds_what_is_probably_the_same(backend: InProcess) -> None:
    """The same title, or a place next door with similar price and rooms."""
    same = await create(backend, title="HOUSE  in kigali")
    titled = await create(backend, lat=0.0, lng=0.0, price_amount=1, bedrooms=None)
    near = await create(backend, title="Another", lat=-1.9442, lng=30.0620)
    await create(backend, title="Far away", lat=-1.5, lng=30.0)
    await create(backend, type="apartment")
    answer = await backend.call("listing.dedupe", {"listing": HOUSE})
    found = {one["id"]: (one["score"], one["reasons"]) for one in answer.json()["result"]["duplicates"]}
    # With two spaces the index does not match the title, but the place does, and the score compares words.
    assert found == {
        same: (1.0, ["title", "place", "price", "bedrooms"]),
        titled: (0.5, ["title"]),
        near: (0.5, ["place", "price", "bedrooms"]),
    }


async def test_dedupe_without_a_place_goes_by_title(backend: InProcess) -> None:
    """It is compared by its title, in any case."""
    same = await create(backend, title="house in KIGALI")
    draft = {name: value for name, value in HOUSE.items() if name not in {"lat", "lng"}}
    answer = await backend.call("listing.dedupe", {"listing": draft})
    assert [one["id"] for one in answer.json()["result"]["duplicates"]] == [same]


async def test_search_sees_all_statuses(backend: InProcess) -> None:
    """Agents find listings that are not published, and may filter by status."""
    draft, submitted = await create(backend, status="draft"), await create(backend)
    everything = await backend.call("listing.search", {"type": "house"})
    assert [one["id"] for one in everything.json()["result"]["listings"]] == [submitted, draft]
    drafts = await backend.call("listing.search", {"status": "draft"})
    assert [one["id"] for one in drafts.json()["result"]["listings"]] == [draft]


async def test_review_queue_is_oldest_first(backend: InProcess) -> None:
    """Drafts are not in it; no arguments are needed."""
    first, second = await create(backend), await create(backend)
    await create(backend, status="draft")
    await decide(backend, second, "review")
    answer = await backend.client.post("/api/tools/admin.review-queue", headers=AUTHORIZED)
    assert [one["id"] for one in answer.json()["result"]["listings"]] == [first, second]
    assert len((await backend.call("admin.review-queue", {"limit": 1})).json()["result"]["listings"]) == 1


async def test_listing_goes_from_draft_to_archived(backend: InProcess) -> None:
    """One decision after the other."""
    listing = await create(backend, status="draft")
    for decision, status in [
        ("submit", "submitted"),
        ("review", "under_review"),
        ("approve", "approved"),
        ("publish", "published"),
        ("archive", "archived"),
    ]:
        code, result = await decide(backend, listing, decision)
        assert (code, result) == (200, {"listing_id": listing, "status": status, "changed": True})
    entries = [entry["payload"] for entry in await backend.entries("tool.admin.decision")]
    assert entries[0] == {"status": "ok", "decision": "submit", "from": "draft", "to": "submitted"}
    assert [entry["to"] for entry in entries][-1] == "archived"


async def test_same_decision_again_changes_nothing(backend: InProcess) -> None:
    """A repeat after a lost response is ok, and says that nothing changed."""
    listing = await create(backend)
    assert await decide(backend, listing, "approve") == (
        200,
        {"listing_id": listing, "status": "approved", "changed": True},
    )
    assert (await decide(backend, listing, "approve"))[1]["changed"] is False


async def test_concurrent_decisions_are_serialized(backend: InProcess) -> None:
    """Of an approval and a rejection at the same time, one is not allowed."""
    listing = await create(backend)
    outcomes = await asyncio.gather(
        *(decide(backend, listing, "approve") for _ in range(5)),
        *(decide(backend, listing, "reject", reason="a copy") for _ in range(5)),
    )
    assert sorted(code for code, _ in outcomes) == [200] * 5 + [409] * 5
    assert sum(result["changed"] for code, result in outcomes if code == 200) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"decision": "publish"}, (409, "decision_not_allowed")),
        ({"decision": "reject"}, (400, "reason_required")),
        ({"decision": "delete"}, (400, "invalid_request")),
        ({"listing_id": "x", "decision": "approve"}, (400, "invalid_request")),
        (
            {"listing_id": "00000000-0000-4000-8000-000000000000", "decision": "approve"},
            (404, "unknown_listing"),
        ),
    ],
)
async def test_decision_that_is_not_allowed_is_rejected(
    backend: InProcess, arguments: dict[str, str], expected: tuple[int, str]
) -> None:
    """It changes nothing, counts as rejected, and has an audit entry with the reason."""
    listing = await create(backend)
    answer = await backend.call("admin.decision", {"listing_id": listing, **arguments})
    assert refusal(answer) == expected
    assert await calls(backend, "admin.decision") == {"ok": 0, "rejected": 1, "error": 0}
    [entry] = await backend.entries("tool.admin.decision")
    assert entry["payload"] == {"status": "rejected", "code": expected[1]}
    [stored] = await backend.rows("SELECT status FROM listings")
    assert stored["status"] == "submitted"


async def test_rejected_decision_names_its_listing(backend: InProcess) -> None:
    """The audit entries of a listing include the rejected calls."""
    listing = await create(backend)
    await decide(backend, listing, "publish")
    [entry] = await backend.entries("tool.admin.decision")
    assert (entry["entity"], entry["entity_id"]) == ("listings", listing)


async def test_every_call_has_its_entry_count_and_duration(backend: InProcess) -> None:
    """One call of each tool: one audit entry, one count, one observation."""
    listing = await create(backend)
    arguments: dict[str, Any] = {
        "listing.validate": {"listing": HOUSE},
        "listing.dedupe": {"listing": HOUSE},
        "listing.search": {},
        "admin.review-queue": {},
        "admin.decision": {"listing_id": listing, "decision": "approve"},
    }
    for tool in TOOLS:
        answer = await backend.call(tool, arguments[tool], **{"X-Agent-Id": "agent:7"})
        assert answer.status_code == 200, answer.text
    samples = await backend.scrape()
    for tool in TOOLS:
        assert samples.get("tool_calls_total", tool=tool, status="ok") == 1
        assert samples.get("tool_call_duration_ms_count", tool=tool) == 1
        [entry] = await backend.entries(f"tool.{tool}")
        assert (entry["actor_type"], entry["actor_id"]) == ("agent", "agent:7")
        assert entry["payload"]["status"] == "ok"


async def test_bad_arguments_are_rejected(backend: InProcess) -> None:
    """Malformed, unknown and wrongly typed arguments are 400, counted as rejected and audited."""
    url = "/api/tools/listing.search"
    bodies = [
        b"{",
        b"[]",
        b'{"colour":"red"}',
        b'{"limit":"5"}',
        b'{"limit":0}',
        b'{"south":1}',
        b'{"cursor":"x"}',
    ]
    bodies += [b'{"price_min":2,"price_max":1}', b"[" * 100_000]
    for body in bodies:
        answer = await backend.client.post(url, content=body, headers=AUTHORIZED)
        assert answer.status_code == 400, body[:40]
    assert (await calls(backend, "listing.search"))["rejected"] == len(bodies)
    entries = await backend.entries("tool.listing.search")
    assert {entry["payload"]["status"] for entry in entries} == {"rejected"}
    assert len(entries) == len(bodies)


async def test_arguments_over_the_limit_are_rejected(backend: InProcess) -> None:
    """A body that is too large is a rejected call of the agent."""
    answer = await backend.call("listing.validate", {"listing": {"title": "x" * 1024 * 1024}})
    assert answer.status_code == 413
    assert (await calls(backend, "listing.validate"))["rejected"] == 1


async def test_invalid_agent_id_is_rejected(backend: InProcess) -> None:
    """The audit log does not take every header for a name."""
    for agent in ("", "two words", "x" * 129, "-dash", "line\tbreak"):
        answer = await backend.call("listing.search", **{"X-Agent-Id": agent})
        assert refusal(answer) == (400, "invalid_agent_id"), agent
    entries = await backend.entries("tool.listing.search")
    assert [entry["actor_id"] for entry in entries] == ["unknown"] * 5


async def test_caller_without_the_token_is_401_and_no_tool_call(backend: InProcess) -> None:
    """No count, no audit entry, and a challenge."""
    credentials = ["Bearer wrong", "Bearer", "Basic dGVzdDp0ZXN0", TOKEN, f"Token {TOKEN}", "Bearer \xff"]
    for given in [{}, *({"Authorization": one} for one in credentials)]:
        headers = httpx.Headers(given, encoding="latin-1")
        answer = await backend.client.post("/api/tools/listing.search", json={}, headers=headers)
        assert refusal(answer) == (401, "unauthorized"), headers
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert await calls(backend, "listing.search") == dict.fromkeys(TOOL_STATUSES, 0)
    assert await backend.rows("SELECT id FROM audit_log") == []


async def test_unknown_tool_is_404_without_a_series(backend: InProcess) -> None:
    """A tool that does not exist makes no series and no entry."""
    before = (await backend.scrape()).series("tool_calls_total", "tool_call_duration_ms_count")
    answer = await backend.call("listing.destroy")
    assert refusal(answer) == (404, "unknown_tool")
    after = (await backend.scrape()).series("tool_calls_total", "tool_call_duration_ms_count")
    assert after == before
    assert await backend.rows("SELECT id FROM audit_log") == []


async def test_decision_is_rolled_back_if_its_audit_entry_fails(backend: InProcess) -> None:
    """They are one transaction; the call counts as an error."""
    listing = await create(backend)
    await backend.refuse_audit("payload ->> 'decision' IS NULL")
    answer = await backend.call("admin.decision", {"listing_id": listing, "decision": "approve"})
    assert refusal(answer) == (500, "internal_error")
    [stored] = await backend.rows("SELECT status FROM listings")
    assert stored["status"] == "submitted"
    assert await calls(backend, "admin.decision") == {"ok": 0, "rejected": 0, "error": 1}
    [entry] = await backend.entries("tool.admin.decision")
    assert entry["payload"] == {"status": "error", "code": "internal_error"}


async def test_tools_refuse_without_a_configured_token(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    """The service says that it has no token."""
    async with in_process(environment(database_urls, tmp_path, SERVICE_TOKEN=""), database_urls) as backend:
        for headers in ({}, AUTHORIZED, {"Authorization": "Bearer "}):
            answer = await backend.client.post("/api/tools/listing.search", json={}, headers=headers)
            assert refusal(answer) == (503, "not_configured")
        assert await calls(backend, "listing.search") == dict.fromkeys(TOOL_STATUSES, 0)
