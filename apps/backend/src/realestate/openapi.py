"""Adds to the OpenAPI description what Litestar cannot see of an endpoint that reads its own body."""

from __future__ import annotations

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema


def takes_json(description: str) -> type[Operation]:
    """Return the description of an operation whose body is a JSON object."""

    @dataclass
    class TakesJson(Operation):
        def __post_init__(self) -> None:
            schema = Schema(type=OpenAPIType.OBJECT, description=description)
            self.request_body = RequestBody(
                content={"application/json": OpenAPIMediaType(schema=schema)}, required=True
            )

    return TakesJson
