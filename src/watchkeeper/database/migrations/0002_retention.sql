-- What is kept how long, and the ledger of what was pruned: the ledger is also the schedule.

CREATE TABLE retention_policies (
    table_name  text PRIMARY KEY,
    age_column  text NOT NULL,
    keep        interval NOT NULL CHECK (keep > interval '0'),
    since       timestamptz NOT NULL DEFAULT now(), -- nothing is due before the first start that declared it
    declared_at timestamptz NOT NULL DEFAULT now()  -- when it last changed
);

CREATE TABLE retention_runs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name   text NOT NULL REFERENCES retention_policies,
    trigger      text NOT NULL CHECK (trigger IN ('schedule', 'manual')),
    due_at       timestamptz NOT NULL,
    attempt      integer NOT NULL CHECK (attempt > 0),
    state        text NOT NULL DEFAULT 'running'
                 CHECK (state IN ('running', 'completed', 'failed', 'refused', 'stopped')),
    epoch        integer NOT NULL DEFAULT 1,        -- who holds an older one has lost the run
    lease_until  timestamptz NOT NULL,              -- from then on anybody may close it
    horizon      timestamptz NOT NULL,              -- rows older than this go
    rows_deleted bigint NOT NULL DEFAULT 0 CHECK (rows_deleted >= 0), -- moves in the transaction that deletes
    started_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    error        jsonb,
    audit_id     bigint,
    -- Of all the replicas, one gets to make the row.
    UNIQUE (table_name, due_at, attempt),
    -- A run is closed by its audit entry, or it is not closed.
    CHECK ((state = 'running') = (audit_id IS NULL)),
    CHECK ((state = 'running') = (finished_at IS NULL))
);

-- One run at a time on a table, whoever started it; one that cannot be closed holds the next one up.
CREATE UNIQUE INDEX retention_runs_running ON retention_runs (table_name) WHERE state = 'running';
