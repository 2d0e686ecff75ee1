"""Writing lines to a file descriptor without blocking the caller."""
