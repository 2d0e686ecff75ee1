"""Audited data retention: what is kept how long, and the runs that delete the rest."""

from __future__ import annotations

from watchkeeper.retention._policy import Policy

__all__ = ["Policy"]
