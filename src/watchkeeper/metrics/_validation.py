"""Validation of declarations: what Prometheus, OpenMetrics and `promtool check metrics` accept."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import MULTIPROCESS_MODES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from watchkeeper.metrics._family import Family

# Colons are valid, but reserved for recording rules: https://prometheus.io/docs/practices/naming/
_METRIC: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED_SUFFIXES: Final = ("_total", "_created", "_bucket", "_count", "_sum", "_info")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MAX_EXEMPLAR_LENGTH: Final = 128
WORKER: Final = "worker"  # the label that holds a worker's number


def check_family(family: Family) -> None:
    """Raise MetricError, with the broken rule, for a declaration that a scraper or promtool would refuse."""
    _check_metric(family.kind, family.name, family.help)
    _check_labels(family)
    if family.multiprocess_mode not in MULTIPROCESS_MODES:
        raise MetricError(
            f"The gauge {family.name!r} has multiprocess_mode={family.multiprocess_mode!r}: choose one of"
            f" {', '.join(MULTIPROCESS_MODES)}."
        )


def _check_metric(kind: str, name: str, help_text: str) -> None:
    if not _METRIC.fullmatch(name):
        raise MetricError(
            f"The {kind} name {name!r} is not usable: use letters, digits and underscores, and do not start"
            " with a digit."
        )
    if kind == "counter":
        if not name.endswith("_total") or name == "_total":
            raise MetricError(f"The counter {name!r} must end in _total: call it {name}_total.")
    elif name.endswith(_RESERVED_SUFFIXES):
        suffix = name[name.rindex("_") :]
        raise MetricError(f"The {kind} {name!r} may not end in {suffix}, which has a meaning in Prometheus.")
    if not help_text.strip():
        raise MetricError(f"The {kind} {name!r} has no help text: say in one sentence what it counts.")
    if _SURROGATE.search(help_text):
        raise MetricError(f"The help text of the {kind} {name!r} holds a lone surrogate, which is not text.")


def _check_labels(family: Family) -> None:
    name, labels = family.name, family.labels
    for label in labels:
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise MetricError(
                f"The label {label!r} of {name!r} is not usable: use letters, digits and underscores, and do"
                " not start with a digit or two underscores."
            )
        if family.kind == "histogram" and label == "le":
            raise MetricError(f"The label 'le' of {name!r} is the bucket's own: choose another name.")
        if family.multiprocess_mode == "worker" and label == WORKER:
            raise MetricError(
                f"The label {WORKER!r} of {name!r} is set for each worker: choose another name."
            )
    if len(set(labels)) != len(labels):
        raise MetricError(f"The labels of {name!r} name one label twice.")


def checked_labels(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of metric `name` as a tuple; one string raises MetricError."""
    if isinstance(labels, str):
        raise MetricError(f'The labels of {name!r} are one string: write a tuple, such as ("{labels}",).')
    return tuple(labels)


def checked_exemplar(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of an exemplar as text; those that OpenMetrics 1.0 forbids raise MetricError."""
    texts = {name: label_text(value) for name, value in labels.items()}
    for name in texts:
        if not _LABEL.fullmatch(name):
            raise MetricError(
                f"The exemplar's label {name!r} is not usable: use letters, digits and underscores."
            )
    if sum(len(name) + len(value) for name, value in texts.items()) > _MAX_EXEMPLAR_LENGTH:
        raise MetricError(f"An exemplar's labels have at most {_MAX_EXEMPLAR_LENGTH} characters in all.")
    return texts


def checked_buckets(name: str, buckets: Sequence[float]) -> tuple[float, ...]:
    """Return the finite bounds of histogram `name`, without a closing +Inf; others raise MetricError."""
    bounds = tuple(float(bound) for bound in buckets)
    if bounds and bounds[-1] == math.inf:
        bounds = bounds[:-1]
    if not bounds or not all(math.isfinite(bound) for bound in bounds):
        raise MetricError(f"The histogram {name!r} needs one finite bucket or more, such as (0.1, 0.5, 1).")
    if any(low >= high for low, high in pairwise(bounds)):
        raise MetricError(f"The buckets of {name!r} must rise from each to the next.")
    return bounds


def label_text(value: object) -> str:
    """Return `value` as text that UTF-8 can encode; lone surrogates are replaced."""
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "replace").decode("utf-8")
