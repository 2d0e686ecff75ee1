"""Metrics of several workers: each has a slot of shared memory, which the others can read."""
