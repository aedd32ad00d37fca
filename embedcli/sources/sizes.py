"""How large a unit is. Depends on the input alone: any number of workers cuts the same units."""

MIN_UNIT_BYTES = 2**18
MAX_UNIT_BYTES = 2**24
# Bounds a unit's vectors: 16,384 rows of 4,096 float32 are 256 MiB.
MAX_UNIT_ROWS = 16_384
# A small corpus is cut into about this many units, so that several workers have something to do.
_PARTS = 16


def unit_bytes(total: int) -> int:
    """Bytes of input per unit for an input of `total` bytes: a power of two, so that a growing input keeps its cuts."""
    wanted = max(MIN_UNIT_BYTES, min(MAX_UNIT_BYTES, total // _PARTS))
    return 1 << (wanted.bit_length() - 1)
