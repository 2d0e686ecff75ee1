"""Tables of every form: old rows are deleted whatever keys, partitions, triggers and names a table has."""

from dataclasses import dataclass
from datetime import timedelta

import psycopg
import pytest

from support.retention import BOTH_SCANS, RetentionDB
from watchkeeper.retention import Policy

OLD, YOUNG, AGELESS = 300, 7, 2


@pytest.fixture
def db(any_db: RetentionDB) -> RetentionDB:
    """The database, on each supported server."""
    return any_db


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A table: how it is made and filled with columns and their values of a number g.

    `then` is a count that the run leads to, and what it is.
    """

    make: tuple[str, ...]
    table: str = "t"
    age: str = "at"
    schema: str | None = None
    columns: str = ""
    values: str = ""
    ageless: bool = True
    then: tuple[str, int] | None = None

    @property
    def policy(self) -> Policy:
        """Return a policy of a month for the table."""
        return Policy(table=self.table, age_column=self.age, keep=timedelta(days=30), schema=self.schema)


NOTE = (
    "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
    " $$BEGIN {} INSERT INTO notes VALUES (NEW.id); {} RETURN NEW; END$$"
)
TELL = (
    "CREATE FUNCTION tell() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS"
    " $$BEGIN INSERT INTO notes_taken VALUES (TG_WHEN, OLD.at); RETURN OLD; END$$"
)
BY_AGE = (
    "CREATE TABLE old PARTITION OF t FOR VALUES FROM (MINVALUE) TO ('2020-01-01')",
    "CREATE TABLE new PARTITION OF t FOR VALUES FROM ('2020-01-01') TO (MAXVALUE)",
)

FORMS = {
    "uuid key": Form(
        make=("CREATE TABLE t (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), at timestamptz)",)
    ),
    "text key": Form(
        make=("CREATE TABLE t (id text PRIMARY KEY, at timestamptz)",), columns="id", values="'k' || g"
    ),
    "composite key": Form(
        make=("CREATE TABLE t (a int, b text, at timestamptz, PRIMARY KEY (a, b))",),
        columns="a, b",
        values="g % 10, g",
    ),
    "no key": Form(make=("CREATE TABLE t (at timestamptz)",)),
    "generated column": Form(
        make=(
            "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz)",
            "ALTER TABLE t ADD day date GENERATED ALWAYS AS ((at AT TIME ZONE 'UTC')::date) STORED",
        )
    ),
    "unlogged": Form(
        make=("CREATE UNLOGGED TABLE t (id int PRIMARY KEY, at timestamptz)",), columns="id", values="g"
    ),
    "long values": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz, body text)",
            "ALTER TABLE t ALTER body SET STORAGE EXTERNAL",
        ),
        columns="id, body",
        values="g, repeat('x', 9000)",
    ),
    "another schema": Form(
        make=(
            "CREATE SCHEMA crm",
            "GRANT USAGE ON SCHEMA crm TO keeper",
            "CREATE TABLE crm.t (at timestamptz)",
            "CREATE TABLE t (at timestamptz)",
            "INSERT INTO t VALUES ('2000-01-01')",
        ),
        schema="crm",
        then=("public.t", 1),
    ),
    "a name of all sorts": Form(
        make=("""CREATE TABLE "Tä %s'; -- {x}" ("At %(y)s {0}" timestamptz)""",),
        table="Tä %s'; -- {x}",
        age="At %(y)s {0}",
    ),
    "refers to others": Form(
        make=(
            "CREATE TABLE customers (id int PRIMARY KEY)",
            "INSERT INTO customers SELECT generate_series(0, 9)",
            "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
            "ALTER TABLE t ADD customer int REFERENCES customers ON DELETE CASCADE",
        ),
        columns="id, customer",
        values="g, g % 10",
        then=("customers", 10),
    ),
    "others refer to young rows": Form(
        make=(
            "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
            "CREATE TABLE notes (t int REFERENCES t)",
            "CREATE INDEX ON notes (t)",
            "GRANT SELECT ON notes TO keeper",
            NOTE.format("IF NEW.at > now() - interval '30 days' THEN", "END IF;"),
            "CREATE TRIGGER note AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note()",
        ),
        columns="id",
        values="g",
    ),
    "others are set to null": Form(
        make=(
            "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
            "CREATE TABLE notes (t int REFERENCES t ON DELETE SET NULL)",
            "CREATE INDEX ON notes (t)",
            NOTE.format("", ""),
            "CREATE TRIGGER note AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note()",
        ),
        columns="id",
        values="g",
        then=("notes WHERE t IS NULL", OLD),
    ),
    "triggers": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz)",
            "CREATE TABLE notes_taken (moment text, at timestamptz)",
            TELL,
            "CREATE TRIGGER a BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION tell()",
            "CREATE TRIGGER b AFTER DELETE ON t FOR EACH ROW EXECUTE FUNCTION tell()",
        ),
        columns="id",
        values="g",
        then=("notes_taken WHERE (moment = 'BEFORE') <> (moment = 'AFTER')", 2 * OLD),
    ),
    "partitions by age": Form(
        make=("CREATE TABLE t (at timestamptz) PARTITION BY RANGE (at)", *BY_AGE), ageless=False
    ),
    "partitions by age, divided further": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz) PARTITION BY RANGE (at)",
            f"{BY_AGE[0]} PARTITION BY HASH (id)",
            "CREATE TABLE old_0 PARTITION OF old FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
            "CREATE TABLE old_1 PARTITION OF old FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
            f"{BY_AGE[1]} PARTITION BY LIST (id)",
            "CREATE TABLE new_0 PARTITION OF new DEFAULT",
        ),
        columns="id",
        values="g",
        ageless=False,
    ),
    "partitions by age, and a default one": Form(
        make=(
            "CREATE TABLE t (at timestamptz) PARTITION BY RANGE (at)",
            BY_AGE[0],
            "CREATE TABLE other PARTITION OF t DEFAULT",
        )
    ),
    "partitions by another column": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz) PARTITION BY RANGE (id)",
            "CREATE TABLE low PARTITION OF t FOR VALUES FROM (MINVALUE) TO (100)",
            "CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (MAXVALUE)",
        ),
        columns="id",
        values="g % 200",
    ),
    "partitions by list": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz) PARTITION BY LIST (id)",
            "CREATE TABLE one PARTITION OF t FOR VALUES IN (1)",
            "CREATE TABLE other PARTITION OF t DEFAULT",
        ),
        columns="id",
        values="g % 3",
    ),
    "partitions by hash": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz) PARTITION BY HASH (id)",
            "CREATE TABLE even PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
            "CREATE TABLE odd PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
        ),
        columns="id",
        values="g",
    ),
    "inherited from": Form(
        make=(
            "CREATE TABLE t (id int, at timestamptz)",
            "CREATE TABLE heir (more text) INHERITS (t)",
            "INSERT INTO heir SELECT g, now() - interval '2 days' FROM generate_series(1, 5) g",
        ),
        columns="id",
        values="g",
    ),
}


def fill(db: RetentionDB, form: Form) -> tuple[str, int]:
    """Make and fill the table; return its name in SQL, and how many rows must stay."""
    for statement in form.make:
        db.sql(statement)
    name = form.policy.identifier.as_string()
    db.sql(f"GRANT SELECT, UPDATE, DELETE ON {name} TO keeper")
    before = db.count(name)
    age = '"' + form.age + '"'
    columns, values = (f"{form.columns}, {age}", f"{form.values}, ") if form.columns else (age, "")
    start = 0
    for moment, rows in (
        ("timestamptz '2019-05-01' + g * interval '1 s'", OLD),
        ("now() - interval '3 days'", YOUNG),
        ("NULL", AGELESS * form.ageless),
    ):
        db.sql(
            f"INSERT INTO {name} ({columns}) SELECT {values}{moment}"  # noqa: S608 - our names
            f" FROM generate_series({start}, {start + rows - 1}) g"
        )
        start += rows
    return name, before + YOUNG + AGELESS * form.ageless


@BOTH_SCANS
@pytest.mark.parametrize("kind", FORMS)
async def test_exactly_the_old_rows_are_deleted(db: RetentionDB, kind: str, *, indexed: bool) -> None:
    """The plan counts them, the run deletes and audits as many, and the others stay."""
    db.tune(index_scan_share=1.0)
    form = FORMS[kind]
    name, staying = fill(db, form)
    if indexed:
        db.sql(f'CREATE INDEX ON {name} ("{form.age}")')
    retention = db.retention(form.policy)
    (plan,) = await retention.plan()
    ageless = AGELESS * form.ageless
    assert (plan.rows, plan.exact, plan.ageless, plan.problem) == (OLD, True, ageless, None)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted) == ("completed", OLD)
    assert db.count(name) == staying
    assert [entry["deleted"] for entry in db.audit_payloads(form.policy.name)] == [OLD]
    if form.then is not None:
        assert db.count(form.then[0]) == form.then[1]
    (result,) = await db.retention(form.policy).run_now()
    assert (result.status, result.deleted) == ("completed", 0)


@pytest.mark.parametrize("kind", FORMS)
async def test_proposed_index_can_be_created(db: RetentionDB, kind: str) -> None:
    """The statements are proposed where no index starts with the age, and suffice."""
    form = FORMS[kind]
    fill(db, form)
    retention = db.retention(form.policy)
    (plan,) = await retention.plan()
    if kind.startswith("partitions by age"):  # the partitions lead to what is old
        assert plan.index == ()
        return
    assert plan.index
    for statement in plan.index:
        last_of_parts = kind.startswith("partitions") and statement == plan.index[-1]
        assert ("CONCURRENTLY" in statement) is not last_of_parts
        db.sql(statement)
    (again,) = await retention.plan()
    assert again.index == ()
    assert "no index begins with" not in again.why


async def test_empty_table_is_audited(db: RetentionDB) -> None:
    """Nothing is deleted, and the entry says so."""
    db.sql("CREATE TABLE t (at timestamptz)")
    db.sql("GRANT SELECT, UPDATE, DELETE ON t TO keeper")
    retention = db.retention(FORMS["no key"].policy)
    (plan,) = await retention.plan()
    assert (plan.rows, plan.bytes, plan.table_rows, plan.problem) == (0, 0, 0, None)
    (result,) = await retention.run_now()
    assert (result.status, result.deleted, db.audit_payloads()[0]["deleted"]) == ("completed", 0, 0)


async def test_row_level_security_that_does_not_apply_to_the_role_is_accepted(db: RetentionDB) -> None:
    """All old rows are deleted."""
    form = FORMS["no key"]
    _, staying = fill(db, form)
    with psycopg.connect(db.urls.superuser_url, autocommit=True) as conn:
        conn.execute("ALTER TABLE t OWNER TO keeper")
        conn.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    (result,) = await db.retention(form.policy).run_now()
    assert (result.status, result.deleted) == ("completed", OLD)
    with psycopg.connect(db.urls.superuser_url, autocommit=True) as conn:
        assert conn.execute("SELECT count(*) FROM t").fetchone() == (staying,)
