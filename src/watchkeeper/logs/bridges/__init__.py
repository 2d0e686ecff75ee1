"""structlog, the standard library's logging and uncaught exceptions, in the same lines."""
