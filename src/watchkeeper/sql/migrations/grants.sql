-- What the service's role may do, given anew after each migrating.

REVOKE ALL ON watchkeeper_migrations, audit_log FROM {service};

GRANT SELECT ON watchkeeper_migrations TO {service};

-- Not id and not created_at: an entry cannot be dated back.
GRANT SELECT ON audit_log TO {service};
GRANT INSERT (actor_type, actor_id, action, entity, entity_id, payload) ON audit_log TO {service};
