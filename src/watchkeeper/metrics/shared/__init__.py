"""Workers that share their metrics: a slot of shared memory for each, and how to read the others' slots."""
