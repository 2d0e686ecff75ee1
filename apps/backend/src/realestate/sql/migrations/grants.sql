-- The rights of the service's own role on its tables, granted again after each migration; it owns none of them.

REVOKE ALL ON listings, chat_sessions, inbound_events, pairing FROM {service};

GRANT SELECT, INSERT, UPDATE ON listings, pairing TO {service};

-- Retention deletes, and locks rows before it does, which needs UPDATE.
GRANT SELECT, INSERT, UPDATE, DELETE ON chat_sessions, inbound_events TO {service};
