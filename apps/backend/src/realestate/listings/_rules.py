"""Rules of listings and searches beyond the types of single fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from realestate.errors import ApiError, Problem, to_problem
from realestate.listings._model import Draft, Search

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def find_problems(given: Mapping[str, object]) -> list[Problem]:
    """Return everything that is wrong with a listing, not only the first problem."""
    fields = {field.name: field for field in msgspec.structs.fields(Draft)}
    problems = [
        Problem("" if name is None else name, "This field does not exist.")
        for name in given
        if name not in fields
    ]
    whole = dict(given)
    for name, field in fields.items():
        if name not in given:
            if field.required:
                problems.append(Problem(name, "This field is required."))
            continue
        try:
            whole[name] = msgspec.convert(given[name], field.type)
        except msgspec.ValidationError as error:
            found = to_problem(error)
            problems.append(Problem(f"{name}{found.field}", found.message))
    return [*problems, *_rules(whole)]


def check_draft(draft: Draft) -> None:
    """Check the rules between the fields of a listing.

    Raises:
        ApiError: 400: `details` has each violation.
    """
    problems = list(_rules(msgspec.structs.asdict(draft)))
    if problems:
        raise ApiError(400, "invalid_request", "The listing is not valid.", problems=problems)


def _rules(fields: Mapping[str, object]) -> Iterator[Problem]:
    if (fields.get("lat") is None) != (fields.get("lng") is None):
        yield Problem("lat", "Give both lat and lng, or neither.")
    if fields.get("type") == "land":
        for name in ("bedrooms", "bathrooms"):
            if fields.get(name):
                yield Problem(name, "Land has no rooms: leave this field out.")


def check_search(search: Search) -> None:
    """Check that the filters can match something.

    Raises:
        ApiError: 400: an incomplete box, or a range whose bounds are reversed.
    """
    box = (search.south, search.north, search.west, search.east)
    if any(side is None for side in box) and any(side is not None for side in box):
        raise _invalid("Give all of south, north, west and east, or none.")
    for low, high in (("price_min", "price_max"), ("south", "north"), ("west", "east")):
        lower, upper = getattr(search, low), getattr(search, high)
        if lower is not None and upper is not None and lower > upper:
            raise _invalid(f"{low} is above {high}.")


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_request", message)
