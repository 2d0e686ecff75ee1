"""Sampling of request lines by trace id, so that all services keep the lines of the same traces.

As in OpenTelemetry's consistent sampling, a trace is kept if the last 56 bits of its id reach a threshold.
https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
"""

from __future__ import annotations

from typing import Final

RANDOM_FROM: Final = 18  # index of the first random hex digit of a trace id's 32

_ALL: Final = 1 << 56


def sample_floor(share: float) -> str:
    """Return the lowest random part of a trace id that is kept, as hex digits that compare as text."""
    return f"{min(_ALL - 1, round((1.0 - share) * _ALL)):014x}"
