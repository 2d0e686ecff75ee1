-- Who migrated what, and the lock that makes ten replicas take turns.

-- name: acquire_lock
-- Waits until no other process migrates this database; the end of the transaction lets the next one in.
SELECT pg_advisory_xact_lock(hashtextextended('watchkeeper_migrations', 0));

-- name: create_table
-- The record of what was applied, one row a migration.
CREATE TABLE watchkeeper_migrations (
    source text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, number)
);

-- name: grant_read
-- The service's role asks it whether it is ready.
GRANT SELECT ON watchkeeper_migrations TO {service};

-- name: has_table
-- Whether this role sees the record at all.
SELECT to_regclass('watchkeeper_migrations') IS NOT NULL;

-- name: applied
-- What the database has of one source.
SELECT number, checksum FROM watchkeeper_migrations WHERE source = %(source)s;

-- name: newest
-- The last number that the database has of each source.
SELECT source, max(number) FROM watchkeeper_migrations GROUP BY source;

-- name: transaction_id
-- The identity of the running transaction: a migration that ends it by itself is found out by this.
SELECT pg_current_xact_id()::text;

-- name: record
-- Notes one migration as applied, in the transaction that applied it.
INSERT INTO watchkeeper_migrations (source, number, name, checksum)
VALUES (%(source)s, %(number)s, %(name)s, %(checksum)s);

-- name: role
-- How the service's role stands to the tables.
SELECT
    current_user,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
    to_regclass('watchkeeper_migrations') IS NOT NULL,
    EXISTS (
        SELECT FROM pg_class
        WHERE oid = to_regclass('watchkeeper_migrations') AND pg_has_role(current_user, relowner, 'MEMBER')
    );
