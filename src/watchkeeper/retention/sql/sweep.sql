-- Bounded deletes, filled in as in tables.sql.

-- name: statement_timeout
-- Longest time of a statement, in the rest of this transaction.
SELECT set_config('statement_timeout', %(statement_ms)s, true);

-- name: lock_timeout
-- Longest wait for a lock, in the rest of this transaction.
SELECT set_config('lock_timeout', %(lock_ms)s, true);

-- name: delete_by_place
-- Delete the eligible rows of a range of blocks.
DELETE FROM {table} AS t
WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: age_after
-- The age of the row that comes after so many, in a span of ages.
SELECT t.{age}::text, t.{age} > %(start)s::timestamptz
FROM {table} AS t
WHERE {eligible} AND t.{age} >= %(start)s::timestamptz AND t.{age} <= %(stop)s::timestamptz
ORDER BY t.{age}
OFFSET %(size)s
LIMIT 1;

-- name: delete_by_age
-- Delete the eligible rows of a span of ages, without its end unless it is the last.
DELETE FROM {table} AS t
WHERE {eligible} AND t.{age} >= %(start)s::timestamptz
    AND t.{age} <= %(stop)s::timestamptz AND (t.{age} < %(stop)s::timestamptz OR %(last)s);

-- name: sweep_by_age
-- Delete the next rows of a span of ages, oldest first, but for those that others have locked. IS TRUE keeps the
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

-- name: any_by_place
-- Whether a range of blocks has an eligible row.
SELECT EXISTS (
    SELECT FROM {table} AS t WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
);

-- name: delete_by_place_untouched
-- Delete the eligible rows of a range of blocks that nobody has locked, for a lock is noted in the row. What has
-- a note may be free again; it is left to the next query. Locking each row first would write each of them twice.
DELETE FROM {table} AS t
WHERE {eligible} AND t.xmax = '0' AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: delete_by_place_unlocked
-- Delete the eligible rows of a range of blocks of one table without parts, but for those that others have
-- locked. An array of places is fetched by place: a join would take twice as long.
DELETE FROM {table} AS t
WHERE {eligible} AND t.ctid = ANY (ARRAY(
    SELECT t.ctid
    FROM {table} AS t
    WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
    FOR UPDATE SKIP LOCKED
));

-- name: left_by_place
-- How many eligible rows a range of blocks still has, and how many of them nobody has locked.
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

-- name: sweep_by_place
-- The same for a table with parts, where two rows may have one place: both counts, and how many went.
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
