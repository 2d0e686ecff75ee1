"""How routes appear in labels and lines."""

from __future__ import annotations

from typing import Final

UNMATCHED: Final = "unmatched"  # the route of a request that matched none

CATCH_ALL: Final = "/{path}"  # end of a mount's template: it accepts every path below

MATCHED_NOTHING: Final = frozenset((404, 405))
"""Statuses whose route may not have matched; see `route_label`."""


def route_label(route: str, status: int) -> str:
    """Return the label of a route that may not have matched: a 405, or the 404 of a catch-all, did not."""
    return UNMATCHED if status == 405 or (status == 404 and route.endswith(CATCH_ALL)) else route
