import math
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from support.metrics import ScrapedRegistry, fast_switching, run_together
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._children import RequestChild


@pytest.fixture(params=["alone", "shared"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> ScrapedRegistry:
    """A registry without third-party metrics, alone or in an instance."""
    return ScrapedRegistry(tmp_path if request.param == "shared" else None)


def test_a_counter_sums_its_amounts(registry: ScrapedRegistry) -> None:
    """A counter without labels is exposed at 0 and counts without a child; any number becomes a float."""
    jobs = registry.counter("jobs_total", "Jobs.")
    assert registry.sample("jobs_total") == 0.0
    for amount in (1, 2.5, True, Fraction(1, 2)):
        jobs.inc(amount)  # type: ignore[arg-type]
    assert registry.sample("jobs_total") == 5.0


def test_each_label_set_is_a_series(registry: ScrapedRegistry) -> None:
    """Two label sets have two children; the same one has the same child."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind", "status"))
    jobs.labels(kind="a", status="ok").inc()
    jobs.labels(status="ok", kind="a").inc()
    jobs.labels(kind="b", status="ok").inc(5)
    assert registry.sample("jobs_total", kind="a", status="ok") == 2.0
    assert registry.sample("jobs_total", kind="b", status="ok") == 5.0
    assert jobs.labels(kind="a", status="ok") is jobs.labels(status="ok", kind="a")


def test_equal_values_with_different_text_are_different_series(registry: ScrapedRegistry) -> None:
    """1, 1.0 and True are one dictionary key, but three label values."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    values: tuple[Any, ...] = (1, True, 1.0, "1")
    for value in values:
        jobs.labels(kind=value).inc()
    assert registry.sample("jobs_total", kind="1") == 2.0
    assert registry.sample("jobs_total", kind="True") == 1.0
    assert registry.sample("jobs_total", kind="1.0") == 1.0


def test_known_label_sets_are_exposed_at_zero(registry: ScrapedRegistry) -> None:
    """Known label sets of any instrument are exposed before their first event."""
    registry.counter("jobs_total", "Jobs.", ("kind",), known=[{"kind": "a"}, {"kind": "b"}])
    registry.gauge("level", "Level.", ("kind",), known=[{"kind": "a"}])
    registry.histogram("time_seconds", "Time.", ("kind",), buckets=(1,), known=[{"kind": "a"}])
    assert registry.sample("jobs_total", kind="a") == 0.0
    assert registry.sample("jobs_total", kind="b") == 0.0
    assert registry.sample("level", kind="a") == 0.0
    assert registry.sample("time_seconds_count", kind="a") == 0.0


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf, -math.inf])
def test_a_counter_refuses_negative_and_infinite_amounts(registry: ScrapedRegistry, amount: float) -> None:
    """A counter never goes down and never becomes NaN or infinite."""
    jobs = registry.counter("jobs_total", "Jobs.")
    with pytest.raises(MetricError, match="only goes up, by a finite number"):
        jobs.inc(amount)
    assert registry.sample("jobs_total") == 0.0


def test_a_gauge_is_exposed_from_its_first_value_until_it_is_cleared(registry: ScrapedRegistry) -> None:
    """A gauge without a value is not exposed: 0 would be a value."""
    level = registry.gauge("level", "Level.", multiprocess_mode="sum")
    assert registry.sample("level") is None
    level.set(3)
    level.inc(2)
    level.dec(0.5)
    assert registry.sample("level") == 4.5
    level.clear()
    assert registry.sample("level") is None
    level.inc()
    assert registry.sample("level") == 1.0


def test_clearing_a_gauge_clears_every_label_set(registry: ScrapedRegistry) -> None:
    """A child that was kept brings its series back with its next value."""
    level = registry.gauge("level", "Level.", ("kind",), known=[{"kind": "a"}])
    held = level.labels(kind="b")
    held.set(7)
    level.clear()
    assert registry.sample("level", kind="a") is None
    assert registry.sample("level", kind="b") is None
    held.set(8)
    assert registry.sample("level", kind="b") == 8.0


@pytest.mark.parametrize("amount", [math.nan, math.inf])
def test_a_gauge_refuses_nan_and_infinite_steps(registry: ScrapedRegistry, amount: float) -> None:
    """A gauge can be set to NaN, which means unknown, but not moved by it."""
    level = registry.gauge("level", "Level.", multiprocess_mode="sum")
    for move in (level.inc, level.dec):
        with pytest.raises(MetricError, match="moves by a finite number"):
            move(amount)
    level.set(math.nan)
    assert math.isnan(registry.sample("level") or 0.0)


def test_a_histogram_counts_into_its_buckets(registry: ScrapedRegistry) -> None:
    """A value equal to a bound belongs to that bucket; buckets are cumulative, and +Inf may be given."""
    time = registry.histogram("time_ms", "Time.", buckets=(10, 50, 5000, math.inf))
    for value in (0, 10, 10.5, 50, 4999.5, 5000, 5001, -1):
        time.observe(value)
    counts = [registry.sample("time_ms_bucket", le=le) for le in ("10.0", "50.0", "5000.0", "+Inf")]
    assert counts == [3.0, 5.0, 7.0, 8.0]
    assert registry.sample("time_ms_count") == 8.0
    assert registry.sample("time_ms_sum") == 15070.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_histogram_refuses_nan_and_infinity(registry: ScrapedRegistry, value: float) -> None:
    """One NaN in the sum would make every later average NaN."""
    time = registry.histogram("time_seconds", "Time.", buckets=(1,))
    with pytest.raises(MetricError, match="takes finite numbers"):
        time.observe(value)
    assert registry.sample("time_seconds_count") == 0.0


@pytest.mark.parametrize(("unit", "least", "most"), [("s", 0.01, 5.0), ("ms", 10.0, 5000.0)])
def test_a_timer_observes_failures(registry: ScrapedRegistry, unit: Any, least: float, most: float) -> None:
    """Each block is one observation, in seconds or in milliseconds."""
    time = registry.histogram("time", "Time.", ("kind",), buckets=(1,))
    with time.labels(kind="a").time(unit):
        threading.Event().wait(0.01)
    with pytest.raises(KeyError, match="lost"), time.labels(kind="a").time(unit):
        raise KeyError("lost")
    assert registry.sample("time_count", kind="a") == 2.0
    assert least <= (registry.sample("time_sum", kind="a") or 0.0) < most


def test_a_timer_has_two_units(registry: ScrapedRegistry) -> None:
    """Another unit is refused when the timer is created."""
    time = registry.histogram("time_seconds", "Time.", buckets=(1,))
    with pytest.raises(MetricError, match="counts in 's' or 'ms', not in 'h'"):
        time.time("h")  # type: ignore[arg-type]
    with time.time():
        pass
    assert registry.sample("time_seconds_count") == 1.0


def test_labels_must_be_exactly_those_declared(registry: ScrapedRegistry) -> None:
    """A missing, additional or misspelt label is refused, and the error shows the right call."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    plain = registry.counter("runs_total", "Runs.")
    with pytest.raises(MetricError, match=r"takes labels\(kind=…\), not kynd"):
        jobs.labels(kynd="a")
    with pytest.raises(MetricError, match=r"takes labels\(kind=…\), not kind, more"):
        jobs.labels(kind="a", more="b")
    with pytest.raises(MetricError, match=r"takes labels\(kind=…\), not none"):
        jobs.labels()
    with pytest.raises(MetricError, match="takes no labels, not kind"):
        plain.labels(kind="a")
    with pytest.raises(MetricError, match=r"has labels: call labels\(kind=…\) first"):
        jobs.inc()


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda r: r.counter("jobs", "Jobs."), "must end in _total: call it jobs_total"),
        (lambda r: r.counter("_total", "Jobs."), "must end in _total"),
        (lambda r: r.counter("1_total", "Jobs."), "'1_total' is not usable"),
        (lambda r: r.gauge("", "Level."), "name '' is not usable"),
        (lambda r: r.gauge("a-b", "Level."), "'a-b' is not usable"),
        (lambda r: r.gauge("a:b", "Level."), "'a:b' is not usable"),
        (lambda r: r.gauge("level\n", "Level."), "is not usable"),
        (lambda r: r.gauge("jobs_total", "Level."), "may not end in _total"),
        (lambda r: r.gauge("jobs_created", "Level."), "may not end in _created"),
        (lambda r: r.histogram("a_bucket", "A.", buckets=(1,)), "may not end in _bucket"),
        (lambda r: r.gauge("level", "  "), "has no help text"),
        (lambda r: r.gauge("level", "\ud800"), "holds a lone surrogate"),
        (lambda r: r.gauge("level", "L.", ("a b",)), "'a b' of 'level' is not usable"),
        (lambda r: r.gauge("level", "L.", ("__a",)), "'__a' of 'level' is not usable"),
        (lambda r: r.gauge("level", "L.", ("a", "a")), "name one label twice"),
        (lambda r: r.gauge("level", "L.", "kind"), r"are one string: write a tuple, such as \(\"kind\",\)"),
        (lambda r: r.gauge("level", "L.", (1,)), "label 1 of 'level' is not usable"),
        (lambda r: r.histogram("a", "A.", ("le",), buckets=(1,)), "'le' of 'a' is the bucket's own"),
        (lambda r: r.gauge("level", "L.", multiprocess_mode="all"), "'all': choose one of latest, sum"),
        (lambda r: r.gauge("level", "L.", ["worker"], multiprocess_mode="worker"), "is set for each worker"),
        (lambda r: r.histogram("a", "A.", buckets=()), "needs one finite bucket or more"),
        (lambda r: r.histogram("a", "A.", buckets=(math.inf,)), "needs one finite bucket or more"),
        (lambda r: r.histogram("a", "A.", buckets=(1, math.nan)), "needs one finite bucket or more"),
        (lambda r: r.histogram("a", "A.", buckets=(1, 1)), "must rise"),
        (lambda r: r.histogram("a", "A.", buckets=(2, 1)), "must rise"),
    ],
)
def test_an_invalid_declaration_is_refused(
    registry: ScrapedRegistry, declare: Callable[[ScrapedRegistry], object], message: str
) -> None:
    """Names, labels, help texts and buckets are checked; the error states the rule and the fix."""
    with pytest.raises(MetricError, match=message):
        declare(registry)


def test_lone_surrogates_in_labels_are_replaced(registry: ScrapedRegistry) -> None:
    """Text that UTF-8 cannot encode does not break the scrape."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    jobs.labels(kind="a\ud800b").inc()
    jobs.labels(kind="a\udfffb").inc()
    assert registry.sample("jobs_total", kind="a?b") == 2.0
    assert 'kind="a?b"' in registry.text()


def test_no_update_is_lost_between_threads(registry: ScrapedRegistry) -> None:
    """Eight threads that switch as often as possible lose no update."""
    threads, each = 8, 20_000
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    level = registry.gauge("level", "Level.", multiprocess_mode="sum")
    time = registry.histogram("time_seconds", "Time.", buckets=(1, 2))
    start = threading.Barrier(threads)

    def work() -> None:
        child, values = jobs.labels(kind="a"), time.labels()
        start.wait()
        for _ in range(each):
            child.inc()
            level.inc()
            values.observe(1.5)

    with fast_switching():
        run_together(*[work] * threads)
    assert registry.sample("jobs_total", kind="a") == threads * each
    assert registry.sample("level") == threads * each
    assert registry.sample("time_seconds_bucket", le="2.0") == threads * each
    assert registry.sample("time_seconds_sum") == threads * each * 1.5


def test_a_series_used_first_by_many_threads_is_created_once(registry: ScrapedRegistry) -> None:
    """Threads that use a new label set at the same time get one child."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for number in range(200):
            jobs.labels(kind=str(number)).inc()

    run_together(*[work] * 8)
    assert [registry.sample("jobs_total", kind=str(number)) for number in range(200)] == [8.0] * 200


def test_a_store_with_a_lock_counts_the_same(registry: ScrapedRegistry) -> None:
    """Without a GIL each update takes a lock; the results are the same."""
    registry.store.lock = threading.Lock()
    registry.counter("jobs_total", "Jobs.").inc(2)
    registry.gauge("level", "Level.", multiprocess_mode="sum").inc(3)
    time = registry.histogram("time_seconds", "Time.", buckets=(1.0,))
    time.observe(0.5)
    request = RequestChild(registry.counter("requests_total", "Requests.").labels(), time.labels())
    request.count()
    request.observe(0.25, "")
    assert registry.sample("jobs_total") == 2.0
    assert registry.sample("requests_total") == 1.0
    assert registry.sample("level") == 3.0
    assert registry.sample("time_seconds_count") == 2.0
    assert registry.sample("time_seconds_sum") == 0.75
