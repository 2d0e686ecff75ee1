"""What clients do: correct, mistaken and hostile requests."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from realestate.monitoring import CHANNELS, TOOLS
from realestate_traffic.client import encode

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from realestate_traffic.client import Client

_STREETS: Final = ("KN 3 Ave", "KG 7 Ave", "KK 15 Rd", "KN 5 Rd", "KG 11 St")
_KINDS: Final = ("apartment", "house", "land", "commercial")
_PROBED: Final = (
    "wp-login.php",
    ".env",
    "admin",
    "phpmyadmin",
    "actuator/env",
    "cgi-bin/luci",
    ".git/config",
)
_TOO_LARGE: Final = 1024 * 1024 + 1
_SEARCH_ROUTE: Final = "/api/listings/search"


class Scenarios:
    """The actions of clients. Every choice uses `rng`, so that a seed repeats a run."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        # New in each run, unlike the rng: the database has the events and peers of earlier runs.
        self._run = secrets.token_hex(4)
        self._number = 0
        self._sent: list[tuple[str, bytes]] = []
        self._listings: list[str] = []
        self.good: Mapping[Callable[[], Awaitable[None]], int] = {
            self.webhook: 30,
            self.replay: 6,
            self.browse: 14,
            self.publish: 6,
            self.ask_tools: 16,
            self.pair: 6,
            self.probe: 2,
        }
        self.faults: Mapping[Callable[[], Awaitable[None]], int] = {
            self.forge: 8,
            self.deliver_garbage: 6,
            self.deliver_from_unknown_source: 3,
            self.deliver_too_much: 1,
            self.misuse_tools: 8,
            self.guess_codes: 8,
            self.submit_invalid: 6,
            self.scan: 12,
        }

    async def webhook(self) -> None:
        """A new event, half of them for a chat session."""
        event: dict[str, Any] = {"id": self._new("event"), "type": "message", "data": {"text": "Muraho"}}
        session = None
        if self._rng.random() < 0.5:
            session = (self._rng.choice(CHANNELS), f"peer-{self._run}-{self._rng.randrange(200)}")
            event |= {"channel": session[0], "peer_id": session[1]}
        source, content = self._source(), encode(event)
        response = await self._client.deliver(source, content)
        if response is not None and response.is_success:
            self._sent = [*self._sent[-99:], (source, content)]
            if session:
                self._client.tally.sessions.add(session)

    async def replay(self) -> None:
        """A repeated event, as from a sender that missed the response."""
        if not self._sent:
            await self.webhook()
            return
        source, content = self._rng.choice(self._sent)
        await self._client.deliver(source, content)

    async def forge(self) -> None:
        """A wrong signature, or an old one."""
        source, content = self._source(), encode({"id": self._new("forged")})
        if self._rng.random() < 0.5:
            await self._client.deliver(source, content, secret="guessed")  # noqa: S106 - a wrong one
        else:
            await self._client.deliver(source, content, age=3600)

    async def deliver_garbage(self) -> None:
        """A signed body that is not an event."""
        bodies = (b"{", b'{"id": NaN}', b"[]", b'{"id": 7}', b'{"id": "x\\u0000"}', b"\xff\xfe", b"")
        await self._client.deliver(self._source(), self._rng.choice(bodies))

    async def deliver_from_unknown_source(self) -> None:
        """A source that is not configured."""
        await self._client.deliver(f"unknown{self._rng.randrange(1000)}", b"{}", secret="x")  # noqa: S106 - a wrong one

    async def deliver_too_much(self) -> None:
        """A body over the limit."""
        await self._client.deliver(self._source(), b" " * _TOO_LARGE)

    async def browse(self) -> None:
        """A visitor searches and opens some results."""
        query = f"?type={self._rng.choice(_KINDS)}&limit=5"
        response = await self._client.send("GET", f"{_SEARCH_ROUTE}{query}", route=_SEARCH_ROUTE, token=False)
        found = response.json()["listings"] if response is not None and response.is_success else []
        for listing in found[:2]:
            await self._open(listing["id"], token=False)

    async def publish(self) -> None:
        """An agent submits a listing, and an operator publishes it."""
        key = {"Idempotency-Key": self._new("key")}
        response = await self._client.send(
            "POST", "/api/listings", route="/api/listings", body=self._draft(), headers=key
        )
        if response is None or not response.is_success:
            return
        listing = response.json()["id"]
        self._listings = [*self._listings[-99:], listing]
        for decision in ("approve", "publish"):
            await self._client.call("admin.decision", {"listing_id": listing, "decision": decision})
        await self._open(listing, token=True)

    async def ask_tools(self) -> None:
        """An agent calls one of the tools."""
        tool = self._rng.choice(TOOLS[:4])
        arguments: dict[str, Any] = {}
        if tool in {"listing.validate", "listing.dedupe"}:
            arguments = {"listing": self._draft()}
        elif tool == "listing.search":
            arguments = {"type": self._rng.choice(_KINDS), "limit": 10}
        await self._client.call(tool, arguments)

    async def misuse_tools(self) -> None:
        """Invalid arguments, decisions that are not allowed, unknown tools, no token."""
        calls: tuple[tuple[str, Any, bool], ...] = (
            ("listing.dedupe", {"listing": {"title": 7}}, True),
            ("listing.search", {"limit": 10_000}, True),
            ("listing.validate", [], True),
            ("admin.decision", {"listing_id": "none", "decision": "approve"}, True),
            ("listing.demolish", {}, True),
            ("admin.review-queue", {}, False),
        )
        tool, arguments, token = self._rng.choice(calls)
        if self._listings and self._rng.random() < 0.3:
            tool, token = "admin.decision", True
            arguments = {"listing_id": self._rng.choice(self._listings), "decision": "review"}
        await self._client.call(tool, arguments, token=token)

    async def pair(self) -> None:
        """A peer requests a code and the operator confirms it."""
        channel, peer = self._rng.choice(CHANNELS), self._new("peer")
        response = await self._client.pair(channel, "request", peer_id=peer)
        if "code" in response:
            await self._client.pair(channel, "confirm", peer_id=peer, code=response["code"])

    async def guess_codes(self) -> None:
        """Wrong codes, sometimes until the lock-out."""
        channel, peer = self._rng.choice(CHANNELS), self._new("victim")
        await self._client.pair(channel, "request", peer_id=peer)
        for _ in range(self._rng.choice((1, 1, 1, 2, 7))):
            await self._client.pair(channel, "confirm", peer_id=peer, code="WRONGCODE")

    async def submit_invalid(self) -> None:
        """An invalid listing, or an unknown id."""
        route = "/api/listings"
        bad: tuple[Any, ...] = (
            {"title": ""},
            {**self._draft(), "price_amount": -1},
            {**self._draft(), "lat": 123},
            [],
            "text",
        )
        if self._rng.random() < 0.3:
            await self._open("00000000-0000-4000-8000-000000000000", token=False)
        elif self._rng.random() < 0.3:
            nan = b'{"title":"x","type":"house","price_amount":NaN}'
            headers = {"Content-Type": "application/json"}
            await self._client.send("POST", route, route=route, content=nan, headers=headers)
        else:
            await self._client.send("POST", route, route=route, body=self._rng.choice(bad))

    async def scan(self) -> None:
        """A scanner: unknown paths and methods."""
        path = f"/{self._rng.choice(_PROBED)}?{self._rng.randrange(10**9)}"
        if self._rng.random() < 0.7:
            path = f"/{self._rng.randrange(10**12):x}/{self._rng.randrange(10**6)}"
        method = self._rng.choice(("GET", "GET", "GET", "POST", "PROPFIND", "DELETE"))
        await self._client.send(method, path, route="unmatched", token=False)

    async def probe(self) -> None:
        """An orchestrator's probes."""
        for path in ("/health", "/readyz"):
            await self._client.send("GET", path, route=path, token=False)

    async def _open(self, listing: str, *, token: bool) -> None:
        path, route = f"/api/listings/{listing}", "/api/listings/{listing_id}"
        await self._client.send("GET", path, route=route, token=token)

    def _draft(self) -> dict[str, Any]:
        rng = self._rng
        return {
            "title": f"Inzu {rng.randrange(10**6)}, {rng.choice(_STREETS)}",
            "type": rng.choice(_KINDS),
            "price_amount": rng.randrange(5, 500) * 1_000_000,
            "bedrooms": rng.randrange(1, 7),
            "address_text": f"{rng.choice(_STREETS)}, Kigali",
            "lat": round(-1.95 + rng.uniform(-0.05, 0.05), 6),
            "lng": round(30.06 + rng.uniform(-0.05, 0.05), 6),
        }

    def _source(self) -> str:
        return self._rng.choice(sorted(self._client.credentials.webhook_secrets))

    def _new(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._run}-{self._number}"
