-- Which peer of which channel may act as whom: a code shown to the peer, read to the operator, confirmed once.
CREATE TABLE pairing (
    channel         text NOT NULL CHECK (channel IN ('webchat', 'telegram', 'whatsapp')),
    peer_id         text NOT NULL CHECK (length(peer_id) BETWEEN 1 AND 200),
    code_hash       bytea NOT NULL CHECK (length(code_hash) = 32),
    requested_at    timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    last_attempt_at timestamptz,
    locked_until    timestamptz,
    approved_at     timestamptz,
    PRIMARY KEY (channel, peer_id)
);
