"""Metrics of real servers with four workers, of which some are killed."""

import contextlib
import http.client
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from support.workers import (
    COMMANDS,
    REST_S,
    WORKERS,
    Client,
    Samples,
    Service,
    counters,
    serving_workers,
    total,
)

LAST_ROUND = 40


class Scraper(threading.Thread):
    """Scrapes until it is stopped, and records every counter that went down or disappeared."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.fell: list[str] = []
        self.scrapes = 0
        self.labels: set[str] = set()
        self._service = service
        self._ended = threading.Event()

    def run(self) -> None:
        before: Samples = {}
        while not self._ended.is_set():
            try:
                samples = self._service.scrape()
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
                continue
            self.scrapes += 1
            self.labels |= {dict(labels)["worker"] for _, labels in samples if dict(labels).get("worker")}
            now = counters(samples)
            self.fell += [
                f"{key}: {was} {now.get(key)}" for key, was in before.items() if now.get(key, -1.0) < was
            ]
            before = now

    def stop(self) -> None:
        """Stop after the current scrape."""
        self._ended.set()
        self.join()


def kill_for(seconds: float, service: Service, rest: float) -> int:
    """Kill workers at random moments, respawned ones not within `rest` seconds; return how many."""
    since = dict.fromkeys(service.workers().values(), 0.0)
    kills = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(random.uniform(0.02, 0.4))
        with contextlib.suppress(OSError, http.client.HTTPException):
            now = time.monotonic()
            pids = [pid for pid in service.workers().values() if since.setdefault(pid, now) + rest <= now]
            if pids:
                os.kill(random.choice(pids), signal.SIGKILL)
                kills += 1
    return kills


@pytest.mark.parametrize("server", COMMANDS)
def test_workers_killed_under_load_lose_nothing(server: str, tmp_path: Path) -> None:
    """Totals are what the client counted, no counter falls, and no gauge is stale."""
    with serving_workers(tmp_path / "app", tmp_path, server) as service:
        scraper, client = Scraper(service), Client(service, "/load")
        scraper.start()
        kills = kill_for(5.0, service, rest=REST_S.get(server, 0.0))
        client.stop()
        scraper.stop()
        running = service.wait_until_whole()
        samples = service.scrape()
        counted = total(samples, "orders_total", kind="load")
        of_http = total(samples, "http_requests_total", route="unmatched")
        sys.stdout.write(
            f"{server}: {kills} kills, {client.answered} answered, {client.broken} broken,"
            f" {counted:.0f} counted, {of_http:.0f} by http_requests_total, {scraper.scrapes} scrapes\n"
        )
        assert kills >= 3
        assert scraper.scrapes > 5
        assert scraper.fell == []
        assert client.answered <= counted <= client.answered + client.broken
        # A complete response was counted before it was sent; a broken one may have been counted.
        assert client.answered <= of_http <= client.answered + client.broken
        for _ in range(LAST_ROUND):
            service.get("/load")
        samples = service.scrape()
        assert total(samples, "orders_total", kind="load") == counted + LAST_ROUND
        assert total(samples, "http_requests_total", route="unmatched") == of_http + LAST_ROUND
        assert total(samples, "busy") == WORKERS
        assert service.workers() == running
        assert scraper.labels <= {str(number) for number in range(2 * WORKERS)}
        files = service.files()
        assert len(files) <= 1 + 4 * 2 * WORKERS
        assert max(files.values()) <= 128 * 1024
        assert [line for line in service.metric_lines() if line["level"] == "error"] == []


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_two_servers_of_one_service_do_not_mix(server: str, tmp_path: Path) -> None:
    """Each counts its own requests, and the next start removes what both left."""
    with (
        serving_workers(tmp_path / "one", tmp_path, server) as one,
        serving_workers(tmp_path / "two", tmp_path, server) as two,
    ):
        for _ in range(9):
            one.get("/a")
        for _ in range(5):
            two.get("/a")
        assert (one.total("orders_total"), two.total("orders_total")) == (9, 5)
        assert (one.total("legacy_orders_total"), two.total("legacy_orders_total")) == (9, 5)
        assert one.total("busy") == two.total("busy") == WORKERS
        assert not set(one.workers().values()) & set(two.workers().values())
        assert len(list(one.shared.iterdir())) == 2
    with serving_workers(tmp_path / "three", tmp_path, server) as three:
        assert three.total("orders_total") == 0
        assert len(list(three.shared.iterdir())) == 1


def test_a_scrape_has_the_third_party_metrics_of_all_workers(tmp_path: Path) -> None:
    """The metrics of prometheus_client and of the process are there once for each worker."""
    with serving_workers(tmp_path / "app", tmp_path, "gunicorn") as service:
        for _ in range(20):
            service.get("/a")
        samples = service.scrape()
        for name in (
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "legacy_orders_total",
        ):
            workers = {dict(labels)["worker"] for one, labels in samples if one == name}
            assert workers == {"0", "1", "2", "3"}, name
        generations = [labels for one, labels in samples if one == "python_gc_collections_total"]
        assert len(generations) == 3 * WORKERS
        assert total(samples, "legacy_orders_total") == 20
        assert b"# EOF\n" in service.get("/metrics", accept="application/openmetrics-text")
