"""The values of all workers of one instance, in shared memory."""
