"""Damaged slots, unusable folders, and threads that count while their worker joins an instance."""

import gc
import itertools
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.metrics import ScrapedRegistry, fast_switching, run_together
from support.workers import Samples, samples_of
from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._store import LocalMemory
from watchkeeper.metrics.exposition._reader import Reader
from watchkeeper.metrics.shared._instance import Instance
from watchkeeper.metrics.shared._processes import is_running, start_time


def worker(
    folder: Path | None = None, errors: list[MetricError] | None = None, **options: Any
) -> ScrapedRegistry:
    """Return the registry of a worker that has joined the instance in `folder`, if any."""
    return ScrapedRegistry(folder, on_error=None if errors is None else errors.append, **options)


def leave(registry: ScrapedRegistry) -> None:
    """End a worker as a kill does: its lock is released and nothing else."""
    slot = registry.worker._slot
    assert slot is not None
    slot.values[1] = 0.0  # no process: the test's own process keeps running
    slot.release()
    registry.worker._slot = None


def shown(registry: ScrapedRegistry) -> Samples:
    """Return the samples of a scrape of this worker."""
    return samples_of(registry.text())


def read(folder: Path, errors: list[MetricError]) -> Samples:
    """Return what a worker without metrics reads from all slots."""
    return samples_of("".join(Reader(LocalMemory(), errors.append, number=9, folder=folder).steps({})))


def declare(registry: ScrapedRegistry, amount: float) -> None:
    """Count with an instrument of each kind."""
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))
    for kind in ("a", "b", "c"):
        jobs.labels(kind=kind).inc(amount)
    registry.gauge("level", "Level.", multiprocess_mode="sum").set(amount)
    registry.histogram("took_seconds", "Time.", buckets=(1, 2)).observe(1.5)


@pytest.fixture(scope="module")
def two_slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slots of two dead workers."""
    folder = tmp_path_factory.mktemp("slots")
    workers = [worker(folder), worker(folder)]
    for one in workers:
        declare(one, 7.0)
        leave(one)
    # Cut off the sparse rest of 128 MiB, which would make copies slow.
    for path in folder.glob("*.values"):
        os.truncate(path, 64 * 1024)
    return folder


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@settings(max_examples=250)
@given(
    kind=st.sampled_from(["keys", "values"]),
    cut=st.one_of(st.none(), st.floats(0, 1)),
    flips=st.lists(st.floats(0, 0.9999), max_size=3),
    garbage=st.binary(max_size=40),
)
def test_a_damaged_slot_affects_no_other_slot(
    two_slots: Path, kind: str, cut: float | None, flips: list[float], garbage: bytes
) -> None:
    """Whatever it contains, scrapes and the next worker work, other values are right, and it is reported."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "slots"
        shutil.copytree(two_slots, folder)
        path = folder / f"0.{kind}"
        whole = path.read_bytes()
        used = len(whole) if kind == "keys" else 8 * 30
        data = whole if cut is None else whole[: int(cut * used)]
        for place in flips:
            if data:
                data = _flipped(data, int(place * 8 * min(used, len(data))))
        path.write_bytes(data + (garbage if cut is not None or kind == "keys" else b""))

        unread: list[MetricError] = []
        seen = read(folder, unread)
        if kind == "keys":
            jobs = {seen["jobs_total", frozenset({("kind", one)})] for one in "abc"}
            assert jobs <= {7.0, 14.0}
        assert len(unread) <= 1

        errors: list[MetricError] = []
        first, second = worker(folder, errors), worker(folder, errors)
        assert (first.worker.number, second.worker.number) == (0, 1)
        declare(first, 1.0)
        declare(second, 1.0)
        assert len(errors) <= 1
        for registry in (first, second):
            samples = shown(registry)
            counts = [samples["jobs_total", frozenset({("kind", one)})] for one in "abc"]
            if errors:
                assert "is damaged; it is set aside" in str(errors[0])
                assert counts == [9.0] * 3
                assert samples["took_seconds_count", frozenset()] == 3.0
            elif kind == "keys":
                assert counts == [16.0] * 3
            else:
                assert all(map(math.isfinite, counts))
            assert samples["level", frozenset()] == 2.0
        leave(first)
        again: list[MetricError] = []
        worker(folder, again)
        assert again == []


def test_missing_keys_are_detected(tmp_path: Path) -> None:
    """Checksums do not show a file cut off between records; the number of used cells does."""
    first = worker(tmp_path)
    declare(first, 7.0)
    leave(first)
    os.truncate(tmp_path / "0.keys", 0)
    errors: list[MetricError] = []
    assert ("jobs_total", frozenset({("kind", "a")})) not in read(tmp_path, errors)
    assert [str(one) for one in errors] == ["The metrics of worker 0 cannot be read and are left out."]
    errors.clear()
    second = worker(tmp_path, errors)
    declare(second, 1.0)
    assert second.sample("jobs_total", kind="a") == 1.0
    assert "The keys are cut off." in str(errors[0])
    assert {path.name for path in tmp_path.glob("*.damaged")} == {"0.keys.damaged", "0.values.damaged"}


def test_peers_read_a_replaced_slot_from_the_start(tmp_path: Path) -> None:
    """A peer drops what it summed of the old file, and shows what the slot's next worker counts."""
    errors: list[MetricError] = []
    other = worker(tmp_path, errors)
    first = worker(tmp_path)
    declare(other, 1.0)
    declare(first, 7.0)
    assert other.sample("jobs_total", kind="a") == 8.0
    leave(first)
    keys = tmp_path / "1.keys"
    keys.write_bytes(_flipped(keys.read_bytes(), 100))
    assert other.sample("jobs_total", kind="a") == 8.0
    second = worker(tmp_path, errors)
    declare(second, 2.0)
    assert other.sample("jobs_total", kind="a") == 3.0
    assert len(errors) == 1


def test_a_peers_new_metric_is_in_the_next_scrape(tmp_path: Path) -> None:
    """A metric that only a peer declares, after the first scrape, is in the next one."""
    one, two = worker(tmp_path), worker(tmp_path)
    assert one.sample("late_total") is None
    late = two.counter("late_total", "Late.")
    assert one.sample("late_total") == 0.0
    late.inc(3)
    assert one.sample("late_total") == 3.0
    three = worker(tmp_path)
    three.counter("late_total", "Late.").inc()
    assert one.sample("late_total") == 4.0


def test_a_refused_declaration_leaves_the_first_one_as_it_was(tmp_path: Path) -> None:
    """A second declaration of the same metric loses no counts, here or for the next worker."""
    for registry in (worker(), worker(tmp_path)):
        jobs = registry.counter("jobs_total", "Jobs.")
        jobs.inc(5)
        with pytest.raises(MetricError, match="clashes with the counter 'jobs_total'"):
            registry.counter("jobs_total", "Jobs.")
        jobs.inc()
        assert registry.sample("jobs_total") == 6.0
    leave(registry)
    assert worker(tmp_path).sample("jobs_total") == 6.0


ROUNDS = 3000


class _Counting:
    """Eight threads that count, move a gauge, observe and declare, and one that joins an instance."""

    def __init__(self, folder: Path, *, locked: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self.registry = worker()
        if locked:
            self.registry.store.lock = threading.Lock()
        self._jobs = self.registry.counter("jobs_total", "Jobs.", ("kind",))
        self._level = self.registry.gauge("level", "Level.", multiprocess_mode="sum")
        self._took = self.registry.histogram("took_seconds", "Time.", buckets=(1, 2))
        self._started = threading.Event()

    def count(self, number: int) -> None:
        bound = self._jobs.labels(kind="all")
        for turn in range(ROUNDS):
            bound.inc()
            self._level.inc()
            self._took.observe(1.5)
            self._jobs.labels(kind=f"{number}.{turn % 100}").inc()
            if turn % 100 == 0:
                self.registry.counter(f"of_{number}_{turn}_total", "Jobs.").inc()
            self._started.set()

    def share(self) -> None:
        self._started.wait()
        self.registry.worker.join(self.folder)

    def run(self) -> None:
        run_together(*(partial(self.count, number) for number in range(8)), self.share)


@pytest.mark.parametrize("locked", [False, True])
def test_threads_lose_nothing_while_their_worker_joins(tmp_path: Path, *, locked: bool) -> None:
    """At whatever moment the series move, every event of the eight threads is counted."""
    for attempt in range(4):
        counting = _Counting(tmp_path / str(attempt), locked=locked)
        with fast_switching():
            counting.run()
        for one in (counting.registry, worker(counting.folder)):
            samples = shown(one)
            assert samples["jobs_total", frozenset({("kind", "all")})] == 8 * ROUNDS
            assert samples["level", frozenset()] == 8 * ROUNDS
            assert samples["took_seconds_count", frozenset()] == 8 * ROUNDS
            assert samples["took_seconds_sum", frozenset()] == 8 * ROUNDS * 1.5
            assert sum(value for (name, _), value in samples.items() if name == "jobs_total") == 16 * ROUNDS
            assert sum(value for (name, _), value in samples.items() if name.startswith("of_")) == 8 * 30


class _InterruptedCells(list[float]):
    """Cells that call `interrupt` just before the first write, as if another thread ran."""

    def __init__(self, interrupt: Callable[[], None]) -> None:
        super().__init__([0.0] * 4)
        self._interrupt: Callable[[], None] | None = interrupt

    def __setitem__(self, index: Any, value: Any) -> None:
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            interrupt()
        super().__setitem__(index, value)


def test_a_gauge_keeps_a_step_that_comes_during_its_move() -> None:
    """Neither a step in the old cells nor one in the new cells is lost."""
    level = worker().gauge("level", "Level.", multiprocess_mode="sum")
    level.inc(5)
    cells = _InterruptedCells(level.inc)
    [(_, child)] = level.children()
    child.move(cast("memoryview[float]", cells), 0, level.family.width, carry=True)
    level.inc()
    assert cells[0] == 7.0


def test_a_metric_declared_during_a_join_is_shared(tmp_path: Path) -> None:
    """Series move only when a declaration is complete, so all of them move."""
    registry = worker()
    sharing = threading.Thread(target=registry.worker.join, args=(tmp_path,))

    def known() -> Iterator[dict[str, str]]:
        yield {"kind": "before"}
        sharing.start()
        sharing.join(0.2)
        yield {"kind": "after"}

    jobs = registry.counter("jobs_total", "Jobs.", ("kind",), known=known())
    sharing.join()
    other = worker(tmp_path)
    for kind in ("before", "after"):
        jobs.labels(kind=kind).inc()
        assert other.sample("jobs_total", kind=kind) == 1.0


def test_earlier_counts_are_added_to_an_adopted_slot(tmp_path: Path) -> None:
    """Counts of both workers are summed; a gauge has the new worker's value only."""
    first = worker(tmp_path)
    declare(first, 7.0)
    first.gauge("gone", "Gone.", multiprocess_mode="sum").set(9)
    leave(first)
    second = worker()
    declare(second, 2.0)
    second.worker.join(tmp_path)
    samples = shown(second)
    assert second.worker.number == 0
    assert samples["jobs_total", frozenset({("kind", "a")})] == 9.0
    assert samples["took_seconds_count", frozenset()] == 2.0
    assert samples["level", frozenset()] == 2.0
    assert ("gone", frozenset()) not in samples


def test_too_long_label_values_create_no_series(tmp_path: Path) -> None:
    """A label value of a megabyte is counted as lost, and takes no shared memory."""
    errors: list[MetricError] = []
    one, two = worker(tmp_path, errors), worker(tmp_path, errors)
    jobs = one.counter("jobs_total", "Jobs.", ("kind",))
    jobs.labels(kind="x" * 60_000).inc()
    jobs.labels(kind="x" * 1_000_000).inc()
    jobs.labels(kind="y").inc()
    assert two.sample("jobs_total", kind="y") == 1.0
    assert two.sample("jobs_total", kind="x" * 60_000) == 1.0
    assert two.sample("metrics_overflow_total", metric="jobs_total") == 1.0
    assert "its label values are too long" in str(errors[0])


def test_lost_events_are_counted_for_each_metric(tmp_path: Path) -> None:
    """The overflow counter has a series for each metric, even if the cap is lower than their number."""
    errors: list[MetricError] = []
    registry = worker(tmp_path, errors, max_series=1)
    for name in ("one_total", "two_total", "three_total"):
        jobs = registry.counter(name, "Jobs.", ("kind",))
        for number in range(5):
            jobs.labels(kind=str(number)).inc()
        assert registry.sample("metrics_overflow_total", metric=name) == 4.0
    assert len(errors) == 3
    assert "'two_total' gets no new series: it has 1 series, its cap" in str(errors[1])


def test_every_call_on_a_lost_child_is_one_lost_event() -> None:
    """Counters, gauges and histograms beyond their cap take the same calls as others."""
    registry = worker(max_series=1)
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",), known=[{"kind": "a"}])
    level = registry.gauge("level", "Level.", ("kind",), multiprocess_mode="sum", known=[{"kind": "a"}])
    took = registry.histogram("took_seconds", "Time.", ("kind",), buckets=(1,), known=[{"kind": "a"}])
    jobs.labels(kind="b").inc(2, {"trace_id": "a"})
    for call in (level.labels(kind="b").set, level.labels(kind="b").inc, level.labels(kind="b").dec):
        call(2)
    level.labels(kind="b").clear()
    took.labels(kind="b").observe(0.5)
    with took.labels(kind="b").time():
        pass
    lost = [registry.sample("metrics_overflow_total", metric=one.name) for one in (jobs, level, took)]
    assert lost == [1.0, 3.0, 2.0]


def test_labels_beyond_the_cap_use_no_memory(tmp_path: Path) -> None:
    """A metric at its cap creates no series, writes to no file and keeps no object."""
    registry = worker(tmp_path, [], max_series=10)
    jobs = registry.counter("jobs_total", "Jobs.", ("kind",))

    def count_with_new_labels() -> None:
        for number in range(20_000):
            jobs.labels(kind=f"\x00{number}\n").inc()

    count_with_new_labels()
    gc.collect()
    objects, keys = len(gc.get_objects()), (tmp_path / "0.keys").stat().st_size
    count_with_new_labels()
    gc.collect()
    assert len(gc.get_objects()) < objects + 100
    assert (tmp_path / "0.keys").stat().st_size == keys
    assert registry.text().count("\njobs_total{") == 10


def test_freed_workers_leave_no_open_file(tmp_path: Path) -> None:
    """Neither the files of their slots nor those of peers stay open or mapped."""

    def use() -> None:
        gc.collect()
        workers = [worker(tmp_path) for _ in range(3)]
        for one in workers:
            declare(one, 1.0)
            shown(one)

    def held() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count(str(tmp_path))  # noqa: PTH208 - only how many

    use()
    before = held()
    for _ in range(5):
        use()
    assert held() == before
    assert before[1] == 0
    assert len(list(tmp_path.glob("*.values"))) == 3


def test_workers_survive_the_removal_of_their_folder(tmp_path: Path) -> None:
    """After a cleanup of temporary files, workers show what they have read, and report it once."""
    errors: list[MetricError] = []
    folder = tmp_path / "instance"
    folder.mkdir()
    one, two = worker(folder, errors), worker(folder)
    declare(one, 1.0)
    declare(two, 2.0)
    assert one.sample("jobs_total", kind="a") == 3.0
    shutil.rmtree(folder)
    declare_more = one.counter("more_total", "More.")
    declare_more.inc()
    for _ in range(2):
        assert one.sample("jobs_total", kind="a") == 3.0
        assert one.sample("more_total") == 1.0
    assert one.worker.running_peers() == frozenset()
    assert len(errors) == 1
    assert "cannot be read" in str(errors[0])


def test_a_worker_stays_alone_without_a_usable_folder(tmp_path: Path) -> None:
    """A file or nothing in place of the folder is an error; the worker still counts, and can join later."""
    registry = worker()
    jobs = registry.counter("jobs_total", "Jobs.")
    jobs.inc()
    (tmp_path / "file").write_text("")
    for name, reason in (("file", "Not a directory"), ("none", "No such file or directory")):
        with pytest.raises(MetricError, match=f"Metrics cannot be shared in .*/{name}: {reason}"):
            registry.worker.join(tmp_path / name)
    jobs.inc()
    assert registry.sample("jobs_total") == 2.0
    registry.worker.join(tmp_path)
    assert registry.sample("jobs_total") == 2.0


def test_a_folder_that_others_can_access_is_refused(tmp_path: Path) -> None:
    """Its mode must be 0700, its owner this user, and it must not be a link or a file."""
    ours = tmp_path / f"watchkeeper-{os.geteuid()}"
    ours.mkdir(mode=0o755)
    with pytest.raises(MetricError, match="must be private to this user: remove it, or set its mode"):
        Instance("shop", base=tmp_path)
    ours.chmod(0o700)
    assert Instance("shop", base=tmp_path).folder.parent == ours
    if os.geteuid() == 0:
        os.chown(ours, 65534, 65534)
        with pytest.raises(MetricError, match="must be private to this user"):
            Instance("shop", base=tmp_path)
    shutil.rmtree(ours)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    ours.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MetricError, match="must be private to this user"):
        Instance("shop", base=tmp_path)
    ours.unlink()
    ours.write_text("")
    with pytest.raises(MetricError, match="cannot be created: File exists"):
        Instance("shop", base=tmp_path)


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    """A worker is identified by its start time too, so the gauges of a dead one are not shown."""
    assert is_running(os.getpid(), start_time(os.getpid()))
    assert not is_running(os.getpid(), start_time(os.getpid()) - 1)
    one, two = worker(tmp_path), worker(tmp_path)
    two.gauge("level", "Level.", multiprocess_mode="sum").set(5)
    assert one.sample("level") == 5.0
    assert two.worker._slot is not None
    two.worker._slot.values[2] -= 1.0
    assert one.sample("level") is None
    for damaged in (math.nan, math.inf, -1.0, 1e300):
        two.worker._slot.values[1] = damaged
        assert one.sample("level") is None


def test_each_keeper_of_a_process_has_its_own_instance(tmp_path: Path) -> None:
    """Two keepers of one service do not mix, unless they have the same instance name."""
    folders = [Instance("shop", base=tmp_path).folder for _ in range(2)]
    folders.append(Instance("shop2", base=tmp_path).folder)
    named = [Instance("shop", name="all", base=tmp_path).folder for _ in range(2)]
    assert len({*folders, *named}) == 4
    assert len(set(named)) == 1


def test_no_counter_falls_while_slots_are_adopted(tmp_path: Path) -> None:
    """While another worker scrapes, workers end and their slots are adopted: no gauge is stale either."""
    errors: list[MetricError] = []
    reader = worker(tmp_path, errors)
    ended = threading.Event()
    fell: list[tuple[float, float]] = []

    def scrape() -> None:
        before = 0.0
        while not ended.is_set():
            samples = shown(reader)
            now = samples.get(("jobs_total", frozenset({("kind", "a")})), 0.0)
            if now < before or samples.get(("level", frozenset()), 1.0) != 1.0:
                fell.append((before, now))
            before = now

    def adopt_again_and_again() -> None:
        for _ in itertools.repeat(None, 60):
            one = worker(tmp_path)
            declare(one, 1.0)
            leave(one)
        ended.set()

    run_together(scrape, adopt_again_and_again)
    assert fell == []
    assert reader.sample("jobs_total", kind="a") == 60.0
    assert errors == []


def test_the_cap_includes_series_of_earlier_workers(tmp_path: Path) -> None:
    """A worker that restarts with new labels again and again adds no series and writes to no file."""
    sizes = []
    for generation in range(4):
        registry = ScrapedRegistry(max_series=3)
        jobs = registry.counter("jobs_total", "Jobs.", ("who",))
        registry.worker.join(tmp_path)
        for who in ("known", *(f"{generation}-{one}" for one in range(5))):
            jobs.labels(who=who).inc()
        text = registry.text()
        assert text.count("\njobs_total{") == 3
        assert registry.sample("jobs_total", who="known") == generation + 1
        sizes.append((tmp_path / f"{registry.worker.number}.keys").stat().st_size)
        assert registry.worker._slot is not None
        registry.worker._slot.release()
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("family", ["jobs_total", "took_seconds"])
def test_values_that_are_not_finite_are_left_out_and_reported_once(
    tmp_path: Path, family: str, *, openmetrics: bool
) -> None:
    """The other worker's part of that row is left out, and no scrape fails."""
    errors: list[str] = []
    registries = [ScrapedRegistry(on_error=lambda error: errors.append(str(error))) for _ in range(2)]
    for registry in registries:
        registry.counter("jobs_total", "Jobs.").inc()
        registry.histogram("took_seconds", "Took.", buckets=(1.0,)).observe(0.5, {"trace_id": "a" * 32})
        registry.worker.join(tmp_path)
    slot = registries[1].worker._slot
    assert slot is not None
    first = next(series.first for series in slot.series if series.family.name == family)
    slot.values[first] = math.nan
    for _ in range(2):
        text = registries[0].text(openmetrics=openmetrics)
    counts = {
        line.split(" ")[0]: line.split(" ")[1] for line in text.splitlines() if not line.startswith("#")
    }
    whole = {"jobs_total": "2.0", "took_seconds_count": "2.0"}
    damaged = "jobs_total" if family == "jobs_total" else "took_seconds_count"
    assert {name: counts[name] for name in whole} == whole | {damaged: "1.0"}
    assert len(errors) == 1
    assert "not finite" in errors[0]


def test_counts_whose_sum_overflows_are_left_out(tmp_path: Path) -> None:
    """Each count is finite, and a negative one before them hides the overflow from the sum of all cells."""
    errors: list[str] = []
    one, two = (ScrapedRegistry(on_error=lambda error: errors.append(str(error))) for _ in range(2))
    for registry in (one, two):
        took = registry.histogram("took_seconds", "Took.", ("by",), buckets=(1.0,))
        took.labels(by="first").observe(0.5)
        took.labels(by="second").observe(0.5)
        registry.worker.join(tmp_path)
    slot = two.worker._slot
    assert slot is not None
    first, second = (series.first for series in slot.series if series.family.name == "took_seconds")
    slot.values[first + 2] = -1.7e308
    slot.values[second] = slot.values[second + 1] = 1.7e308
    for _ in range(2):
        one.scrape()
    assert [one.sample("took_seconds_count", by=by) for by in ("first", "second")] == [2.0, 1.0]
    assert len(errors) == 1
    assert "not finite" in errors[0]
