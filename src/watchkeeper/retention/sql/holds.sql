-- The holds, and the rows that they keep. Placeholders: see tables.sql.

-- name: add_hold
-- Add a hold.
INSERT INTO retention_holds (table_name, conditions, reason, owner, until)
VALUES (%(table)s, %(conditions)s, %(reason)s, %(owner)s, %(until)s)
RETURNING id, table_name, conditions, reason, owner, created_at, until, released_at, released_by;

-- name: release_hold
-- Release a hold; no row if no such hold is in force.
UPDATE retention_holds
SET released_at = clock_timestamp(), released_by = %(released_by)s
WHERE id = %(hold)s AND released_at IS NULL
RETURNING id, table_name, conditions, reason, owner, created_at, until, released_at, released_by;

-- name: holds
-- The holds of some tables, the oldest first; past ones only if requested.
SELECT id, table_name, conditions, reason, owner, created_at, until, released_at, released_by
FROM retention_holds
WHERE table_name = ANY (%(tables)s)
    AND (%(all)s OR (released_at IS NULL AND (until IS NULL OR until > clock_timestamp())))
ORDER BY id;

-- name: check_holds
-- Whether the holds can be applied: an error, or nothing.
SELECT FROM {table} AS t WHERE {held} LIMIT 0;

-- name: count_held
-- How many rows would be eligible without the holds.
SELECT count(*) FROM {table} AS t WHERE {old} AND {held};

-- name: count_hold
-- How many rows the holds keep, of any age.
SELECT count(*) FROM {table} AS t WHERE {held};

-- name: has_held
-- Whether a hold keeps any row.
SELECT EXISTS (SELECT FROM {table} AS t WHERE {held});
