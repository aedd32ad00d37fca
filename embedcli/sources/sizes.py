"""How large a unit is. Depends on the input alone: any number of workers cuts the same units."""

from collections.abc import Iterable, Iterator

MIN_UNIT_BYTES = 2**18
MAX_UNIT_BYTES = 2**24
# Bounds a unit's vectors: 16,384 rows of 4,096 float32 are 256 MiB.
MAX_UNIT_ROWS = 16_384
# Carried columns may be far wider than the text: a unit holds at most this many times its share of all columns.
MAX_WIDTH = 8
# A corpus is cut into about this many units, so that several workers have something to do; but a small one into fewer,
# since each unit's last batch isn't full: with units of 1 MiB, less than 1 % of what is computed is padding.
_PARTS, _FEW_PARTS, _SMALL_UNIT_BYTES = 16, 4, 2**20


def unit_bytes(total: int) -> int:
    """Bytes of input per unit for an input of `total` bytes: a power of two, so that a growing
    input keeps its cuts.
    """
    shared = max(total // _PARTS, min(total // _FEW_PARTS, _SMALL_UNIT_BYTES))
    size = max(MIN_UNIT_BYTES, min(MAX_UNIT_BYTES, shared))
    return 1 << (size.bit_length() - 1)


def row_ranges(sizes: Iterable[tuple[int, float]], unit_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about `unit_bytes`; `sizes` gives, part by part of a file, the rows and the bytes a row."""
    # [start, row) is the range so far, of about `filled` bytes. A part of the file may give several
    # ranges, and a range may span several parts.
    start = row = 0
    filled = 0.0
    for rows, bytes_per_row in sizes:
        remaining = rows
        while remaining:
            space = (
                max(1, int((unit_bytes - filled) / bytes_per_row)) if bytes_per_row else remaining
            )
            count = min(remaining, space, start + MAX_UNIT_ROWS - row)
            row += count
            remaining -= count
            filled += count * bytes_per_row
            if filled + bytes_per_row > unit_bytes or row - start == MAX_UNIT_ROWS:
                yield start, row
                start, filled = row, 0.0
    if row > start:
        yield start, row
