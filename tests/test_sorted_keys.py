"""Keys sorted share by share, and rows decoded once: lookups in bounded memory."""

import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.config import OutputOptions
from embedcli.errors import DataError
from embedcli.store import decoded_rows, parts, reuse, sorted_keys
from embedcli.store.decoded_rows import DecodedRows
from embedcli.store.sorted_keys import SortedKeys
from embedcli.store.vector_file import RowGroupCache, VectorFile
from tests.test_store import PROVENANCE

SCHEMA = parts.output_schema(pa.schema([]), 8, OutputOptions("x"))
# Of any first byte, and some of them equal.
keys_of_rows = st.lists(
    st.integers(0, 2**64 - 1) | st.sampled_from([0, 5, 2**63, 2**64 - 1]), max_size=60
)


def collect(folder, keys, rows, steps):
    collected = SortedKeys(folder, rows)
    for piece in np.array_split(np.array(keys, np.uint64), steps):
        collected.add(piece)
    return collected


@pytest.fixture(params=[False, True], ids=["at-once", "spilled"], scope="module")
def is_spilled(request):
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setattr(sorted_keys, "_ROWS_AT_ONCE", 8)
        yield request.param


@given(keys=keys_of_rows, steps=st.integers(1, 5))
def test_keys_come_back_in_order_with_their_rows(keys, steps, is_spilled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "index"
    shares = list(collect(folder, keys, len(keys), steps).shares())
    assert len(shares) == (256 if is_spilled and len(keys) > 8 else 1)
    in_order = [(int(key), int(row)) for share in shares for key, row in zip(*share, strict=True)]
    assert in_order == sorted((key, row) for row, key in enumerate(keys))
    assert not folder.exists()


def write_groups(folder, counts):
    """Files of some row groups each; gives all groups, and the columns of all rows."""
    groups, tables = [], []
    for number, sizes in enumerate(counts):
        columns = [_columns(size, 10 * number + index) for index, size in enumerate(sizes)]
        found = [
            parts.assemble(pa.table({}), SCHEMA, parts.ColumnNames.of("embedding"), values)
            for values in columns
        ]
        parts.write(folder / f"{number}.parquet", SCHEMA, PROVENANCE, found)
        groups += VectorFile(str(folder / f"{number}.parquet")).row_groups()
        tables += columns
    return groups, tables


def _columns(count, seed):
    rng = np.random.default_rng(seed)
    return parts.EmbeddingColumns(
        vectors=rng.normal(size=(count, 8)).astype(np.float32),
        hashes=np.frombuffer(rng.bytes(16 * count), "V16"),
        tokens=rng.integers(1, 99, count).astype(np.int32),
        truncated=rng.integers(0, 2, count).astype(bool),
    )


class Counting(RowGroupCache):
    """Counts how often each row group's vectors are decoded."""

    def __init__(self):
        super().__init__()
        self.decoded = Counter()

    def embedding_columns(self, group):
        self.decoded[group] += 1
        return super().embedding_columns(group)


def test_each_row_group_is_decoded_once_in_any_order_of_the_rows(tmp_path):
    groups, columns = write_groups(tmp_path, [(5, 300), (1,), (40, 40, 40)])
    expected = {
        name: np.concatenate([getattr(values, name) for values in columns])
        for name in ("vectors", "hashes", "tokens", "truncated")
    }
    caches = [Counting(), Counting()]  # of two processes
    rows = [DecodedRows(groups, 8, tmp_path / "decoded", cache) for cache in caches]
    rng = np.random.default_rng(0)
    for turn in range(20):
        positions = rng.integers(0, 426, 30)
        values = parts.EmbeddingColumns.zeros(np.empty(40, "V16"), 8)
        targets = np.sort(rng.choice(40, 30, replace=False))
        hashes = rows[turn % 2].read(positions, values, targets)
        assert np.array_equal(hashes, expected["hashes"][positions])
        for name in ("vectors", "tokens", "truncated"):
            assert np.array_equal(getattr(values, name)[targets], expected[name][positions]), name
        others = np.setdiff1d(np.arange(40), targets)
        assert not values.vectors[others].any()
    counted = caches[0].decoded + caches[1].decoded
    assert set(counted) <= set(groups)
    assert set(counted.values()) == {1}


def read(rows, count):
    values = parts.EmbeddingColumns.zeros(np.empty(count, "V16"), 8)
    rows.read(np.arange(count), values, np.arange(count))


def test_a_row_group_that_is_gone_is_bad_data(tmp_path):
    groups, _ = write_groups(tmp_path, [(5,), (5,)])
    (tmp_path / "1.parquet").unlink()
    rows = DecodedRows(groups, 8, tmp_path / "decoded", RowGroupCache())
    read(rows, 5)
    for _ in range(2):  # what failed isn't taken for done
        with pytest.raises(DataError, match="is gone"):
            read(rows, 10)


def test_a_full_disk_is_an_error_and_no_signal(tmp_path, monkeypatch):
    groups, _ = write_groups(tmp_path, [(5,)])
    rows = DecodedRows(groups, 8, tmp_path / "decoded", RowGroupCache())
    full = OSError(28, "No space left on device")

    def refuse(*arguments):
        raise full

    monkeypatch.setattr(decoded_rows.os, "pwrite", refuse)
    with pytest.raises(OSError, match="No space left"):
        read(rows, 5)


def test_an_index_that_is_spilled_finds_what_another_finds(is_spilled, tmp_path):
    groups, columns = write_groups(tmp_path, [(5, 300), (1,), (40, 40, 40)])
    hashes = np.concatenate([values.hashes for values in columns])
    run = tmp_path / "run"
    run.mkdir()
    reuse.build_index(groups, run)
    index = reuse.VectorIndex(groups, 8, run, RowGroupCache())
    unknown = np.frombuffer(os.urandom(16 * 10), "V16")
    order = np.random.default_rng(0).permutation(len(hashes) + 10)
    asked = np.concatenate([hashes, unknown])[order]
    found, source = index.take(asked, 8)
    is_known = order < len(hashes)
    vectors = np.concatenate([values.vectors for values in columns])
    assert np.array_equal(found.vectors[is_known], vectors[order[is_known]])
    assert (source[~is_known] == -1).all()
    assert not found.vectors[~is_known].any()
