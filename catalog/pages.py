"""How much the pages of a Parquet file claim to hold, looked at before anybody makes room for it.

A few bytes of zstd, or of run lengths, unpack to any amount; polars believes what pages say, and ends the process when
there is not so much memory.
"""

from __future__ import annotations

import struct

from catalog.manifest import Columns
from catalog.parquet import Reader, metadata_of

LEAST = 64 << 20  # bytes that any file may hold unpacked
A_ROW = 16 << 10  # and for each of its rows, but not more than
A_BYTE = 256  # for each of its bytes
DICTIONARY, DATA, DATA_2 = 2, 0, 3  # kinds of pages


def check_pages(data: bytes, most_rows: int, more: int = 0) -> None:
    """Look at all pages of a Parquet file.

    Args:
        data: the file.
        most_rows: it may have. more: bytes that these may need besides.

    Raises:
        ValueError: it claims more rows, or more bytes than so many rows need; or it is no Parquet file.
    """
    try:
        footer = metadata_of(data)
        if not 0 <= footer[3] <= most_rows or sum(group[3] for group in footer[4]) != footer[3]:
            raise ValueError(f"{footer[3]:,} rows, expected {most_rows:,}")
        room = LEAST + min(A_ROW * most_rows + more, A_BYTE * len(data))
        for group in footer[4]:
            for column in group[1]:
                if 1 in column:  # data in another file
                    raise ValueError("a column lies in another file")
                chunk = column[3]
                start = min(chunk[9], chunk.get(11) or chunk[9])
                room -= _unpacked(data, start, chunk[7], group[3])
                if room < 0:
                    raise ValueError(f"its {len(data):,} bytes unpack to more than {most_rows:,} rows may need")
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeError, struct.error) as error:
        raise ValueError(f"not a Parquet file: {type(error).__name__} in its footer or pages") from error


def check_footer(columns: Columns) -> None:
    """ValueError unless the footer says of each column chunk what the manifest says: where it lies, how many rows."""
    try:
        footer = metadata_of(b"PAR1" + columns.footer)
        for number, (group, rows) in enumerate(zip(footer[4], columns.groups, strict=True)):
            if group[3] != rows:
                raise ValueError("a row group has other rows in the footer than in the manifest")
            for column, chunks in zip(group[1], columns.chunks.values(), strict=True):
                chunk = column[3]
                dictionary = chunk.get(11, 0)
                start = dictionary if 0 < dictionary < chunk[9] else chunk[9]
                if 1 in column or (start, chunk[7]) != (chunks[number].offset, chunks[number].size):
                    raise ValueError("a column lies elsewhere in the footer than in the manifest")
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"not a Parquet footer: {type(error).__name__}") from error


def check_chunk(data: bytes, rows: int, room: int) -> int:
    """What is left of `room`, in bytes, once the pages of a column chunk are unpacked.

    Raises:
        ValueError: nothing is, or these are not the pages of so many rows.
    """
    try:
        room -= _unpacked(b"PAR1" + data, 4, len(data), rows)
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"a column has no pages: {type(error).__name__}") from error
    if room < 0:
        raise ValueError(f"columns unpack to more than {rows:,} rows may need")
    return room


def room_for(size: int, rows: int) -> int:
    """Bytes that a file of `size` bytes may unpack to when it has so many rows."""
    return LEAST + min(A_ROW * rows, A_BYTE * size)


def _unpacked(data: bytes, start: int, size: int, rows: int) -> int:
    """Bytes that the pages of a column chunk unpack to; they must hold the rows, and lie side by side."""
    if not 4 <= start <= len(data) or not 0 <= size <= len(data) - start:
        raise ValueError("a column lies outside the file")
    end, reader, total, left = start + size, Reader(data), 0, rows
    reader.at = start
    while reader.at < end:
        page = reader.struct()
        unpacked, packed = page[2], page[3]
        if min(unpacked, packed) < 0 or packed > end - reader.at:
            raise ValueError("a page lies outside its column")
        reader.at += packed
        total += unpacked
        if page[1] == DICTIONARY:
            count = page[7][1]
        else:
            count = page[5][1] if page[1] == DATA else page[8][1]
            left -= count
        if count < 0 or left < 0:
            raise ValueError("a column has more values than there are rows")
        total += 16 * count  # what a value takes at most in memory, beside its own bytes
    if left:
        raise ValueError("a column has fewer values than there are rows")
    return total
