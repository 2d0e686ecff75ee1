"""How each framework reveals the route template of a request; no file imports its framework."""
