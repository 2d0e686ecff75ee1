"""Inspection of a policy's table: catalog, statistics and sampling."""
