"""Which requests keep their line where only a share does: decided by the trace, so that all agree.

The rule is OpenTelemetry's for consistent sampling: the last 56 bits of a trace id are random, and a trace is
kept where they reach a threshold. Of two services the one that keeps fewer keeps a part of the other's.
https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/
"""

from __future__ import annotations

from typing import Final

RANDOM_FROM: Final = 18
"""Where in the 32 hex digits of a trace id the random 56 bits begin."""

_ALL: Final = 1 << 56


def sample_floor(share: float) -> str:
    """Return what the random part of a trace id reaches where it is kept: hex digits, compared as text.

    Args:
        share: Of the traces that are kept, over 0 and below 1.
    """
    return f"{min(_ALL - 1, round((1.0 - share) * _ALL)):014x}"
