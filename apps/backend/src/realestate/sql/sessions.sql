-- name: touch
-- Mark the peer as active now, and return the session's id; updated_at never goes back.
INSERT INTO chat_sessions (channel, peer_id, agent_id)
VALUES (%(channel)s, %(peer_id)s, %(agent_id)s)
ON CONFLICT (channel, peer_id) DO UPDATE
SET updated_at = greatest(chat_sessions.updated_at, excluded.updated_at),
    agent_id = coalesce(excluded.agent_id, chat_sessions.agent_id)
RETURNING id;

-- name: count_active
-- Sessions touched within the last `window`.
SELECT count(*) FROM chat_sessions WHERE updated_at > now() - %(window)s::interval;
