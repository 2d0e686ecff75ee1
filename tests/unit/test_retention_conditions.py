import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.exceptions import ConfigurationError
from watchkeeper.retention import Condition


@pytest.mark.parametrize(
    ("text", "column", "operator", "values"),
    [
        ("customer_id = 42", "customer_id", "=", ("42",)),
        ("customer_id=42", "customer_id", "=", ("42",)),
        ("\"Made At\" < '2026-01-01'", "Made At", "<", ("2026-01-01",)),
        ("name = 'O''Brien and sons'", "name", "=", ("O'Brien and sons",)),
        ("name != x = y", "name", "<>", ("x = y",)),
        ("id in (a, 'b, c', d)", "id", "in", ("a", "b, c", "d")),
        ("id IN 1,2", "id", "in", ("1", "2")),
        ("closed IS  NULL", "closed", "is null", ()),
        ("closed is not null", "closed", "is not null", ()),
        ("note = ''", "note", "=", ("",)),
        ("indigo = 1", "indigo", "=", ("1",)),
    ],
)
def test_conditions_are_parsed(text: str, column: str, operator: str, values: tuple[str, ...]) -> None:
    """A column, an operator, a value; quotes as in SQL where needed."""
    assert Condition.parse(text) == Condition(column=column, operator=operator, values=values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id = a or id = b", "'a or id = b' looks like several conditions: repeat --where for each"),
        ("id = 'a' AND name = 'b'", "looks like several conditions"),
        ("id in ('a') or id in ('b')", "looks like several conditions"),
        ("id is null or name = b", "ends after is null: repeat --where for each"),
        ("id = null", "write `is null` or `is not null`; or 'null' in quotes"),
        ("id in (a, NULL)", "write `is null`"),
    ],
)
def test_value_that_sql_would_read_differently_is_refused(text: str, sentence: str) -> None:
    """Unquoted it would hold nothing, unnoticed; in quotes it is a text."""
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        Condition.parse(text)
    assert Condition.parse("a = 'x or null'").values == ("x or null",)
    assert Condition.parse("a = 'null'").values == ("null",)
    assert Condition.parse("a = orlando").values == ("orlando",)


@pytest.mark.parametrize(
    "text", ["", "customer_id", "= 42", "a like b", "a = ", "a in ()", "a is null 3", "a; drop = 1", "a == b"]
)
def test_invalid_condition_shows_the_syntax(text: str) -> None:
    """Nothing is guessed, because a wrong hold holds the wrong rows."""
    with pytest.raises(ConfigurationError, match=r"condition|takes"):
        Condition.parse(text)


def test_only_known_operators_reach_a_statement() -> None:
    """Conditions built directly or read from the database are checked too."""
    with pytest.raises(ConfigurationError, match="compares by one of"):
        Condition(column="a", operator="= 1 or true --", values=("1",))


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.mark.parametrize("odd", ["\0", "\ud800"])
def test_text_that_postgresql_cannot_store_is_refused(odd: str) -> None:
    """With our own message."""
    for column, value in ((f"a{odd}", "1"), ("a", f"1{odd}")):
        with pytest.raises(ConfigurationError, match="no text in PostgreSQL"):
            Condition(column=column, operator="=", values=(value,))


@given(TEXT.filter(bool), st.lists(TEXT, min_size=1, max_size=3))
def test_names_and_values_are_quoted(column: str, values: list[str]) -> None:
    """A statement has one identifier and as many literals as values."""
    text = Condition(column=column, operator="in", values=tuple(values)).predicate.as_string()
    assert text.startswith('t."' + column.replace('"', '""').replace("%", "%%") + '" IN (')
