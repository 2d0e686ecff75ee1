"""The append-only record of who did what."""

from watchkeeper.audit._log import Entry, append, recent

__all__ = ["Entry", "append", "recent"]
