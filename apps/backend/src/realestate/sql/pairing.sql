-- name: lock
-- The pairing of a peer, locked so that concurrent attempts are counted one by one; `now` is read under the
-- lock.
WITH pair AS MATERIALIZED (
    SELECT * FROM pairing WHERE channel = %(channel)s AND peer_id = %(peer_id)s FOR UPDATE
)
SELECT code_hash, requested_at, expires_at, attempts, last_attempt_at, locked_until, approved_at,
       clock_timestamp() AS now
FROM pair;

-- name: issue
-- Set a new code. An approval stays valid until the new code is confirmed.
INSERT INTO pairing (channel, peer_id, code_hash, requested_at, expires_at, attempts)
VALUES (%(channel)s, %(peer_id)s, %(code_hash)s, clock_timestamp(),
        clock_timestamp() + %(valid_for)s::interval, %(attempts)s)
ON CONFLICT (channel, peer_id) DO UPDATE
SET code_hash = excluded.code_hash,
    requested_at = excluded.requested_at,
    expires_at = excluded.expires_at,
    attempts = excluded.attempts,
    locked_until = NULL
RETURNING expires_at;

-- name: count_wrong
-- Record a wrong code, which the caller counted under the lock.
UPDATE pairing
SET attempts = %(attempts)s, last_attempt_at = clock_timestamp(), locked_until = %(locked_until)s
WHERE channel = %(channel)s AND peer_id = %(peer_id)s;

-- name: approve
-- Approve the peer and reset its attempts; a repeated confirmation keeps the first time.
UPDATE pairing
SET approved_at = CASE WHEN approved_at >= requested_at THEN approved_at ELSE clock_timestamp() END,
    attempts = 0,
    last_attempt_at = NULL
WHERE channel = %(channel)s AND peer_id = %(peer_id)s
RETURNING approved_at;
