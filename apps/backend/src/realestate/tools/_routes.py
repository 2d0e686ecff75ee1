"""The endpoint of the tools.

A call of a known tool with the token ends as `ok`, `rejected` (4xx) or `error` (5xx), which is counted,
measured and audited. Without the token there is no call: the 401 is in the HTTP metrics only. An unknown tool
is a 404 and makes no series.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from litestar import post
from litestar.params import FromPath

from realestate.auth import require_service_token
from realestate.errors import ApiError, documented, to_api_error
from realestate.openapi import takes_json
from realestate.requests import StrictRequest, decode
from realestate.tools import _admin, _listing
from watchkeeper import audit
from watchkeeper.exceptions import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import AsyncConnection

    from realestate.tools._tool import Result, Tool

TOOLS: Final[Mapping[str, Tool]] = {tool.name: tool for tool in (*_listing.TOOLS, *_admin.TOOLS)}


class Answer(msgspec.Struct, kw_only=True):
    """The response of a tool."""

    tool: str
    status: str = "ok"
    result: Any


@post(
    "/api/tools/{tool:str}",
    status_code=200,
    guards=[require_service_token],
    operation_class=takes_json("The tool's arguments; an empty body means none."),
    responses=documented(400, 401, 404, 408, 409, 413, 503),
)
async def call_tool(request: StrictRequest, tool: FromPath[str]) -> Answer:
    """Call a tool."""
    known = TOOLS.get(tool)
    if known is None:
        raise ApiError(404, "unknown_tool", f"This tool does not exist; there are {', '.join(TOOLS)}.")
    metrics = request.backend.metrics
    started = perf_counter()
    status = "error"
    try:
        result = await _Call(request, known).run()
        status = "ok"
    except ApiError as error:
        status = "rejected" if error.status < 500 else "error"
        raise
    finally:
        metrics.tool_calls.labels(tool=tool, status=status).inc()
        metrics.tool_duration.labels(tool=tool).observe((perf_counter() - started) * 1000)
    return Answer(tool=tool, result=result.value)


class _Call:
    """One call and its audit entry."""

    def __init__(self, request: StrictRequest, tool: Tool) -> None:
        self._request = request
        self._tool = tool
        self._agent = "unknown"  # until the header is read
        self._entity_id: str | None = None

    async def run(self) -> Result:
        """Run the tool; its writes and its audit entry are one transaction."""
        database = self._request.backend.database
        try:
            arguments = await self._read()
            async with database.transaction() as conn:
                result = await self._tool.run(conn, arguments)
                await self._audit(conn, {"status": "ok", **result.audit})
        except Exception as error:
            await self._audit_failure(error)
            raise
        return result

    async def _read(self) -> Any:
        self._agent = self._request.agent
        arguments: Any = decode(await self._request.body() or b"{}", self._tool.arguments)
        listing_id = getattr(arguments, "listing_id", None)
        self._entity_id = None if listing_id is None else str(listing_id)
        return arguments

    async def _audit_failure(self, error: Exception) -> None:
        if isinstance(error, DatabaseUnavailableError):
            return  # no entry can be written, and nothing else was
        api_error = to_api_error(error)
        status = "rejected" if api_error.status < 500 else "error"
        async with self._request.backend.database.transaction() as conn:
            await self._audit(conn, {"status": status, "code": api_error.code})

    async def _audit(self, conn: AsyncConnection[Any], payload: Mapping[str, object]) -> None:
        await audit.append(
            conn,
            actor_type="agent",
            actor_id=self._agent,
            action=f"tool.{self._tool.name}",
            entity="listings",
            entity_id=self._entity_id,
            payload=payload,
        )
