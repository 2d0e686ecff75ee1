"""This process as one worker of an instance: claims a slot, in which its registry counts."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._store import LocalMemory
from watchkeeper.metrics.shared._instance import remove_unused
from watchkeeper.metrics.shared._peer import running_workers
from watchkeeper.metrics.shared._slot import Slot

if TYPE_CHECKING:
    from pathlib import Path

    from watchkeeper.metrics._registry import Registry


class Worker:
    """This process among the workers of its instance; until it joins one it is alone, as number 0.

    It lives as long as its registry: when it is freed, its slot is free for another process.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.folder: Path | None = None  # the folder of the instance; None while this process is alone
        self._slot: Slot | None = None

    @property
    def number(self) -> int:
        """The number of its slot, which is the value of the label `worker`."""
        return 0 if self._slot is None else self._slot.number

    def running_peers(self) -> frozenset[int]:
        """Return the numbers of the other workers that are running."""
        return frozenset() if self.folder is None else running_workers(self.folder) - {self.number}

    def join(self, folder: Path, *, temporary: bool = False) -> None:
        """Count in a slot of the instance in `folder` from now on, with all that was counted so far.

        A `temporary` instance ends, and its folder is removed, with this process. On a `MetricError` (no
        room, or the folder cannot be used) the process stays alone.
        """
        if self._slot is not None:
            return
        try:
            slot = Slot.claim(folder, self.registry.report)
            try:
                self.registry.move_to(slot, carry=True)
            except OSError:
                slot.release()
                raise
        except OSError as error:
            raise MetricError(f"Metrics cannot be shared in {folder}: {error.strerror or error}.") from error
        self._slot, self.folder = slot, folder
        _joined.add(self)
        leaving = weakref.finalize(self, _leave, slot, folder, os.getpid(), temporary=temporary)
        # Else the process's end releases the lock, after the last count.
        leaving.atexit = temporary

    def after_fork_in_child(self) -> None:
        """Claim a new slot for a forked worker: its present one is the parent's."""
        self.registry.store.reset_after_fork()
        parent, self._slot = self._slot, None
        if parent is not None:
            parent.release()
        assert self.folder is not None  # noqa: S101 - join has set it
        try:
            slot = Slot.claim(self.folder, self.registry.report)
            self.registry.move_to(slot, carry=False)
        except (OSError, MetricError):  # count alone; no scrape of another worker shows it
            self.registry.move_to(LocalMemory(), carry=False)
            self.folder = None
            _joined.discard(self)
        else:
            self._slot = slot


_joined: Final[weakref.WeakSet[Worker]] = weakref.WeakSet()


def _leave(slot: Slot, folder: Path, pid: int, *, temporary: bool) -> None:
    if os.getpid() == pid:  # a forked child leaves its parent's slot alone
        slot.release()
        if temporary:
            remove_unused(folder)


def _after_fork_in_child() -> None:
    for worker in list(_joined):
        worker.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
