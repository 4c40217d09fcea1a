"""Where the columns of a Parquet file lie: its footer, read as far as that needs."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from catalog.errors import FormatError
from catalog.manifest import Chunk, Columns

MAGIC = b"PAR1"
DEPTH = 16  # of structs; a footer has seven
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def columns_of(path: str, data: bytes) -> Columns:
    """The column chunks of a Parquet file of flat columns, each with its digest.

    Args:
        path: what the manifest calls the file.
        data: all of its bytes.

    Raises:
        FormatError: no Parquet file, nested columns, or chunks that lie outside the file.
    """
    try:
        footer = metadata_of(data)
        names = [bytes(element[4]).decode() for element in footer[2][1:]]
        if footer[2][0][5] != len(names) or len(set(names)) != len(names):
            raise ValueError("its columns are nested, or two have one name")
        chunks: dict[str, list[Chunk]] = {name: [] for name in names}
        for group in footer[4]:
            if [_name(column) for column in group[1]] != names:
                raise ValueError("a row group has other columns")
            for name, column in zip(names, group[1], strict=True):
                chunks[name].append(_chunk(column[3], data))
        last = max((chunk.offset + chunk.size for some in chunks.values() for chunk in some), default=len(MAGIC))
        groups = tuple(int(group[3]) for group in footer[4])
        if sum(groups) != footer[3]:
            raise ValueError("its row groups do not have its rows")
        return Columns(path, groups, {name: tuple(some) for name, some in chunks.items()}, data[last:])
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise FormatError(f"{path} is not a Parquet file of flat columns: {error}") from error


def _chunk(metadata: Mapping[int, Any], data: bytes) -> Chunk:
    """The bytes of a column in a row group: a dictionary, if it has one, then its pages."""
    offset = metadata[9]
    if 0 < metadata.get(11, 0) < offset:
        offset = metadata[11]
    size = metadata[7]
    if offset < len(MAGIC) or size < 0 or offset + size > len(data) - len(MAGIC):
        raise ValueError("a column lies outside")
    return Chunk(offset, size, hashlib.sha256(data[offset : offset + size]).hexdigest()[:32])


def _name(column: Mapping[int, Any]) -> str:
    (name,) = column[3][3]
    return bytes(name).decode()


def metadata_of(data: bytes) -> dict[int, Any]:
    """FileMetaData by the numbers of its fields: 2 schema, 3 rows, 4 row groups."""
    if len(data) < 12 or data[:4] != MAGIC or data[-4:] != MAGIC:
        raise ValueError("it does not begin and end with PAR1")
    length = int.from_bytes(data[-8:-4], "little")
    if length > len(data) - 12:
        raise ValueError("its footer is longer than the file")
    return Reader(data[-8 - length : -8]).struct()


class Reader:
    """Thrift's compact protocol, without a schema: structs as dicts from field number to value."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > DEPTH:
            raise ValueError("its footer is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE):  # in a list, where each takes a byte
            return self.byte() == TRUE
        if kind == BYTE:
            return self.byte()
        if kind in (I16, I32, I64):
            return self.integer()
        if kind == DOUBLE:
            return struct.unpack("<d", self.take(8))[0]
        if kind == BINARY:
            return self.take(self.varint())
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            if count > len(self.data):
                raise ValueError("a list in its footer is longer than the footer")
            return [self.value(head & 15, depth + 1) for _ in range(count)]
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"its footer has a value of kind {kind}")  # maps do not occur

    def integer(self) -> int:
        number = self.varint()
        return (number >> 1) ^ -(number & 1)  # zigzag

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a number in its footer is too long")

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("its footer ends too early")
        self.at += count
        return self.data[self.at - count : self.at]
