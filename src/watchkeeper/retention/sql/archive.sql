-- Rows that are archived before they are deleted, and put back, filled in as in tables.sql.

-- name: columns
-- The columns of a table; document is json or jsonb where a column is one of them, also under domains.
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

-- name: heirs
-- Tables that inherit from a table and are not its partitions.
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
-- A unique key that is checked at the end of a transaction only: no INSERT can leave out what is there already.
SELECT i.indexrelid::regclass::text
FROM pg_index i
WHERE i.indrelid = %(oid)s AND i.indisunique AND NOT i.indimmediate
LIMIT 1;

-- name: text_format
-- What values look like as text in this transaction: exact, and the same everywhere, as pg_dump has them.
SELECT set_config('datestyle', 'ISO', true), set_config('intervalstyle', 'postgres', true),
    set_config('extra_float_digits', '3', true), set_config('bytea_output', 'hex', true),
    set_config('xmloption', 'content', true);

-- name: lock_table
-- Keep the table's columns and its files as they are until the transaction ends.
LOCK TABLE {table} IN ACCESS SHARE MODE;

-- name: read_by_place
-- The eligible rows of a range of blocks, to be archived: which version of which, and its text, unless it is wide.
-- {texts} are the columns by their types' own output functions; {width} is as they are stored, which costs nothing.
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

-- name: read_by_age
-- The same for the next rows of a span of ages, oldest first.
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
-- One of them, if it is still that version.
SELECT row_to_json(r.*)::text
FROM {table} AS t
CROSS JOIN LATERAL (SELECT {texts}) AS r
WHERE t.ctid = %(place)s::tid AND t.tableoid = %(part)s::oid AND t.xmin = %(version)s::xid;

-- name: table_files
-- The file of each table; a table that is written anew has another one, and other rows in the same places.
SELECT p::text, pg_relation_filenode(p)::text FROM unnest(%(tables)s::oid[]) AS p;

-- name: note_segment
-- Say where rows were archived, before they are deleted.
INSERT INTO retention_archives (run, place, start, length, sha256, rows)
VALUES (%(run)s, %(place)s, %(start)s, %(length)s, %(sha256)s, %(rows)s)
RETURNING id;

-- name: note_deleted
-- Say what became of them, in the transaction that deletes them.
UPDATE retention_archives SET deleted = %(deleted)s, kept = %(kept)s WHERE id = %(segment)s;

-- name: archived
-- What of a run is in the archive.
SELECT coalesce(sum(deleted), 0)::bigint AS rows, count(DISTINCT place) AS files, min(place) AS place
FROM retention_archives
WHERE run = %(run)s AND deleted > 0;

-- name: delete_archived
-- Delete these versions of rows, as far as they are eligible; returns which of them were not there any more. The
-- arrays belong together, also those of tables and their files. ARRAY(SELECT …) keeps the planner from counting the
-- places, and from reading the whole table instead.
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

-- name: delete_archived_unlocked
-- The same but for those that others have locked: how many were ours to delete, and which of all are not gone.
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
-- A run of which something may be in the archive.
SELECT r.id AS run, r.table_name AS table, r.state, r.horizon, p.age_column
FROM retention_runs r
JOIN retention_policies p ON p.table_name = r.table_name
WHERE r.id = %(run)s;

-- name: segments
-- What of a run was archived and deleted, in the order of its sweeps.
SELECT id, place, start, length, sha256, rows, deleted, kept, restored_at
FROM retention_archives
WHERE run = %(run)s AND deleted > 0
ORDER BY id;

-- name: note_restored
-- Say that a segment's rows are back, in the transaction that puts them back; no row if they are already.
UPDATE retention_archives SET restored_at = clock_timestamp()
WHERE id = %(segment)s AND restored_at IS NULL
RETURNING id;

-- name: may_insert
-- Whether rows can be put into a table by this role, and what lets it.
SELECT has_table_privilege(%(oid)s::oid, 'INSERT'),
    format('GRANT INSERT ON %%s TO %%I', %(oid)s::oid::regclass, current_user);

-- name: restore_rows
-- Put rows back, but for those that are there already; {typed} are read by their types' own input functions.
INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE
SELECT {values}
FROM json_to_recordset(%(rows)s::json) AS r ({typed})
ON CONFLICT DO NOTHING;
