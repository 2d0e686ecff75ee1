"""One run: passes of bounded batches, throttled, under a lease."""
