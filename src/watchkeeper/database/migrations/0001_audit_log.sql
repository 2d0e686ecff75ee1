-- The record of who did what. Rows are added and read, never changed and never removed (compliance).

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    actor_type text NOT NULL CHECK (actor_type IN ('user', 'agent', 'system')),
    actor_id text NOT NULL CHECK (char_length(actor_id) BETWEEN 1 AND 255),
    action text NOT NULL CHECK (action ~ '^[a-z][a-z0-9._-]{0,99}$'),
    entity text NOT NULL CHECK (char_length(entity) BETWEEN 1 AND 255),
    entity_id text CHECK (char_length(entity_id) BETWEEN 1 AND 255),
    payload jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(payload) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- For reading the latest entries of one entity; the latest of all come from the primary key.
CREATE INDEX audit_log_entity ON audit_log (entity, id DESC);

CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege',
            HINT = 'Entries are never changed or removed; write a new one that corrects the old.';
END
$$;

-- For each statement, so that it is refused even where it would find no row, and TRUNCATE too.
CREATE TRIGGER audit_log_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse();

-- For each row, because a statement on a table that audit_log were made a child of fires only these here.
CREATE TRIGGER audit_log_append_only_rows
BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION audit_log_refuse();

-- ALWAYS: otherwise session_replication_role = replica would go past them.
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_append_only;
ALTER TABLE audit_log ENABLE ALWAYS TRIGGER audit_log_append_only_rows;
