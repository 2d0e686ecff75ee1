-- What the senders of webhooks delivered, as they sent it. Kept for 30 days (monitoring.py).
CREATE TABLE inbound_events (
    id          text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200), -- the sender's: the idempotency key
    source      text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    payload     jsonb NOT NULL
);

CREATE INDEX inbound_events_received_at ON inbound_events (received_at);
