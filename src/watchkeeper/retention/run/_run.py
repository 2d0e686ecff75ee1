"""One run: a claimed policy carried out, then closed with its audit entry, however it ended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from watchkeeper.exceptions import DatabaseUnavailableError, PolicyRefusedError
from watchkeeper.retention.ledger._interrupts import RunCancelledError, RunLostError, StopRequestedError
from watchkeeper.retention.run._pruning import Pruning
from watchkeeper.retention.run._throttle import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    from watchkeeper.database import Database
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.ledger._ledger import Claim, Closed, Ledger, State
    from watchkeeper.retention.run._pressure import PressureWatch
    from watchkeeper.settings import Limits

# This long a run waits for a database that is away when it is to be closed; then it is left to who finds it.
_CLOSING_PAUSES_S: Final = (0.2, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run came to.

    Args:
        table: The policy's name.
        status: completed; failed; refused: the policy may not be carried out; stopped: the process was asked
            to stop or the policy was paused, and the next run goes on where this one ended; cancelled: an
            operator ended it for good.
        deleted: How many rows went.
        bytes_deleted: About how many bytes these took, by the size of a row when the run began.
        duration: How long it took.
        run: Its number in the ledger; None if it did not get that far.
        error: Why it did not complete.
        left_open: Whether it could not be closed here; who closes it, counts it.
        notes: What an operator should know of it, in sentences: partitions that were not dropped as a whole.
    """

    table: str
    status: State
    deleted: int = 0
    bytes_deleted: int = 0
    duration: timedelta = timedelta(0)
    run: int | None = None
    error: BaseException | None = None
    left_open: bool = False
    notes: tuple[str, ...] = ()


async def run(  # noqa: PLR0913 - one of each part that takes part
    database: Database,
    ledger: Ledger,
    policy: Policy,
    claim: Claim,
    *,
    limits: Limits,
    stopping: asyncio.Event,
    on_rows: Callable[[int], None],
    archive: Archive | None = None,
    watch: PressureWatch | None = None,
) -> RunResult:
    """Carry a claimed run out and close it.

    Args:
        database: Where the table is.
        ledger: Where the run is counted.
        policy: What was declared.
        claim: The run.
        limits: What the run may take.
        stopping: Set by whoever wants the run to stop.
        on_rows: Called with the number of rows after each transaction that deleted some.
        archive: Where rows go first, if the policy wants that.
        watch: Looks at what the run would hurt; without one it waits for nothing.
    """
    patience = Patience(database, ledger, policy, claim, limits=limits, stopping=stopping, watch=watch)
    pruning = Pruning(
        database, ledger, policy, claim, limits=limits, patience=patience, on_rows=on_rows, archive=archive
    )
    status: State = "completed"
    error: Exception | None = None
    try:
        await pruning.run()
    except StopRequestedError as stop:
        status, error = "stopped", stop
    except RunCancelledError as end:
        status, error = "cancelled", end
    except PolicyRefusedError as refusal:
        status, error = "refused", refusal
    except Exception as failure:  # noqa: BLE001 - a run is closed and audited whatever happened in it
        status, error = "failed", failure
    try:
        closed = await _close(ledger, claim, status, error)
    except Exception as failure:  # noqa: BLE001 - the result tells; the run stays open until somebody can close it
        return RunResult(
            table=policy.name,
            status="failed",
            deleted=pruning.deleted,
            run=claim.id,
            error=error if isinstance(error, RunLostError) else failure,
            left_open=True,
            notes=tuple(pruning.notes),
        )
    pruning.count(closed.deleted)
    return RunResult(
        table=policy.name,
        status=closed.state,
        deleted=closed.deleted,
        bytes_deleted=closed.bytes_deleted,
        duration=closed.duration,
        run=claim.id,
        error=closed.error,
        notes=tuple(pruning.notes),
    )


async def _close(ledger: Ledger, claim: Claim, status: State, error: Exception | None) -> Closed:
    for pause in _CLOSING_PAUSES_S:
        try:
            return await ledger.close(claim, status, error)
        except DatabaseUnavailableError:
            await asyncio.sleep(pause)
    return await ledger.close(claim, status, error)
