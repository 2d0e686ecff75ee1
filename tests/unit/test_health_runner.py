import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.health import CheckResult
from watchkeeper.health._runner import CheckRunner

SHORT = timedelta(milliseconds=50)


class _Check:
    """A check that runs a given function and counts its calls."""

    def __init__(
        self, name: str, does: Callable[[], Awaitable[None]] | BaseException | None = None, **more: Any
    ) -> None:
        self.name = name
        self.does = does
        self.calls = 0
        self.opened = 0
        self.closed = 0
        for key, value in more.items():
            setattr(self, key, value)

    async def __call__(self) -> None:
        self.calls += 1
        if isinstance(self.does, BaseException):
            raise self.does
        if self.does is not None:
            await self.does()

    async def aopen(self) -> None:
        self.opened += 1

    async def aclose(self) -> None:
        self.closed += 1


async def _hang() -> None:
    await asyncio.Event().wait()


async def _ignore_cancellation(release: asyncio.Event) -> None:
    while not release.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await release.wait()


async def test_a_result_has_status_time_latency_and_error() -> None:
    """A healthy check has no error; a failed one has its type and text."""
    runner = CheckRunner([_Check("good", lambda: asyncio.sleep(0.02)), _Check("bad", OSError("refused"))])
    results = await runner.run()
    assert (results["good"].ok, results["good"].error) == (True, None)
    assert results["good"].latency >= timedelta(milliseconds=20)
    assert abs(results["good"].checked_at - time.time()) < 30
    assert (results["bad"].ok, results["bad"].error) == (False, "OSError: refused")


async def test_only_the_named_checks_run() -> None:
    """`/health` runs the database's check and not the gateway's."""
    db, gateway = _Check("db"), _Check("gateway")
    runner = CheckRunner([db, gateway])
    assert runner.names == ("db", "gateway")
    assert set(await runner.run("db")) == {"db"}
    assert (db.calls, gateway.calls) == (1, 0)


async def test_an_unknown_check_is_refused_with_the_near_miss() -> None:
    """The error suggests the name that was probably meant."""
    runner = CheckRunner([_Check("gateway")])
    with pytest.raises(ConfigurationError, match="no check 'gatewy'; did you mean 'gateway'"):
        await runner.run("gatewy")
    with pytest.raises(ConfigurationError, match=r"no check 'xyz'\."):
        await runner.run("xyz")


def test_two_checks_of_one_name_are_refused() -> None:
    """One of them would hide the other."""
    with pytest.raises(ConfigurationError, match="Two checks are named 'db'"):
        CheckRunner([_Check("db"), _Check("db")])


async def test_checks_run_in_parallel() -> None:
    """Each of ten checks starts before any of them has ended."""
    together = asyncio.Barrier(10)

    async def meet() -> None:
        await together.wait()

    runner = CheckRunner([_Check(f"c{n}", meet) for n in range(10)], timeout=timedelta(seconds=30))
    results = await runner.run()
    assert [result.ok for result in results.values()] == [True] * 10


async def test_concurrent_probes_share_one_call() -> None:
    """Two hundred probes at once run the check once and get the same result."""
    check = _Check("db", lambda: asyncio.sleep(0.05))
    results_seen: list[tuple[str, CheckResult]] = []
    runner = CheckRunner([check], on_result=lambda name, result: results_seen.append((name, result)))
    results = await asyncio.gather(*(runner.run() for _ in range(200)))
    assert check.calls == 1
    assert len({id(result["db"]) for result in results}) == 1
    assert results_seen == [("db", results[0]["db"])]


async def test_a_result_is_cached_for_its_ttl() -> None:
    """Within the ttl the result is returned again; after it the check runs again."""
    check = _Check("db")
    runner = CheckRunner([check], ttl=SHORT)
    first = (await runner.run())["db"]
    assert (await runner.run())["db"] is first
    await asyncio.sleep(0.06)
    assert (await runner.run())["db"] is not first
    assert check.calls == 2


async def test_a_check_may_have_its_own_timeout_and_ttl() -> None:
    """They replace the runner's; a check that hangs fails after its own and delays no other."""
    slow = _Check("slow", _hang, timeout=SHORT)
    fresh = _Check("fresh", ttl=timedelta(0))
    runner = CheckRunner([slow, fresh], timeout=timedelta(seconds=60), ttl=timedelta(seconds=60))
    for _ in range(2):
        results = await runner.run()
    assert results["slow"].error == "TimeoutError: No answer within 0.05 s."
    assert results["fresh"].ok
    assert [slow.calls, fresh.calls] == [1, 2]


async def test_a_timeout_does_not_wait_for_the_cancelled_check() -> None:
    """A check may take seconds to be cancelled, as psycopg does."""
    release, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            await _hang()
        finally:
            await release.wait()
            ended.set()

    runner = CheckRunner([_Check("db", stubborn)], timeout=SHORT)
    assert not (await runner.run())["db"].ok
    assert not ended.is_set()
    release.set()
    await asyncio.wait_for(ended.wait(), 60)


async def test_calls_that_cannot_be_cancelled_are_limited() -> None:
    """After eight of them no more are started, until they end."""
    release = asyncio.Event()
    check = _Check("db", partial(_ignore_cancellation, release))
    runner = CheckRunner([check], timeout=timedelta(milliseconds=5), ttl=timedelta(0))
    for _ in range(12):
        last = (await runner.run())["db"]
    assert check.calls == 8
    assert last.error == "TimeoutError: 8 earlier calls are still running."
    release.set()
    await asyncio.sleep(0.02)
    assert (await runner.run())["db"].ok


class _Evil(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError("inside"), "CancelledError: inside"),
        (StopAsyncIteration("x"), "StopAsyncIteration: x"),
        (StopIteration("x"), "RuntimeError: coroutine raised StopIteration"),
        (ExceptionGroup("both", [OSError("a")]), "ExceptionGroup: both (1 sub-exception)"),
        (_Evil(), "_Evil"),
        (ValueError("x" * 10_000), "ValueError: " + "x" * 488),
    ],
)
async def test_any_exception_is_a_failed_check(error: BaseException, text: str) -> None:
    """No exception of a check ends the probe or the event loop."""
    runner = CheckRunner([_Check("bad", error), _Check("good")])
    results = await runner.run()
    assert (results["bad"].ok, results["bad"].error) == (False, text)
    assert results["good"].ok


async def test_a_check_that_is_not_async_fails() -> None:
    """The first probe reports a plain function."""

    class Plain:
        name = "plain"

        def __call__(self) -> None:
            return

    runner = CheckRunner([Plain()])  # type: ignore[list-item]
    assert "TypeError" in str((await runner.run())["plain"].error)


async def test_a_cancelled_probe_does_not_cancel_the_check() -> None:
    """The other probes still get the result."""
    check = _Check("db", lambda: asyncio.sleep(0.05))
    runner = CheckRunner([check])
    leaving, staying = asyncio.create_task(runner.run()), asyncio.create_task(runner.run())
    await asyncio.sleep(0.01)
    leaving.cancel("left")
    with pytest.raises(asyncio.CancelledError, match="left"):
        await leaving
    assert (await staying)["db"].ok
    assert check.calls == 1


async def test_checks_are_opened_and_closed_with_the_runner() -> None:
    """Neither a check that hangs nor one that cannot be cancelled delays the shutdown."""
    release = asyncio.Event()
    stuck, late = _Check("stuck", partial(_ignore_cancellation, release)), _Check("late", _hang)
    runner = CheckRunner([stuck, late], timeout=timedelta(seconds=60))
    await runner.open()
    assert [stuck.opened, stuck.calls] == [1, 0]
    probe = asyncio.create_task(runner.run())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(runner.close(), 60)
    assert [stuck.closed, late.closed] == [1, 1]
    assert (await asyncio.gather(probe, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    release.set()
    await asyncio.sleep(0)


async def test_checks_that_never_ran_can_be_closed() -> None:
    """A check needs neither `aopen` nor `aclose`."""

    class Bare:
        name = "bare"

        async def __call__(self) -> None:
            return

    runner = CheckRunner([Bare()])
    await runner.open()
    await runner.close()
    assert (await runner.run())["bare"].ok
    await runner.close()
