"""Serves an app with uvicorn in this process and shuts down as an orchestrator expects.

On SIGTERM or SIGINT `/readyz` returns 503, `shutdown_delay` passes (so that load balancers notice), new
connections are refused, requests in flight get `shutdown_grace` to finish, the keeper stops, and the process
exits with 0. A second SIGINT does not wait. uvicorn alone would exit with 143.

Lines: `{type: "server", status: "listening" | "stopping" | "stopped"}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import uvicorn

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.server._protocol import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from watchkeeper.http._asgi import ASGIApp
    from watchkeeper.keeper import Watchkeeper
    from watchkeeper.settings import Settings

_BACKLOG: Final = 2048
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(keeper: Watchkeeper, app: ASGIApp, *, websockets: bool = True) -> int:
    """Run `app` until a signal stops it; return 0 after a clean shutdown, 1 if the service did not start.

    Args:
        keeper: The keeper that wrapped `app`; its settings define host, port and shutdown times.
        app: The wrapped app.
        websockets: False answers upgrades as plain requests; True (the default) needs a library for them
            (websockets or wsproto).
    """
    keeper.logging.install()
    try:
        listener = _listen(keeper.settings)
    except ConfigurationError as error:
        _print_error(keeper.settings, error)
        return 1
    with listener:
        server = _Server(keeper, app, websockets=websockets)
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.serve_on(listener))
    keeper.logging.flush()
    if not server.started and not server.was_stopped:
        _print_error(keeper.settings, keeper.failure or "the app did not start; see its last log lines.")
        return 1
    return 0


def _print_error(settings: Settings, what: object) -> None:
    sys.stderr.write(f"{settings.service}: {what}\n")


def _listen(settings: Settings) -> socket.socket:
    """Bind and listen first, so that a port in use is reported by a message instead of a traceback."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(
            f"HOST {settings.host!r} is not an address of this machine: {error.strerror}."
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(_bind_problem(settings, error)) from error
    listener.setblocking(False)
    return listener


def _bind_problem(settings: Settings, error: OSError) -> str:
    where = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another process: end that one, or set PORT to a free port."
    if error.errno == errno.EACCES:
        return f"{where} may not be bound by this user: set PORT to 1024 or higher."
    return f"{where} cannot be bound: {error.strerror}. Set HOST to an address of this machine."


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it stops on a signal."""

    def __init__(self, keeper: Watchkeeper, app: ASGIApp, *, websockets: bool) -> None:
        grace = keeper.settings.shutdown_grace.total_seconds()
        config = Config(
            app,
            keeper,
            lifespan="on",
            ws="auto" if websockets else "none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace),
        )
        super().__init__(config)
        self._keeper = keeper
        self._drain: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def was_stopped(self) -> bool:
        """Whether a signal has arrived."""
        return self._drain is not None

    async def serve_on(self, listener: socket.socket) -> None:
        """Serve on `listener` until a signal stops it."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        self._serving = asyncio.current_task()
        try:
            await self.serve(sockets=[listener])
        except asyncio.CancelledError:
            await self._keeper.close()  # the app itself neither started nor stopped within the grace period
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
        if self.started:
            self._keeper.logging.event("info", type="server", status="stopped")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then log the address; `serve` determines the exit code of a failed start."""
        try:
            await super().startup(sockets=sockets)
        except SystemExit:
            self.should_exit = True
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            self._keeper.logging.event(
                "info", type="server", status="listening", url=f"http://{shown}:{port}"
            )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve_on`: uvicorn would raise them again at the end and exit with 143."""
        yield

    def _on_signal(self, number: int) -> None:
        if self._drain is not None:
            self.force_exit = number == signal.SIGINT
            self.should_exit = True
            return
        self._keeper.begin_shutdown()
        # The keeper cancels its own start at once; the app's start may take as long as a request.
        grace = self._keeper.settings.shutdown_grace.total_seconds()
        asyncio.get_running_loop().call_later(grace, self._cancel_start)
        self._keeper.logging.event(
            "info", type="server", status="stopping", signal=signal.Signals(number).name
        )
        self._drain = asyncio.get_running_loop().create_task(self._stop_after_delay())

    def _cancel_start(self) -> None:
        if not self.started and self._serving is not None:
            self._serving.cancel()

    async def _stop_after_delay(self) -> None:
        await asyncio.sleep(self._keeper.settings.shutdown_delay.total_seconds())
        self.should_exit = True
