-- The audit log can be appended to and read; the database refuses anything else.

-- name: append
-- Adds one entry and returns its id.
INSERT INTO audit_log (actor_type, actor_id, action, entity, entity_id, payload)
VALUES (%(actor_type)s, %(actor_id)s, %(action)s, %(entity)s, %(entity_id)s, %(payload)s::jsonb)
RETURNING id;

-- name: recent
-- The latest entries, the latest first.
SELECT id, actor_type, actor_id, action, entity, entity_id, payload, created_at
FROM audit_log
ORDER BY id DESC
LIMIT %(limit)s;

-- name: recent_of_entity
-- The latest entries of one entity, the latest first.
SELECT id, actor_type, actor_id, action, entity, entity_id, payload, created_at
FROM audit_log
WHERE entity = %(entity)s
ORDER BY id DESC
LIMIT %(limit)s;

-- name: table
-- Whether the table is unlogged, has rules, or has row level security.
SELECT relpersistence <> 'p', relhasrules, relrowsecurity
FROM pg_class
WHERE oid = to_regclass('audit_log');

-- name: triggers
-- Every trigger on the table, with the source of its function.
SELECT
    t.tgname,
    t.tgtype::integer,
    t.tgenabled = 'A',
    t.tgqual IS NOT NULL OR t.tgattr <> ''::int2vector,
    p.prosrc
FROM pg_trigger AS t
JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = to_regclass('audit_log') AND NOT t.tgisinternal
ORDER BY t.tgname;
