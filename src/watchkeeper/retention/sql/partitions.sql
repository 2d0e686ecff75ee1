-- Partitions that are dropped instead of deleting their rows.

-- name: partitions
-- The partitions that end before the horizon, the oldest first, of a table that is partitioned by ranges of its age
-- column alone: what they consist of, their size, and what keeps them from being dropped. Each row has the number of
-- all partitions; one row of NULLs if none is old. Read as the owner, who would drop them; of all of them, or of one.
WITH RECURSIVE parts AS (
    SELECT c.oid, i.inhdetachpending AS pending,
        substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)$')::timestamptz AS stop
    FROM pg_partitioned_table p
    JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    JOIN pg_inherits i ON i.inhparent = p.partrelid
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE p.partrelid = %(oid)s AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname = %(age)s
), tree AS (
    -- Each old partition with its own partitions.
    SELECT oid AS part, oid, true AS top, %(oid)s::oid AS parent, pending FROM parts
    WHERE stop <= %(horizon)s AND oid = coalesce(%(only)s, oid)
    UNION ALL
    SELECT t.part, i.inhrelid, false, t.oid, i.inhdetachpending FROM pg_inherits i JOIN tree t ON i.inhparent = t.oid
), above AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN above a ON i.inhrelid = a.oid
), published AS MATERIALIZED (
    SELECT c.oid, p.pubname
    FROM pg_publication p
    JOIN pg_publication_tables t ON t.pubname = p.pubname
    JOIN pg_namespace n ON n.nspname = t.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
    WHERE p.pubdelete
), found AS (
    SELECT t.part, t.top, t.parent, t.pending, c.oid, c.relkind, c.relowner, c.reltuples, n.nspname, c.relname
    FROM tree t
    JOIN pg_class c ON c.oid = t.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
)
SELECT n.total, p.oid, quote_ident(top.nspname) || '.' || quote_ident(top.relname), top.nspname, top.relname,
    (SELECT coalesce(json_agg(json_build_array(f.oid::bigint, f.nspname, f.relname)), '[]')
     FROM found f WHERE f.part = p.oid AND f.relkind = 'r'),
    (SELECT coalesce(sum(greatest(f.reltuples, 0)), 0)::bigint FROM found f
     WHERE f.part = p.oid AND f.relkind = 'r'),
    (SELECT coalesce(sum(pg_total_relation_size(f.oid)), 0)::bigint FROM found f WHERE f.part = p.oid),
    obstacle.kind, obstacle.detail
FROM (SELECT count(*) AS total FROM parts) AS n
LEFT JOIN (parts p JOIN found top ON top.part = p.oid AND top.top) ON true
LEFT JOIN LATERAL (
    SELECT 'pending' AS kind,
        format('ALTER TABLE %%s DETACH PARTITION %%I.%%I FINALIZE', f.parent::regclass, f.nspname, f.relname) AS detail
    FROM found f
    WHERE f.part = p.oid AND f.pending
    UNION ALL
    SELECT 'trigger', t.tgname
    FROM pg_trigger t
    WHERE (t.tgrelid = %(oid)s OR t.tgrelid IN (SELECT f.oid FROM found f WHERE f.part = p.oid))
        AND NOT t.tgisinternal AND t.tgtype & 8 <> 0 AND t.tgenabled <> 'D'
    UNION ALL
    SELECT 'foreign key', f.conrelid::regclass::text
    FROM pg_constraint f
    WHERE f.contype = 'f'
        AND (f.confrelid = %(oid)s OR f.confrelid IN (SELECT f.oid FROM found f WHERE f.part = p.oid))
    UNION ALL
    SELECT 'publication', u.pubname
    FROM published u
    WHERE u.oid IN (SELECT a.oid FROM above a UNION SELECT f.oid FROM found f WHERE f.part = p.oid)
    UNION ALL
    SELECT 'view', r.ev_class::regclass::text
    FROM pg_depend d
    JOIN pg_rewrite r ON r.oid = d.objid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid IN (SELECT f.oid FROM found f WHERE f.part = p.oid)
    UNION ALL
    SELECT 'owner', pg_get_userbyid(f.relowner)
    FROM found f
    WHERE f.part = p.oid AND NOT pg_has_role(f.relowner, 'USAGE')
    LIMIT 1
) AS obstacle ON true
ORDER BY p.stop;

-- name: lock_partition
-- Keep writers out, and let readers in.
LOCK TABLE {table} IN SHARE MODE;

-- name: lock_parent
-- Keep all others out of the whole table: they wait before they have any lock.
LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE;

-- name: lock_to_drop
-- Take all locks of a drop in its order: while it waits for one, others wait behind it.
LOCK TABLE ONLY {whole}, {table} IN ACCESS EXCLUSIVE MODE;

-- name: longest_wait
-- For how many seconds the transaction that waits longest has waited for this one.
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float8
FROM pg_locks l
WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid));

-- name: count_blocks
-- How many rows a range of blocks has, and how many of them are held.
SELECT count(*), count(*) FILTER (WHERE {held})
FROM {table} AS t
WHERE t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: drop_partition
-- Drop a partition with all its rows; for a moment no one else can use the whole table.
DROP TABLE {table};

-- name: record_partition
-- Record that the run dropped a partition.
UPDATE retention_runs SET partitions = array_append(partitions, %(partition)s) WHERE id = %(run)s;

-- name: dropped_partition
-- How many rows a run has deleted, if it dropped this partition.
SELECT rows_deleted FROM retention_runs WHERE id = %(run)s AND %(partition)s = ANY (partitions);
