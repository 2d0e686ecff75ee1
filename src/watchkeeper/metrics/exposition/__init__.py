"""Rendering of /metrics: the series of all workers, and those of prometheus_client, as text."""
