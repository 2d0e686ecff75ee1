-- What a run would make worse, and whether others write.

-- name: pressure
-- What a run would make worse: lag of replicas, WAL that slots keep or that is not archived or checkpointed,
-- transactions that keep vacuum from removing rows; and whether this role sees them all.
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
    -- Neither vacuum itself nor a transaction without a snapshot holds vacuum back.
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
-- For each table with its children: its dead rows, how many of them autovacuum is on for, the number at which it
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

-- name: next_transaction_id
-- Whether all transactions before the next id have ended, and that id.
SELECT pg_snapshot_xmin(now) = pg_snapshot_xmax(now), pg_snapshot_xmax(now)::text
FROM pg_current_snapshot() AS now;
