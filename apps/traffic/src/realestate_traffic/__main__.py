"""`traffic`: plays a client of the service, and compares its metrics with the client's own count."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

import httpx
from rich.console import Console
from rich.live import Live

from realestate.made_secrets import FILE_NAME, NAMES, read_secrets
from realestate.settings import parse_webhook_secrets, service_settings
from realestate_traffic import screen
from realestate_traffic.client import Client, Credentials
from realestate_traffic.compare import compare, scrape
from realestate_traffic.player import Player, RunParameters
from realestate_traffic.scenarios import Scenarios
from realestate_traffic.tally import Tally
from watchkeeper.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from watchkeeper.settings import Settings

_PURPOSE: Final = "Play a client of the running service, and compare its metrics with the client's own count."
_LINE_EVERY_S: Final = 5.0
_SETTLE_S: Final = 0.3
_TIMEOUT_S: Final = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Play, compare, and return 0 if every metric moved and agrees, 1 if not."""
    options = _parser().parse_args(argv)
    try:
        settings = service_settings(os.environ)
        url = options.url or f"http://{settings.host}:{settings.port}"
        token = settings.metrics_token.reveal() if settings.metrics_token else None
        return asyncio.run(_play(options, url, credentials(os.environ, settings), token))
    except (ConfigurationError, httpx.HTTPError) as error:
        sys.stderr.write(f"traffic: {_sentence(error)}\n")
        return 1


def credentials(environ: Mapping[str, str], settings: Settings) -> Credentials:
    """Return the backend's credentials: from the environment, otherwise from its state folder.

    Raises:
        ConfigurationError: They are missing or malformed.
    """
    found = {name: environ[name] for name in NAMES if environ.get(name)}
    path = settings.service_dir / FILE_NAME
    if len(found) < len(NAMES):
        try:
            found = {**read_secrets(path), **found}
        except OSError as error:
            names = " and ".join(NAMES)
            raise ConfigurationError(
                f"{names} are neither in the environment nor in {path}: start the service first."
            ) from error
    sources = parse_webhook_secrets(found.get("WEBHOOK_SECRETS", ""))
    if not found.get("SERVICE_TOKEN") or not sources:
        raise ConfigurationError(f"{' and '.join(NAMES)} are both needed.")
    return Credentials(
        service_token=found["SERVICE_TOKEN"],
        webhook_secrets={source: secrets[0].reveal() for source, secrets in sources.items()},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="traffic", description=_PURPOSE)
    parser.add_argument("--url", help="URL of the service (default http://HOST:PORT of the environment)")
    parser.add_argument("--rate", type=_positive, default=20.0, help="actions a second (default 20)")
    parser.add_argument(
        "--faults", type=_fraction, default=0.3, help="fraction of faulty actions, 0 to 1 (default 0.3)"
    )
    parser.add_argument("--seconds", type=_positive, help="duration (default until Ctrl-C)")
    parser.add_argument("--seed", type=int, help="seed of the random choices, to repeat a run")
    return parser


async def _play(options: argparse.Namespace, url: str, given: Credentials, token: str | None) -> int:
    console = Console()
    rng = random.Random(options.seed)  # noqa: S311 - chooses actions, no secrets
    tally = Tally(sources=frozenset(given.webhook_secrets))
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits, trust_env=False) as http:
        before = await scrape(http, token)
        parameters = RunParameters(rate=options.rate, faults=options.faults, seconds=options.seconds)
        player = Player(parameters, Scenarios(Client(http, given, tally), rng), tally, rng)
        with _stop_on_signals(player):
            await _show_progress(player, tally, console)
        await asyncio.sleep(_SETTLE_S)
        rows = compare(before, await scrape(http, token), tally)
    console.print(screen.comparison(rows))
    for row in rows:
        for difference in row.differing:
            console.print(difference, style="red", markup=False, highlight=False, soft_wrap=True)
    if tally.unanswered:
        console.print(
            f"Unanswered requests, so the comparison is not exact: {dict(tally.unanswered)}",
            style="yellow",
            markup=False,
        )
    return 0 if all(row.agrees and row.moved for row in rows) else 1


async def _show_progress(player: Player, tally: Tally, console: Console) -> None:
    playing = asyncio.create_task(player.run())
    if console.is_terminal:
        with Live(
            console=console, refresh_per_second=4, get_renderable=lambda: screen.live(tally, player.elapsed)
        ):
            await playing
        return
    while not (await asyncio.wait({playing}, timeout=_LINE_EVERY_S))[0]:
        console.print(screen.line(tally, player.elapsed), highlight=False, soft_wrap=True)
    await playing


@contextlib.contextmanager
def _stop_on_signals(player: Player) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, player.stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _sentence(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        hint = " Set METRICS_TOKEN to the service's." if status in {401, 403} else ""
        return f"{error.request.url} answered {status}.{hint}"
    if isinstance(error, httpx.HTTPError):
        where = error.request.url
        return f"{where} does not answer ({error}): start it with `python3 dev.py serve`, or set --url."
    return str(error)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("takes a number above 0")
    return number


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("takes a number from 0 to 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
