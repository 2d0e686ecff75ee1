"""Runs checks so that no probe can hang or overload a dependency."""

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

_MAX_ERROR_CHARACTERS: Final = 500


class CheckRunner:
    """Runs checks in parallel, each with a time limit, cached, and once at a time for all probes."""

    def __init__(
        self,
        checks: Iterable[Check],
        *,
        timeout: timedelta = timedelta(seconds=1),
        ttl: timedelta = timedelta(seconds=1),
        on_result: Callable[[str, CheckResult], None] | None = None,
    ) -> None:
        self._checks: dict[str, _CachedCheck] = {}
        for check in checks:
            if check.name in self._checks:
                raise ConfigurationError(f"Two checks are named {check.name!r}: rename one.")
            self._checks[check.name] = _CachedCheck(
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
        """Return the results of the named checks, or of all; none is older than its `ttl`."""
        wanted = [self._find(name) for name in names or self._checks]
        results = await asyncio.gather(*(check.result() for check in wanted))
        return {check.name: result for check, result in zip(wanted, results, strict=True)}

    async def open(self) -> None:
        """Prepare the checks that have `aopen`, so that no probe waits for it."""
        for check in self._checks.values():
            await check.open()

    async def close(self) -> None:
        """Cancel pending checks and close the checks that have `aclose`."""
        await asyncio.gather(*(check.close() for check in self._checks.values()))

    def _find(self, name: str) -> _CachedCheck:
        try:
            return self._checks[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._checks, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigurationError(f"There is no check {name!r}{hint}") from None


class _CachedCheck:
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
        self._shared = SharedCall(self._run)
        self._last: CheckResult | None = None
        self._ran_at = 0.0

    async def result(self) -> CheckResult:
        if self._last is not None and time.monotonic() - self._ran_at < self._ttl:
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

    async def _run(self) -> CheckResult:
        start = time.perf_counter()
        error = await self._bounded()
        self._last = CheckResult(
            ok=error is None,
            checked_at=time.time(),
            latency=timedelta(seconds=time.perf_counter() - start),
            error=None if error is None else _describe(error),
        )
        self._ran_at = time.monotonic()
        if self._on_result is not None:
            self._on_result(self.name, self._last)
        return self._last


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - str() of an exception may raise too
        text = ""
    return f"{type(error).__name__}: {text}"[:_MAX_ERROR_CHARACTERS] if text else type(error).__name__
