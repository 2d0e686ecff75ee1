"""A child process that owns an embedded PostgreSQL; started by `EmbeddedServer`, standard library only.

It runs in its own session. The first line on its stdin is the spec, as JSON. The end of stdin means that
the parent has ended, and stops the server. Stdout takes one JSON line per event:

- `{"event": "ready", "pid"}`: clients can connect.
- `{"event": "down", "code", "log"}`: the server ended after it had been ready; it is restarted.
- `{"event": "failed", "stage", "code", "log"}`: it cannot be started; the supervisor ends.
- `{"event": "full", "log"}`: the server reported a full disk; it may still run.

SIGINT stops the server at once. SIGTERM, which systemd sends to all processes of a service, gives the parent
`term_grace` seconds to finish its requests and stop the server itself.
"""

from watchkeeper.database.embedded._supervisor._main import main

__all__ = ["main"]
