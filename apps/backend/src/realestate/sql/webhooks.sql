-- name: store
-- Store an event unless its id is known; returns the id only when it was stored. Of two deliveries that race,
-- the second waits here for the first to commit.
INSERT INTO inbound_events (id, source, payload)
VALUES (%(id)s, %(source)s, %(payload)s)
ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: source_of
-- Who sent the event of this id.
SELECT source FROM inbound_events WHERE id = %(id)s;
