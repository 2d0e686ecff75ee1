-- The applied migrations, and the lock that lets one replica at a time migrate.

-- name: acquire_lock
-- Waits until no other process migrates this database; the lock is held until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('watchkeeper_migrations', 0));

-- name: create_table
-- The table of applied migrations.
CREATE TABLE watchkeeper_migrations (
    source text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, number)
);

-- name: grant_read
-- Lets the service's role see which migrations are applied.
GRANT SELECT ON watchkeeper_migrations TO {service};

-- name: has_table
-- Whether this role sees the table.
SELECT to_regclass('watchkeeper_migrations') IS NOT NULL;

-- name: applied
-- The applied migrations of one source.
SELECT number, checksum FROM watchkeeper_migrations WHERE source = %(source)s;

-- name: newest
-- The number of each source's last applied migration.
SELECT source, max(number) FROM watchkeeper_migrations GROUP BY source;

-- name: transaction_id
-- The id of the current transaction, to detect a migration that ends it by itself.
SELECT pg_current_xact_id()::text;

-- name: record
-- Records one migration as applied, in the transaction that applied it.
INSERT INTO watchkeeper_migrations (source, number, name, checksum)
VALUES (%(source)s, %(number)s, %(name)s, %(checksum)s);

-- name: role
-- The privileges of the current role on the tables.
SELECT
    current_user,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
    to_regclass('watchkeeper_migrations') IS NOT NULL,
    EXISTS (
        SELECT FROM pg_class
        WHERE oid = to_regclass('watchkeeper_migrations') AND pg_has_role(current_user, relowner, 'MEMBER')
    );
