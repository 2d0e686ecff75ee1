"""A child process that ends with the supervisor."""

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
    """A child process, which on Linux gets `death_signal` when the supervisor's main thread ends.

    `account` holds the arguments `user`, `group` and `extra_groups` of `subprocess.Popen`, or is empty.
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

        self.output_closed = False  # every writer has closed the pipe
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
                # Runs after setuid(), which clears the signal. Safe: this process has one thread.
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
        """The process id."""
        return self._process.pid

    def has_exited(self) -> bool:
        """Return whether the program has exited."""
        return self._process.poll() is not None

    def read(self) -> bytes:
        """Return the unread output, without blocking."""
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.output, 65536):
                chunks.append(chunk)
            self.output_closed = True
        return b"".join(chunks)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self._process.send_signal(number)

    def close(self) -> int:
        """Close the pipe and return the exit status; processes that still write get EPIPE."""
        os.close(self.output)
        return self._process.returncode
