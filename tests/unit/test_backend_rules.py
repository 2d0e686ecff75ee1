from typing import Any

import msgspec
import pytest

from realestate.errors import ApiError
from realestate.listings import Draft, Search, check_draft, find_problems
from realestate.listings._rules import check_search

GOOD: dict[str, Any] = {"title": "House in Kigali", "type": "house", "price_amount": 85_000_000}


def test_smallest_listing_is_valid_and_in_francs() -> None:
    """A title, a type and a price are enough; the currency is RWF, and prose may have lines and tabs."""
    assert find_problems(GOOD) == []
    assert find_problems({**GOOD, "description": "two\nlines\tand a tab"}) == []
    assert msgspec.convert(GOOD, Draft).price_currency == "RWF"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": ""}, "title"),
        ({"title": "two\nlines"}, "title"),
        ({"title": "ends\n"}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": 5}, "title"),
        ({"type": "castle"}, "type"),
        ({"price_amount": -1}, "price_amount"),
        ({"price_amount": 1.5}, "price_amount"),
        ({"price_amount": "5"}, "price_amount"),
        ({"price_amount": True}, "price_amount"),
        ({"price_amount": 10**16}, "price_amount"),
        ({"price_currency": "rwf"}, "price_currency"),
        ({"price_currency": "RWF\n"}, "price_currency"),
        ({"description": "nul\x00"}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"bedrooms": 101}, "bedrooms"),
        ({"lat": 91.0, "lng": 30.0}, "lat"),
        ({"lat": float("nan"), "lng": 30.0}, "lat"),
        ({"lat": -1.9}, "lat"),
        ({"type": "land", "bedrooms": 2}, "bedrooms"),
        ({"status": "published"}, "status"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_one_wrong_field_is_one_problem(changes: dict[str, Any], field: str) -> None:
    """Each wrong field is reported, and nothing else."""
    assert [problem.field for problem in find_problems({**GOOD, **changes})] == [field]


def test_all_problems_are_found_at_once() -> None:
    """The answer lists every problem, not only the first."""
    given = {"type": "land", "bathrooms": 1, "price_amount": -1, "colour": "red", "lng": 30.0}
    fields = [problem.field for problem in find_problems(given)]
    assert sorted(fields) == ["bathrooms", "colour", "lat", "price_amount", "title"]


def test_lat_without_lng_is_refused() -> None:
    """The error names the field."""
    with pytest.raises(ApiError, match="The listing is not valid") as caught:
        check_draft(msgspec.convert({**GOOD, "lat": 1.0}, Draft))
    assert [problem.field for problem in caught.value.problems] == ["lat"]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"south": 1.0}, "Give all of"),
        ({"south": 1.0, "north": 2.0, "west": 3.0}, "Give all of"),
        ({"south": 2.0, "north": 1.0, "west": 3.0, "east": 4.0}, "south is above north"),
        ({"south": 1.0, "north": 2.0, "west": 4.0, "east": 3.0}, "west is above east"),
        ({"price_min": 5, "price_max": 4}, "price_min is above price_max"),
    ],
)
def test_filters_that_can_find_nothing_are_refused(filters: dict[str, Any], message: str) -> None:
    """An incomplete box and reversed bounds are mistakes, not empty results; equal bounds are usable."""
    check_search(Search(price_min=5, price_max=5, south=1.0, north=1.0, west=2.0, east=2.0))
    with pytest.raises(ApiError, match=message):
        check_search(Search(**filters))
