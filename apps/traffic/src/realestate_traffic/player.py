"""Starts actions at a fixed rate, regardless of the responses."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from realestate_traffic.scenarios import Scenarios
    from realestate_traffic.tally import Tally

_MAX_CONCURRENT: Final = 64
_TICK_S: Final = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class RunParameters:
    """The parameters of a run.

    Args:
        rate: Actions per second; an action is one or a few requests.
        faults: Fraction of faulty actions, 0 to 1.
        seconds: Duration; None runs until it is stopped.
    """

    rate: float
    faults: float
    seconds: float | None


class Player:
    """Starts actions at the rate of `parameters`, and waits for all of them at the end."""

    def __init__(
        self, parameters: RunParameters, scenarios: Scenarios, tally: Tally, rng: random.Random
    ) -> None:
        self._parameters = parameters
        self._scenarios = scenarios
        self._tally = tally
        self._rng = rng
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """Start no further actions."""
        self._stopped.set()

    async def run(self) -> None:
        """Run until done, and wait for the last response."""
        self._began = time.monotonic()
        started = 0
        while not self._stopped.is_set() and not self._is_over():
            due = int(self.elapsed * self._parameters.rate) + 1
            # Actions beyond the concurrency limit are dropped, not queued for later.
            for _ in range(min(due - started, _MAX_CONCURRENT - len(self._running))):
                self._start()
            started = due
            await asyncio.sleep(_TICK_S)
        if self._running:
            await asyncio.wait(self._running)

    def _is_over(self) -> bool:
        return self._parameters.seconds is not None and self.elapsed >= self._parameters.seconds

    def _start(self) -> None:
        scenarios = self._scenarios
        chosen = self._pick(
            scenarios.faults if self._rng.random() < self._parameters.faults else scenarios.good
        )
        task = asyncio.create_task(self._run_one(chosen))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _pick(self, actions: Mapping[Callable[[], Awaitable[None]], int]) -> Callable[[], Awaitable[None]]:
        return self._rng.choices(list(actions), weights=list(actions.values()))[0]

    async def _run_one(self, action: Callable[[], Awaitable[None]]) -> None:
        name = getattr(action, "__name__", "action")
        self._tally.actions[name] += 1
        try:
            await action()
        except Exception as error:  # noqa: BLE001 - a failed action must not end the run; it is shown at the end
            self._tally.unanswered[f"{name}: {type(error).__name__}"] += 1
