-- The ledger: policies, runs, what operators want of them, holds, and how all of them stand.

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

-- name: interrupts
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

-- name: activity
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
