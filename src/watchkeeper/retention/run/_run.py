"""One run from its claim to its audit entry, however it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import DatabaseUnavailableError, PolicyRefusedError
from watchkeeper.retention._model import RunResult
from watchkeeper.retention.ledger._interrupts import RunCancelledError, RunLostError, StopRequestedError
from watchkeeper.retention.run._lease import Lease
from watchkeeper.retention.run._passes import Passes
from watchkeeper.retention.run._throttle import Throttle
from watchkeeper.retention.run._transactions import Transactions

if TYPE_CHECKING:
    from watchkeeper.retention._model import State
    from watchkeeper.retention.run._context import Run

# How long closing waits for an unreachable database; then the lease lapses and any process closes the run.
_CLOSE_WAITS_S: Final = (0.2, 1.0, 3.0)


async def execute(run: Run) -> RunResult:
    """Delete what the run may delete, then close it."""
    lease = Lease(run)
    transactions = Transactions(run, lease)
    passes = Passes(run, lease, Throttle(run, lease), transactions)
    status: State = "completed"
    error: Exception | None = None
    try:
        await passes.delete_all()
    except StopRequestedError as stop:
        status, error = "stopped", stop
    except RunCancelledError as cancel:
        status, error = "cancelled", cancel
    except PolicyRefusedError as refusal:
        status, error = "refused", refusal
    except Exception as failure:  # noqa: BLE001 - a run is closed and audited after any error
        status, error = "failed", failure
    try:
        closed = await _close(run, status, error)
    except Exception as failure:  # noqa: BLE001 - the result carries it; the run stays open until its lease lapses
        return RunResult(
            table=run.policy.name,
            status="failed",
            deleted=transactions.deleted,
            run=run.claim.id,
            error=error if isinstance(error, RunLostError) else failure,
            left_open=True,
            notes=tuple(passes.notes),
        )
    transactions.report_up_to(closed.deleted)
    return replace(closed, notes=tuple(passes.notes))


async def _close(run: Run, status: State, error: Exception | None) -> RunResult:
    for wait in _CLOSE_WAITS_S:
        try:
            return await run.ledger.close(run.claim, status, error)
        except DatabaseUnavailableError:
            await asyncio.sleep(wait)
    return await run.ledger.close(run.claim, status, error)
