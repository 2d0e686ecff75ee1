-- The roles and the database inside the embedded server. {role}, {database}, {owner} and {service} are filled in
-- by psycopg.sql.

-- name: acquire_lock
-- Waits until no other process does the same; the lock is held until the session ends.
SELECT pg_advisory_lock(hashtextextended('watchkeeper_embedded', 0));

-- name: role_is_login_only
-- One row for a role that exists: whether it may log in and nothing else.
SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)
FROM pg_roles
WHERE rolname = %(role)s;

-- name: create_role
-- A role that may log in and nothing else.
CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: reset_role
-- Revokes what the role was given since.
ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: database_owner
-- One row for a database that exists: who owns it.
SELECT pg_get_userbyid(datdba)
FROM pg_database
WHERE datname = %(database)s;

-- name: create_database
-- The service's database; its owner also owns the schema public (pg_database_owner).
CREATE DATABASE {database} OWNER {owner};

-- name: change_owner
-- Changes the owner of the database.
ALTER DATABASE {database} OWNER TO {owner};

-- name: revoke_connect
-- No other role may connect.
REVOKE ALL ON DATABASE {database} FROM PUBLIC;

-- name: grant_connect
-- The service may connect.
GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {service};

-- name: grant_stats
-- The service sees what retention waits for: replication lag, other sessions' transactions.
GRANT pg_read_all_stats TO {service};

-- name: revoke_create
-- Only the owner may create tables: the default since version 15, which a restored older dump may undo.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
