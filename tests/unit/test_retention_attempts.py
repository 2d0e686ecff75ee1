"""When a scheduled time is tried and retried."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.retention._schedule import Schedule
from watchkeeper.retention.ledger._attempts import next_attempt

DUE = datetime(2026, 7, 1, 3, tzinfo=UTC)
UNTRIED = dict.fromkeys(("due_at", "attempt", "state", "finished_at"))
LAST_END = DUE + timedelta(minutes=1)
TRIED = {"due_at": DUE, "finished_at": LAST_END}
STATES = {"r": "running", "c": "completed", "f": "failed", "x": "refused", "s": "stopped", "k": "cancelled"}


def history(
    states: str, minutes_later: float, *, since: datetime = DUE - timedelta(days=1)
) -> list[dict[str, Any]]:
    """Return ledger rows, from a letter for the state of each attempt."""
    now = LAST_END + timedelta(minutes=minutes_later)
    return [
        {**TRIED, "since": since, "now": now, "attempt": number, "state": STATES[state]}
        for number, state in enumerate(states, start=1)
    ] or [UNTRIED | {"since": since, "now": now}]


@pytest.mark.parametrize(
    ("states", "minutes_later", "attempt"),
    [
        ("", 0, 1),
        ("r", 60, None),
        ("c", 60, None),
        ("x", 60, None),
        ("s", 0, 2),
        ("sssssss", 0, 8),
        ("f", 0.99, None),
        ("f", 1, 2),
        ("ff", 4.99, None),
        ("ff", 5, 3),
        ("fff", 24.99, None),
        ("fff", 25, 4),
        ("ffff", 10_000, None),
        ("sssf", 1, 5),
        ("fsfs", 0, 5),
        ("ffsfsf", 10_000, None),
        ("fc", 60, None),
        ("k", 10_000, None),
        ("fsk", 10_000, None),
    ],
)
def test_waits_grow_with_failures_not_stops(states: str, minutes_later: float, attempt: int | None) -> None:
    """Four failures or a cancel end the attempts; a stopped run continues at once."""
    assert next_attempt(history(states, minutes_later), DUE) == attempt


@pytest.mark.parametrize("since", [DUE, DUE + timedelta(seconds=1)])
def test_nothing_is_due_before_the_policy_was_registered(since: datetime) -> None:
    """A first start does not catch up."""
    assert next_attempt(history("", 0, since=since), DUE) is None


def test_earlier_time_is_not_run_after_a_later_one() -> None:
    """A replica with a slow clock does not run yesterday again."""
    assert next_attempt(history("f", 60), DUE - timedelta(days=1)) is None


def test_unregistered_policy_is_not_run() -> None:
    """After a backup was restored, for example, until the next start."""
    assert next_attempt([], DUE) is None


ZONES = st.sampled_from(["UTC", "Europe/Kyiv", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])
# Minutes to weeks between two looks: a service that is up, and one that is away for a while.
PAUSES = st.lists(st.one_of(st.integers(1, 90), st.integers(600, 30_000)), min_size=1, max_size=60)


@given(zone=ZONES, pauses=PAUSES)
def test_missed_times_are_caught_up_once(zone: str, pauses: list[int]) -> None:
    """However long no process ran, and across clock changes."""
    schedule = Schedule(timezone=zone)
    since = now = datetime(2026, 3, 1, tzinfo=UTC)
    done: list[dict[str, Any]] = []
    looked_for = set()
    for minutes in pauses:
        now += timedelta(minutes=minutes)
        due = schedule.last_before(now)
        looked_for |= {due} if due > since else set()
        for replica in range(3):
            entry = {"since": since, "due_at": due, "attempt": 1, "state": "completed", "finished_at": now}
            rows = [row for row in done if row["due_at"] >= due] or [UNTRIED | {"since": since}]
            attempt = next_attempt([row | {"now": now} for row in rows], due)
            assert attempt in ({1, None} if replica == 0 else {None})
            if attempt is not None:
                done.append(entry)
    assert [row["due_at"] for row in done] == sorted(looked_for)
