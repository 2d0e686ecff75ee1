-- Rows that stay although their policy says otherwise: for a court, an auditor, an investigation.

CREATE TABLE retention_holds (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name  text NOT NULL REFERENCES retention_policies,
    conditions  jsonb NOT NULL CHECK (jsonb_typeof(conditions) = 'array'), -- a row that meets all of them is held
    reason      text NOT NULL CHECK (reason <> ''),
    owner       text NOT NULL CHECK (owner <> ''),
    created_at  timestamptz NOT NULL DEFAULT now(),
    until       timestamptz CHECK (until > created_at),                    -- NULL: until it is released
    released_at timestamptz,
    released_by text,
    CHECK ((released_at IS NULL) = (released_by IS NULL))
);

CREATE INDEX retention_holds_active ON retention_holds (table_name) WHERE released_at IS NULL;
