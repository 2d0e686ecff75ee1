"""Scheduled times, above all on the days when clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention._schedule import Schedule

ZONES = sorted(available_timezones() - {"localtime", "Factory"})
# Not before 2012: Samoa had no 30 December 2011.
INSTANTS = st.datetimes(datetime(2012, 1, 1), datetime(2036, 12, 1), timezones=st.just(UTC))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("timezone", "cron", "expected"),
    [
        pytest.param("Europe/Kyiv", "0 3 * * *", "2026-03-29T04:00:00+03:00", id="3 AM is skipped"),
        pytest.param("Europe/Kyiv", "0 3 * * *", "2026-10-25T03:00:00+03:00", id="3 AM comes twice"),
        pytest.param("Europe/Kyiv", "0 3 * * *", "2026-10-26T03:00:00+02:00", id="the day after"),
        pytest.param("Europe/Berlin", "30 2 * * *", "2026-03-29T03:00:00+02:00", id="02:30 is skipped"),
        pytest.param("Europe/Berlin", "15,45 2 * * *", "2026-03-29T03:00:00+02:00", id="two are skipped"),
        pytest.param("Europe/Berlin", "30 2 * * *", "2026-10-25T02:30:00+02:00", id="02:30 comes twice"),
        pytest.param("America/New_York", "30 1 * * *", "2026-11-01T01:30:00-04:00", id="01:30 comes twice"),
        pytest.param("America/New_York", "0 3 * * *", "2026-03-08T03:00:00-04:00", id="after the gap"),
        pytest.param("Africa/Kigali", "0 3 * * *", "2026-03-29T03:00:00+02:00", id="no clock changes"),
        pytest.param("Asia/Kathmandu", "0 3 * * *", "2026-03-28T03:00:00+05:45", id="quarters of an hour"),
        pytest.param("Australia/Lord_Howe", "45 1 * * *", "2026-04-05T01:45:00+11:00", id="half an hour"),
    ],
)
def test_each_day_has_one_time_across_clock_changes(timezone: str, cron: str, expected: str) -> None:
    """A skipped time is run after the gap, a repeated one once."""
    zone = ZoneInfo(timezone)
    schedule = Schedule(cron=cron, timezone=timezone)
    midnight = datetime.fromisoformat(expected[:10]).replace(tzinfo=zone)
    time = schedule.next_after(midnight)
    assert time.astimezone(zone).isoformat() == expected
    assert schedule.next_after(time).astimezone(zone).date() == midnight.date() + timedelta(days=1)


@given(zone=st.sampled_from(ZONES), now=INSTANTS, hour=st.integers(0, 23), minute=st.integers(0, 59))
def test_daily_schedule_has_one_time_per_local_day(zone: str, now: datetime, hour: int, minute: int) -> None:
    """From one local noon to the next, in every zone of the world, on every day."""
    schedule = Schedule(cron=f"{minute} {hour} * * *", timezone=zone)
    local = now.astimezone(ZoneInfo(zone))
    # Starting twelve hours off the scheduled time keeps its clock change inside the day.
    start = local.replace(hour=(hour + 12) % 24, minute=minute, second=0, microsecond=0, fold=0)
    end = (start.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=ZoneInfo(zone))
    first = schedule.next_after(start)
    assert start < first < end
    assert schedule.next_after(first) > end.astimezone(UTC)


@given(
    zone=st.sampled_from(ZONES),
    now=INSTANTS,
    cron=st.sampled_from(["0 3 * * *", "*/20 * * * *", "5 1 * * 0"]),
)
def test_previous_and_next_time_are_neighbours(zone: str, now: datetime, cron: str) -> None:
    """No scheduled time lies between them."""
    schedule = Schedule(cron=cron, timezone=zone)
    before, after = schedule.last_before(now), schedule.next_after(now)
    assert before <= now < after
    assert schedule.next_after(before) == after
    assert schedule.last_before(after) == after


def test_default_is_daily_at_three_in_utc() -> None:
    """Without a setting."""
    now = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert Schedule().last_before(now) == datetime(2026, 7, 1, 3, tzinfo=UTC)
    assert Schedule().next_after(now) == datetime(2026, 7, 2, 3, tzinfo=UTC)


def test_rare_times_are_found() -> None:
    """The fifth Monday of February comes every 28 years."""
    schedule = Schedule(cron="0 0 * 2 MON#5")
    now = datetime(2026, 7, 1, tzinfo=UTC)
    assert schedule.last_before(now) == datetime(2016, 2, 29, tzinfo=UTC)
    assert schedule.next_after(now) == datetime(2044, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berln", "Did you mean Europe/Berlin?"),
        ("africa/kigali", "Did you mean Africa/Kigali?"),
        ("America", "Did you mean America/"),
        ("../etc/passwd", "such as Africa/Kigali"),
        ("", "such as Africa/Kigali"),
    ],
)
def test_unknown_time_zone_is_refused_with_a_suggestion(zone: str, hint: str) -> None:
    """A typo is answered with the name that was meant."""
    with pytest.raises(ConfigurationError, match=f"does not exist.*{hint.replace('?', '.')}"):
        Schedule(timezone=zone)


@pytest.mark.parametrize(
    ("cron", "sentence"),
    [
        ("", "wrong number of fields"),
        ("3 AM", "wrong number of fields"),
        ("60 3 * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 3 32 * *", "bad day-of-month"),
        ("0 3 * * FRY", "bad day-of-week"),
        ("0 3 30 2 *", "bad day-of-month"),
        ("0 0 3 * * *", r"Did you mean '0 3 \* \* \*', without the seconds"),
        ("0 3 */30 2 MON#5", "no such day is in the calendar"),
        ("@dayly", r"Did you mean '0 0 \* \* \*'"),
        ("@Weekly", r"Did you mean '0 0 \* \* 0'"),
    ],
)
def test_invalid_cron_expression_is_refused(cron: str, sentence: str) -> None:
    """The message names the field, and suggests the near miss."""
    with pytest.raises(ConfigurationError, match=sentence):
        Schedule(cron=cron)
