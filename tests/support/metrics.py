"""A registry that tests can scrape, with worker and exporter as in a keeper; and threads that use it."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from watchkeeper.metrics import Registry
from watchkeeper.metrics.exposition._exporter import Exporter
from watchkeeper.metrics.exposition._exposition import Exposition
from watchkeeper.metrics.shared._worker import Worker


class ScrapedRegistry(Registry):
    """A registry with its worker and exporter; by default without anything from prometheus_client."""

    def __init__(self, folder: Path | None = None, *, created: bool = False, **options: Any) -> None:
        super().__init__(**{"third_party": CollectorRegistry()} | options)
        self.worker = Worker(self)
        self.exporter = Exporter(self.worker, created=created)
        if folder is not None:
            self.worker.join(folder)

    def scrape(self, *, openmetrics: bool = False) -> Exposition:
        """Return what a scrape of this worker shows; its other workers are not asked."""
        with ThreadPoolExecutor(1) as other_thread:  # the test may run in an event loop
            return other_thread.submit(asyncio.run, self.exporter.scrape(openmetrics=openmetrics)).result()

    def text(self, *, openmetrics: bool = False) -> str:
        """Return the text of a scrape."""
        return self.scrape(openmetrics=openmetrics).body.decode()

    def sample(self, name: str, /, **labels: str) -> float | None:
        """Return the value of one of our own samples, named as in an exposition; None if there is none."""
        for family in text_string_to_metric_families("".join(self.exporter.lines(openmetrics=False))):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None


def run_together(*calls: Callable[[], None]) -> None:
    """Run each call in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def fast_switching() -> Iterator[None]:
    """Make the interpreter switch threads as often as possible until the block ends."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
