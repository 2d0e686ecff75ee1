"""Joins a worker's metrics to those of its instance."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics.shared._instance import Instance
from watchkeeper.metrics.shared._workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from watchkeeper.metrics._registry import Registry


class SharedMetrics:
    """Adds this worker's metrics to those of the other workers; `report` writes a log line.

    Metric: `metrics_start_time_seconds`. Line: `{type: "metrics", status: "not_shared"}`.
    """

    def __init__(self, registry: Registry, report: Callable[..., None]) -> None:
        self._registry = registry
        self._report = report
        self.workers = Workers(registry)
        self._began = registry.gauge(
            "metrics_start_time_seconds",
            "When the counters of this instance began, as a unix time; its workers may be younger.",
            multiprocess_mode="min",
        )

    async def open(self, service: str, *, name: str | None, base: Path | None) -> None:
        """Join the instance; where that fails, this worker's metrics stay its own."""
        try:
            if self._registry.folder is None:  # else it was closed and is opened again
                instance = Instance(service, name=name, base=base)
                self._registry.share(instance.folder, temporary=instance.ends_with_this_process)
                self._began.set(instance.began)
            await self.workers.open()
        except (MetricError, OSError) as error:
            text = f"This worker's metrics are not added to those of others: {error}"
            self._report("warn", type="metrics", status="not_shared", msg=text)
            self._began.set(time.time())

    async def close(self) -> None:
        """Leave the other workers."""
        await self.workers.close()
