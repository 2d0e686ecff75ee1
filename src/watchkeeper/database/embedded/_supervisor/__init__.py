"""The process that owns an embedded PostgreSQL; started by `EmbeddedServer`, standard library only.

It runs in a session of its own. Its first line on stdin is the spec, as JSON. After that stdin only says
that the parent lives: its end, however it came about, stops the server. Stdout takes one JSON line an event:

- `{"event": "ready", "pid"}`: clients can connect.
- `{"event": "down", "code", "log"}`: the server ended by itself after it had been ready; it is started again.
- `{"event": "failed", "stage", "code", "log"}`: it cannot be started; the supervisor ends.
- `{"event": "full", "log"}`: the server wrote that the disk is full; it may still run.

SIGINT stops the server at once. SIGTERM, which systemd sends to all processes of a service together, leaves
the parent `term_grace` seconds to finish its requests and stop the server by itself.
"""

from watchkeeper.database.embedded._supervisor._main import main

__all__ = ["main"]
