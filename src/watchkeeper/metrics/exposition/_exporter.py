"""The exporter: renders one scrape, with the metrics of all workers."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

from watchkeeper.metrics.exposition._exposition import Exposition
from watchkeeper.metrics.exposition._peer_socket import PeerAnswer, PeerSocket
from watchkeeper.metrics.exposition._reader import Reader
from watchkeeper.metrics.exposition._third_party import collect_third_party, write_third_party

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from watchkeeper.metrics._store import Exemplar
    from watchkeeper.metrics.exposition._third_party import ThirdPartyFamily
    from watchkeeper.metrics.shared._worker import Worker

_MAX_STEP_S: Final = 0.001


class Exporter:
    """Renders the metrics of an instance; `created` adds `_created` samples, each stored as a series."""

    def __init__(self, worker: Worker, *, created: bool = False) -> None:
        self._worker = worker
        self._registry = worker.registry
        self._created = created
        self.peers = PeerSocket(worker, self._answer_peer)
        self._reader = self._new_reader()

    async def scrape(self, *, openmetrics: bool) -> Exposition:
        """Render the metrics of all workers in steps that let the event loop run in between."""
        own, answers = await asyncio.gather(
            asyncio.to_thread(self._collect_third_party), self.peers.ask_all()
        )
        third_party = [*own, *(family for answer in answers.values() for family in answer.third_party)]
        exemplars = {number: answer.exemplars for number, answer in answers.items()}
        chunks: list[bytes] = []
        since = monotonic()
        for text in self.lines(openmetrics=openmetrics, exemplars=exemplars):
            chunks.append(text.encode())
            if monotonic() - since > _MAX_STEP_S:
                await asyncio.sleep(0)
                since = monotonic()
        written = await asyncio.to_thread(write_third_party, third_party, openmetrics=openmetrics)
        return Exposition.of((*chunks, written.encode()), openmetrics=openmetrics)

    def lines(
        self, *, openmetrics: bool, exemplars: Mapping[int, Mapping[int, Exemplar]] | None = None
    ) -> Iterator[str]:
        """Render our own metrics in pieces that take a millisecond or two each."""
        worker, store = self._worker.number, self._registry.store
        if self._reader.memory is not store.memory:  # joined an instance, or forked
            self._reader = self._new_reader()
        # A reader serves one scrape at a time; one that overlaps reads everything by itself.
        reader = self._new_reader() if self._reader.is_busy else self._reader
        return reader.steps(
            self._registry.families(),
            openmetrics=openmetrics,
            created=self._created,
            exemplars={**(exemplars or {}), worker: dict(store.exemplars)},
        )

    def _new_reader(self) -> Reader:
        return Reader(
            self._registry.store.memory,
            self._registry.report_or_raise,
            number=self._worker.number,
            folder=self._worker.folder,
        )

    def _collect_third_party(self) -> list[ThirdPartyFamily]:
        names = self._registry.names
        worker = None if self._worker.folder is None else str(self._worker.number)
        return collect_third_party(
            names.third_party, dict(names.owners), self._registry.report_or_raise, worker
        )

    async def _answer_peer(self) -> PeerAnswer:
        third_party = await asyncio.to_thread(self._collect_third_party)
        return PeerAnswer(third_party, dict(self._registry.store.exemplars))
