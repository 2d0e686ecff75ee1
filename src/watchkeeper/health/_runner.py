"""Runs checks so that no probe can hang or overload what it asks after."""

from __future__ import annotations

import asyncio
import difflib
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.health._bounded import BoundedCall, SharedCall
from watchkeeper.health._checks import CheckResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from watchkeeper.health._checks import Check

_LONGEST_ERROR: Final = 500


class CheckRunner:
    """Runs checks in parallel, each bounded, cached, and in flight once however many probes ask.

    Args:
        checks: Each with a name of its own.
        timeout: After which a check has failed; default 1 s. A check's own `timeout` wins.
        ttl: For how long a result is good; default 1 s. A check's own `ttl` wins.
        on_result: Called with the name and the result after each real run.

    Raises:
        ConfigurationError: Two checks have one name.
    """

    def __init__(
        self,
        checks: Iterable[Check],
        *,
        timeout: timedelta = timedelta(seconds=1),
        ttl: timedelta = timedelta(seconds=1),
        on_result: Callable[[str, CheckResult], None] | None = None,
    ) -> None:
        self._checks: dict[str, _Watched] = {}
        for check in checks:
            if check.name in self._checks:
                raise ConfigurationError(f"Two checks are named {check.name!r}: give each a name of its own.")
            self._checks[check.name] = _Watched(
                check,
                timeout=getattr(check, "timeout", timeout),
                ttl=getattr(check, "ttl", ttl),
                on_result=on_result,
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all checks, as declared."""
        return tuple(self._checks)

    async def run(self, *names: str) -> dict[str, CheckResult]:
        """Return the results of the named checks, or of all; none is older than its `ttl`.

        Raises:
            ConfigurationError: There is no check of that name.
        """
        wanted = [self._named(name) for name in names or self._checks]
        results = await asyncio.gather(*(check.result() for check in wanted))
        return {check.name: result for check, result in zip(wanted, results, strict=True)}

    async def open(self) -> None:
        """Let the checks that want to (`aopen`) load what they need, so that no probe waits for it."""
        for check in self._checks.values():
            await check.open()

    async def close(self) -> None:
        """Give up what still runs and close the checks that hold something open (`aclose`)."""
        await asyncio.gather(*(check.close() for check in self._checks.values()))

    def _named(self, name: str) -> _Watched:
        try:
            return self._checks[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._checks, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigurationError(f"There is no check {name!r}{hint}") from None


class _Watched:
    """One check with its last result."""

    def __init__(
        self,
        check: Check,
        *,
        timeout: timedelta,
        ttl: timedelta,
        on_result: Callable[[str, CheckResult], None] | None,
    ) -> None:
        self.name = check.name
        self._check = check
        self._ttl = ttl.total_seconds()
        self._on_result = on_result
        self._bounded = BoundedCall(check, timeout)
        self._shared = SharedCall(self._ask)
        self._last: CheckResult | None = None
        self._asked_at = 0.0

    async def result(self) -> CheckResult:
        if self._last is not None and time.monotonic() - self._asked_at < self._ttl:
            return self._last
        return await self._shared.join()

    async def open(self) -> None:
        prepare = getattr(self._check, "aopen", None)
        if prepare is not None:
            await prepare()

    async def close(self) -> None:
        await self._shared.close()
        await self._bounded.close()
        close = getattr(self._check, "aclose", None)
        if close is not None:
            await close()

    async def _ask(self) -> CheckResult:
        start = time.perf_counter()
        error = await self._bounded()
        self._last = CheckResult(
            ok=error is None,
            checked_at=time.time(),
            latency=timedelta(seconds=time.perf_counter() - start),
            error=None if error is None else _describe(error),
        )
        self._asked_at = time.monotonic()
        if self._on_result is not None:
            self._on_result(self.name, self._last)
        return self._last


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception whose text is broken is still only a failed check
        text = ""
    return f"{type(error).__name__}: {text}"[:_LONGEST_ERROR] if text else type(error).__name__
