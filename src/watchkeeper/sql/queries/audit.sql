-- The audit log is appended to and read; the database refuses anything else.

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
