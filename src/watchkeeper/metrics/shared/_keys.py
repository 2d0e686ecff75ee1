"""The key file of a slot: which series has which cells, one record each, appended only.

A record is its length, its checksum and its content. So a reader can tell a record that is still being
written (or was cut off by a kill) from one that is damaged. A family is part of the record of its first
series: a single append adds both, so a half-written family is never taken for a whole one.
"""

from __future__ import annotations

import errno
import struct
import sys
import zlib
from typing import Final

import msgspec

from watchkeeper.exceptions import MetricError
from watchkeeper.metrics._family import Family, Series

_FRAME: Final = struct.Struct("<II")
MAX_RECORD: Final = 64 * 1024  # maximum bytes of the content of a record


class _Record(msgspec.Struct, array_like=True):
    family: Family | int  # the family with its first series, its index with the others
    labels: tuple[str, ...]
    first: int
    created: float


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Record).decode


class KeyWriter:
    """Encodes the records of one slot, whose file already has `families`."""

    def __init__(self, families: list[Family]) -> None:
        self._indexes = {family.shape: index for index, family in enumerate(families)}
        self._next = len(families)

    def encode(self, series: Series) -> bytes:
        """Return the record of `series`; call `note_written` when the file has it."""
        family = self._indexes.get(series.family.shape, series.family)
        content = _encode(_Record(family, series.labels, series.first, series.created))
        if len(content) > MAX_RECORD:
            raise OSError(errno.EMSGSIZE, "its label values are too long")
        return _FRAME.pack(len(content), zlib.crc32(content)) + content

    def note_written(self, series: Series) -> None:
        """Record that the file has the family of `series`."""
        if series.family.shape not in self._indexes:
            self._indexes[series.family.shape] = self._next
            self._next += 1


class KeyReader:
    """Decodes the records of one slot, up to the last complete one."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.series: list[Series] = []
        self.size = 0  # bytes of the complete records so far
        self.cells = 0  # cells up to the end of the last series, the slot's header included

    def feed(self, data: bytes, max_records: int = sys.maxsize) -> None:
        """Decode `data`, which follows the last complete record; an incomplete record is left."""
        offset = 0
        until = len(self.series) + max_records
        try:
            while len(self.series) < until and (end := self._decode_record(data, offset)) > offset:
                offset = end
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise MetricError(f"The keys are damaged at byte {self.size + offset}: {error}.") from error
        finally:
            self.size += offset

    def _decode_record(self, data: bytes, offset: int) -> int:
        """Decode the record at `offset`; return where it ends, or `offset` if it is incomplete."""
        begin = offset + _FRAME.size
        if begin > len(data):
            return offset
        size, checksum = _FRAME.unpack_from(data, offset)
        if size > MAX_RECORD:
            raise ValueError("a length is wrong")
        if begin + size > len(data):
            return offset
        content = data[begin : begin + size]
        if zlib.crc32(content) != checksum:
            raise ValueError("a checksum is wrong")
        record = _decode(content)
        family = self.families[record.family] if isinstance(record.family, int) else record.family
        if len(record.labels) != len(family.labels) or record.first < self.cells:
            raise ValueError("a series does not fit its family or its cells")
        if family is record.family:
            self.families.append(family)
        self.series.append(Series(family, record.labels, record.first, record.created))
        self.cells = record.first + family.width
        return begin + int(size)
