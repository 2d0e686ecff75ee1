-- The ledger, what stands in a policy's way, the plan and the sweep. {table}, {age} and {eligible} are filled in
-- by psycopg.sql; {eligible} is the one predicate of plan and delete.

-- name: clock
-- The database's clock, which is the only one that counts.
SELECT clock_timestamp();

-- name: register
-- Note a declared policy; since when it is declared stays. Nothing is locked or written where it is as it was.
INSERT INTO retention_policies AS p (table_name, age_column, keep)
SELECT d.table_name, d.age_column, d.keep
FROM (VALUES (%(table)s::text, %(age_column)s::text, %(keep)s::interval)) AS d (table_name, age_column, keep)
WHERE (d.table_name, d.age_column, d.keep) NOT IN (SELECT q.table_name, q.age_column, q.keep FROM retention_policies q)
ON CONFLICT (table_name) DO UPDATE
SET age_column = excluded.age_column, keep = excluded.keep, declared_at = now()
WHERE (p.age_column, p.keep) IS DISTINCT FROM (excluded.age_column, excluded.keep);

-- name: attempts
-- What was tried for a due or a later one, the last attempt last; one row without an attempt if nothing was, none
-- while the policy is paused.
SELECT p.since, r.due_at, r.attempt, r.state, r.finished_at, now() AS now
FROM retention_policies p
LEFT JOIN retention_runs r
    ON r.table_name = p.table_name AND r.trigger = 'schedule' AND r.due_at >= %(due_at)s
WHERE p.table_name = %(table)s AND p.paused_at IS NULL
ORDER BY r.due_at, r.attempt;

-- name: claim
-- Make the run ours; no row if somebody else has this attempt, another run of the table is open, or it is paused:
-- whoever pauses it has the policy's row locked, and its lock is waited for.
INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon)
SELECT p.table_name, %(trigger)s, coalesce(%(due_at)s::timestamptz, now()), %(attempt)s,
    now() + %(lease)s::interval, now() - make_interval(secs => %(keep_seconds)s)
FROM retention_policies p
WHERE p.table_name = %(table)s AND p.paused_at IS NULL
FOR SHARE
ON CONFLICT DO NOTHING
RETURNING id, table_name, epoch, trigger, due_at, attempt, horizon, started_at, rows_deleted;

-- name: lock
-- The run, locked, while it is open and of our epoch, with what operators want of it: the first statement of each
-- transaction that deletes.
SELECT paused_by, cancelled_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
FOR UPDATE;

-- name: move
-- Count what this transaction deleted, note how far the first pass has come, and renew the lease.
UPDATE retention_runs
SET rows_deleted = rows_deleted + %(deleted)s, bytes_deleted = bytes_deleted + %(bytes_deleted)s,
    cursor = coalesce(%(cursor)s::jsonb, cursor), lease_until = clock_timestamp() + %(lease)s::interval
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
RETURNING rows_deleted;

-- name: open_run
-- The open run of a table.
SELECT id, started_at, lease_until, rows_deleted FROM retention_runs
WHERE table_name = %(table)s AND state = 'running';

-- name: lapsed
-- The runs whose lease is over, whatever they prune and whoever ran them.
SELECT id, table_name, epoch, trigger, due_at, attempt, horizon, started_at, rows_deleted
FROM retention_runs
WHERE state = 'running' AND lease_until < clock_timestamp()
ORDER BY id;

-- name: lock_to_close
-- The run, locked, how long it has taken, what it dropped, who cancelled and who paused it; a lapsed one only if it
-- still is.
SELECT rows_deleted, bytes_deleted, clock_timestamp() - started_at, partitions, cancelled_by, paused_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
    AND (NOT %(lapsed)s OR lease_until < clock_timestamp())
FOR UPDATE;

-- name: close
-- Close the run, in the transaction of its audit entry. The epoch tells whoever still runs it.
UPDATE retention_runs
SET state = %(state)s, error = %(error)s::jsonb, audit_id = %(audit_id)s, finished_at = clock_timestamp(),
    waiting = NULL, epoch = epoch + 1
WHERE id = %(run)s;

-- name: orders
-- What operators want of an open run of ours.
SELECT paused_by, cancelled_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: show_plan
-- Note about how many rows an open run of ours has to delete.
UPDATE retention_runs SET rows_planned = %(rows)s
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: show_waiting
-- Note what an open run of ours waits for, or that it goes on.
UPDATE retention_runs SET waiting = %(reason)s
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: last_cursor
-- How far the attempts before had come with the first pass of this due, and which files the table has now. A run
-- by hand has a due of its own: what counts for it is the table's last run, if that one did not come to its end.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT
    (SELECT md5(string_agg(b.oid || ' ' || coalesce(pg_relation_filenode(b.oid), 0), ',' ORDER BY b.oid)) FROM below b),
    CASE WHEN %(trigger)s = 'schedule' THEN (
        SELECT r.cursor
        FROM retention_runs r
        WHERE r.table_name = %(table)s AND r.due_at = %(due_at)s AND r.attempt < %(attempt)s AND r.cursor IS NOT NULL
            AND r.state IN ('stopped', 'failed')
        ORDER BY r.attempt DESC
        LIMIT 1
    ) ELSE (
        SELECT CASE WHEN r.state IN ('stopped', 'failed') THEN r.cursor END
        FROM retention_runs r
        WHERE r.table_name = %(table)s AND r.id < %(run)s
            AND (r.cursor IS NOT NULL OR r.state NOT IN ('stopped', 'failed'))
        ORDER BY r.id DESC
        LIMIT 1
    ) END;

-- name: paused
-- Since when a policy is paused, and by whom.
SELECT paused_at, paused_by FROM retention_policies WHERE table_name = %(table)s;

-- name: pause_policy
-- Let no run of a policy begin, and note who wants that.
UPDATE retention_policies SET paused_at = clock_timestamp(), paused_by = %(by)s WHERE table_name = %(table)s;

-- name: resume_policy
-- Let runs of a policy begin again.
UPDATE retention_policies SET paused_at = NULL, paused_by = NULL WHERE table_name = %(table)s;

-- name: pause_run
-- Have the open run of a table stop for now (or, by NULL, not stop after all).
UPDATE retention_runs SET paused_by = %(by)s
WHERE table_name = %(table)s AND state = 'running'
RETURNING id;

-- name: cancel_run
-- Have the open run of a table end for good; no row if there is none, or if it was told so already.
UPDATE retention_runs SET cancelled_by = %(by)s
WHERE table_name = %(table)s AND state = 'running' AND cancelled_by IS NULL
RETURNING id;

-- name: lock_policy
-- The policy, so that no run of it begins: claiming one refers to it.
SELECT FROM retention_policies WHERE table_name = %(table)s FOR UPDATE;

-- name: lock_open_run
-- The open run of a table, when its transaction has ended; its next one sees what is done under this lock.
SELECT FROM retention_runs WHERE table_name = %(table)s AND state = 'running' FOR UPDATE;

-- name: add_hold
-- Note a hold.
INSERT INTO retention_holds (table_name, conditions, reason, owner, until)
VALUES (%(table)s, %(conditions)s, %(reason)s, %(owner)s, %(until)s)
RETURNING id, table_name, conditions, reason, owner, created_at, until, released_at, released_by;

-- name: release_hold
-- End a hold; no row if there is none that is in force.
UPDATE retention_holds
SET released_at = clock_timestamp(), released_by = %(released_by)s
WHERE id = %(hold)s AND released_at IS NULL
RETURNING id, table_name, conditions, reason, owner, created_at, until, released_at, released_by;

-- name: holds
-- The holds of some tables, the first one first; with those that are over only where they are asked for.
SELECT id, table_name, conditions, reason, owner, created_at, until, released_at, released_by
FROM retention_holds
WHERE table_name = ANY (%(tables)s)
    AND (%(all)s OR (released_at IS NULL AND (until IS NULL OR until > clock_timestamp())))
ORDER BY id;

-- name: check_holds
-- Whether the holds can be applied: an error, or nothing.
SELECT FROM {table} AS t WHERE {held} LIMIT 0;

-- name: count_held
-- How many rows would be eligible but for a hold.
SELECT count(*) FROM {table} AS t WHERE {old} AND {held};

-- name: count_hold
-- How many rows the holds keep, however young they are.
SELECT count(*) FROM {table} AS t WHERE {held};

-- name: count_referenced
-- How many rows would be eligible, were there not others that refer to them.
SELECT count(*) FROM {table} AS t WHERE {old} AND NOT {held} AND {referenced};

-- name: has_held
-- Whether a hold keeps any row.
SELECT EXISTS (SELECT FROM {table} AS t WHERE {held});

-- name: status
-- For each registered policy: who paused it, its last run and the last one that completed.
SELECT p.table_name, p.since, p.paused_at, p.paused_by,
    last.id AS run, last.state, last.trigger, last.started_at, last.finished_at, last.rows_deleted,
    last.rows_planned, last.waiting, last.error ->> 'message' AS error, last.due_at, last.attempt, last.partitions,
    kept.archived, kept.restored,
    (SELECT max(r.finished_at) FROM retention_runs r
     WHERE r.table_name = p.table_name AND r.state = 'completed') AS last_success
FROM retention_policies p
LEFT JOIN LATERAL (
    SELECT * FROM retention_runs r WHERE r.table_name = p.table_name ORDER BY r.id DESC LIMIT 1
) AS last ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(a.deleted), 0)::bigint AS archived,
        coalesce(sum(a.deleted) FILTER (WHERE a.restored_at IS NOT NULL), 0)::bigint AS restored
    FROM retention_archives a
    WHERE a.run = last.id
) AS kept
WHERE p.table_name = ANY (%(tables)s);

-- name: doing
-- Which of the registered policies are paused, and what their open runs wait for.
SELECT p.table_name, p.paused_at IS NOT NULL, r.waiting
FROM retention_policies p
LEFT JOIN retention_runs r ON r.table_name = p.table_name AND r.state = 'running'
WHERE p.table_name = ANY (%(tables)s);

-- name: history
-- The runs of some tables, the latest first.
SELECT r.id, r.table_name AS table, r.state, r.trigger, r.started_at, r.finished_at, r.rows_deleted AS deleted,
    r.rows_planned AS planned, r.waiting, r.error ->> 'message' AS error, r.due_at AS due, r.attempt, r.partitions,
    kept.archived, kept.restored
FROM (
    SELECT * FROM retention_runs WHERE table_name = ANY (%(tables)s) ORDER BY id DESC LIMIT %(limit)s
) AS r
CROSS JOIN LATERAL (
    SELECT coalesce(sum(a.deleted), 0)::bigint AS archived,
        coalesce(sum(a.deleted) FILTER (WHERE a.restored_at IS NOT NULL), 0)::bigint AS restored
    FROM retention_archives a
    WHERE a.run = r.id
) AS kept
ORDER BY r.id DESC;

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

-- name: find_table
-- The table that a policy means, as this role sees it, and whether it has parts (partitions, heirs), and triggers
-- on DELETE.
SELECT c.oid, n.nspname, c.relname, EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
    EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype & 8 <> 0)
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
    -- Foreign keys that point here; those of partitions repeat their parent's.
    SELECT f.conrelid, f.conkey, f.conname, f.confdeltype
    FROM pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0
        AND f.confrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole)
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
SELECT 'child schema', n.nspname::text
FROM keeping f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT 'child', f.conrelid::regclass::text
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
    AND (t.{age} < %(stop)s::timestamptz OR (%(last)s AND t.{age} = %(stop)s::timestamptz));

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

-- name: partitions
-- The partitions that end before the horizon, of a table that is partitioned by ranges of its age alone, the oldest
-- first: what they consist of, how large they are, and what keeps them from being dropped as a whole. Each row says
-- how many partitions there are in all; one row of NULLs if none is old. Asked as the owner, who is to drop them;
-- of all of them, or of one.
WITH RECURSIVE parts AS (
    SELECT c.oid, i.inhdetachpending AS pending,
        substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)$')::timestamptz AS stop
    FROM pg_partitioned_table p
    JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    JOIN pg_inherits i ON i.inhparent = p.partrelid
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE p.partrelid = %(oid)s AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname = %(age)s
), tree AS (
    -- Each with what it is divided into itself.
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

-- name: lock_to_drop
-- All that a drop locks, in its order: what it waits for, others wait for too.
LOCK TABLE ONLY {whole}, {table} IN ACCESS EXCLUSIVE MODE;

-- name: lock_whole
-- Keep everybody out of the whole table: whoever comes now waits before it has any lock.
LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE;

-- name: longest_wait
-- For how many seconds the first of those has waited that this transaction keeps waiting.
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float8
FROM pg_locks l
WHERE NOT l.granted AND pg_backend_pid() = ANY (pg_blocking_pids(l.pid));

-- name: count_by_place
-- How many rows a range of blocks has, and how many of them are held.
SELECT count(*), count(*) FILTER (WHERE {held})
FROM {table} AS t
WHERE t.ctid >= %(start)s::tid AND t.ctid < %(stop)s::tid;

-- name: drop_partition
-- Drop a partition with all its rows; for a moment nobody else gets at the whole table.
DROP TABLE {table};

-- name: note_partition
-- Note what the run dropped as a whole.
UPDATE retention_runs SET partitions = array_append(partitions, %(partition)s) WHERE id = %(run)s;

-- name: dropped
-- How many rows a run has deleted, if it dropped this partition.
SELECT rows_deleted FROM retention_runs WHERE id = %(run)s AND %(partition)s = ANY (partitions);

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
