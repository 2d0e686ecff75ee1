"""What a run would delete, and the backlog: rows past the horizon that are still there."""
