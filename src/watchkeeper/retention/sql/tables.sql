-- The table of a policy, and what keeps it from being pruned. In all files psycopg.sql fills in {table}, {age}, {old},
-- {held}, {referenced} and {eligible}; {eligible} is the one predicate of plan and delete.

-- name: set_transaction
-- Time-outs of this transaction, an error where row-level security would hide rows, and one meaning of times as text
-- (in holds and the bounds of partitions) for every role.
SELECT set_config('statement_timeout', %(statement_ms)s, true),
    set_config('lock_timeout', %(lock_ms)s, true),
    set_config('row_security', 'off', true),
    set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true);

-- name: set_time_format
-- One meaning of times as text, where only that is needed.
SELECT set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true);

-- name: find_table
-- The table that a policy names, as this role sees it, whether it has children (partitions, inheriting tables), and
-- whether it has triggers on DELETE, its own or those of foreign keys that refer to it.
SELECT c.oid, n.nspname, c.relname, EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid),
    EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgtype & 8 <> 0)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = %(table)s
    AND CASE WHEN %(schema)s::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = %(schema)s END;

-- name: find_age_column
-- The type of the age column, and an index on the whole table that begins with it.
SELECT format_type(a.atttypid, NULL), (
    SELECT c.relname
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am m ON m.oid = c.relam
    WHERE i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indpred IS NULL AND i.indisvalid
        AND m.amname = 'btree'
    ORDER BY i.indnatts, c.relname
    LIMIT 1
)
FROM pg_attribute a
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND a.attnum > 0 AND NOT a.attisdropped;

-- name: obstacles
-- Why a table may not be pruned: kind and detail, no row if it may. `below` is the table with its children, `above`
-- the table with what it is a child of.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
), above AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN above a ON i.inhrelid = a.oid
), whole AS (
    -- The table and what it is a partition of: a foreign key to that is one to this.
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN whole w ON i.inhrelid = w.oid
    JOIN pg_class c ON c.oid = w.oid AND c.relispartition
), children AS (
    -- Foreign keys that refer to these; those of partitions repeat their parent's. `conenforced` exists from
    -- PostgreSQL 18 on: a key that is not enforced does nothing when rows are deleted.
    SELECT f.conrelid, f.conkey, f.conname, f.confdeltype
    FROM pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0
        AND f.confrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole)
        AND coalesce((to_jsonb(f) ->> 'conenforced')::boolean, true)
), keeping AS (
    SELECT conrelid, conkey FROM children WHERE confdeltype IN ('a', 'r')
)
SELECT 'protected' AS kind, c.relname::text AS detail
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below UNION SELECT oid FROM above) AND c.relname = ANY (%(protected)s)
UNION ALL
SELECT 'kind', CASE c.relkind WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view'
    WHEN 'f' THEN 'a foreign table' ELSE 'not a table' END
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below) AND c.relkind NOT IN ('r', 'p')
UNION ALL
SELECT 'cascade', format('%%s (constraint %%s)', f.conrelid::regclass, f.conname)
FROM children f
WHERE f.confdeltype = 'c'
UNION ALL
SELECT 'unindexed', format('%%s (constraint %%s)', f.conrelid::regclass, f.conname)
FROM children f
WHERE f.confdeltype <> 'c' AND NOT EXISTS (
    SELECT FROM pg_index i
    WHERE i.indrelid = f.conrelid AND i.indisvalid AND i.indpred IS NULL
        AND (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey
)
UNION ALL
SELECT 'rule', r.rulename::text
FROM pg_rewrite r
WHERE r.ev_class IN (SELECT oid FROM below) AND r.ev_type = '4'
UNION ALL
SELECT 'schema', format('GRANT USAGE ON SCHEMA %%I TO %%I', n.nspname, current_user)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = %(oid)s AND NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT 'privileges', format('%%1$s on %%2$s. As its owner: GRANT %%1$s ON %%2$s TO %%3$I',
    string_agg(p.privilege, ', ' ORDER BY p.place), %(oid)s::oid::regclass, current_user)
FROM unnest(ARRAY['SELECT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS p (privilege, place)
WHERE NOT has_table_privilege(%(oid)s::oid, p.privilege)
HAVING count(*) > 0
UNION ALL
SELECT 'child schema', format('GRANT USAGE ON SCHEMA %%I TO %%I', n.nspname, current_user)
FROM keeping f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT 'child', format('%%1$s. As its owner: GRANT SELECT ON %%1$s TO %%2$I', f.conrelid::regclass, current_user)
FROM keeping f
WHERE EXISTS (SELECT FROM unnest(f.conkey) AS k (number) WHERE NOT has_column_privilege(f.conrelid, k.number, 'SELECT'))
UNION ALL
SELECT 'row security', c.oid::regclass::text
FROM pg_class c
WHERE c.oid IN (SELECT oid FROM below UNION SELECT conrelid FROM keeping) AND row_security_active(c.oid);

-- name: references
-- The foreign keys that keep rows of a table while others refer to them (NO ACTION, RESTRICT): the referencing table,
-- whether it is partitioned, whether it is the pruned table, the children that are referred to (NULL for all), and the
-- columns, each with its operator and, where the two columns differ, its collation: as PostgreSQL compares them.
-- `conenforced` exists from PostgreSQL 18 on.
WITH RECURSIVE below AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
), whole AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhparent FROM pg_inherits i JOIN whole w ON i.inhrelid = w.oid
    JOIN pg_class c ON c.oid = w.oid AND c.relispartition
), keys AS (
    SELECT f.*
    FROM pg_constraint f
    WHERE f.contype = 'f' AND f.conparentid = 0 AND f.confdeltype IN ('a', 'r')
        AND f.confrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole)
        AND coalesce((to_jsonb(f) ->> 'conenforced')::boolean, true)
), parts AS (
    SELECT f.oid AS key, f.confrelid AS oid FROM keys f
    UNION
    SELECT p.key, i.inhrelid FROM parts p
    JOIN pg_inherits i ON i.inhparent = p.oid
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT n.nspname, c.relname, c.relkind = 'p',
    f.conrelid IN (SELECT oid FROM below UNION SELECT oid FROM whole),
    CASE WHEN f.confrelid NOT IN (SELECT oid FROM whole) OR (
        target.relkind <> 'p' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = target.oid)
    ) THEN ARRAY(SELECT p.oid::bigint FROM parts p WHERE p.key = f.oid) END,
    pairs.columns
FROM keys f
JOIN pg_class c ON c.oid = f.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class target ON target.oid = f.confrelid
CROSS JOIN LATERAL (
    SELECT bool_and(own.attnum IS NOT NULL) AS known, json_agg(json_build_object(
        'referred', a.attname, 'referring', k.attname, 'operator', json_build_array(os.nspname, o.oprname),
        'collation', CASE WHEN l.oid IS NOT NULL THEN json_build_array(ls.nspname, l.collname) END
    ) ORDER BY u.place) AS columns
    FROM unnest(f.confkey, f.conkey, f.conpfeqop) WITH ORDINALITY AS u (referred, referring, operator, place)
    JOIN pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = u.referred
    JOIN pg_attribute k ON k.attrelid = f.conrelid AND k.attnum = u.referring
    JOIN pg_operator o ON o.oid = u.operator
    JOIN pg_namespace os ON os.oid = o.oprnamespace
    LEFT JOIN pg_attribute own ON own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped
    LEFT JOIN pg_collation d ON d.oid = a.attcollation
    LEFT JOIN pg_collation l ON a.attcollation <> k.attcollation
        AND l.oid = CASE WHEN d.collisdeterministic THEN k.attcollation ELSE a.attcollation END
    LEFT JOIN pg_namespace ls ON ls.oid = l.collnamespace
) AS pairs
-- An inheriting table may be referred to by a column that the pruned one lacks: such a key fails the delete.
WHERE pairs.known
ORDER BY n.nspname, c.relname, f.conname;

-- name: referring_policies
-- Which policies' tables refer to which others', by foreign keys of their own or of their children.
WITH RECURSIVE wanted AS (
    SELECT w.name, c.oid
    FROM unnest(%(names)s::text[], %(tables)s::text[], %(schemas)s::text[]) AS w (name, relname, nspname)
    JOIN pg_class c ON c.relname = w.relname
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE CASE WHEN w.nspname IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = w.nspname END
), below AS (
    SELECT name, oid FROM wanted
    UNION
    SELECT b.name, i.inhrelid FROM pg_inherits i JOIN below b ON i.inhparent = b.oid
)
SELECT DISTINCT child.name, parent.name
FROM pg_constraint f
JOIN below child ON child.oid = f.conrelid
JOIN below parent ON parent.oid = f.confrelid
WHERE f.contype = 'f' AND child.name <> parent.name;
