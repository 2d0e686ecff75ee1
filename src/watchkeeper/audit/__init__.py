"""The audit log: append-only entries of who did what."""

from watchkeeper.audit._log import ActorType, Entry, append, recent
from watchkeeper.audit._protection import protection

__all__ = ["ActorType", "Entry", "append", "protection", "recent"]
