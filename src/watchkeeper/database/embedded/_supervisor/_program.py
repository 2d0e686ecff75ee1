"""A child of the supervisor that does not outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Program:
    """A running program, which on Linux gets `death_signal` when the main thread that started it ends.

    `account` holds the arguments `user`, `group` and `extra_groups` of `subprocess.Popen`, or nothing.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environ: Mapping[str, str],
        account: Mapping[str, Any],
        death_signal: signal.Signals,
    ) -> None:
        supervisor = os.getpid()

        def die_with_supervisor() -> None:  # pragma: no cover - runs between fork and exec
            if sys.platform == "linux":
                _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
                if os.getppid() != supervisor:
                    os._exit(1)

        self.is_silent = False  # no process has the other end of the pipe any more
        self.output, writer = os.pipe()
        os.set_blocking(self.output, False)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                cwd="/",
                env=dict(environ),
                start_new_session=True,
                # Runs after the change of user, which would reset the signal. This process has one thread.
                preexec_fn=die_with_supervisor,  # noqa: PLW1509
                umask=0o077,
                **account,
            )
        except BaseException:
            os.close(self.output)
            raise
        finally:
            os.close(writer)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self._process.poll() is not None

    def read(self) -> bytes:
        """Return what it wrote since the last call, without waiting."""
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.output, 65536):
                chunks.append(chunk)
            self.is_silent = True
        return b"".join(chunks)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def close(self) -> int:
        """Close the pipe and return the exit status; children still running get EPIPE, which they ignore."""
        os.close(self.output)
        return self._process.returncode
