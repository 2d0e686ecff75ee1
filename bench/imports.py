"""What an import costs, compared with a Python that imports nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Final

from bench._figure import OURS, Figure, at_most
from bench._rounds import Effort, interleave

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING: Final = "Python, importing nothing"
_NAME_ALONE: Final = f"{OURS}, its name alone"
# Ours is the import of Watchkeeper, which a service uses: the package itself loads almost nothing.
_IMPORTS: Final = {
    OURS: "from watchkeeper import Watchkeeper",
    "prometheus_client + structlog": "import prometheus_client, structlog",
    "prometheus-fastapi-instrumentator": "from prometheus_fastapi_instrumentator import Instrumentator",
    "starlette_exporter": "from starlette_exporter import PrometheusMiddleware",
    "OpenTelemetry metrics": "from opentelemetry.exporter.prometheus import PrometheusMetricReader;"
    "from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor;"
    "from opentelemetry.sdk.metrics import MeterProvider",
    "loguru": "import loguru",
    _NAME_ALONE: "import watchkeeper",
}


def measure(effort: Effort) -> Figure:
    """Measure fresh processes that import one library each."""
    programs = {_NOTHING: "pass", **_IMPORTS}
    with tempfile.TemporaryDirectory(prefix="bench-import-") as folder:
        # As for an installed package, modules are compiled once, in the first round, not by every import.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = folder
        rounds = interleave(programs, lambda name: _cpu_of(programs[name], environ), effort.of(20, 5))
    nothing = rounds.pop(_NOTHING)
    over = {
        name: [value - none for value, none in zip(values, nothing, strict=True)]
        for name, values in rounds.items()
    }
    return Figure(
        name="import",
        title="from watchkeeper import Watchkeeper",
        unit="ms CPU",
        rounds={**over, _NOTHING: nothing},
        also=(_NAME_ALONE, _NOTHING),
        goals=at_most("≤ 120 ms", over, 120.0),
    )


def _cpu_of(code: str, environ: Mapping[str, str]) -> float:
    """Run Python and return the CPU milliseconds of the whole process."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"python -c {code!r} failed")
    return (usage.ru_utime + usage.ru_stime) * 1e3
