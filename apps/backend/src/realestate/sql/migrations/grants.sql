-- What the service's own role may do with its tables; it owns none of them.
GRANT SELECT, INSERT, UPDATE ON listings, pairing TO {service};
-- DELETE is what retention needs.
GRANT SELECT, INSERT, UPDATE, DELETE ON chat_sessions, inbound_events TO {service};
