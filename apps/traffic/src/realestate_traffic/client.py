"""A client of the service: signs, sends, and counts every response."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from realestate.signatures import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign

if TYPE_CHECKING:
    from collections.abc import Mapping

    from realestate_traffic.tally import Tally

_WEBHOOK_ROUTE: Final = "/api/webhooks/{source}"
_TOOL_ROUTE: Final = "/api/tools/{tool}"
_KNOWN_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """The bearer token, and one secret per webhook source."""

    service_token: str
    webhook_secrets: Mapping[str, str]


class Client:
    """Sends requests and counts their responses in `tally`."""

    def __init__(self, http: httpx.AsyncClient, credentials: Credentials, tally: Tally) -> None:
        self._http = http
        self.credentials = credentials
        self.tally = tally

    async def send(
        self, method: str, path: str, *, route: str, body: Any = None, token: bool = True, **options: Any
    ) -> httpx.Response | None:
        """Send one request.

        Args:
            method: HTTP method.
            path: Path and query.
            route: The template under which the service should count it.
            body: Sent as JSON; `content=` sends bytes.
            token: Whether to send the service's token.
            **options: Options of httpx.

        Returns:
            The response, or None without one, which makes the comparison inexact.
        """
        headers = {**options.pop("headers", {})}
        if token:
            headers["Authorization"] = f"Bearer {self.credentials.service_token}"
        if body is not None:
            options["json"] = body
        began = time.perf_counter()
        try:
            response = await self._http.request(method, path, headers=headers, **options)
        except httpx.HTTPError as error:
            self.tally.unanswered[type(error).__name__] += 1
            return None
        counted = method if method in _KNOWN_METHODS else "_OTHER"
        self.tally.answered(counted, route, response.status_code, time.perf_counter() - began)
        return response

    async def deliver(
        self, source: str, content: bytes, *, age: int = 0, secret: str | None = None
    ) -> httpx.Response | None:
        """Deliver a webhook.

        Args:
            source: Its source.
            content: The raw body.
            age: Seconds since the claimed time of signing.
            secret: Signs it; default the source's secret.
        """
        timestamp = str(int(time.time()) - age)
        secret = secret or self.credentials.webhook_secrets[source]
        headers = {
            "Content-Type": "application/json",
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: sign(secret, timestamp, content),
        }
        path = f"/api/webhooks/{source}"
        response = await self.send(
            "POST", path, route=_WEBHOOK_ROUTE, token=False, headers=headers, content=content
        )
        if response is not None:
            self.tally.webhook(source, response.status_code)
        return response

    async def call(self, tool: str, arguments: Any, *, token: bool = True) -> dict[str, Any]:
        """Call a tool and return its result; empty if it was refused."""
        path = f"/api/tools/{tool}"
        response = await self.send("POST", path, route=_TOOL_ROUTE, body=arguments, token=token)
        if response is None:
            return {}
        self.tally.tool(tool, response.status_code)
        result: dict[str, Any] = response.json().get("result") or {}
        return result

    async def pair(self, channel: str, step: str, **body: str) -> dict[str, Any]:
        """Run a step of pairing (`request` or `confirm`) and return the response."""
        route = f"/api/pairing/{{channel}}/{step}"
        response = await self.send("POST", f"/api/pairing/{channel}/{step}", route=route, body=body)
        if response is None:
            return {}
        self.tally.pairing(channel, response.status_code)
        response_body: dict[str, Any] = response.json()
        return response_body


def encode(event: Mapping[str, Any]) -> bytes:
    """Return an event's body."""
    return json.dumps(event, separators=(",", ":")).encode()
