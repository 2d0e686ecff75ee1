-- How many rows a table has, how many of them are eligible, and how large they are. Placeholders: see tables.sql.

-- name: blocks
-- Number of blocks of the table, or of its largest child.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(max(pg_relation_size(b.oid)), 0) / current_setting('block_size')::bigint FROM below b;

-- name: analyzed_rows
-- About how many rows the table has, as of the last ANALYZE.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_class c
JOIN below b ON b.oid = c.oid
WHERE c.relkind = 'r';

-- name: bytes
-- Size of the table in bytes, with its children, indexes and TOAST tables.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(sum(pg_total_relation_size(b.oid)), 0)::bigint FROM below b;

-- name: rate
-- How many rows the last large runs deleted in batches, and in how many seconds, pauses included.
SELECT sum(r.rows_deleted)::bigint, sum(r.seconds)::float8
FROM (
    SELECT rows_deleted, extract(epoch FROM finished_at - started_at) AS seconds
    FROM retention_runs
    WHERE table_name = %(table)s AND state = 'completed' AND rows_deleted >= %(rows)s AND cardinality(partitions) = 0
    ORDER BY id DESC
    LIMIT 5
) AS r;

-- name: count_eligible
-- What a run would delete, and the age of the oldest row (a year before 1 is shown as 1).
SELECT count(*), CASE WHEN count(*) > 0 THEN greatest(min(t.{age}), '0001-01-02 00:00:00+00') END
FROM {table} AS t
WHERE {eligible};

-- name: explain_eligible
-- The same rows, for an estimate by the planner.
EXPLAIN (FORMAT JSON) SELECT FROM {table} AS t WHERE {eligible};

-- name: count_share
-- How many rows there are, and how many of them are eligible.
SELECT count(*), count(*) FILTER (WHERE {eligible})
FROM {table} AS t;

-- name: age_is_nullable
-- Whether the age column accepts NULL.
SELECT NOT a.attnotnull FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attname = %(age)s;

-- name: count_ageless
-- How many rows have no age.
SELECT count(*) FROM {table} AS t WHERE t.{age} IS NULL;

-- name: count_referenced
-- How many rows would be eligible if other rows did not refer to them.
SELECT count(*) FROM {table} AS t WHERE {old} AND NOT {held} AND {referenced};

-- name: missing_index
-- The tables that store rows and have no index that begins with the age column; at the end the table itself if it is
-- partitioned: an index on it adopts those of its partitions.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT format('%%I.%%I', n.nspname, c.relname), format('%%I', a.attname), c.relkind = 'p'
FROM below b
JOIN pg_class c ON c.oid = b.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = %(age)s
WHERE (c.relkind = 'r' OR c.oid = %(oid)s) AND NOT EXISTS (
    SELECT FROM pg_index i
    JOIN pg_class x ON x.oid = i.indexrelid
    JOIN pg_am m ON m.oid = x.relam
    WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indpred IS NULL AND i.indisvalid
        AND m.amname = 'btree'
)
ORDER BY c.relkind = 'p', n.nspname, c.relname;

-- name: sample
-- How many rows randomly chosen blocks have, and how many of them are eligible.
SELECT count(*), count(*) FILTER (WHERE {eligible})
FROM {table} AS t TABLESAMPLE SYSTEM (%(percent)s);

-- name: sample_old
-- The same, and how many are old: an index scan also reads the old rows that references keep.
SELECT count(*), count(*) FILTER (WHERE {eligible}), count(*) FILTER (WHERE {old})
FROM {table} AS t TABLESAMPLE SYSTEM (%(percent)s);

-- name: first_eligible
-- How many rows are eligible, up to a limit, and the age of the oldest (see count_eligible). The order makes the
-- planner use the index on the age column.
SELECT count(*), CASE WHEN count(*) > 0 THEN greatest(min(f.age), '0001-01-02 00:00:00+00') END
FROM (SELECT t.{age} AS age FROM {table} AS t WHERE {eligible} ORDER BY t.{age} LIMIT %(most)s) AS f;

-- name: sample_backlog
-- How many rows of randomly chosen blocks are eligible, how many of the first blocks, and the age of the oldest.
SELECT s.rows, f.rows, CASE WHEN s.rows + f.rows > 0
    THEN greatest(least(s.oldest, f.oldest), '0001-01-02 00:00:00+00') END
FROM (
    SELECT count(*) AS rows, min(t.{age}) AS oldest
    FROM {table} AS t TABLESAMPLE SYSTEM (%(percent)s)
    WHERE {eligible}
) AS s, (
    SELECT count(*) AS rows, min(t.{age}) AS oldest
    FROM {table} AS t
    WHERE {eligible} AND t.ctid < %(stop)s::tid
) AS f;
