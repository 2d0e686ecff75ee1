"""The key file of a slot: which series lie where in its values, one record each, only ever appended.

A record is its length, its checksum and its content, so that a reader can tell a record that is still being
written (or was cut off by a kill) from one that is damaged. A family travels with the first of its series:
one record is all that is written at a time, and half of it is never taken for a whole.
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
LARGEST: Final = 64 * 1024
"""Bytes of a record's content at most."""


class _Born(msgspec.Struct, array_like=True):
    family: Family | int  # itself with its first series, then its number
    labels: tuple[str, ...]
    first: int
    born: float


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Born).decode


class KeyWriter:
    """Makes the records of one slot; a family is told once, with its first series.

    Args:
        families: Those that the file holds already, in their order there.
    """

    def __init__(self, families: list[Family]) -> None:
        self._numbers = {family.shape: number for number, family in enumerate(families)}
        self._next = len(families)

    def record(self, series: Series) -> bytes:
        """Return the record that tells of `series`; call `written` when it is in the file.

        Raises:
            OSError: It would be too long: label values that somebody fills with megabytes are not kept.
        """
        family = self._numbers.get(series.family.shape, series.family)
        content = _encode(_Born(family, series.labels, series.first, series.born))
        if len(content) > LARGEST:
            raise OSError(errno.EMSGSIZE, "its label values are too long")
        return _FRAME.pack(len(content), zlib.crc32(content)) + content

    def written(self, series: Series) -> None:
        """Note that the file has the record of `series`."""
        if series.family.shape not in self._numbers:
            self._numbers[series.family.shape] = self._next
            self._next += 1


class KeyReader:
    """Reads the records of one slot, as far as they are whole."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.series: list[Series] = []
        self.read = 0  # bytes of whole records so far
        self.cells = 0  # cells up to the end of the last series, the slot's header included

    def feed(self, data: bytes, at_most: int = sys.maxsize) -> None:
        """Read on; `data` begins where the last whole record ended. What is not whole yet is left.

        Args:
            data: From the file.
            at_most: How many records to read, for who may not take long.

        Raises:
            MetricError: It is damaged.
        """
        at = 0
        until = len(self.series) + at_most
        try:
            while len(self.series) < until and (end := self._take(data, at)) > at:
                at = end
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            raise MetricError(f"The keys are damaged at byte {self.read + at}: {error}.") from error
        finally:
            self.read += at

    def _take(self, data: bytes, at: int) -> int:
        """Take in the record at this place; return where it ends, or `at` when it is not whole."""
        begin = at + _FRAME.size
        if begin > len(data):
            return at
        size, checksum = _FRAME.unpack_from(data, at)
        if size > LARGEST:
            raise ValueError("a length is wrong")
        if begin + size > len(data):
            return at
        content = data[begin : begin + size]
        if zlib.crc32(content) != checksum:
            raise ValueError("a checksum is wrong")
        record = _decode(content)
        family = self.families[record.family] if isinstance(record.family, int) else record.family
        if len(record.labels) != len(family.labels) or record.first < self.cells:
            raise ValueError("a series does not fit its family or its place")
        if family is record.family:
            self.families.append(family)
        self.series.append(Series(family, record.labels, record.first, record.born))
        self.cells = record.first + family.width
        return begin + int(size)
