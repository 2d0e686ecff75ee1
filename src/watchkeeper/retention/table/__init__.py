"""What the catalog, the statistics and a sample say about a policy's table."""
