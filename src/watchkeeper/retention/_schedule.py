"""A cron expression in a named time zone, correct on the days when clocks change.

The rules are those of Debian's cron, as cronsim implements them: a time of day that a clock change skips is
scheduled right after the gap, a time of day that occurs twice is scheduled the first time.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.settings import check_timezone

if TYPE_CHECKING:
    from collections.abc import Iterator

DAILY_AT_THREE: Final = "0 3 * * *"

_NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# How far back to look for the last scheduled time, the shortest first. Weekdays repeat every 28 years (1901
# to 2099), so an expression without a time in twice that period never has one.
_LOOK_BACK: Final = tuple(timedelta(days=days) for days in (0.125, 2, 40, 400, 9 * 366, 56 * 366))
_FIELDS: Final = 5
_EXAMPLE: Final = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A cron expression, default daily at 03:00, in a time zone; raises ConfigurationError if invalid."""

    cron: str = DAILY_AT_THREE
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        check_timezone(self.timezone, "timezone")
        _check_cron(self.cron)

    def next_after(self, now: datetime) -> datetime:
        """Return the first scheduled time after an aware `now`, in UTC."""
        # Within a repeated hour cronsim continues from its first occurrence, which may be past.
        return next(time for time in self._times_from(now) if time > now)

    def last_before(self, now: datetime) -> datetime:
        """Return the last scheduled time up to an aware `now`, in UTC."""
        # Search forwards only: backwards, cronsim puts a skipped time before the gap.
        for distance in _LOOK_BACK:
            last = None
            for time in self._times_from(now - distance):
                if time > now:
                    break
                last = time
            if last is not None:
                return last
        raise AssertionError(f"{self.cron!r} was never scheduled, although it was checked.")

    def _times_from(self, start: datetime) -> Iterator[datetime]:
        local = start.astimezone(ZoneInfo(self.timezone))
        return (time.astimezone(UTC) for time in CronSim(self.cron, local))


def _check_cron(expression: str) -> None:
    problem = _problem_of(expression)
    if problem is None:
        return
    near = difflib.get_close_matches(expression.strip().lower(), _NICKNAMES, n=1)
    hint = f" Did you mean {_NICKNAMES[near[0]]!r}?" if near else ""
    fields = expression.split()
    if len(fields) == _FIELDS + 1:
        hint = f" Did you mean {' '.join(fields[1:])!r}, without the seconds?"
    raise ConfigurationError(
        f"The cron expression {expression!r} is invalid ({problem}): it takes minute, hour, day of month,"
        f" month and day of week, such as {DAILY_AT_THREE!r}.{hint}"
    )


def _problem_of(expression: str) -> str | None:
    if len(expression.split()) != _FIELDS:
        return "wrong number of fields"
    try:
        next(CronSim(expression, _EXAMPLE))
    except CronSimError as error:
        return str(error).lower()
    except StopIteration:
        return "no such day is in the calendar"
    return None
