"""The entry point of the supervisor."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from watchkeeper.database.embedded._supervisor._parent import FailedError, StoppedError, read_spec, send_event
from watchkeeper.database.embedded._supervisor._supervisor import Supervisor


def main() -> NoReturn:
    """Run the server that the spec on stdin describes."""
    os.umask(0o077)
    os.set_blocking(1, False)  # our own pipe; a parent that does not read must not block us
    try:
        spec = read_spec()
        _keep_lock(spec["lock_fd"])
        Supervisor(spec).run()
    except StoppedError:
        pass
    except FailedError as error:
        send_event(error.event)
        sys.exit(1)
    except OSError as error:
        send_event(FailedError("system", None, [str(error)]).event)
        sys.exit(1)
    except Exception:  # noqa: BLE001 - the parent reports it
        import traceback  # noqa: PLC0415 - only for a bug in this package

        send_event(FailedError("supervisor", None, traceback.format_exc().splitlines()).event)
        sys.exit(1)
    sys.exit(0)


def _keep_lock(fd: int) -> None:
    """Keep the inherited lock until this process ends; PostgreSQL does not inherit it."""
    os.set_inheritable(fd, False)
    number = b"%d\n" % os.getpid()  # shows which process owns the server
    os.pwrite(fd, number, 0)
    os.ftruncate(fd, len(number))
