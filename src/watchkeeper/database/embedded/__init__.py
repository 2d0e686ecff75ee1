"""The embedded PostgreSQL: its programs from a wheel, its data in the service's state folder."""
