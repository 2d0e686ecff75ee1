from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.health._bounded import BoundedCall, SharedCall
from watchkeeper.health._runner import CheckRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from watchkeeper.health import CheckResult

SHORT = timedelta(milliseconds=50)


class _Check:
    """A check that does what it is told and counts how often it was asked."""

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


async def test_a_result_says_whether_when_how_long_and_why() -> None:
    """A healthy check has no error; a failed one has the type and the text."""
    runner = CheckRunner([_Check("good", lambda: asyncio.sleep(0.02)), _Check("bad", OSError("refused"))])
    results = await runner.run()
    assert (results["good"].ok, results["good"].error) == (True, None)
    assert results["good"].latency >= timedelta(milliseconds=20)
    assert abs(results["good"].checked_at - time.time()) < 30
    assert (results["bad"].ok, results["bad"].error) == (False, "OSError: refused")


async def test_only_the_named_checks_are_asked() -> None:
    """The health endpoint asks the database alone, never the gateway."""
    db, gateway = _Check("db"), _Check("gateway")
    runner = CheckRunner([db, gateway])
    assert runner.names == ("db", "gateway")
    assert set(await runner.run("db")) == {"db"}
    assert (db.calls, gateway.calls) == (1, 0)


async def test_an_unknown_check_is_refused_with_the_near_miss() -> None:
    """A misspelled name is the programmer's, and said at once."""
    runner = CheckRunner([_Check("gateway")])
    with pytest.raises(ConfigurationError, match="no check 'gatewy'; did you mean 'gateway'"):
        await runner.run("gatewy")
    with pytest.raises(ConfigurationError, match=r"no check 'xyz'\."):
        await runner.run("xyz")


def test_two_checks_of_one_name_are_refused() -> None:
    """One would hide the other."""
    with pytest.raises(ConfigurationError, match="Two checks are named 'db'"):
        CheckRunner([_Check("db"), _Check("db")])


async def test_checks_run_side_by_side() -> None:
    """Each of ten begins before any of them has ended."""
    together = asyncio.Barrier(10)

    async def meet() -> None:
        await together.wait()

    runner = CheckRunner([_Check(f"c{n}", meet) for n in range(10)], timeout=timedelta(seconds=30))
    results = await runner.run()
    assert [result.ok for result in results.values()] == [True] * 10


async def test_two_hundred_probes_at_once_are_one_call() -> None:
    """A thundering herd of probes is one question; all get its answer."""
    check = _Check("db", lambda: asyncio.sleep(0.05))
    told: list[tuple[str, CheckResult]] = []
    runner = CheckRunner([check], on_result=lambda name, result: told.append((name, result)))
    results = await asyncio.gather(*(runner.run() for _ in range(200)))
    assert check.calls == 1
    assert len({id(result["db"]) for result in results}) == 1
    assert told == [("db", results[0]["db"])]


async def test_a_result_is_good_for_its_time() -> None:
    """Within the time it is given again; after it the check is asked again."""
    check = _Check("db")
    runner = CheckRunner([check], ttl=SHORT)
    first = (await runner.run())["db"]
    assert (await runner.run())["db"] is first
    await asyncio.sleep(0.06)
    assert (await runner.run())["db"] is not first
    assert check.calls == 2


async def test_a_check_may_have_times_of_its_own() -> None:
    """Its own time-out and its own freshness win over the runner's."""
    slow = _Check("slow", _hang, timeout=SHORT)
    fresh = _Check("fresh", ttl=timedelta(0))
    runner = CheckRunner([slow, fresh], timeout=timedelta(seconds=60), ttl=timedelta(seconds=60))
    for _ in range(2):
        results = await runner.run()
    assert results["slow"].error == "TimeoutError: No answer within 0.05 s."
    assert [slow.calls, fresh.calls] == [1, 2]


async def test_a_check_that_hangs_fails_in_time_and_does_not_hold_the_others() -> None:
    """The probe answers when the time is up."""
    runner = CheckRunner([_Check("stuck", _hang), _Check("good")], timeout=SHORT)
    results = await asyncio.wait_for(runner.run(), 60)
    assert (results["stuck"].ok, results["good"].ok) == (False, True)
    await runner.close()


async def test_a_time_out_does_not_wait_for_the_check_to_end() -> None:
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


async def test_checks_that_never_end_do_not_pile_up() -> None:
    """After eight that cannot be cancelled no more are begun; when they end, it goes on."""
    release = asyncio.Event()

    async def deaf() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    check = _Check("db", deaf)
    runner = CheckRunner([check], timeout=timedelta(milliseconds=5), ttl=timedelta(0))
    for _ in range(12):
        last = (await runner.run())["db"]
    assert check.calls == 8
    assert last.error == "TimeoutError: 8 earlier calls have not ended yet."
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
async def test_whatever_a_check_raises_is_a_failed_check(error: BaseException, text: str) -> None:
    """Nothing that a check can raise ends the probe or the event loop."""
    runner = CheckRunner([_Check("bad", error), _Check("good")])
    results = await runner.run()
    assert (results["bad"].ok, results["bad"].error) == (False, text)
    assert results["good"].ok


async def test_a_check_that_is_no_coroutine_function_is_a_failed_check() -> None:
    """A plain function in its place is found out by the first probe."""

    class Plain:
        name = "plain"

        def __call__(self) -> None:
            return

    runner = CheckRunner([Plain()])  # type: ignore[list-item]
    assert "TypeError" in str((await runner.run())["plain"].error)


async def test_a_probe_that_gives_up_does_not_take_the_check_from_the_others() -> None:
    """The client of one probe leaves; the other probes still get the answer."""
    check = _Check("db", lambda: asyncio.sleep(0.05))
    runner = CheckRunner([check])
    leaving, staying = asyncio.create_task(runner.run()), asyncio.create_task(runner.run())
    await asyncio.sleep(0.01)
    leaving.cancel("left")
    with pytest.raises(asyncio.CancelledError, match="left"):
        await leaving
    assert (await staying)["db"].ok
    assert check.calls == 1


async def test_closing_ends_what_runs_and_closes_the_checks() -> None:
    """Neither a check that hangs nor one that cannot be cancelled holds the shutdown up."""
    release = asyncio.Event()

    async def deaf() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    stuck, late = _Check("stuck", deaf), _Check("late", _hang)
    runner = CheckRunner([stuck, late], timeout=timedelta(seconds=60))
    probe = asyncio.create_task(runner.run())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(runner.close(), 60)
    assert [stuck.closed, late.closed] == [1, 1]
    assert (await asyncio.gather(probe, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    release.set()
    await asyncio.sleep(0)


async def test_opening_lets_the_checks_load_what_they_need() -> None:
    """Once for each, before the first probe."""
    check = _Check("db")
    await CheckRunner([check]).open()
    assert [check.opened, check.calls] == [1, 0]


async def test_closing_what_never_ran_is_nothing() -> None:
    """A service that was never probed shuts down like any other; a check need not have anything to close."""

    class Bare:
        name = "bare"

        async def __call__(self) -> None:
            return

    runner = CheckRunner([Bare()])
    await runner.open()
    await runner.close()
    assert (await runner.run())["bare"].ok
    await runner.close()


async def test_a_bounded_call_gives_back_what_was_raised() -> None:
    """None, the error, or a TimeoutError: never an exception for the caller."""
    assert await BoundedCall(lambda: asyncio.sleep(0), SHORT)() is None
    error = OSError("x")
    assert await BoundedCall(_Check("x", error), SHORT)() is error
    assert isinstance(await BoundedCall(_hang, SHORT)(), TimeoutError)


async def test_a_shared_call_starts_anew_when_the_last_one_is_done() -> None:
    """Shared is what overlaps, nothing is kept."""
    calls: list[int] = []

    async def call() -> int:
        calls.append(len(calls))
        await asyncio.sleep(0.01)
        return calls[-1]

    shared = SharedCall(call)
    assert list(await asyncio.gather(shared.join(), shared.join())) == [0, 0]
    assert await shared.join() == 1
