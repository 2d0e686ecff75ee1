"""Compares `/metrics` with the client's count; exact if the client is the only one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from realestate_traffic.tally import Series, series

if TYPE_CHECKING:
    import httpx

    from realestate_traffic.tally import Tally

Samples: TypeAlias = dict[Series, float]

COUNTED: Final = (
    "http_requests_total",
    "http_request_duration_ms_count",
    "webhook_failures_total",
    "tool_calls_total",
    "tool_call_duration_ms_count",
    "pairing_failures_total",
)
# Orchestrators and Prometheus request these too, so they are not compared.
_SHARED_ROUTES: Final = frozenset({"/health", "/health/detailed", "/livez", "/readyz", "/metrics"})
_SESSIONS: Final = series("active_sessions")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One metric of the contract, as both sides counted it.

    Args:
        name: Name of the metric.
        counted: The client's count.
        exposed: The service's count since the start of the run.
        differing: Series whose counts differ.
    """

    name: str
    counted: float
    exposed: float
    differing: tuple[str, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether the service counted anything."""
        return self.exposed > 0

    @property
    def agrees(self) -> bool:
        """Whether the counts of every series are equal."""
        return not self.differing


async def scrape(http: httpx.AsyncClient, token: str | None) -> Samples:
    """Read `/metrics`.

    Raises:
        httpx.HTTPError: The service does not answer, or refuses.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    response = await http.get("/metrics", headers=headers)
    response.raise_for_status()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def compare(before: Samples, after: Samples, tally: Tally) -> list[Row]:
    """Compare the client's count with the difference of the scrapes before and after the run."""
    rows = [_row(name, before, after, tally) for name in COUNTED]
    return [*rows, _sessions_row(before, after, tally)]


def _row(name: str, before: Samples, after: Samples, tally: Tally) -> Row:
    exposed = {
        key: value - before.get(key, 0.0)
        for key, value in after.items()
        if key[0] == name and dict(key[1]).get("route") not in _SHARED_ROUTES
    }
    counted = {
        key: value
        for key, value in tally.expected.items()
        if key[0] == name and dict(key[1]).get("route") not in _SHARED_ROUTES
    }
    differing = sorted(
        f"{_format(key)}: counted {counted.get(key, 0):g}, exposed {exposed.get(key, 0.0):g}"
        for key in counted.keys() | exposed.keys()
        if counted.get(key, 0) != exposed.get(key, 0.0)
    )
    return Row(
        name=name, counted=sum(counted.values()), exposed=sum(exposed.values()), differing=tuple(differing)
    )


def _sessions_row(before: Samples, after: Samples, tally: Tally) -> Row:
    # The gauge counts all sessions of 30 minutes: those of an earlier run may end during this one.
    ours, now = len(tally.sessions), after.get(_SESSIONS, 0.0)
    possible = ours <= now <= before.get(_SESSIONS, 0.0) + ours
    wrong = () if possible else (f"active_sessions: touched {ours}, exposed {now:g}",)
    return Row(name="active_sessions", counted=ours, exposed=now, differing=wrong)


def _format(key: Series) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(key[1]))
    return f"{key[0]}{{{labels}}}"
