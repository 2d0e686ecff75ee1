-- The ledger: policies, their runs, and what operators ordered.

-- name: clock
-- The database's clock, which decides what is due.
SELECT clock_timestamp();

-- name: register
-- Register a declared policy; its first declaration keeps its time. Nothing is locked or written if it did not change.
INSERT INTO retention_policies AS p (table_name, age_column, keep)
SELECT d.table_name, d.age_column, d.keep
FROM (VALUES (%(table)s::text, %(age_column)s::text, %(keep)s::interval)) AS d (table_name, age_column, keep)
WHERE (d.table_name, d.age_column, d.keep) NOT IN (SELECT q.table_name, q.age_column, q.keep FROM retention_policies q)
ON CONFLICT (table_name) DO UPDATE
SET age_column = excluded.age_column, keep = excluded.keep, declared_at = now()
WHERE (p.age_column, p.keep) IS DISTINCT FROM (excluded.age_column, excluded.keep);

-- name: lock_policy
-- The policy, so that no run of it starts: claiming one refers to it.
SELECT FROM retention_policies WHERE table_name = %(table)s FOR UPDATE;

-- name: attempts
-- The attempts for a scheduled time or a later one, in order; one row without an attempt if there were none, no row
-- while the policy is paused.
SELECT p.since, r.due_at, r.attempt, r.state, r.finished_at, now() AS now
FROM retention_policies p
LEFT JOIN retention_runs r
    ON r.table_name = p.table_name AND r.trigger = 'schedule' AND r.due_at >= %(due_at)s
WHERE p.table_name = %(table)s AND p.paused_at IS NULL
ORDER BY r.due_at, r.attempt;

-- name: claim
-- Claim a run; no row if another process has this attempt, another run of the table is open, or the policy is paused.
-- Pausing locks the policy's row, and that lock is waited for.
INSERT INTO retention_runs (table_name, trigger, due_at, attempt, lease_until, horizon)
SELECT p.table_name, %(trigger)s, coalesce(%(due_at)s::timestamptz, now()), %(attempt)s,
    now() + %(lease)s::interval, now() - make_interval(secs => %(keep_seconds)s)
FROM retention_policies p
WHERE p.table_name = %(table)s AND p.paused_at IS NULL
FOR SHARE
ON CONFLICT DO NOTHING
RETURNING id, table_name, epoch, trigger, due_at, attempt, horizon, started_at, rows_deleted;

-- name: lock_run
-- Lock the run while it is open and has our epoch, and return what operators ordered: the first statement of each
-- transaction that deletes.
SELECT paused_by, cancelled_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
FOR UPDATE;

-- name: record_deleted
-- Count what this transaction deleted, record the position of the first pass, and renew the lease.
UPDATE retention_runs
SET rows_deleted = rows_deleted + %(deleted)s, bytes_deleted = bytes_deleted + %(bytes_deleted)s,
    cursor = coalesce(%(cursor)s::jsonb, cursor), lease_until = clock_timestamp() + %(lease)s::interval
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
RETURNING rows_deleted;

-- name: interrupts
-- What operators ordered for an open run of ours.
SELECT paused_by, cancelled_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: show_plan
-- Record about how many rows an open run of ours has to delete.
UPDATE retention_runs SET rows_planned = %(rows)s
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: show_waiting
-- Record what an open run of ours waits for; NULL if it continues.
UPDATE retention_runs SET waiting = %(reason)s
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running';

-- name: last_cursor
-- The table's current files, and how far earlier attempts came with the first pass of this scheduled time. A manual
-- run has a scheduled time of its own: for it, the table's last run counts if that one did not complete.
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

-- name: open_run
-- The open run of a table.
SELECT id, started_at, lease_until, rows_deleted FROM retention_runs
WHERE table_name = %(table)s AND state = 'running';

-- name: lock_open_run
-- Lock the open run of a table when its transaction has ended; its next one sees what is done under this lock.
SELECT FROM retention_runs WHERE table_name = %(table)s AND state = 'running' FOR UPDATE;

-- name: lapsed_runs
-- The open runs of all tables whose lease has lapsed.
SELECT id, table_name, epoch, trigger, due_at, attempt, horizon, started_at, rows_deleted
FROM retention_runs
WHERE state = 'running' AND lease_until < clock_timestamp()
ORDER BY id;

-- name: lock_to_close
-- Lock the run to close it, and return its duration, what it dropped, and who cancelled and paused it; a lapsed run
-- only if it still is.
SELECT rows_deleted, bytes_deleted, clock_timestamp() - started_at, partitions, cancelled_by, paused_by
FROM retention_runs
WHERE id = %(run)s AND epoch = %(epoch)s AND state = 'running'
    AND (NOT %(lapsed)s OR lease_until < clock_timestamp())
FOR UPDATE;

-- name: close_run
-- Close the run, in the transaction of its audit entry. The new epoch tells a process that still executes it.
UPDATE retention_runs
SET state = %(state)s, error = %(error)s::jsonb, audit_id = %(audit_id)s, finished_at = clock_timestamp(),
    waiting = NULL, epoch = epoch + 1
WHERE id = %(run)s;

-- name: paused
-- Since when a policy is paused, and by whom.
SELECT paused_at, paused_by FROM retention_policies WHERE table_name = %(table)s;

-- name: pause_policy
-- Pause a policy.
UPDATE retention_policies SET paused_at = clock_timestamp(), paused_by = %(by)s WHERE table_name = %(table)s;

-- name: resume_policy
-- Resume a policy.
UPDATE retention_policies SET paused_at = NULL, paused_by = NULL WHERE table_name = %(table)s;

-- name: pause_run
-- Stop the open run of a table for now (or, by NULL, withdraw that).
UPDATE retention_runs SET paused_by = %(by)s
WHERE table_name = %(table)s AND state = 'running'
RETURNING id;

-- name: cancel_run
-- Cancel the open run of a table; no row if there is none, or if it was cancelled before.
UPDATE retention_runs SET cancelled_by = %(by)s
WHERE table_name = %(table)s AND state = 'running' AND cancelled_by IS NULL
RETURNING id;

-- name: status
-- For each registered policy: who paused it, its last run and its last completed one.
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
