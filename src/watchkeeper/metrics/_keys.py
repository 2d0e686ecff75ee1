"""The key file of a slot: which series lie where in its values, one record each, only ever appended.

A record is its length, its checksum and its content, so that a reader can tell a record that is still being
written (or was cut off by a kill) from one that is damaged.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import msgspec

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Family, Series

_FRAME: Final = struct.Struct("<II")
_LARGEST: Final = 1 << 20


class _Declared(msgspec.Struct, tag=0, array_like=True):
    family: Family


class _Born(msgspec.Struct, tag=1, array_like=True):
    family: int
    labels: tuple[str, ...]
    first: int
    born: float


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Declared | _Born).decode


class KeyWriter:
    """Makes the records of one slot; a family is told once, before its first series.

    Args:
        families: Those that the file holds already, in their order there.
    """

    def __init__(self, families: list[Family]) -> None:
        self._numbers = {family.shape: number for number, family in enumerate(families)}
        self._next = len(families)

    def records(self, series: Series) -> bytes:
        """Return the records that tell of `series`; call `written` when they are in the file."""
        known = self._numbers.get(series.family.shape)
        number = self._next if known is None else known
        born = _frame(_Born(number, series.labels, series.first, series.born))
        return born if known is not None else _frame(_Declared(series.family)) + born

    def written(self, series: Series) -> None:
        """Note that the file has the records of `series`."""
        if series.family.shape not in self._numbers:
            self._numbers[series.family.shape] = self._next
            self._next += 1


class KeyReader:
    """Reads the records of one slot, as far as they are whole."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.series: list[Series] = []
        self.read = 0  # bytes of whole records so far
        self.cells = 0  # cells that they take, header included

    def feed(self, data: bytes) -> None:
        """Read on; `data` begins where the last whole record ended. What is not whole yet is left.

        Raises:
            MetricError: It is damaged.
        """
        at = 0
        try:
            while at + _FRAME.size <= len(data):
                size, checksum = _FRAME.unpack_from(data, at)
                end = at + _FRAME.size + size
                if end > len(data) and size <= _LARGEST:
                    break
                self._take(data[at + _FRAME.size : end], checksum)
                at = end
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise MetricError(f"The keys are damaged at byte {self.read + at}: {error}.") from error
        self.read += at

    def _take(self, content: bytes, checksum: int) -> None:
        if zlib.crc32(content) != checksum:
            raise ValueError("a checksum is wrong")
        record = _decode(content)
        if isinstance(record, _Declared):
            self.families.append(record.family)
            return
        family = self.families[record.family]
        if len(record.labels) != len(family.labels) or record.first < self.cells:
            raise ValueError("a series does not fit its family or its place")
        self.series.append(Series(family, record.labels, record.first, record.born))
        self.cells = record.first + family.width


def _frame(record: _Declared | _Born) -> bytes:
    content = _encode(record)
    return _FRAME.pack(len(content), zlib.crc32(content)) + content
