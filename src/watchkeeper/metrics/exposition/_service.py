"""The metrics of one process as a keeper runs them: joins the instance's other workers, and is scraped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.exposition._exporter import Exporter
from watchkeeper.metrics.shared._instance import Instance
from watchkeeper.metrics.shared._worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from watchkeeper.metrics._registry import Registry


class MetricsService:
    """Adds this worker's metrics to those of the other workers; `report` writes a log line.

    Metric: `metrics_start_time_seconds`. Line: `{type: "metrics", status: "not_shared"}`.
    """

    def __init__(self, registry: Registry, report: Callable[..., None], *, created: bool = False) -> None:
        self._worker = Worker(registry)
        self.exporter = Exporter(self._worker, created=created)
        self._report = report
        self._start_time = registry.gauge(
            "metrics_start_time_seconds",
            "When the counters of this instance began, as a unix time; its workers may be younger.",
            multiprocess_mode="min",
        )

    async def open(self, service: str, *, name: str | None, base: Path | None) -> None:
        """Join the instance; where that fails, this worker's metrics stay its own."""
        try:
            if self._worker.folder is None:  # else it was closed and is opened again
                instance = Instance(service, name=name, base=base)
                self._worker.join(instance.folder, temporary=instance.ends_with_this_process)
                self._start_time.set(instance.started_at)
            await self.exporter.peers.open()
        except (MetricError, OSError) as error:
            text = f"This worker's metrics are not added to those of others: {error}"
            self._report("warn", type="metrics", status="not_shared", msg=text)
            self._start_time.set(time.time())

    async def close(self) -> None:
        """Stop serving the other workers."""
        await self.exporter.peers.close()
