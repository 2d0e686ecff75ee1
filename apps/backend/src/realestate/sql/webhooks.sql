-- name: store
-- Store an event unless its id is known; returns the id only if it was stored. The second of two concurrent
-- deliveries waits for the first to commit.
INSERT INTO inbound_events (id, source, payload)
VALUES (%(id)s, %(source)s, %(payload)s)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: source_of
-- The source of the event with this id.
SELECT source FROM inbound_events WHERE id = %(id)s;
