-- One conversation with one peer of one channel. Kept for 90 days after its last touch (monitoring.py).
CREATE TABLE chat_sessions (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    channel    text NOT NULL CHECK (channel IN ('webchat', 'telegram', 'whatsapp')),
    peer_id    text NOT NULL CHECK (length(peer_id) BETWEEN 1 AND 200),
    agent_id   text CHECK (length(agent_id) BETWEEN 1 AND 128),
    state      jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (channel, peer_id)
);

-- For the active_sessions gauge and for retention, which both ask by age.
CREATE INDEX chat_sessions_updated_at ON chat_sessions (updated_at);
