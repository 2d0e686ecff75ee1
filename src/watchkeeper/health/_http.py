"""The check of another service over HTTP."""

from __future__ import annotations

import asyncio
import base64
import codecs
import importlib.util
from datetime import timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import msgspec

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.health._checks import UnhealthyError
from watchkeeper.logs import trace_headers

if TYPE_CHECKING:
    import httpx

_MAX_BODY_BYTES: Final = 1 << 20
_HTML_TYPES: Final = frozenset(("text/html", "application/xhtml+xml"))
_HTML_STARTS: Final = (b"<!doctype html", b"<html")


class HttpCheck:
    """Checks another service by a GET request.

    Healthy means: status 2xx, not HTML (a single-page app answers every path with its page), and if a JSON
    body has `ok`, it is true. Redirects are not followed, proxies of the environment are not used, the trace
    headers of the current request are sent, and at most 1 MiB is read.

    Args:
        name: The key in the response of `/health/detailed`.
        url: The URL; a user and password in it are sent as Basic authorization.
        timeout: Limit for the whole check; default 1 s.
    """

    def __init__(self, name: str, url: str, *, timeout: timedelta = timedelta(seconds=1)) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(f"The check {name!r} needs a URL such as http://127.0.0.1:8080/health.")
        if timeout <= timedelta(0):
            raise ConfigurationError(f"The timeout of the check {name!r} must be positive.")
        if importlib.util.find_spec("httpx") is None:
            raise ConfigurationError(f"The check {name!r} needs httpx: install watchkeeper[checks].")
        self.name = name
        self.timeout = timeout
        self._url = url
        self._tls = parts.scheme == "https"
        self._login: dict[str, str] = {}
        if parts.username or parts.password:
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
            self._login["Authorization"] = f"Basic {base64.b64encode(login).decode('ascii')}"
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def aopen(self) -> None:
        """Load httpx and, for TLS, the certificates, which the first check would otherwise load."""
        if self._transport is None:
            self._transport = await asyncio.to_thread(_make_transport, tls=self._tls)

    async def __call__(self) -> None:
        """Make one request; raise `UnhealthyError` or `TimeoutError` unless the service is healthy."""
        import httpx  # noqa: PLC0415 - loaded only where there is such a check

        if self._transport is None:
            self._transport = _make_transport(tls=self._tls)
        seconds = self.timeout.total_seconds()
        request = httpx.Request(
            "GET",
            self._url,
            headers={
                "Accept": "application/json, */*;q=0.5",
                "Accept-Encoding": "identity",
                "User-Agent": "watchkeeper",
                **self._login,
                **trace_headers(),
            },
            extensions={"timeout": httpx.Timeout(seconds).as_dict()},
        )
        async with asyncio.timeout(seconds):
            response = await self._transport.handle_async_request(request)
            try:
                _raise_if_unhealthy(response, await _read(response))
            finally:
                await response.aclose()

    async def aclose(self) -> None:
        """Close the open connections."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            await transport.aclose()


def _make_transport(*, tls: bool) -> httpx.AsyncHTTPTransport:
    import httpx  # noqa: PLC0415 - loaded only where there is such a check

    # A transport instead of a client: no redirects, proxies or cookies, and no log line per request.
    # Without TLS there is nothing to verify: loading the certificates would take about 50 ms.
    return httpx.AsyncHTTPTransport(verify=tls, trust_env=False)


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise UnhealthyError(f"The response is longer than {_MAX_BODY_BYTES} bytes.")
    return bytes(body)


def _raise_if_unhealthy(response: httpx.Response, body: bytes) -> None:
    if not response.is_success:
        raise UnhealthyError(f"The response has the status {response.status_code}.")
    media_type = response.headers.get("content-type", "").split(";")[0].strip().lower()
    start = body[:256].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if media_type in _HTML_TYPES or start.startswith(_HTML_STARTS):
        raise UnhealthyError("The response is an HTML page, not a health report.")
    if not body or not (media_type.endswith("json") or start.startswith(b"{")):
        return
    try:
        report = msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8))
    except msgspec.DecodeError as error:
        raise UnhealthyError("The response is not valid JSON.") from error
    if isinstance(report, dict) and "ok" in report and report["ok"] is not True:
        raise UnhealthyError("The response says that it is not ok.")
