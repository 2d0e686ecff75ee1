-- What an operator says to a run, what it waits for, where it stands, and the archives of its rows.

ALTER TABLE retention_policies
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN paused_by text,
    ADD CHECK ((paused_at IS NULL) = (paused_by IS NULL));

ALTER TABLE retention_runs
    ADD COLUMN rows_planned  bigint,                         -- about how many it has to delete; NULL: unknown
    ADD COLUMN bytes_deleted bigint NOT NULL DEFAULT 0,      -- about, by the table's size a row
    ADD COLUMN partitions    text[] NOT NULL DEFAULT '{}',   -- what it dropped as a whole
    ADD COLUMN cursor        jsonb,                          -- how far its first pass has come
    ADD COLUMN waiting       text,                           -- what it waits for now; NULL: nothing
    ADD COLUMN paused_by     text,                           -- who wants it to stop for now
    ADD COLUMN cancelled_by  text;                           -- who wants it to end for good

ALTER TABLE retention_runs DROP CONSTRAINT retention_runs_state_check;
ALTER TABLE retention_runs ADD CONSTRAINT retention_runs_state_check
    CHECK (state IN ('running', 'completed', 'failed', 'refused', 'stopped', 'cancelled'));

-- The rows of one sweep, written before they are deleted.
CREATE TABLE retention_archives (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run         bigint NOT NULL REFERENCES retention_runs,
    place       text NOT NULL,                          -- as whoever wrote it finds it again
    start       bigint NOT NULL CHECK (start >= 0),     -- byte that it begins at
    length      bigint NOT NULL CHECK (length > 0),     -- in bytes
    sha256      text NOT NULL,                          -- of these bytes
    rows        integer NOT NULL CHECK (rows > 0),
    deleted     integer,                                -- how many of them went; NULL: the delete did not commit
    kept        integer[],                              -- which of them did not, counted from 0
    created_at  timestamptz NOT NULL DEFAULT now(),
    restored_at timestamptz,
    CHECK (deleted + coalesce(cardinality(kept), 0) = rows),
    CHECK (restored_at IS NULL OR deleted IS NOT NULL)      -- what is still there cannot come back
);

CREATE INDEX retention_archives_run ON retention_archives (run);

-- What the ledger says of the past stays. The owner may correct it; the service, which writes it, may not.
CREATE FUNCTION retention_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID), 'USAGE') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION '% keeps what it says of the past', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', HINT = 'Only the owner of the table may correct it.';
END
$$;

CREATE TRIGGER retention_runs_past BEFORE UPDATE ON retention_runs
FOR EACH ROW WHEN (OLD.state <> 'running' OR NEW.rows_deleted < OLD.rows_deleted)
EXECUTE FUNCTION retention_refuse();

CREATE TRIGGER retention_archives_past BEFORE UPDATE ON retention_archives
FOR EACH ROW WHEN (
    (OLD.deleted IS NOT NULL AND (NEW.deleted, NEW.kept) IS DISTINCT FROM (OLD.deleted, OLD.kept))
    OR (OLD.restored_at IS NOT NULL AND NEW.restored_at IS DISTINCT FROM OLD.restored_at)
)
EXECUTE FUNCTION retention_refuse();

CREATE TRIGGER retention_holds_past BEFORE UPDATE ON retention_holds
FOR EACH ROW WHEN (OLD.released_at IS NOT NULL)
EXECUTE FUNCTION retention_refuse();

ALTER TABLE retention_runs ENABLE ALWAYS TRIGGER retention_runs_past;
ALTER TABLE retention_archives ENABLE ALWAYS TRIGGER retention_archives_past;
ALTER TABLE retention_holds ENABLE ALWAYS TRIGGER retention_holds_past;
