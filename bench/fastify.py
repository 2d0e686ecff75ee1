"""What monitoring costs a server process: ours under uvicorn, the original service's stack under Node."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from bench._figure import OURS, Figure, share_of
from bench._rounds import Effort, interleave
from bench._servers import Server
from bench._tools import NODE, MissingError, find_node, find_wrk

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATH: Final = "/items/7"
_FASTIFY: Final = "Fastify, pino, prom-client"
_LITESTAR: Final = f"{OURS} on Litestar"
_ROUND: Final = timedelta(seconds=1)


def measure(effort: Effort) -> Figure:
    """Measure pairs of servers, one bare and one monitored, by the CPU time of their processes."""
    missing: dict[str, str] = {}
    pairs = {
        OURS: (_python("bare_fastapi"), _python("watched_fastapi")),
        _LITESTAR: (_python("bare_litestar"), _python("watched_litestar")),
    }
    try:
        find_wrk()  # a slower client would leave the server idle
        node = find_node()
        pairs[_FASTIFY] = (_fastify(node, "bare"), _fastify(node, "watched"))
    except MissingError as error:
        missing[_FASTIFY] = str(error)
    rounds = _measure(pairs, effort.of(20, 2))
    bare = tuple(name for name in rounds if name.startswith("bare"))
    return Figure(
        name="fastify",
        title="the same as processes, over the bare framework",
        unit="µs CPU a request",
        rounds=rounds,
        also=(_LITESTAR, *bare),
        goals=share_of(_FASTIFY, rounds, 2),
        missing=missing,
    )


def _measure(pairs: Mapping[str, tuple[Server, Server]], count: int) -> dict[str, list[float]]:
    with contextlib.ExitStack() as stack:
        servers = {
            (name, index): stack.enter_context(server)
            for name, pair in pairs.items()
            for index, server in enumerate(pair)
        }
        found = interleave(servers, lambda key: servers[key].load(_ROUND).microseconds, count)
    rounds = {
        name: [watched - bare for bare, watched in zip(found[name, 0], found[name, 1], strict=True)]
        for name in pairs
    }
    names = {OURS: "FastAPI", _LITESTAR: "Litestar", _FASTIFY: "Fastify"}
    return rounds | {f"bare {names[name]}, the whole request": found[name, 0] for name in pairs}


def _python(factory: str) -> Server:
    return Server.uvicorn(f"bench._apps:{factory}", _PATH)


def _fastify(node: str, how: str) -> Server:
    return Server(lambda port: [node, str(NODE / "server.mjs"), how, str(port)], _PATH)
