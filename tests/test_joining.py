"""Files joined byte for byte: other readers see one file as good as if it had been written at once."""

import contextlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcli.config import OutputOptions
from embedcli.errors import DataError
from embedcli.store import digest, joining, parts, thrift
from embedcli.store.vector_file import RowGroup, VectorFile
from tests.test_store import PROVENANCE

CARRIED = pa.schema(
    [
        ("text", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("facts", pa.struct([("year", pa.int16()), ("names", pa.map_(pa.string(), pa.float64()))])),
        ("nothing", pa.null()),
    ]
)
SCHEMA = parts.output_schema(CARRIED, 8, OutputOptions("x"))
NAMES = parts.ColumnNames.of("embedding")


def rows(count, seed):
    rng = np.random.default_rng(seed)
    carried = pa.table(
        {
            "text": [f"text {seed} {i} " + "long " * (i % 300) for i in range(count)],
            "tags": [[f"tag {i % 7}"] * (i % 3) if i % 5 else None for i in range(count)],
            "facts": [
                {"year": i, "names": [("a", i / 2)]} if i % 4 else None for i in range(count)
            ],
            "nothing": [None] * count,
        },
        schema=CARRIED,
    )
    columns = parts.EmbeddingColumns(
        vectors=rng.normal(size=(count, 8)).astype(np.float32),
        hashes=np.frombuffer(rng.bytes(16 * count), "V16"),
        tokens=np.arange(count, dtype=np.int32),
        truncated=np.zeros(count, bool),
    )
    return parts.assemble(carried, SCHEMA, NAMES, columns)


def write(path, *tables):
    parts.write(path, SCHEMA, PROVENANCE, tables)
    return VectorFile(str(path)).row_groups()


def join(path, groups):
    with parts.sealed(path) as stream:
        return joining.join(stream, parts.empty_file(SCHEMA, PROVENANCE), groups)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A file joined of three: the tables in it, and where it lies."""
    folder = tmp_path_factory.mktemp("joined")
    tables = [rows(count, seed) for seed, count in enumerate((1, 3_000, 17, 500))]
    first = write(folder / "first", tables[0])
    both = write(folder / "both", tables[1], tables[2])
    last = write(folder / "last", tables[3])
    # The groups of a file may come in any order, and twice.
    groups = [both[1], *first, both[0], *last, both[1]]
    path = folder / "joined.parquet"
    assert join(path, groups) == 3_535
    order = [tables[2], tables[0], tables[1], tables[3], tables[2]]
    return path, pa.concat_tables(order)


def test_pyarrow_reads_what_was_joined(joined):
    path, expected = joined
    assert pq.read_table(path, page_checksum_verification=True).equals(expected)
    assert digest.is_whole(path, parts.DIGEST_MARK)
    assert VectorFile(str(path)).provenance == PROVENANCE


def test_it_has_the_footer_of_a_file_written_at_once(joined, tmp_path):
    path, expected = joined
    at_once = tmp_path / "at-once.parquet"
    counts = (17, 1, 3_000, 500, 17)
    starts = np.cumsum([0, *counts])
    tables = [expected.slice(start, n) for start, n in zip(starts, counts, strict=False)]
    parts.write(at_once, SCHEMA, PROVENANCE, tables)
    with pq.ParquetFile(path) as ours, pq.ParquetFile(at_once) as theirs:
        assert without_offsets(ours.metadata) == without_offsets(theirs.metadata)
        assert ours.schema_arrow.equals(theirs.schema_arrow)


def without_offsets(metadata):
    """A footer but for what tells where things lie: the page indexes lie elsewhere."""
    value = metadata.to_dict()
    del value["serialized_size"]
    for group in value["row_groups"]:
        for column in group["columns"]:
            for name in [name for name in column if name.endswith("_offset")]:
                del column[name]
    return value


def test_the_page_indexes_lead_to_the_pages(joined):
    """DuckDB jumps to pages by their index where a filter leaves some out."""
    duckdb = pytest.importorskip("duckdb")
    path, expected = joined
    query = f"SELECT text FROM '{path}' WHERE embedding_tokens BETWEEN 2990 AND 2995"
    kept = [row["text"] for row in expected.to_pylist() if 2990 <= row["embedding_tokens"] <= 2995]
    assert [text for (text,) in duckdb.sql(query).fetchall()] == kept


def test_each_offset_in_the_page_indexes_is_that_of_a_page(joined):
    path, _ = joined
    content = path.read_bytes()
    indexed = 0
    for told, locations in page_indexes(content):
        assert thrift.get(locations[0], 1) == thrift.get(told, 9)
        for location in locations:
            offset = thrift.get(location, 1)
            header, size = thrift.parse_first(content[offset : offset + 4096])
            assert size + thrift.get(header, 3) == thrift.get(location, 2)
            indexed += 1
    assert indexed > 50


def test_no_bit_of_a_page_flips_unseen(tmp_path):
    groups = write(tmp_path / "whole", rows(40, 0))
    content = (tmp_path / "whole").read_bytes()
    rng = random.Random(0)
    for offset, stop in pages(tmp_path / "whole"):
        damaged = bytearray(content)
        damaged[rng.randrange(offset, stop)] ^= 1 << rng.randrange(8)
        source = tmp_path / f"damaged-{offset}"
        source.write_bytes(damaged)
        with pytest.raises(DataError, match="a page's checksum differs"):
            join(tmp_path / f"joined-{offset}", [RowGroup(source, 0, groups[0].rows)])


def pages(path):
    """Where the content of each page lies, by the page indexes of a file."""
    content = path.read_bytes()
    for _, locations in page_indexes(content):
        for location in locations:
            offset = thrift.get(location, 1)
            header, size = thrift.parse_first(content[offset : offset + 4096])
            yield offset + size, offset + size + thrift.get(header, 3)


def page_indexes(content):
    """What the footer tells of each column that has one, and its list of pages."""
    length = int.from_bytes(content[-8:-4], "little")
    footer = thrift.parse(content[-8 - length : -8])
    for group in thrift.get(footer, 4).values:
        for chunk in thrift.get(group, 1).values:
            start, size = thrift.get(chunk, 4), thrift.get(chunk, 5)
            index = thrift.parse(content[start : start + size])
            yield thrift.get(chunk, 3), thrift.get(index, 1).values


def test_a_damaged_footer_is_bad_data(tmp_path):
    groups = write(tmp_path / "whole", rows(40, 0))
    content = (tmp_path / "whole").read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    rng = random.Random(0)
    messages = []
    for number in range(400):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content) - 8 - length, len(content) - 8)] = rng.randrange(256)
        source = tmp_path / "damaged"
        source.write_bytes(damaged)
        try:
            join(tmp_path / f"joined-{number}", [RowGroup(source, 0, groups[0].rows)])
        except DataError as error:
            messages.append(error.message)
    assert len(messages) > 20
    assert all(message.startswith(f"{source}: damaged: ") for message in messages)


@pytest.mark.parametrize("size", [0, 7, 12, 500])
def test_a_file_that_ends_early_is_bad_data(size, tmp_path):
    groups = write(tmp_path / "whole", rows(40, 0))
    with open(tmp_path / "whole", "r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match="damaged"):
        join(tmp_path / "joined", groups)


def test_a_file_that_is_gone_is_bad_data(tmp_path):
    with pytest.raises(DataError, match="is gone"):
        join(tmp_path / "joined", [RowGroup(tmp_path / "gone", 0, 1)])


integers = st.integers(-(2**63), 2**63 - 1)
values = {
    thrift.TRUE: st.booleans(),
    thrift.BYTE: st.integers(0, 255),
    thrift.I16: integers,
    thrift.I32: integers,
    thrift.I64: integers,
    thrift.DOUBLE: st.floats(allow_nan=False),
    thrift.BINARY: st.binary(max_size=300),
    thrift.UUID: st.binary(min_size=16, max_size=16),
}


def _structs(inner):
    lists = st.sampled_from(sorted(values)).flatmap(
        lambda kind: st.lists(values[kind], max_size=20).map(lambda v: thrift.Items(kind, v))
    )
    lists |= st.lists(inner, max_size=16).map(lambda v: thrift.Items(thrift.STRUCT, v))
    fields = st.sampled_from(sorted(values)).flatmap(
        lambda kind: st.tuples(st.just(kind), values[kind])
    )
    fields |= st.tuples(st.sampled_from([thrift.LIST, thrift.SET]), lists)
    fields |= st.tuples(st.just(thrift.STRUCT), inner)
    numbered = st.dictionaries(st.integers(1, 2_000), fields, max_size=6)
    return numbered.map(
        lambda fields: [thrift.Field(n, kind, value) for n, (kind, value) in sorted(fields.items())]
    )


structs = st.recursive(st.just([]), _structs, max_leaves=20)


@given(structs)
@settings(max_examples=200)
def test_structs_are_read_as_written(value):
    content = thrift.to_bytes(value)
    read, length = thrift.parse_first(content + b"more")
    assert thrift.to_bytes(read) == content
    assert length == len(content)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_struct_or_a_value_error(content):
    with contextlib.suppress(ValueError):
        thrift.parse(content)
