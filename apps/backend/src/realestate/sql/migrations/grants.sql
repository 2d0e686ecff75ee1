-- What the service's own role may do with its tables, given anew after each migrating; it owns none of them.

REVOKE ALL ON listings, chat_sessions, inbound_events, pairing FROM {service};

GRANT SELECT, INSERT, UPDATE ON listings, pairing TO {service};

-- Retention deletes, and locks rows before it does, for which PostgreSQL wants UPDATE.
GRANT SELECT, INSERT, UPDATE, DELETE ON chat_sessions, inbound_events TO {service};
