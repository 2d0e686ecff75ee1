"""What the catalogue, the statistics and a sample say of a table."""
