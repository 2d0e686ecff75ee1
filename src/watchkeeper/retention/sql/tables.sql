-- What a table is, what stands in a policy's way, what a run would take and hurt. {table}, {age}, {old}, {held},
-- {referenced} and {eligible} are filled in by psycopg.sql; {eligible} is the one predicate of plan and delete.

-- name: limits
-- Time-outs of this transaction, an error where row-level security would hide rows, and one meaning of times as text
-- (in holds, in the bounds of partitions) for every role: for all, only here.
SELECT set_config('statement_timeout', %(statement_ms)s, true),
    set_config('lock_timeout', %(lock_ms)s, true),
    set_config('row_security', 'off', true),
    set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true);

-- name: meaning
-- The meaning of times as text, where only that is wanted.
SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true);

-- name: find_table
-- The table that a policy means, as this role sees it, and whether it has parts (partitions, heirs), and triggers
-- on DELETE, its own or those of foreign keys that refer to it.
SELECT c.oid, n.nspname, c.relname, EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
    EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgtype & 8 <> 0)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %(table)s
    AND CASE WHEN %(schema)s::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = %(schema)s END;

-- name: find_age_column
-- The type of the age column, and an index of the whole table that starts with it.
SELECT format_type(a.atttypid, NULL), (
    SELECT c.relname
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indpred IS NULL AND i.indisvalid
        AND m.amname = 'btree'
    ORDER BY i.indnatts, c.relname
    LIMIT 1
)
FROM pg_attribute a
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped;

-- name: obstacles
-- Why a policy may not be carried out on a table: kind and detail, none if it may. `below` is the table with
-- what is deleted through it (partitions, inheriting tables), `above` what it is a part of.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
), above AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN above a ON i.inhrelid = a.oid
), whole AS (
    -- The table, and what it is a partition of: a foreign key to that is one to this.
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN whole w ON i.inhrelid = w.oid
    JOIN pg_class c ON c.oid = w.oid AND c.relispartition
), children AS (
    -- Foreign keys that point here; those of partitions repeat their parent's. `conenforced` is there from
    -- PostgreSQL 18 on: a key that is not enforced does nothing when rows go.
    SELECT f.conrelid, f.conkey, f.conname, f.confdeltype
    FROM pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0
        AND f.confrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole)
        AND coalesce((to_jsonb(f) ->> 'conenforced')::boolean, true)
), keeping AS (
    SELECT conrelid, conkey FROM children WHERE confdeltype IN ('a', 'r')
)
SELECT 'protected' AS kind, c.relname::text AS detail
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below UNION SELECT oid FROM above) AND c.relname = ANY (%(protected)s)
UNION ALL
SELECT 'kind', CASE c.relkind WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
    WHEN 'f' THEN 'a foreign table' ELSE 'not a table' END
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below) AND c.relkind NOT IN ('r', 'p')
UNION ALL
SELECT 'cascade', format('%%s (constraint %%s)', f.conrelid::regclass, f.conname)
FROM children f
WHERE f.confdeltype = 'c'
UNION ALL
SELECT 'unindexed', format('%%s (constraint %%s)', f.conrelid::regclass, f.conname)
FROM children f
WHERE f.confdeltype <> 'c' AND NOT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = f.conrelid AND i.indisvalid AND i.indpred IS NULL
        AND (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey
)
UNION ALL
SELECT 'rule', r.rulename::text
FROM pg_rewrite r
WHERE r.ev_class IN (SELECT oid FROM below) AND r.ev_type = '4'
UNION ALL
SELECT 'schema', format('GRANT USAGE ON SCHEMA %%I TO %%I', n.nspname, current_user)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %(oid)s AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT 'privileges', format('%%1$s on %%2$s. As its owner: GRANT %%1$s ON %%2$s TO %%3$I',
    string_agg(p.privilege, ', ' ORDER BY p.place), %(oid)s::oid::regclass, current_user)
FROM unnest(ARRAY['SELECT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS p (privilege, place)
WHERE NOT has_table_privilege(%(oid)s::oid, p.privilege)
HAVING count(*) > 0
UNION ALL
SELECT 'child schema', format('GRANT USAGE ON SCHEMA %%I TO %%I', n.nspname, current_user)
FROM keeping f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT 'child', format('%%1$s. As its owner: GRANT SELECT ON %%1$s TO %%2$I', f.conrelid::regclass, current_user)
FROM keeping f
WHERE EXISTS (SELECT FROM unnest(f.conkey) AS k (number) WHERE NOT has_column_privilege(f.conrelid, k.number, 'SELECT'))
UNION ALL
SELECT 'row security', c.oid::regclass::text
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below UNION SELECT conrelid FROM keeping) AND row_security_active(c.oid);

-- name: references
-- The foreign keys that keep rows of a table while others refer to them (NO ACTION, RESTRICT): the table that refers,
-- whether it is partitioned, whether its rows are the same table's, in which parts the rows are that are referred to
-- (NULL for all), and the key's columns, each with its operator and, where the two differ, its collation: as PostgreSQL
-- compares them. `conenforced` is there from PostgreSQL 18 on.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
), whole AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN whole w ON i.inhrelid = w.oid
    JOIN pg_class c ON c.oid = w.oid AND c.relispartition
), keys AS (
    SELECT f.*
    FROM pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0 AND f.confdeltype IN ('a', 'r')
        AND f.confrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole)
        AND coalesce((to_jsonb(f) ->> 'conenforced')::boolean, true)
), parts AS (
    SELECT f.oid AS key, f.confrelid AS oid FROM keys f
    UNION
    SELECT p.key, i.inhrelid FROM parts p
    JOIN pg_inherits i ON i.inhparent = p.oid
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT n.nspname, c.relname, c.relkind = 'p',
    f.conrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole),
    CASE WHEN f.confrelid NOT IN (SELECT oid FROM whole) OR (
        target.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = target.oid)
    ) THEN ARRAY(SELECT p.oid::bigint FROM parts p WHERE p.key = f.oid) END,
    pairs.columns
FROM keys f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class target ON target.oid = f.confrelid
CROSS JOIN LATERAL (
    SELECT bool_and(own.attnum IS NOT NULL) AS known, json_agg(json_build_object(
        'referred', a.attname, 'referring', k.attname, 'operator', json_build_array(os.nspname, o.oprname),
        'collation', CASE WHEN l.oid IS NOT NULL THEN json_build_array(ls.nspname, l.collname) END
    ) ORDER BY u.place) AS columns
    FROM unnest(f.confkey, f.conkey, f.conpfeqop) WITH ORDINALITY AS u (referred, referring, operator, place)
    JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = u.referred
    JOIN pg_attribute k ON k.attrelid = f.conrelid AND k.attnum = u.referring
    JOIN pg_operator o ON o.oid = u.operator
    JOIN pg_namespace os ON os.oid = o.oprnamespace
    LEFT JOIN pg_attribute own ON own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped
    LEFT JOIN pg_collation d ON d.oid = a.attcollation
    LEFT JOIN pg_collation l ON a.attcollation <> k.attcollation
        AND l.oid = CASE WHEN d.collisdeterministic THEN k.attcollation ELSE a.attcollation END
    LEFT JOIN pg_namespace ls ON ls.oid = l.collnamespace
) AS pairs
-- A table that inherits may be referred to by a column that the pruned one does not have: that fails the delete.
WHERE pairs.known
ORDER BY n.nspname, c.relname, f.conname;

-- name: referring_policies
-- Which policies' tables refer to which others', by foreign keys of theirs or of their parts.
WITH RECURSIVE wanted AS (
    SELECT w.name, c.oid
    FROM unnest(%(names)s::text[], %(tables)s::text[], %(schemas)s::text[]) AS w (name, relname, nspname)
    JOIN pg_class c ON c.relname = w.relname
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE CASE WHEN w.nspname IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = w.nspname END
), below AS (
    SELECT name, oid FROM wanted
    UNION
    SELECT b.name, i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT DISTINCT child.name, parent.name
FROM pg_constraint f
JOIN below child ON child.oid = f.conrelid
JOIN below parent ON parent.oid = f.confrelid
WHERE f.contype = 'f' AND child.name <> parent.name;

-- name: blocks
-- How many blocks the largest part of the table has.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(max(pg_relation_size(b.oid)), 0) / current_setting('block_size')::bigint FROM below b;

-- name: totals
-- About how many rows the table has, as far as it was analysed.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_class c
JOIN below b ON b.oid = c.oid
WHERE c.relkind = 'r';

-- name: rate
-- How many rows the last large runs deleted one by one, and in how many seconds, with their pauses.
SELECT sum(r.rows_deleted)::bigint, sum(r.seconds)::float8
FROM (
    SELECT rows_deleted, extract(epoch FROM finished_at - started_at) AS seconds
    FROM retention_runs
    WHERE table_name = %(table)s AND state = 'completed' AND rows_deleted >= %(rows)s AND cardinality(partitions) = 0
    ORDER BY id DESC
    LIMIT 5
) AS r;

-- name: lacking_index
-- The tables that rows lie in and that have no index that leads with the age column; at last the table itself, if
-- it is partitioned: an index on it takes those of its partitions in.
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

-- name: may_lack_age
-- Whether the age column takes NULL.
SELECT NOT a.attnotnull FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attname = %(age)s;

-- name: count_ageless
-- How many rows have no age.
SELECT count(*) FROM {table} AS t WHERE t.{age} IS NULL;

-- name: bytes
-- How many bytes the table takes, with its parts, its indexes and what is stored apart of its rows.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT coalesce(sum(pg_total_relation_size(b.oid)), 0)::bigint FROM below b;

-- name: count_eligible
-- What a run would delete, and the age of the oldest (a year before 1 is shown as 1).
SELECT count(*), CASE WHEN count(*) > 0 THEN greatest(min(t.{age}), '0001-01-02 00:00:00+00') END
FROM {table} AS t
WHERE {eligible};

-- name: eligible_rows
-- The same rows, for an estimate by the planner.
EXPLAIN (FORMAT JSON) SELECT FROM {table} AS t WHERE {eligible};

-- name: sample
-- How many rows a few blocks hold, and how many of them are eligible; the blocks are drawn at random.
SELECT count(*), count(*) FILTER (WHERE {eligible})
FROM {table} AS t TABLESAMPLE SYSTEM (%(percent)s);

-- name: sample_old
-- The same, and how many are old: where others refer to old rows, these are looked at and stay.
SELECT count(*), count(*) FILTER (WHERE {eligible}), count(*) FILTER (WHERE {old})
FROM {table} AS t TABLESAMPLE SYSTEM (%(percent)s);

-- name: first_eligible
-- How many rows are eligible, as far as they are counted, and the age of the oldest (see count_eligible). The
-- order leads to the index of the ages.
SELECT count(*), CASE WHEN count(*) > 0 THEN greatest(min(f.age), '0001-01-02 00:00:00+00') END
FROM (SELECT t.{age} AS age FROM {table} AS t WHERE {eligible} ORDER BY t.{age} LIMIT %(most)s) AS f;

-- name: sample_backlog
-- How many rows of a few random blocks are eligible, how many of the first blocks, and the age of the oldest.
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

-- name: count_share
-- How many rows there are, and how many of them are eligible.
SELECT count(*), count(*) FILTER (WHERE {eligible})
FROM {table} AS t;

-- name: is_left
-- Whether there is an eligible row, found by the index of the ages.
SELECT EXISTS (SELECT FROM {table} AS t WHERE {eligible} ORDER BY t.{age} LIMIT 1);

-- name: next_id
-- The id after those of all transactions that have ended, and whether all before it have.
SELECT pg_snapshot_xmin(now) = pg_snapshot_xmax(now), pg_snapshot_xmax(now)::text
FROM pg_current_snapshot() AS now;

-- name: pressure
-- What a run would make worse: lag of replicas, WAL that slots keep, that is not archived or not checkpointed,
-- transactions that keep vacuum from its work; and whether this role sees them all.
WITH wal AS MATERIALIZED (
    SELECT pg_current_wal_lsn() AS now
), replicas AS (
    SELECT (array_agg(r.application_name ORDER BY r.replay_lsn))[1] AS name,
        max(pg_wal_lsn_diff(wal.now, r.replay_lsn))::bigint AS bytes,
        extract(epoch FROM max(r.replay_lag) FILTER (WHERE r.replay_lsn < wal.now))::float8 AS seconds
    FROM wal, pg_stat_replication r
    WHERE r.replay_lsn IS NOT NULL
), slots AS (
    SELECT (array_agg(s.slot_name ORDER BY s.restart_lsn))[1] AS name,
        max(pg_wal_lsn_diff(wal.now, s.restart_lsn))::bigint AS bytes
    FROM wal, pg_replication_slots s
    WHERE s.restart_lsn IS NOT NULL
), transactions AS (
    -- Vacuum itself is in nobody's way; a transaction that has seen nothing yet neither.
    SELECT a.xact_start AS since, format('%s (pid %s)', a.usename, a.pid) AS who
    FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
        AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)
        AND a.pid NOT IN (SELECT p.pid FROM pg_stat_progress_vacuum p)
    UNION ALL
    SELECT x.prepared, format('%s (prepared: %s)', x.owner, x.gid)
    FROM pg_prepared_xacts x
    WHERE x.database = current_database()
), oldest AS (
    SELECT t.who, extract(epoch FROM clock_timestamp() - t.since)::float8 AS seconds
    FROM transactions t
    WHERE t.since IS NOT NULL
    ORDER BY t.since
    LIMIT 1
)
SELECT current_user::text AS role,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
    replicas.name AS replica, replicas.bytes AS lag_bytes, replicas.seconds AS lag_seconds,
    slots.name AS slot, slots.bytes AS slot_bytes,
    pg_wal_lsn_diff(wal.now, (SELECT redo_lsn FROM pg_control_checkpoint()))::bigint AS unchecked,
    pg_size_bytes(current_setting('max_wal_size')) AS max_wal_size,
    current_setting('archive_mode') <> 'off'
        AND archiver.last_failed_time > coalesce(archiver.last_archived_time, '-infinity') AS archiver_fails,
    archiver.last_failed_wal AS archiver_file,
    oldest.who AS transaction, oldest.seconds AS transaction_seconds
FROM wal
CROSS JOIN replicas
CROSS JOIN slots
CROSS JOIN pg_stat_archiver archiver
LEFT JOIN oldest ON true;

-- name: vacuum
-- For each table with its parts: its dead rows, how many of them autovacuum looks after and from how many on it
-- starts (by the server's settings and the table's own), and when it was last vacuumed.
WITH RECURSIVE wanted AS (
    SELECT w.name, c.oid
    FROM unnest(%(names)s::text[], %(tables)s::text[], %(schemas)s::text[]) AS w (name, relname, nspname)
    JOIN pg_class c ON c.relname = w.relname
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE CASE WHEN w.nspname IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = w.nspname END
), below AS (
    SELECT name, oid FROM wanted
    UNION
    SELECT b.name, i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
), parts AS (
    SELECT b.name, pg_stat_get_dead_tuples(c.oid) AS dead,
        greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) AS vacuumed_at,
        own.enabled AND current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean
            AS automatic,
        least(own.threshold + own.scale * greatest(c.reltuples, 0), nullif(own.most, -1)) AS starts_at
    FROM below b
    JOIN pg_class c ON c.oid = b.oid
    CROSS JOIN LATERAL (
        SELECT coalesce(bool_and(o.option_value::boolean) FILTER (WHERE o.option_name = 'autovacuum_enabled'), true)
                AS enabled,
            coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'autovacuum_vacuum_threshold'),
                current_setting('autovacuum_vacuum_threshold'))::float8 AS threshold,
            coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'autovacuum_vacuum_scale_factor'),
                current_setting('autovacuum_vacuum_scale_factor'))::float8 AS scale,
            coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'autovacuum_vacuum_max_threshold'),
                current_setting('autovacuum_vacuum_max_threshold', true))::float8 AS most
        FROM pg_options_to_table(c.reloptions) o
    ) AS own
    WHERE c.relkind = 'r'
)
SELECT name AS table, sum(dead)::bigint AS dead,
    coalesce(sum(dead) FILTER (WHERE automatic), 0)::bigint AS due,
    coalesce(sum(starts_at) FILTER (WHERE automatic), 0) AS starts_at,
    bool_or(automatic) AS automatic, max(vacuumed_at) AS vacuumed_at
FROM parts
GROUP BY name;
