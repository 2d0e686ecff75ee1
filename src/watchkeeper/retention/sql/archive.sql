-- Rows that are archived before they are deleted, and restored. Placeholders: see tables.sql.

-- name: columns
-- The columns of a table; document is json or jsonb if a column is one of them, also under domains.
WITH RECURSIVE kinds AS (
    SELECT a.attnum, a.atttypid AS kind
    FROM pg_attribute a
    WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT k.attnum, d.typbasetype FROM kinds k JOIN pg_type d ON d.oid = k.kind AND d.typtype = 'd'
)
SELECT a.attname::text AS name, n.nspname::text AS type_schema, y.typname::text AS type_name,
    a.attlen = -1 AS variable, a.attgenerated <> '' AS generated,
    (SELECT k.kind::regtype::text FROM kinds k
     WHERE k.attnum = a.attnum AND k.kind IN ('json'::regtype, 'jsonb'::regtype)) AS document
FROM pg_attribute a
JOIN pg_type y ON y.oid = a.atttypid
JOIN pg_namespace n ON n.oid = y.typnamespace
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: inheriting_tables
-- A table that inherits from a table and is not its partition.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT c.oid::regclass::text
FROM pg_class c
JOIN below b ON b.oid = c.oid
WHERE c.oid <> %(oid)s AND NOT c.relispartition
ORDER BY 1
LIMIT 1;

-- name: deferrable_key
-- A unique key that is only checked at the end of a transaction: ON CONFLICT DO NOTHING cannot use it.
SELECT i.indexrelid::regclass::text
FROM pg_index i
WHERE i.indrelid = %(oid)s AND i.indisunique AND NOT i.indimmediate
LIMIT 1;

-- name: text_format
-- How values are written as text in this transaction: exact, and independent of settings, as in pg_dump.
SELECT set_config('datestyle', 'ISO', true), set_config('intervalstyle', 'postgres', true),
    set_config('extra_float_digits', '3', true), set_config('bytea_output', 'hex', true),
    set_config('xmloption', 'content', true);

-- name: lock_table
-- Keep the table's columns and files from changing until the transaction ends.
LOCK TABLE {table} IN ACCESS SHARE MODE;

-- name: read_blocks
-- The eligible rows of a range of blocks, to be archived: the version of each, and its text unless it is wide. {texts}
-- are the columns as their types' output functions write them; {width} is their stored size, which costs nothing to
-- read.
SELECT q.part, q.place, q.version, NULL::text, CASE WHEN octet_length(q.line) <= %(wide)s THEN q.line END
FROM (
    SELECT t.tableoid::text AS part, t.ctid::text AS place, t.xmin::text AS version,
        CASE WHEN {width} <= %(wide)s THEN row_to_json(r.*)::text END AS line
    FROM {table} AS t
    CROSS JOIN LATERAL (SELECT {texts}) AS r
    WHERE {eligible} AND t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid
        AND (t.tableoid, t.ctid) NOT IN (
            SELECT * FROM unnest(%(skipped_parts)s::oid[], %(skipped_places)s::tid[]))
    OFFSET 0
) AS q;

-- name: read_ages
-- The same for the next rows of a range of ages, the oldest first.
SELECT q.part, q.place, q.version, q.age, CASE WHEN octet_length(q.line) <= %(wide)s THEN q.line END
FROM (
    SELECT t.tableoid::text AS part, t.ctid::text AS place, t.xmin::text AS version, t.{age}::text AS age,
        CASE WHEN {width} <= %(wide)s THEN row_to_json(r.*)::text END AS line
    FROM {table} AS t
    CROSS JOIN LATERAL (SELECT {texts}) AS r
    WHERE {eligible} AND t.{age} >= %(start)s::timestamptz AND t.{age} <= %(stop)s::timestamptz
        AND (t.tableoid, t.ctid) NOT IN (
            SELECT * FROM unnest(%(skipped_parts)s::oid[], %(skipped_places)s::tid[]))
    ORDER BY t.{age}
    LIMIT %(size)s
) AS q;

-- name: read_row
-- One of these rows, if it is still the same version.
SELECT row_to_json(r.*)::text
FROM {table} AS t
CROSS JOIN LATERAL (SELECT {texts}) AS r
WHERE t.ctid = %(place)s::tid AND t.tableoid = %(part)s::oid AND t.xmin = %(version)s::xid;

-- name: table_files
-- The file of each table; a table that was rewritten has another one, and other rows in the same places.
SELECT p::text, pg_relation_filenode(p)::text FROM unnest(%(tables)s::oid[]) AS p;

-- name: record_segment
-- Record where rows were archived, before they are deleted.
INSERT INTO retention_archives (run, place, start, length, sha256, rows)
VALUES (%(run)s, %(place)s, %(start)s, %(length)s, %(sha256)s, %(rows)s)
RETURNING id;

-- name: record_segment_deleted
-- Record which rows of a segment were deleted, in the transaction that deletes them.
UPDATE retention_archives SET deleted = %(deleted)s, kept = %(kept)s WHERE id = %(segment)s;

-- name: archive_totals
-- How many archived rows of a run were deleted, and where they are.
SELECT coalesce(sum(deleted), 0)::bigint AS rows, count(DISTINCT place) AS files, min(place) AS place
FROM retention_archives
WHERE run = %(run)s AND deleted > 0;

-- name: delete_archived
-- Delete these versions of rows if they are eligible; returns the positions of those that were gone or had changed.
-- The arrays belong together, also those of tables and their files. ARRAY(SELECT …) hides the number of places from
-- the planner, which would otherwise read the whole table.
WITH archived AS MATERIALIZED (
    SELECT a.part, a.place, a.version, a.position
    FROM unnest(%(parts)s::oid[], %(places)s::tid[], %(versions)s::text[]) WITH ORDINALITY
        AS a (part, place, version, position)
), gone AS (
    DELETE FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM archived))
        AND ((t.tableoid, t.ctid, t.xmin::text) IN (SELECT part, place, version FROM archived)) IS TRUE
        AND %(files)s::oid[] = ARRAY(
            SELECT pg_relation_filenode(f.part)
            FROM unnest(%(tables)s::oid[]) WITH ORDINALITY AS f (part, position) ORDER BY f.position)
        AND {eligible}
    RETURNING t.tableoid AS part, t.ctid AS place
)
SELECT CASE WHEN (SELECT count(*) FROM gone) = %(rows)s THEN ARRAY[]::bigint[] ELSE ARRAY(
    SELECT a.position - 1 FROM archived a
    WHERE ((a.part, a.place) IN (SELECT part, place FROM gone)) IS NOT TRUE
    ORDER BY a.position
) END;

-- name: delete_archived_skip_locked
-- The same without rows that other transactions have locked: how many rows could be locked, and the positions of all
-- that were not deleted.
WITH archived AS MATERIALIZED (
    SELECT a.part, a.place, a.version, a.position
    FROM unnest(%(parts)s::oid[], %(places)s::tid[], %(versions)s::text[]) WITH ORDINALITY
        AS a (part, place, version, position)
), held AS MATERIALIZED (
    SELECT t.tableoid AS part, t.ctid AS place
    FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM archived))
        AND ((t.tableoid, t.ctid, t.xmin::text) IN (SELECT part, place, version FROM archived)) IS TRUE
        AND %(files)s::oid[] = ARRAY(
            SELECT pg_relation_filenode(f.part)
            FROM unnest(%(tables)s::oid[]) WITH ORDINALITY AS f (part, position) ORDER BY f.position)
        AND {eligible}
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {table} AS t
    WHERE t.ctid = ANY (ARRAY(SELECT place FROM held))
        AND ((t.tableoid, t.ctid) IN (SELECT part, place FROM held)) IS TRUE
        AND {eligible}
    RETURNING t.tableoid AS part, t.ctid AS place
)
SELECT (SELECT count(*) FROM held), CASE WHEN (SELECT count(*) FROM gone) = %(rows)s THEN ARRAY[]::bigint[]
    ELSE ARRAY(
        SELECT a.position - 1 FROM archived a
        WHERE ((a.part, a.place) IN (SELECT part, place FROM gone)) IS NOT TRUE
        ORDER BY a.position
    ) END;

-- name: archived_run
-- A run that may have rows in the archive.
SELECT r.id AS run, r.table_name AS table, r.state, r.horizon, p.age_column
FROM retention_runs r
JOIN retention_policies p ON p.table_name = r.table_name
WHERE r.id = %(run)s;

-- name: segments
-- The segments of a run with deleted rows, in the order of its batches.
SELECT id, place, start, length, sha256, rows, deleted, kept, restored_at
FROM retention_archives
WHERE run = %(run)s AND deleted > 0
ORDER BY id;

-- name: record_restored
-- Record that a segment was restored, in the transaction that does so; no row if it was restored before.
UPDATE retention_archives SET restored_at = clock_timestamp()
WHERE id = %(segment)s AND restored_at IS NULL
RETURNING id;

-- name: insert_privilege
-- Whether this role may insert into a table, and the statement that grants it.
SELECT has_table_privilege(%(oid)s::oid, 'INSERT'),
    format('GRANT INSERT ON %%s TO %%I', %(oid)s::oid::regclass, current_user);

-- name: restore_rows
-- Insert archived rows without those that exist already; {typed} are read by their types' own input functions.
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
SELECT {values}
FROM json_to_recordset(%(rows)s::json) AS r ({typed})
ON CONFLICT DO NOTHING;
