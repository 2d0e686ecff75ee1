-- The queries of the database commands.

-- name: database
-- The database, the connected role, the server's version and the database's size.
SELECT current_database(), current_user, current_setting('server_version'), pg_database_size(current_database());

-- name: wipe
-- Drop everything that this role owns, without the objects of extensions. A backup is restored into an empty database:
-- what was created after it would stay, and its own migration would then fail.
DO $$
DECLARE
    command text;
BEGIN
    FOR command IN
        SELECT format('DROP SCHEMA IF EXISTS %I CASCADE', n.nspname)
        FROM pg_namespace n
        WHERE pg_has_role(n.nspowner, 'MEMBER') AND n.nspname <> 'public'
            AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'
        UNION ALL
        SELECT format('DROP %s IF EXISTS %s CASCADE',
            CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
            format('public.%I', c.relname))
        FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
            AND NOT c.relispartition AND pg_has_role(c.relowner, 'MEMBER')
            AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0
                                AND d.deptype IN ('e', 'i'))
        UNION ALL
        SELECT format('DROP ROUTINE IF EXISTS %s CASCADE', p.oid::regprocedure)
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND pg_has_role(p.proowner, 'MEMBER')
            AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
        UNION ALL
        SELECT format('DROP TYPE IF EXISTS public.%I CASCADE', t.typname)
        FROM pg_type t
        LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE t.typnamespace = 'public'::regnamespace AND (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')
            AND pg_has_role(t.typowner, 'MEMBER')
            AND NOT EXISTS (SELECT FROM pg_depend d
                            WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
    LOOP
        EXECUTE command;
    END LOOP;
END
$$;
