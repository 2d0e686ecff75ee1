import asyncio
from typing import Any
from uuid import UUID

import httpx

from support.backend import AUTHORIZED, InProcess, refusal

HOUSE: dict[str, Any] = {"title": "House in Kigali", "type": "house", "price_amount": 85_000_000}


async def submit(backend: InProcess, key: str | None = None, **changes: Any) -> httpx.Response:
    """Submit a listing."""
    headers = {**AUTHORIZED, **({} if key is None else {"Idempotency-Key": key})}
    return await backend.client.post("/api/listings", json={**HOUSE, **changes}, headers=headers)


async def publish(backend: InProcess, **changes: Any) -> str:
    """Insert a published listing, and return its id."""
    listing = str((await submit(backend, **changes)).json()["id"])
    await backend.rows("UPDATE listings SET status = 'published' WHERE id = %s", listing)
    return listing


async def find(backend: InProcess, **filters: Any) -> list[str]:
    """Search without a token, and return the titles."""
    answer = await backend.client.get("/api/listings/search", params=filters)
    assert answer.status_code == 200, answer.text
    return [one["title"] for one in answer.json()["listings"]]


async def test_listing_is_stored_and_audited(backend: InProcess) -> None:
    """The response has its id, and the audit log has the agent."""
    given: dict[str, Any] = {
        "description": "two\nlines",
        "bedrooms": 3,
        "lat": -1.94,
        "lng": 30.06,
        "price_currency": "USD",
    }
    answer = await submit(backend, **given)
    assert answer.status_code == 201
    listing = answer.json()
    assert answer.headers["Location"] == f"/api/listings/{UUID(listing['id'])}"
    assert {**HOUSE, **given}.items() <= listing.items()
    assert (listing["status"], listing["bathrooms"], listing["address_text"]) == ("submitted", None, "")
    assert listing["created_at"].endswith("Z")
    again = await backend.client.get(answer.headers["Location"], headers=AUTHORIZED)
    assert again.json() == listing
    [entry] = await backend.entries("listing.created")
    assert (entry["actor_type"], entry["actor_id"]) == ("agent", "moltbot")
    assert (entry["entity"], entry["entity_id"]) == ("listings", listing["id"])


async def test_same_key_gives_the_same_listing(backend: InProcess) -> None:
    """A repeat with its Idempotency-Key stores nothing, and says that it is a repeat."""
    first, again = await submit(backend, key="k-1"), await submit(backend, key="k-1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert ("Idempotency-Replayed" in first.headers, again.headers["Idempotency-Replayed"]) == (False, "true")
    assert len(await backend.entries("listing.created")) == 1


async def test_same_key_for_something_else_is_422(backend: InProcess) -> None:
    """A key belongs to one request: another one is not silently dropped."""
    await submit(backend, key="k-1")
    answer = await submit(backend, key="k-1", title="Another")
    assert refusal(answer) == (422, "idempotency_key_reused")
    assert len(await backend.rows("SELECT id FROM listings")) == 1


async def test_concurrent_requests_with_one_key_make_one_listing(backend: InProcess) -> None:
    """Of ten at once one stores the listing, and all return it."""
    answers = await asyncio.gather(*(submit(backend, key="k-1") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await backend.entries("listing.created")) == 1


async def test_unusable_key_is_400(backend: InProcess) -> None:
    """It is refused, not ignored."""
    for key in ("", "x" * 256, "two words", "\xe9"):
        headers = httpx.Headers({**AUTHORIZED, "Idempotency-Key": key}, encoding="latin-1")
        answer = await backend.client.post("/api/listings", json=HOUSE, headers=headers)
        assert refusal(answer) == (400, "invalid_idempotency_key"), key


async def test_writing_needs_the_token(backend: InProcess) -> None:
    """Without the token nothing is stored."""
    answer = await backend.client.post("/api/listings", json=HOUSE)
    assert answer.status_code == 401
    assert await backend.rows("SELECT id FROM listings") == []


async def test_invalid_listing_is_400_and_names_the_field(backend: InProcess) -> None:
    """Nothing is stored."""
    invalid = [
        (b"{}", ""),
        (b'{"title":"a","type":"house","price_amount":"5"}', "price_amount"),
        (b'{"title":"a","type":"house","price_amount":NaN}', ""),
        (b'{"title":"a","type":"house","price_amount":1e400}', "price_amount"),
        (b'{"title":"a","type":"house","price_amount":99999999999999999999}', "price_amount"),
        (b'{"title":"a","type":"castle","price_amount":5}', "type"),
        (b'{"title":"a\\u0000","type":"house","price_amount":5}', "title"),
        (b'{"title":"a","type":"house","price_amount":5,"lat":1}', "lat"),
        (b'{"title":"a","type":"land","price_amount":5,"bedrooms":1}', "bedrooms"),
        (b'{"title":"a","type":"house","price_amount":5,"id":"mine"}', ""),
    ]
    for body, field in invalid:
        answer = await backend.client.post("/api/listings", content=body, headers=AUTHORIZED)
        assert answer.status_code == 400, body
        assert [problem["field"] for problem in answer.json()["error"]["details"]] == [field], body
    assert await backend.rows("SELECT id FROM listings") == []


async def test_listing_is_rolled_back_if_its_audit_entry_fails(backend: InProcess) -> None:
    """There is no listing without an entry."""
    await backend.refuse_audit("action <> 'listing.created'")
    assert (await submit(backend)).status_code == 500
    assert await backend.rows("SELECT id FROM listings") == []


async def test_reading_without_the_token_shows_published_listings(backend: InProcess) -> None:
    """Other listings are visible with the token only."""
    hidden = (await submit(backend, title="Hidden")).json()["id"]
    shown = await publish(backend, title="Shown")
    assert await find(backend) == ["Shown"]
    assert await find(backend, status="submitted") == []
    assert (await backend.client.get(f"/api/listings/{shown}")).status_code == 200
    assert (await backend.client.get(f"/api/listings/{hidden}")).status_code == 404
    everything = await backend.client.get("/api/listings/search", headers=AUTHORIZED)
    assert [one["title"] for one in everything.json()["listings"]] == ["Shown", "Hidden"]


async def test_two_tokens_are_401(backend: InProcess) -> None:
    """Also where no token is needed, and whichever of them is right."""
    right, wrong = ("Authorization", AUTHORIZED["Authorization"]), ("Authorization", "Bearer wrong")
    for headers in ([right, right], [right, wrong], [wrong, right]):
        search = await backend.client.get("/api/listings/search", headers=headers)
        handed_in = await backend.client.post("/api/listings", json=HOUSE, headers=headers)
        for answer in (search, handed_in):
            assert answer.status_code == 401
            assert "more than once" in answer.json()["error"]["message"]
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await backend.rows("SELECT id FROM listings") == []


async def test_two_headers_are_400(backend: InProcess) -> None:
    """A key or an agent that is sent twice is not used."""
    for name in ("Idempotency-Key", "X-Agent-Id"):
        headers = [*AUTHORIZED.items(), (name, "first"), (name, "second")]
        answer = await backend.client.post("/api/listings", json=HOUSE, headers=headers)
        assert refusal(answer) == (400, "duplicate_header"), name
    assert await backend.rows("SELECT id FROM listings") == []


async def test_wrong_token_is_401_where_none_is_needed(backend: InProcess) -> None:
    """A wrong credential is refused, not ignored."""
    wrong = {"Authorization": "Bearer wrong"}
    assert (await backend.client.get("/api/listings/search", headers=wrong)).status_code == 401


async def test_filters_narrow_the_search(backend: InProcess) -> None:
    """Each filter excludes what does not match, and they combine."""
    await publish(backend, title="Cheap flat", type="apartment", price_amount=10, bedrooms=1)
    await publish(
        backend, title="Villa", price_amount=500, bedrooms=5, lat=-1.95, lng=30.06, address_text="KG 7 Ave"
    )
    await publish(backend, title="100% lake_side", type="land", price_amount=90, price_currency="USD")
    assert await find(backend, type="apartment") == ["Cheap flat"]
    assert await find(backend, text="kg 7") == ["Villa"]
    assert await find(backend, text="100%") == ["100% lake_side"]
    assert await find(backend, text="_") == ["100% lake_side"]
    assert await find(backend, price_min=10, price_max=90) == ["100% lake_side", "Cheap flat"]
    assert await find(backend, currency="USD") == ["100% lake_side"]
    assert await find(backend, bedrooms_min=2) == ["Villa"]
    assert await find(backend, south=-2, north=-1.9, west=30, east=30.1) == ["Villa"]
    assert await find(backend, south=0, north=1, west=30, east=30.1) == []
    assert await find(backend, type="house", price_max=400) == []


async def test_pages_follow_each_other(backend: InProcess) -> None:
    """The cursor returns each listing once, newest first, also with equal times."""
    for number in range(5):
        await publish(backend, title=f"{number}")
    await backend.rows("UPDATE listings SET created_at = now() WHERE title IN ('1', '2', '3')")
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        params: dict[str, Any] = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = (await backend.client.get("/api/listings/search", params=params)).json()
        seen += [one["title"] for one in page["listings"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == ["0", "1", "2", "3", "4"]
    assert set(seen[:3]) == {"1", "2", "3"}
    assert seen[3:] == ["4", "0"]


async def test_unusable_filters_are_400(backend: InProcess) -> None:
    """Wrong types, NaN, reversed bounds and invalid cursors are the caller's fault."""
    for query in [
        "type=castle",
        "limit=0",
        "limit=101",
        "limit=many",
        "price_min=1.5",
        "price_min=-1",
        "south=nan&north=1&west=1&east=1",
        "south=inf&north=1&west=1&east=1",
        "south=1",
        "south=2&north=1&west=1&east=2",
        "text=",
        "text=%00",
        "text=a%0Ab",
        "currency=rwf",
        "status=secret",
        "cursor=x",
        "cursor=%C3%A9",
        "cursor=MjAyNnx4",
    ]:
        answer = await backend.client.get(f"/api/listings/search?{query}")
        assert answer.status_code == 400, query
        assert answer.json()["error"]["code"] == "invalid_request", query


async def test_unknown_listing_is_404(backend: InProcess) -> None:
    """Also for what cannot be an id."""
    for listing in ("00000000-0000-4000-8000-000000000000", "not-an-id", "%00", "1"):
        answer = await backend.client.get(f"/api/listings/{listing}")
        assert refusal(answer) == (404, "not_found"), listing
