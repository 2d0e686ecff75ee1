-- The roles and the database inside the embedded server. {role}, {database}, {owner} and {service} are filled in
-- by psycopg.sql.

-- name: take_turn
-- Waits until no other starter does the same; the end of the session lets the next one in.
SELECT pg_advisory_lock(hashtextextended('watchkeeper_embedded', 0));

-- name: role_is_plain
-- One row for a role that exists: whether it may log in and nothing else.
SELECT rolcanlogin AND NOT (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls)
FROM pg_roles
WHERE rolname = %(role)s;

-- name: create_role
-- A role that may log in and nothing else.
CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: make_role_plain
-- Takes from a role what somebody gave it since.
ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;

-- name: database_owner
-- One row for a database that exists: who owns it.
SELECT pg_get_userbyid(datdba)
FROM pg_database
WHERE datname = %(database)s;

-- name: create_database
-- The service's database; its owner also owns the schema public (pg_database_owner).
CREATE DATABASE {database} OWNER {owner};

-- name: give_database
-- Gives the database to another role.
ALTER DATABASE {database} OWNER TO {owner};

-- name: close_database
-- Nobody connects who was not asked.
REVOKE ALL ON DATABASE {database} FROM PUBLIC;

-- name: open_database
-- The service may connect.
GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {service};

-- name: let_see
-- The service sees what retention waits for: lag of replicas, transactions of others.
GRANT pg_read_all_stats TO {service};

-- name: close_schema
-- Only the owner makes tables; what version 15 does by itself, an older dump may undo.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
