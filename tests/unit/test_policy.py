"""What a retention policy accepts, and what it refuses."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchkeeper.exceptions import ConfigurationError, PolicyRefusedError
from watchkeeper.retention import Policy
from watchkeeper.retention._policy import PROTECTED_TABLES, check_policies

MONTH = timedelta(days=30)


def policy(table: str = "inbound_events", **changes: object) -> Policy:
    """Return a valid policy with `changes`."""
    arguments: dict[str, object] = {"table": table, "age_column": "received_at", "keep": MONTH, **changes}
    return Policy(**arguments)  # type: ignore[arg-type]


def test_policy_names_its_table_with_its_schema() -> None:
    """The ledger has the declared name, with the schema if one was given."""
    assert policy().name == "inbound_events"
    assert policy(schema="crm").name == "crm.inbound_events"


def test_policy_quotes_its_table() -> None:
    """Statements never take a table's name as text."""
    assert policy("Inbound Events; DROP").identifier.as_string() == '"Inbound Events; DROP"'
    assert policy("Events", schema="Crm").identifier.as_string() == '"Crm"."Events"'


@given(
    capitals=st.lists(st.booleans(), min_size=9, max_size=9),
    schema=st.sampled_from(["", "public.", '"public".', "a.b."]),
    quote=st.sampled_from(["", '"', '" ']),
    blank=st.sampled_from(["", " ", "\t", "\n"]),
)
def test_no_spelling_of_the_audit_log_is_accepted(
    capitals: list[bool], schema: str, quote: str, blank: str
) -> None:
    """Capitals, quotes, schemas and blanks in any mixture do not hide it."""
    name = "".join(c.upper() if up else c for c, up in zip("audit_log", capitals, strict=True))
    with pytest.raises(PolicyRefusedError, match=r"audit log cannot be pruned, for compliance"):
        policy(f"{blank}{schema}{quote}{name}{quote[::-1]}{blank}")


@pytest.mark.parametrize("schema", [None, "public", "archive"])
def test_policy_on_the_audit_log_is_refused_in_any_schema(schema: str | None) -> None:
    """A separate schema argument does not help either."""
    with pytest.raises(PolicyRefusedError, match="cannot be pruned"):
        policy("audit_log", schema=schema)


@pytest.mark.parametrize("table", sorted(set(PROTECTED_TABLES) - {"audit_log"}))
def test_policy_on_the_ledger_is_refused(table: str) -> None:
    """The record of what was pruned is kept."""
    with pytest.raises(PolicyRefusedError, match=f"{table} records what was pruned"):
        policy(table)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"table": ""}, "table must be a non-empty name without outer whitespace"),
        ({"table": " events"}, "table must be a non-empty name"),
        ({"table": 5}, "table must be a string"),
        ({"table": "public.events"}, "pass the schema separately"),
        ({"table": 'ev"ents'}, "without quotes or dots"),
        ({"table": "events\x00"}, "without quotes or dots"),
        ({"table": "events\ud800"}, "without quotes or dots"),
        ({"table": "é" * 32}, "more than 63 bytes"),
        ({"age_column": ""}, "age_column must be a non-empty name"),
        ({"age_column": None}, "age_column must be a non-empty name"),
        ({"age_column": 'x" < now()'}, "age_column is a plain name"),
        ({"schema": ""}, "schema must be a non-empty name"),
        ({"schema": "a.b"}, "schema is a plain name"),
        ({"keep": 30}, "keep must be a timedelta"),
        ({"keep": timedelta(0)}, "between 1 day and 100 years"),
        ({"keep": timedelta(days=-30)}, "between 1 day and 100 years"),
        ({"keep": timedelta(hours=23)}, "between 1 day and 100 years"),
        ({"keep": timedelta.max}, "between 1 day and 100 years"),
    ],
)
def test_invalid_policy_is_refused(changes: dict[str, object], sentence: str) -> None:
    """Each argument is validated at once, and the message names it."""
    with pytest.raises(ConfigurationError, match=sentence):
        policy(**changes)  # type: ignore[arg-type]


def test_policy_is_immutable() -> None:
    """A validated policy stays valid."""
    with pytest.raises(AttributeError, match="table"):
        policy().table = "audit_log"  # type: ignore[misc]


@pytest.mark.parametrize(
    "schemas", [(None, None), ("crm", "crm"), (None, "public"), ("public", None)], ids=str
)
def test_two_policies_on_one_table_are_refused(schemas: tuple[str | None, str | None]) -> None:
    """The library does not guess which duration is meant."""
    with pytest.raises(PolicyRefusedError, match="two policies on inbound_events"):
        check_policies([policy(schema=schemas[0]), policy("other"), policy(schema=schemas[1])])


def test_policies_on_different_tables_are_accepted() -> None:
    """Tables of two schemas may share a name."""
    declared = [policy(), policy("chat_sessions"), policy("same", schema="a"), policy("same", schema="b")]
    assert check_policies(declared) == tuple(declared)
