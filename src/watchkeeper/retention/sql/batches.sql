-- The bounded deletes of a run. Placeholders: see tables.sql.

-- name: statement_timeout
-- Longest duration of a statement in the rest of this transaction.
SELECT set_config('statement_timeout', %(statement_ms)s, true);

-- name: lock_timeout
-- Longest wait for a lock in the rest of this transaction.
SELECT set_config('lock_timeout', %(lock_ms)s, true);

-- name: delete_blocks
-- Delete the eligible rows of a range of blocks.
DELETE FROM {table} AS t
WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: delete_blocks_never_locked
-- Delete the eligible rows of a range of blocks whose header has no lock. A row whose header has one may be free
-- again; the next query deletes it. Locking each row first would write each of them twice.
DELETE FROM {table} AS t
WHERE {eligible} AND t.xmax = '0' AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: delete_blocks_skip_locked
-- Delete the eligible rows of a range of blocks of a table without children, without rows that others have locked. An
-- array of places is fetched directly: a join would take twice as long.
DELETE FROM {table} AS t
WHERE {eligible} AND t.ctid = ANY (ARRAY(
    SELECT t.ctid
    FROM {table} AS t
    WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
    FOR UPDATE SKIP LOCKED
));

-- name: delete_child_blocks_skip_locked
-- The same for a table with children, where two rows may have the same place: how many rows were eligible, how many
-- could be locked, and how many were deleted.
WITH held AS MATERIALIZED (
    SELECT t.tableoid AS part, t.ctid AS place
    FROM {table} AS t
    WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM held))
        AND ((t.tableoid, t.ctid) IN (SELECT part, place FROM held)) IS TRUE
        AND {eligible}
    RETURNING 1
)
SELECT
    (SELECT count(*) FROM {table} AS t
     WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid),
    (SELECT count(*) FROM held), (SELECT count(*) FROM gone);

-- name: any_in_blocks
-- Whether a range of blocks has an eligible row.
SELECT EXISTS (
    SELECT FROM {table} AS t WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
);

-- name: count_left_in_blocks
-- How many eligible rows a range of blocks still has, and how many of them no one has locked.
WITH remaining AS MATERIALIZED (
    SELECT t.ctid AS place
    FROM {table} AS t
    WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
), free AS MATERIALIZED (
    SELECT
    FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM remaining)) AND {eligible}
    FOR UPDATE SKIP LOCKED
)
SELECT (SELECT count(*) FROM remaining), (SELECT count(*) FROM free);

-- name: age_after
-- The age of the row that follows a number of rows in a range of ages.
SELECT t.{age}::text, t.{age} > %(start)s::timestamptz
FROM {table} AS t
WHERE {eligible} AND t.{age} >= %(start)s::timestamptz AND t.{age} <= %(stop)s::timestamptz
ORDER BY t.{age}
OFFSET %(size)s
LIMIT 1;

-- name: delete_ages
-- Delete the eligible rows of a range of ages, without its end unless it is the last one.
DELETE FROM {table} AS t
WHERE {eligible} AND t.{age} >= %(start)s::timestamptz
    AND t.{age} <= %(stop)s::timestamptz AND (t.{age} < %(stop)s::timestamptz OR %(last)s);

-- name: delete_ages_skip_locked
-- Delete the next rows of a range of ages, the oldest first, without rows that others have locked. IS TRUE keeps the
-- planner from joining, so that rows are fetched by the array of their places: anything else is quadratic.
WITH seen AS MATERIALIZED (
    SELECT t.tableoid AS part, t.ctid AS place, t.{age} AS age
    FROM {table} AS t
    WHERE {eligible} AND t.{age} >= %(start)s::timestamptz AND t.{age} <= %(stop)s::timestamptz
    ORDER BY t.{age}
    LIMIT %(size)s
), held AS MATERIALIZED (
    SELECT t.tableoid AS part, t.ctid AS place
    FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM seen))
        AND ((t.tableoid, t.ctid) IN (SELECT part, place FROM seen)) IS TRUE
        AND {eligible}
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM held))
        AND ((t.tableoid, t.ctid) IN (SELECT part, place FROM held)) IS TRUE
        AND {eligible}
    RETURNING 1
)
SELECT (SELECT count(*) FROM seen), (SELECT count(*) FROM held), (SELECT count(*) FROM gone),
    (SELECT max(age)::text FROM seen);

-- name: any_eligible
-- Whether there is an eligible row, found by the index on the age column.
SELECT EXISTS (SELECT FROM {table} AS t WHERE {eligible} ORDER BY t.{age} LIMIT 1);
