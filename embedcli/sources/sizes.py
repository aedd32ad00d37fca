"""How large a unit is. Depends on the input alone: any number of workers cuts the same units."""

MIN_UNIT_BYTES = 2**18
MAX_UNIT_BYTES = 2**24
# Bounds a unit's vectors: 16,384 rows of 4,096 float32 are 256 MiB.
MAX_UNIT_ROWS = 16_384
# A corpus is cut into about this many units, so that several workers have something to do; but a small one into fewer,
# since each unit's last batch isn't full: with units of 1 MiB, less than 1 % of what is computed is padding.
_PARTS, _FEW_PARTS, _SMALL_UNIT_BYTES = 16, 4, 2**20


def unit_bytes(total: int) -> int:
    """Bytes of input per unit for an input of `total` bytes: a power of two, so that a growing input keeps its cuts."""
    shared = max(total // _PARTS, min(total // _FEW_PARTS, _SMALL_UNIT_BYTES))
    wanted = max(MIN_UNIT_BYTES, min(MAX_UNIT_BYTES, shared))
    return 1 << (wanted.bit_length() - 1)
