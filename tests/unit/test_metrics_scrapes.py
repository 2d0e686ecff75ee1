"""Scrapes of several workers: multiprocess modes, exemplars, and how long they hold up the event loop."""

import asyncio
import contextlib
import gc
import gzip
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from support.asgi import fetch, watch
from support.metrics import ScrapedRegistry
from support.workers import samples_of
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._children import CounterChild
from watchkeeper.metrics._family import MultiprocessMode
from watchkeeper.metrics._http import HttpMetrics
from watchkeeper.metrics._store import MAX_EXEMPLARS
from watchkeeper.metrics.exposition._exporter import Exporter
from watchkeeper.metrics.exposition._exposition import Exposition, accepts_gzip


def worker(folder: Path, errors: list[MetricError] | None = None, **options: Any) -> ScrapedRegistry:
    """Return a registry of one of the workers that share `folder`."""
    return ScrapedRegistry(folder, on_error=None if errors is None else errors.append, **options)


@contextlib.asynccontextmanager
async def answering(*registries: ScrapedRegistry) -> AsyncIterator[list[Exporter]]:
    """Open the exporters of these workers until the block ends."""
    exporters = [registry.exporter for registry in registries]
    for one in exporters:
        await one.peers.open()
    try:
        yield exporters
    finally:
        for one in exporters:
            await one.peers.close()


def lines_of(exposition: Exposition, name: str) -> list[str]:
    """Return the sample lines of a metric."""
    return [line for line in exposition.body.decode().splitlines() if re.match(rf"{name}[{{ ]", line)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("latest", ["level 1.0"]),
        ("sum", ["level 6.0"]),
        ("max", ["level 3.0"]),
        ("min", ["level 1.0"]),
        ("worker", ['level{worker="0"} 3.0', 'level{worker="1"} 2.0', 'level{worker="2"} 1.0']),
    ],
)
def test_a_gauge_follows_its_mode(mode: MultiprocessMode, expected: list[str], tmp_path: Path) -> None:
    """Each worker shows the same; a worker that never set the gauge does not count."""
    workers = [worker(tmp_path) for _ in range(4)]
    gauges = [one.gauge("level", "Level.", multiprocess_mode=mode) for one in workers]
    for value, gauge in zip((3, 2, 1), gauges, strict=False):
        gauge.set(value)
    for one in workers:
        assert lines_of(one.scrape(), "level") == expected
    for gauge in gauges:
        gauge.clear()
    for one in workers:
        assert lines_of(one.scrape(), "level") == []
        assert b"# TYPE level gauge" in one.scrape().body


def test_clearing_is_also_the_latest_value_of_a_gauge(tmp_path: Path) -> None:
    """After one worker clears it, the gauge is not shown until any worker sets it."""
    one, two = worker(tmp_path), worker(tmp_path)
    first, second = one.gauge("level", "Level."), two.gauge("level", "Level.")
    first.set(1)
    second.set(2)
    assert one.sample("level") == 2.0
    second.clear()
    assert one.sample("level") is None
    first.set(3)
    assert two.sample("level") == 3.0
    first.set(math.nan)
    assert lines_of(two.scrape(), "level") == ["level NaN"]


def test_the_multiprocess_mode_applies_to_each_label_set(tmp_path: Path) -> None:
    """The mode combines one label set of all workers; the label `worker` comes last."""
    one, two = worker(tmp_path), worker(tmp_path)
    for registry, value in ((one, 1), (two, 5)):
        summed = registry.gauge("busy", "Busy.", ("kind",), multiprocess_mode="sum")
        summed.labels(kind="a").set(value)
        summed.labels(kind=str(value)).inc()
        registry.gauge("pid", "Pid.", ("kind",), multiprocess_mode="worker").labels(kind="a").set(value)
    assert lines_of(two.scrape(), "busy") == [
        'busy{kind="a"} 6.0',
        'busy{kind="5"} 1.0',
        'busy{kind="1"} 1.0',
    ]
    assert lines_of(one.scrape(), "pid") == ['pid{kind="a",worker="0"} 1.0', 'pid{kind="a",worker="1"} 5.0']


LABEL_VALUES = st.text(
    st.one_of(
        st.sampled_from('\\"\n\r\t{}=, #%\0\x7f\x85\u2028\u202e\ufeff'),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(
    counted=st.lists(
        st.tuples(st.integers(0, 1), LABEL_VALUES, st.floats(0, 1e300), st.integers(0, 12)), max_size=12
    )
)
def test_hostile_labels_of_two_workers_are_read_as_sums(counted: list[tuple[int, str, float, int]]) -> None:
    """Both parsers of prometheus_client read the same from either worker, whatever a label contains."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [worker(Path(folder)) for _ in range(2)]
        declared = [
            (
                one.counter("jobs_total", "Jobs %d.", ("kind",)),
                one.histogram("took_seconds", "Time.", ("kind",), buckets=(0.1, 5)),
                one.gauge("level", "Level.", ("kind",), multiprocess_mode="max"),
            )
            for one in workers
        ]
        sums: dict[str, list[float]] = {}
        for which, kind, amount, size in counted:
            jobs, took, level = declared[which]
            jobs.labels(kind=kind).inc(amount)
            took.labels(kind=kind).observe(size, {"trace_id": "a" * 32})
            level.labels(kind=kind).set(size)
            sums.setdefault(kind, []).append(amount)
        for one in workers:
            text = samples_of(one.text())
            strict = samples_of(one.text(openmetrics=True), openmetrics=True)
            assert text == strict
            for kind, amounts in sums.items():
                labels = frozenset({("kind", kind)})
                assert text["jobs_total", labels] == pytest.approx(math.fsum(amounts))
                assert text["took_seconds_count", labels] == len(amounts)
            assert sum(name == "jobs_total" for name, _ in text) == len(sums)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_different_declaration_of_a_peer_is_left_out(tmp_path: Path, *, seen_before: bool) -> None:
    """Each worker shows what it declares itself, whichever was first, and reports the other once."""
    errors: list[MetricError] = []
    one, two = worker(tmp_path, errors), worker(tmp_path)
    two.counter("jobs_total", "Jobs.", ("kind",)).labels(kind="a").inc(7)
    if seen_before:
        assert one.sample("jobs_total", kind="a") == 7.0
    one.counter("jobs_total", "Jobs.").inc(2)
    for _ in range(3):
        assert lines_of(one.scrape(), "jobs_total") == ["jobs_total 2.0"]
    assert [str(error) for error in errors] == [
        (
            "Worker 1 declares 'jobs_total' differently from this one: what it counts there is left out."
            " Run the same code in all workers."
        )
    ]


def test_openmetrics_shows_creation_times_if_wanted(tmp_path: Path) -> None:
    """`created` adds the time of the oldest worker's series to OpenMetrics, and nothing to text."""
    before = time.time()
    one, two = worker(tmp_path, created=True), worker(tmp_path, created=True)
    for registry in (one, two):
        registry.counter("jobs_total", "Jobs.", ("kind",)).labels(kind="a").inc()
        registry.histogram("took_seconds", "Time.", buckets=(1,)).observe(1)
    assert b"_created" not in one.scrape().body
    samples = samples_of(one.text(openmetrics=True), openmetrics=True)
    for key in (("jobs_created", frozenset({("kind", "a")})), ("took_seconds_created", frozenset())):
        assert before <= samples[key] <= time.time()
        assert samples[key] == samples_of(two.text(openmetrics=True), openmetrics=True)[key]
    assert b"_created" not in worker(tmp_path).scrape(openmetrics=True).body


async def test_exemplars_of_all_workers_are_in_one_scrape(tmp_path: Path) -> None:
    """Each bucket and counter has the latest one of all workers; the text format has none."""
    one, two = worker(tmp_path), worker(tmp_path)
    for registry, trace in ((one, "a" * 32), (two, "b" * 32)):
        jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
        took = registry.histogram("took_seconds", "Time.", buckets=(1, 2))
        jobs.labels(kind="all").inc(2, exemplar={"trace_id": trace})
        took.observe(1.5, {"trace_id": trace})
    took.observe(0.5, {"trace_id": "c" * 32, "note": "a b"})
    async with answering(one, two) as workers:
        for scraper in workers:
            text = (await scraper.scrape(openmetrics=True)).body.decode()
            assert re.search(r'jobs_total\{kind="all"\} 4.0 # \{trace_id="b{32}"\} 2.0 \d+\.\d+\n', text)
            assert re.search(
                r'took_seconds_bucket\{le="2.0"\} 3.0 # \{trace_id="b{32}"\} 1.5 \d+\.\d+\n', text
            )
            assert re.search(r'le="1.0"\} 1.0 # \{trace_id="c{32}",note="a b"\} 0.5 ', text)
            assert text.count(" # {") == 3
            parsed = parse_openmetrics(text)  # type: ignore[no-untyped-call] # it has no types
            found = {
                sample.exemplar.labels["trace_id"]
                for family in parsed
                for sample in family.samples
                if sample.exemplar
            }
            assert found == {"b" * 32, "c" * 32}
            assert " # {" not in (await scraper.scrape(openmetrics=False)).body.decode()


def test_an_exemplar_has_128_characters_at_most(tmp_path: Path) -> None:
    """Names and values count together; longer exemplars and invalid names are refused."""
    registry = worker(tmp_path)
    jobs = registry.counter("jobs_total", "Jobs.")
    took = registry.histogram("took_seconds", "Time.", buckets=(1, 2))
    jobs.inc(exemplar={"a": "x" * 127})
    samples_of(registry.text(openmetrics=True), openmetrics=True)
    for labels in ({"a": "x" * 128}, {"a": "x" * 64, "b": "y" * 63}):
        with pytest.raises(MetricError, match="at most 128 characters in all"):
            jobs.inc(exemplar=labels)
        with pytest.raises(MetricError, match="at most 128 characters in all"):
            took.observe(1, labels)
    with pytest.raises(MetricError, match="label 'a-b' is not usable"):
        jobs.inc(exemplar={"a-b": "x"})


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZip, deflate", True),
        ("deflate, br", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity;q=1, *;q=0", False),
        ("br;q=1.0, gzip;q=0.001", True),
        ("gzip;q=x", False),
        ("gzip;q=nan", False),
        (";;,,=,gzip", True),
        ("x-gzip", False),
    ],
)
def test_gzip_is_sent_if_it_is_accepted(header: str, *, accepted: bool) -> None:
    """RFC 9110 decides; an invalid quality means no."""
    assert accepts_gzip(header) == accepted


async def test_overlapping_scrapes_share_one_rendering(tmp_path: Path) -> None:
    """Ten at once are rendered once for each format; the compressed one is made from the plain one."""
    rendered = 0

    async def count() -> None:
        nonlocal rendered
        rendered += 1

    watched = watch(_not_called, tmp_path, before_scrape=[count])
    watched.registry.worker.join(tmp_path)
    plain = [(b"host", b"127.0.0.1")]
    packed = [*plain, (b"accept-encoding", b"gzip")]
    openmetrics = [*plain, (b"accept", b"application/openmetrics-text")]
    replies = await asyncio.gather(
        *(fetch(watched.app, "/metrics", headers=headers) for headers in (plain, packed) for _ in range(5))
    )
    assert {reply.status for reply in replies} == {200}
    assert {reply.headers.get("content-encoding", "") for reply in replies} == {"", "gzip"}
    assert rendered == 1
    bodies = {reply.headers.get("content-encoding", ""): reply.body for reply in replies}
    assert gzip.decompress(bodies["gzip"]) == bodies[""]
    # Both formats at once, while another worker joins and declares.
    joining = asyncio.create_task(asyncio.to_thread(_join_and_declare, tmp_path))
    replies = await asyncio.gather(
        *(
            fetch(watched.app, "/metrics", headers=headers)
            for headers in (plain, openmetrics)
            for _ in range(5)
        )
    )
    await joining
    assert {reply.status for reply in replies} == {200}
    assert rendered == 2


def _join_and_declare(folder: Path) -> None:
    worker(folder).counter("late_total", "Late.").inc()


async def _not_called(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("only /metrics is requested")


def test_an_abandoned_scrape_hides_nothing_from_the_next(tmp_path: Path) -> None:
    """At whichever step it ends, values that it read but did not render are in the next one."""
    one, two = worker(tmp_path), worker(tmp_path)
    _create_series(one)
    bound = _create_series(two)
    for step in range(16):
        for child in bound:  # in one worker only: a change in the other would also mark the rows as dirty
            child.inc()
        abandoned = one.exporter.lines(openmetrics=False)
        for _ in range(step):
            next(abandoned, None)
        del abandoned
        values = {line.rsplit(" ")[-1] for line in lines_of(one.scrape(), "jobs_total")}
        assert values == {f"{step + 1.0}"}


def _create_series(registry: ScrapedRegistry, count: int = 9000) -> list[CounterChild]:
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    return [jobs.labels(kind=str(number)) for number in range(count)]


def test_overlapping_scrapes_do_not_mix(tmp_path: Path) -> None:
    """One scrape starts during another and after a worker joined: both show everything once."""
    for step in range(12, 46, 3):  # while it finds the peer, its series and its values
        folder = tmp_path / str(step)
        folder.mkdir()
        one, two = worker(folder), worker(folder)
        for child in _create_series(one, 5000) + _create_series(two, 5000):
            child.inc()
        first = one.exporter.lines(openmetrics=False)
        started = [next(first) for _ in range(step)]
        _join_and_declare(folder)
        second = one.scrape()
        for text in ("".join([*started, *first]), second.body.decode()):
            assert text.count("\njobs_total{") == 5000
            assert text.count("} 2.0\n") == 5000


async def test_workers_answer_each_other_in_a_folder_with_a_long_path(tmp_path: Path) -> None:
    """A socket's address has at most 107 bytes; a longer path works too."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    registries = []
    for value in (1, 2):
        third_party = CollectorRegistry()
        Gauge("theirs", "Theirs.", registry=third_party).set(value)
        registries.append(worker(folder, third_party=third_party))
    async with answering(*registries) as workers:
        for scraper in workers:
            exposition = await scraper.scrape(openmetrics=False)
            assert sorted(lines_of(exposition, "theirs")) == [
                'theirs{worker="0"} 1.0',
                'theirs{worker="1"} 2.0',
            ]
        # A worker that was closed and opened again answers as before.
        await workers[1].peers.close()
        assert lines_of(await workers[0].scrape(openmetrics=False), "theirs") == ['theirs{worker="0"} 1.0']
        await workers[1].peers.open()
        assert len(lines_of(await workers[0].scrape(openmetrics=False), "theirs")) == 2


STOPPED = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from watchkeeper.metrics import Registry
from watchkeeper.metrics.exposition._exporter import Exporter
from watchkeeper.metrics.shared._worker import Worker

async def main():
    registry = Registry(third_party=CollectorRegistry())
    registry.counter("jobs_total", "Jobs.").inc(3)
    worker = Worker(registry)
    worker.join(Path(sys.argv[1]))
    await Exporter(worker).peers.open()
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_worker_that_hangs_does_not_stop_a_scrape(tmp_path: Path) -> None:
    """Its counters are shown; only its third-party metrics and exemplars are missing."""
    third_party = CollectorRegistry()
    Gauge("theirs", "Theirs.", registry=third_party).set(4)
    registry = worker(tmp_path, third_party=third_party)
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as child:  # noqa: ASYNC220 - does not last
        try:
            assert child.stdout is not None
            assert await asyncio.to_thread(child.stdout.read, 2) == b"up"
            async with answering(registry) as [scraper]:
                os.kill(child.pid, signal.SIGSTOP)
                exposition = await scraper.scrape(openmetrics=False)
        finally:
            child.kill()
    assert lines_of(exposition, "jobs_total") == ["jobs_total 3.0"]
    assert lines_of(exposition, "theirs") == ['theirs{worker="0"} 4.0']


async def _longest_gap(work: Coroutine[Any, Any, Any]) -> float:
    """Return the longest CPU time in which no one else had a turn on the loop while `work` ran."""
    longest = 0.0
    task = asyncio.create_task(work)
    before = thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = thread_time()
        longest, before = max(longest, now - before), now
    await task
    return longest


async def test_a_scrape_of_a_hundred_thousand_series_lets_others_in_between(tmp_path: Path) -> None:
    """The first one, which reads all of another worker, later ones, and one where everything has changed."""
    registries = [worker(tmp_path, max_series=20_000) for _ in range(2)]
    bound = []
    for registry in registries:
        for number in range(5):
            jobs = registry.counter(f"jobs_{number}_total", "Jobs.", ("a", "b"))
            bound += [jobs.labels(a=str(at), b="value") for at in range(18_000)]
        took = registry.histogram("took_seconds", "Time.", ("a",), buckets=(0.1, 0.5, 1, 2, 5))
        for at in range(1500):
            took.labels(a=str(at)).observe(1, {"trace_id": "a" * 32})
        for one in bound[-MAX_EXEMPLARS:]:
            one.inc(1, {"trace_id": "b" * 32})
    gaps: dict[str, float] = {}
    gc.collect()
    gc.freeze()  # what the collector does about the series themselves is not the scrape's; what it makes is
    try:
        async with answering(*registries) as [scraper, _]:
            for name, openmetrics in (("first", False), ("again", False), ("changed", True)):
                if name == "changed":
                    for one in bound:
                        one.inc()
                gaps[name] = await _longest_gap(scraper.scrape(openmetrics=openmetrics))
    finally:
        gc.unfreeze()
    assert max(gaps.values()) < 0.1, gaps  # about 0.01; without steps it is a second


def test_a_worker_keeps_a_limited_number_of_exemplars() -> None:
    """The oldest are dropped first; one that is replaced counts as new."""
    registry = ScrapedRegistry()
    jobs = registry.counter("jobs_total", "Jobs.", ("who",))
    cells = {}
    for number in [*range(MAX_EXEMPLARS), 0, *range(MAX_EXEMPLARS, MAX_EXEMPLARS + 100)]:
        job = jobs.labels(who=str(number))
        job.inc(1, {"trace_id": str(number)})
        cells[number] = job._cells[1]
    kept = registry.store.exemplars
    assert len(kept) == MAX_EXEMPLARS
    assert [cells[number] in kept for number in (0, 1, 100, 101, MAX_EXEMPLARS + 99)] == [
        True, False, False, True, True,
    ]  # fmt: skip


def test_first_exemplars_do_not_replace_each_other() -> None:
    """With more buckets than exemplars kept, a bucket's first one would replace another with each request."""
    registry = ScrapedRegistry()
    metrics = HttpMetrics(registry)
    for number in range(MAX_EXEMPLARS + 100):
        metrics.record("GET", f"/{number}", 200, 0.1, "f" * 32)
    assert len(registry.store.exemplars) == MAX_EXEMPLARS
    metrics.record("GET", f"/{MAX_EXEMPLARS + 50}", 200, 0.1, "f" * 31 + "0")
    assert len(registry.store.exemplars) == MAX_EXEMPLARS
    assert "f" * 31 + "0" in {exemplar.labels["trace_id"] for exemplar in registry.store.exemplars.values()}
