"""What is due when: a cron expression in a named time zone, right on the days when clocks change.

The rules are those of Debian's cron, as cronsim has them: a time of day that a clock change skips is due as
soon as the clock goes on, a time of day that comes twice is due the first time.
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
# How far back the last due is looked for, the nearest first. The calendar's weekdays repeat every 28 years
# (1901 to 2099), so what was not due in twice that time never is.
_LOOK_BACK: Final = tuple(timedelta(days=days) for days in (0.125, 2, 40, 400, 9 * 366, 56 * 366))
_FIELDS: Final = 5
_EXAMPLE: Final = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A cron expression, read in a time zone.

    Args:
        cron: Minute, hour, day of month, month and day of week; default daily at 3 in the morning.
        timezone: IANA name of the zone in which that is meant; default UTC.

    Raises:
        ConfigurationError: The expression or the zone does not exist; the message says what is near.
    """

    cron: str = DAILY_AT_THREE
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        check_timezone(self.timezone, "timezone")
        _check_cron(self.cron)

    def due_after(self, now: datetime) -> datetime:
        """Return the first due later than `now`, in UTC.

        Args:
            now: An instant with its time zone.
        """
        # Within a repeated hour cronsim goes on from its first occurrence, which may be over already.
        return next(due for due in self._dues_from(now) if due > now)

    def due_before(self, now: datetime) -> datetime:
        """Return the last due not later than `now`, in UTC.

        Args:
            now: An instant with its time zone.
        """
        # Forwards only: backwards, a time that the clock skipped would be looked for before the gap.
        for distance in _LOOK_BACK:
            last = None
            for due in self._dues_from(now - distance):
                if due > now:
                    break
                last = due
            if last is not None:
                return last
        raise AssertionError(f"{self.cron!r} was never due, although it was checked.")

    def _dues_from(self, start: datetime) -> Iterator[datetime]:
        local = start.astimezone(ZoneInfo(self.timezone))
        return (due.astimezone(UTC) for due in CronSim(self.cron, local))


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
        f"The cron expression {expression!r} is not usable ({problem}): it takes minute, hour, day of month,"
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
