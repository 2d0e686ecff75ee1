"""The deleting of one run: bounded transactions, passes that come back for locked rows, and pauses.

Each transaction locks the run's row in the ledger, deletes in its second statement and moves the ledger's
count, so that no row is gone that the ledger does not know of, and nobody deletes whose run was closed by
another. It takes some 50 ms flat out; within a budget its delete takes a 50th of that, since others wait for
what is written at its end. The number of rows or blocks adapts to that.

The first pass deletes by plain statements, which do not wait for rows that others have locked; where they
meet one, the stretch is swept carefully. Careful passes follow, for what is left and for rows that moved.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from psycopg import errors

from watchkeeper.exceptions import RetentionError
from watchkeeper.retention._queries import QUERIES, fetch_row
from watchkeeper.retention.ledger._interrupts import show_plan
from watchkeeper.retention.run._archived_sweep import Archiver
from watchkeeper.retention.run._batch_size import Pace
from watchkeeper.retention.run._cursor import Cursor, find_cursor
from watchkeeper.retention.run._partition_drop import PartitionDrop
from watchkeeper.retention.run._sweep import (
    AgeSpan,
    BlockSpan,
    Span,
    Swept,
    again,
    first_span,
    look_ahead,
    sweep,
    sweep_carefully,
    sweep_unlocked,
)
from watchkeeper.retention.run._throttle import PASSING
from watchkeeper.retention.run._write_detector import OtherWriters
from watchkeeper.retention.table._partitions import Partitions, find_partitions
from watchkeeper.retention.table._share import check_share, row_bytes, sample
from watchkeeper.retention.table._target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime
    from typing import TypeAlias

    from psycopg import AsyncConnection

    from watchkeeper.database import Database
    from watchkeeper.database._owner import Owner
    from watchkeeper.retention._policy import Policy
    from watchkeeper.retention.archive._archive import Archive
    from watchkeeper.retention.ledger._ledger import Claim, Ledger
    from watchkeeper.retention.run._throttle import Patience
    from watchkeeper.retention.table._share import Sample
    from watchkeeper.settings import Limits

    _Way: TypeAlias = Callable[[Target, Span], Awaitable[Swept]]
    _Delete: TypeAlias = Callable[[AsyncConnection[Any], Target, datetime, Span, int], Awaitable[Swept]]

_P = ParamSpec("_P")
_T = TypeVar("_T")

STATEMENT_TIMEOUT: Final = timedelta(seconds=5)
LOCK_TIMEOUT: Final = timedelta(seconds=1)

PASS_WAITS: Final = tuple(timedelta(seconds=seconds) for seconds in (0, 0.2, 1, 5))
"""How long each pass waits first, for those who have locked what the one before could not have."""

PAUSES: Final = tuple(timedelta(seconds=seconds) for seconds in (0.1, 0.2, 0.5, 1, 2, 4, 8))
"""How long a run waits after each failure that may pass; has it not passed by then, the run has failed."""

ROW_WAIT: Final = timedelta(milliseconds=10)
"""Longest wait of a plain delete for a row that somebody has locked."""

# Where rows of a table refer to others of it, each pass takes those that nothing refers to any more: so many
# passes at most, on top of the others; the next run goes on.
_MOST_LEVELS: Final = 200
# Sweeps in a row that hold rows and delete none of them, until a trigger is taken for the reason.
_VAIN_SWEEPS: Final = 3


class Pruning:
    """Deletes what one claimed run is to delete.

    Args:
        database: Where the table is.
        ledger: Where the run is counted.
        policy: What was declared.
        claim: The run.
        limits: What the run may take.
        patience: Waits for it.
        on_rows: Called with the number of rows after each transaction that deleted some.
        archive: Where rows go first, if the policy wants that.
    """

    def __init__(  # noqa: PLR0913 - one of each part that takes part
        self,
        database: Database,
        ledger: Ledger,
        policy: Policy,
        claim: Claim,
        *,
        limits: Limits,
        patience: Patience,
        on_rows: Callable[[int], None],
        archive: Archive | None = None,
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._policy = policy
        self._claim = claim
        self._limits = limits
        self._patience = patience
        self._on_rows = on_rows
        self._pace = Pace(limits)
        self._took = timedelta(0)
        self._trip = timedelta(0)  # how long a statement takes that does nothing
        self._target: Target | None = None  # with the holds that were in force at the last transaction
        self._row_bytes = 0.0
        self._others = OtherWriters()
        self._vain = 0
        # In this pass, a row between two sweeps counted twice: rows that were due,
        self._seen = 0
        # rows that somebody else has locked,
        self._locked = 0
        # and rows that were ours to delete, and stayed.
        self._kept = 0
        self._went = 0  # rows that went
        self._cursor: Cursor | None = None  # in the first pass
        self._archiver = None
        if policy.archive and archive is not None:
            self._archiver = Archiver(archive, ledger, claim, self._transaction, patience)
        self.deleted = 0
        self.notes: list[str] = []

    async def run(self) -> None:
        """Delete everything that is eligible.

        Raises:
            PolicyRefusedError: The policy may not be carried out.
            StopRequestedError: Somebody wanted it to stop.
            RunCancelledError: An operator wants it to end for good.
            RunTimeoutError: It took longer than it may.
            RetentionError: It cannot go on; what was deleted so far is in the ledger.
            DatabaseUnavailableError: The database has been away for too long.
        """
        target, drawn = await self._patiently(self._look)
        if target.in_parts:
            await self._drop_partitions(target)
            drawn = await self._patiently(self._draw, target)
        first = await self._patiently(self._first, target, drawn)
        archived = self._sweep_archived if self._archiver else None
        left = await self._pass(target, [first], archived or self._sweep)
        self._cursor = None
        if not left and await self._is_done(target, first):
            return
        if isinstance(first, AgeSpan) and not await self._patiently(self._is_left, target):
            return
        spans = [await self._patiently(self._again, target, first)]
        await self._come_back(target, spans, archived or self._sweep_carefully)

    async def _come_back(self, target: Target, spans: list[Span], way: _Way) -> None:
        """Go over what was left, until nothing is or what is left cannot be had."""
        levels = _MOST_LEVELS if target.nested else 0
        waits = list(PASS_WAITS)
        while waits:
            if self._went and levels:
                levels -= 1
            else:
                wait = waits.pop(0)
                if self._locked or self._kept:
                    await self._patience.pause(wait)
            left = await self._pass(target, spans, way)
            if (self._seen and isinstance(spans[0], BlockSpan)) or (target.nested and self._went):
                # What a row that went referred to may go now; and an old row that was updated meanwhile has
                # moved, perhaps to where the pass had been already.
                left = [await self._patiently(self._again, target, spans[0])]
            if not left:
                return
            spans = left
        if target.nested and self._went:
            self.notes.append(
                f"Rows of {target.name} refer to each other over more than {_MOST_LEVELS} steps: the next run"
                " goes on with those that were referred to."
            )
            return
        if self._kept:
            raise _kept_by_trigger(target)
        if self._locked:
            raise RetentionError(
                f"Up to {self._locked} rows of {target.name} that are due are locked by other transactions:"
                " end these (see pg_stat_activity); the next run takes the rows."
            )

    def count(self, total: int) -> None:
        """Count up to what the ledger says: a commit whose answer was lost is in it too.

        Args:
            total: How many rows the run has deleted so far.
        """
        rows, self.deleted = total - self.deleted, total
        if rows:
            self._on_rows(rows)

    async def _rest(self, took: timedelta) -> None:
        """Leave the rest of the time to others after work that took so long."""
        if self._limits.budget < 1.0:
            await self._patience.pause(took * (1.0 / self._limits.budget - 1.0))

    async def _look(self) -> tuple[Target, Sample]:
        """Find the table, and see that the run may take what is old of it."""
        async with self._transaction() as conn:
            await self._others.begin(conn)  # first: what stands in the way is read once
            target = await (await find_target(conn, self._policy)).with_holds(conn)
            horizon = self._claim.horizon
            drawn = await sample(conn, target, horizon)
            rows = await check_share(conn, target, horizon, drawn, self._limits.share)
            self._row_bytes = await row_bytes(conn, target, drawn)
            await show_plan(conn, self._claim, rows)
        self._others.note_own()
        return target, drawn

    async def _draw(self, target: Target) -> Sample:
        async with self._transaction() as conn:
            return await sample(conn, target, self._claim.horizon)

    async def _is_done(self, target: Target, first: Span) -> bool:
        """Say whether a first pass that left nothing can have passed nothing by.

        With nobody's locks in the way a plain DELETE takes what it sees. By ages it follows rows that are
        updated meanwhile; by place they may move to where it has been, if anybody writes. Neither holds where
        rows lie in several tables, or where a trigger keeps, moves or puts back some, as those of foreign
        keys do.
        """
        if self._pace.met_locks or target.in_parts or target.triggered or target.archived:
            return False
        if isinstance(first, AgeSpan):
            return first == AgeSpan()
        return first.start == 0 and not await self._patiently(self._others_wrote)

    async def _others_wrote(self) -> bool:
        async with self._transaction() as conn:
            return await self._others.seen(conn)

    async def _is_left(self, target: Target) -> bool:
        """Say whether anything is eligible still: a look where a sweep would lock the run and write."""
        try:
            async with self._transaction() as conn:
                target = await (self._target or target).with_holds(conn)
                left = await fetch_row(
                    conn, target.fill(QUERIES["is_left"]), {"horizon": self._claim.horizon}
                )
        except errors.QueryCanceled:
            return True  # the sweeps will see
        return bool(left[0])

    async def _drop_partitions(self, target: Target) -> None:
        """Drop old partitions as a whole, where that comes to the same as deleting their rows."""
        async with self._database.owner() as owner:
            partitions = await self._patiently(self._find_partitions, owner, target)
            drop = PartitionDrop(
                self._database,
                owner,
                self._ledger,
                self._claim,
                patience=self._patience,
                patiently=self._patiently,
            )
            async for dropped in drop.run(target, partitions):
                self.count(dropped.total)
                await self._rest(dropped.took)
        self.notes.extend(drop.notes)

    async def _find_partitions(self, owner: Owner, target: Target) -> Partitions:
        async with self._transaction() as conn:
            return await find_partitions(conn, owner, target, self._claim.horizon, held=False)

    async def _first(self, target: Target, drawn: Sample) -> Span:
        async with self._transaction() as conn:
            span = await first_span(conn, target, drawn)
            self._cursor, span = await find_cursor(conn, self._claim, target, span)
            return span

    async def _again(self, target: Target, span: Span) -> Span:
        async with self._transaction() as conn:
            return await again(conn, target, span)

    async def _pass(self, target: Target, spans: list[Span], way: _Way) -> list[Span]:
        """Go over the spans once, and return those of them that hold what could not be had."""
        left: list[Span] = []
        self._seen = self._locked = self._kept = self._went = 0
        for span in spans:
            rest: Span | None = span
            while rest is not None:
                await self._patience.give_way()
                swept = await self._patiently(way, target, rest)
                self._seen += swept.seen
                self._locked += swept.seen - swept.held
                self._kept += swept.held - swept.deleted
                self._went += swept.deleted
                if swept.seen > swept.deleted:
                    left.append(swept.covered)
                rest = swept.rest
                if rest is not None:
                    await self._rest(self._took)
        return left

    async def _sweep(self, target: Target, span: Span) -> Swept:
        return await self._first_plainly(target, span, sweep, sweep_unlocked)

    async def _sweep_carefully(self, target: Target, span: Span) -> Swept:
        looked = timedelta(0)
        if isinstance(span, BlockSpan) and not target.in_parts:
            nothing = await self._look_ahead(target, span)
            if nothing is not None:
                return nothing
            looked = self._took
        return await self._transact(target, span, sweep_carefully, before=looked)

    async def _look_ahead(self, target: Target, span: BlockSpan) -> Swept | None:
        """See that nothing is left of a span, as a rule where another pass was before.

        That costs one look at each block, and no lock and no commit that is to be on the disk.
        """
        began = time.monotonic()
        async with self._transaction() as conn:
            target = await (self._target or target).with_holds(conn)
            looking = time.monotonic()
            nothing = await look_ahead(conn, target, self._claim.horizon, span, self._pace.look_size)
            self._pace.adapt_look(timedelta(seconds=time.monotonic() - looking) - self._trip)
        self._took = timedelta(seconds=time.monotonic() - began)
        if nothing is not None:
            await self._patience.pause(timedelta(0))  # which keeps the lease, and hears operators
        return nothing

    async def _sweep_archived(self, target: Target, span: Span) -> Swept:
        if self._archiver is None:
            raise AssertionError("only a policy that archives is swept like this")
        rows = await self._archiver.take(self._target or target, span, self._pace.size(span))
        return await self._first_plainly(target, span, rows.delete, rows.delete_carefully, before=rows.took)

    async def _first_plainly(
        self,
        target: Target,
        span: Span,
        plain: _Delete,
        careful: _Delete,
        *,
        before: timedelta = timedelta(0),
    ) -> Swept:
        if not self._pace.is_careful():
            try:
                swept = await self._transact(target, span, _impatient(plain), before=before)
            except errors.LockNotAvailable:
                self._pace.note_lock()
            else:
                self._pace.note_none()
                return swept
        return await self._transact(target, span, careful, before=before)

    async def _transact(
        self, target: Target, span: Span, delete: _Delete, *, before: timedelta = timedelta(0)
    ) -> Swept:
        began = time.monotonic()
        async with self._transaction() as conn:
            await self._ledger.lock(conn, self._claim)
            # Under the lock, which whoever adds a hold takes too: from its commit on nothing held goes.
            self._target = target = await (self._target or target).with_holds(conn)
            deleting = time.monotonic()
            swept = await delete(conn, target, self._claim.horizon, span, self._pace.size(span))
            deleted = time.monotonic()
            size = round(swept.deleted * self._row_bytes)
            cursor = None if self._cursor is None else self._cursor.after(swept)
            total = await self._ledger.move(conn, self._claim, swept.deleted, size, cursor)
        self._others.note_own()
        if total != self.deleted + swept.deleted:
            self._others.doubt()  # the server forgot what it had committed
        self._patience.renewed()
        whole = timedelta(seconds=time.monotonic() - began)
        self._pace.adapt(
            span,
            deleted=swept.deleted,
            deleting=timedelta(seconds=deleted - deleting),
            whole=whole,
            trip=self._trip,
        )
        self._took = before + whole
        self.count(total)
        self._watch_for_triggers(target, swept)
        return swept

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection[Any]]:
        self._patience.check()
        async with self._database.transaction() as conn:
            began = time.monotonic()
            await conn.execute(
                QUERIES["limits"],
                {"statement_ms": _milliseconds(STATEMENT_TIMEOUT), "lock_ms": _milliseconds(LOCK_TIMEOUT)},
            )
            self._trip = timedelta(seconds=time.monotonic() - began)
            yield conn

    async def _patiently(
        self, attempt: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Try a transaction until it succeeds; what may pass by itself is waited for, with growing pauses."""
        for pause in PAUSES:
            try:
                return await attempt(*args, **kwargs)
            except PASSING:
                self._pace.shrink()
                self._others.doubt()
            await self._patience.pause(pause)
        return await attempt(*args, **kwargs)

    def _watch_for_triggers(self, target: Target, swept: Swept) -> None:
        if swept.deleted:
            self._vain = 0
        elif swept.held:
            self._vain += 1
        if self._vain >= _VAIN_SWEEPS:
            raise _kept_by_trigger(target)


def _impatient(delete: _Delete) -> _Delete:
    async def attempt(
        conn: AsyncConnection[Any], target: Target, horizon: datetime, span: Span, size: int
    ) -> Swept:
        await conn.execute(QUERIES["lock_timeout"], {"lock_ms": _milliseconds(ROW_WAIT)})
        return await delete(conn, target, horizon, span, size)

    return attempt


def _kept_by_trigger(target: Target) -> RetentionError:
    return RetentionError(
        f"Rows of {target.name} that are due stay although nobody has locked them: a BEFORE DELETE trigger"
        " keeps them, or another one puts them back. Change the trigger, or the policy."
    )


def _milliseconds(duration: timedelta) -> str:
    return str(round(duration / timedelta(milliseconds=1)))
