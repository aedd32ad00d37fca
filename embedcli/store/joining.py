"""Row groups of several of our files in one, byte for byte: nothing is decoded, but the checksum of
each page is compared, so that damage isn't sealed as if it were sound.

Only the footer is made anew: it tells where each column of each row group lies. Source: the Apache
Parquet format, src/main/thrift/parquet.thrift, whose field numbers stand here.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedcli.errors import DataError
from embedcli.files import parquet_footer
from embedcli.store import thrift
from embedcli.store.digest import HashingStream
from embedcli.store.thrift import I32, I64, LIST, STRUCT, Struct
from embedcli.store.vector_file import RowGroup

_MAGIC = b"PAR1"
# A page's header has some dozen bytes, and the least and the greatest value of the page.
_HEADER_BYTES = 2**10
# FileMetaData
_FILE_ROWS, _ROW_GROUPS = 3, 4
# RowGroup
_COLUMNS, _GROUP_ROWS, _GROUP_OFFSET, _ORDINAL = 1, 3, 5, 7
# ColumnChunk: each index is told by its offset and its length.
_META_DATA, _OFFSET_INDEX, _COLUMN_INDEX = 3, (4, 5), (6, 7)
# ColumnMetaData
_COMPRESSED_SIZE, _DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM_FILTER = 7, 9, 10, 11, (14, 15)
# PageHeader
_PAGE_BYTES, _CHECKSUM = 3, 4
# OffsetIndex, and its PageLocation
_LOCATIONS, _PAGE_OFFSET = 1, 1


def join(stream: HashingStream, empty: bytes, groups: Sequence[RowGroup]) -> int:
    """Write a Parquet file of these row groups to a new stream; return its rows.

    `empty` is a file of the same schema and settings without any: its footer is the new one's, but
    for the row groups. Raises DataError where a file is damaged, OSError.
    """
    stream.write(_MAGIC)
    joined: list[bytes] = []
    rows = 0
    for group, source in _sources(groups):
        with source.checked():
            joined.append(thrift.to_bytes(_copy(stream, source, group)))
        rows += group.rows
    footer = thrift.parse(_footer(empty))
    footer = thrift.put(footer, _FILE_ROWS, I64, rows)
    footer = thrift.put(footer, _ROW_GROUPS, LIST, thrift.Items(STRUCT, joined))
    content = thrift.to_bytes(footer)
    stream.write(content + len(content).to_bytes(4, "little") + _MAGIC)
    return rows


@dataclass(frozen=True)
class _Source:
    """An open file, and the row groups of its footer."""

    path: Path
    descriptor: int
    groups: Sequence[Struct]

    def read(self, start: int, size: int) -> bytes:
        """Return bytes of the file. Raises DataError where it ends before."""
        content = os.pread(self.descriptor, size, start) if min(start, size) >= 0 else b""
        if not content or len(content) != size:
            raise self.damaged("its footer tells of bytes that aren't there")
        return content

    def damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path}: damaged: {reason}")

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Raise DataError where what is read in the block isn't as the format has it."""
        try:
            yield
        except (
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
        ):  # fields of other types, or none
            raise self.damaged("its footer or its pages aren't as they were written") from None


def _sources(groups: Sequence[RowGroup]) -> Iterator[tuple[RowGroup, _Source]]:
    """Yield each row group with the file it lies in, which stays open until one of another comes."""
    with contextlib.ExitStack() as stack:
        source: _Source | None = None
        for group in groups:
            if source is None or source.path != group.path:
                stack.close()
                source = _open(group.path, stack)
            yield group, source


def _open(path: Path, stack: contextlib.ExitStack) -> _Source:
    """Open a file and read its footer; the stack closes it. Raises DataError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DataError(f"{path}: is gone") from None
    stack.callback(os.close, descriptor)
    source = _Source(path, descriptor, ())
    with source.checked():
        span = parquet_footer(descriptor)
        if span is None:
            raise source.damaged("it has no footer")
        footer = thrift.parse(source.read(*span))
        return _Source(path, descriptor, thrift.get(footer, _ROW_GROUPS).values)


def _footer(content: bytes) -> bytes:
    """Return the footer of a whole Parquet file."""
    length = int.from_bytes(content[-8:-4], "little")
    return content[-8 - length : -8]


def _copy(stream: HashingStream, source: _Source, group: RowGroup) -> Struct:
    """Copy a row group and its page indexes; return what a footer tells of it where it lies now."""
    told = source.groups[group.group]
    if thrift.get(told, _GROUP_ROWS) != group.rows:
        raise source.damaged("its footer counts other rows")
    start = stream.tell()
    chunks = [_copy_chunk(stream, source, chunk) for chunk in thrift.get(told, _COLUMNS).values]
    told = thrift.put(told, _COLUMNS, LIST, thrift.Items(STRUCT, chunks))
    told = thrift.put(told, _GROUP_OFFSET, I64, start)
    # It has another number now, and need not have one.
    return thrift.put(told, _ORDINAL, I32, None)


def _copy_chunk(stream: HashingStream, source: _Source, chunk: Struct) -> Struct:
    """Copy a column's pages, and what is known of each page."""
    told = thrift.get(chunk, _META_DATA)
    offsets = {
        number: thrift.get(told, number)
        for number in (_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE)
        if thrift.get(told, number) is not None
    }
    start, size = min(offsets.values()), thrift.get(told, _COMPRESSED_SIZE)
    shift = stream.tell() - start
    _copy_pages(stream, source, start, start + size)
    for number, offset in offsets.items():
        told = thrift.put(told, number, I64, offset + shift)
    for number in _BLOOM_FILTER:  # not copied
        told = thrift.put(told, number, I64, None)
    chunk = thrift.put(chunk, _META_DATA, STRUCT, told)
    for index in (_COLUMN_INDEX, _OFFSET_INDEX):
        chunk = _copy_index(stream, source, chunk, index, shift)
    return chunk


def _copy_pages(stream: HashingStream, source: _Source, start: int, stop: int) -> None:
    """Copy the pages that lie between two offsets. Raises DataError where one is damaged."""
    while start < stop:
        header, length = _page_header(source, start, stop)
        size = thrift.get(header, _PAGE_BYTES)
        page = source.read(start + length, size)
        if zlib.crc32(page) != thrift.get(header, _CHECKSUM) & 0xFFFFFFFF:
            raise source.damaged("a page's checksum differs")
        stream.write(source.read(start, length))
        stream.write(page)
        start += length + size
    if start != stop:
        raise source.damaged("a page ends beyond its column")


def _page_header(source: _Source, start: int, stop: int) -> tuple[Struct, int]:
    """Read the header of a page, and tell its length."""
    size = min(_HEADER_BYTES, stop - start)
    while True:
        try:
            return thrift.parse_first(source.read(start, size))
        except ValueError:
            if size == stop - start:
                raise
            size = min(2 * size, stop - start)


def _copy_index(
    stream: HashingStream, source: _Source, chunk: Struct, index: tuple[int, int], shift: int
) -> Struct:
    """Copy a column's index of pages, if it has one; the offsets in it are shifted."""
    start, size = (thrift.get(chunk, number) for number in index)
    if start is None or size is None:
        return chunk
    content = source.read(start, size)
    if index == _OFFSET_INDEX:
        content = _shifted(content, shift)
    chunk = thrift.put(chunk, index[0], I64, stream.tell())
    chunk = thrift.put(chunk, index[1], I32, len(content))
    stream.write(content)
    return chunk


def _shifted(offset_index: bytes, shift: int) -> bytes:
    told = thrift.parse(offset_index)
    locations = [
        thrift.put(location, _PAGE_OFFSET, I64, thrift.get(location, _PAGE_OFFSET) + shift)
        for location in thrift.get(told, _LOCATIONS).values
    ]
    return thrift.to_bytes(thrift.put(told, _LOCATIONS, LIST, thrift.Items(STRUCT, locations)))
