"""Which Parquet settings suit vectors: `python -m tests.benchmarks.parquet_settings VECTORS.parquet`.

Takes the vectors of an output of `encode`, and tells size, write and read speed for each way to
store them. Rounds are interleaved, medians shown; MB are those of the vectors in memory.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 65_536
WAYS = list(
    itertools.product(("float32", "float16"), ("none", "lz4", "zstd"), (False, True), (16_384,))
)
WAYS += [("float32", "none", False, rows) for rows in (1_024, 4_096, 65_536)] + [
    ("float32", "dictionary", False, 16_384)
]


def table_of(path, dtype):
    """The file's vectors, over and over, each time changed a little, as one column."""
    flat = pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks()
    vectors = flat.values.to_numpy().reshape(len(flat), -1)
    times = -(-ROWS // len(vectors))
    many = np.concatenate([vectors * (1 + time / 1000) for time in range(times)])[:ROWS].astype(
        dtype
    )
    return pa.table(
        {"embedding": pa.FixedSizeListArray.from_arrays(pa.array(many.ravel()), many.shape[1])}
    )


def once(table, path, compression, split, rows):
    """Seconds to write and to read, and the size."""
    dictionary = compression == "dictionary"
    started = time.perf_counter()
    pq.write_table(
        table,
        path,
        compression="none" if dictionary else compression,
        use_dictionary=dictionary,
        use_byte_stream_split=split,
        row_group_size=rows,
        write_page_checksum=True,
    )
    written = time.perf_counter()
    assert len(pq.read_table(path, page_checksum_verification=True)) == len(table)
    return written - started, time.perf_counter() - written, path.stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    tables = {dtype: table_of(wanted.vectors, dtype) for dtype in ("float32", "float16")}
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(wanted.rounds):
            for way in WAYS:
                found[way].append(once(tables[way[0]], Path(folder) / "v.parquet", *way[1:]))
    print(
        "| format | compression | byte-stream split | rows a group | size | write MB/s | read MB/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for (dtype, compression, split, rows), times in found.items():
        size = tables[dtype].nbytes
        write, read = (
            size / 1e6 / statistics.median(one) for one in list(zip(*times, strict=True))[:2]
        )
        print(
            f"| {dtype} | {compression} | {'yes' if split else 'no'} | {rows:,} | {times[0][2] / size:.1%} "
            f"| {write:,.0f} | {read:,.0f} |"
        )


if __name__ == "__main__":
    main()
