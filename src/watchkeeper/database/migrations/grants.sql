-- What the service's role may do, given anew after each migrating.

REVOKE ALL ON audit_log FROM {service};
-- Not id and not created_at: an entry cannot be dated back.
GRANT SELECT ON audit_log TO {service};
GRANT INSERT (actor_type, actor_id, action, entity, entity_id, payload) ON audit_log TO {service};

-- Not since, not a run's horizon, and no DELETE: what the ledger says of the past stays.
REVOKE ALL ON retention_policies, retention_runs, retention_holds, retention_archives FROM {service};
GRANT SELECT ON retention_policies, retention_runs, retention_holds, retention_archives TO {service};
GRANT INSERT (table_name, age_column, keep) ON retention_policies TO {service};
GRANT UPDATE (age_column, keep, declared_at, paused_at, paused_by) ON retention_policies TO {service};
GRANT INSERT (table_name, trigger, due_at, attempt, lease_until, horizon) ON retention_runs TO {service};
GRANT UPDATE (epoch, lease_until, state, rows_deleted, finished_at, error, audit_id, rows_planned, bytes_deleted,
    cursor, waiting, paused_by, cancelled_by) ON retention_runs TO {service};
-- A hold is released, and stays as it was.
GRANT INSERT (table_name, conditions, reason, owner, until) ON retention_holds TO {service};
GRANT UPDATE (released_at, released_by) ON retention_holds TO {service};
-- What was archived stays as it was written; what became of its rows is noted.
GRANT INSERT (run, place, start, length, sha256, rows), UPDATE (deleted, kept, restored_at) ON retention_archives
    TO {service};
