"""Parquet: units cover every row once, any storage of strings reads alike, damage is never read
silently.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcli import sources
from embedcli.config import InputOptions
from embedcli.errors import DataError
from embedcli.records import InputFile
from embedcli.sources import parquet
from embedcli.sources.cuts import FINE, Grain


def plan(path, options, grain=FINE):
    return parquet.plan([InputFile(str(path), str(path), "parquet", "row")], options, grain)


def read_all(path, options=InputOptions(), grain=FINE):  # noqa: B008 - frozen
    corpus = plan(path, options, grain)
    read = sources.reader(corpus, options)
    return corpus, [read(unit) for unit in corpus.units]


@settings(max_examples=50)
@given(st.lists(st.text(max_size=50), max_size=80), st.integers(1, 40), st.integers(20, 2000))
def test_units_cover_the_file_whatever_its_row_groups(tmp_path_factory, texts, group, unit_bytes):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    table = pa.table(
        {"text": pa.array(texts, pa.string()), "n": pa.array(range(len(texts)), pa.int32())}
    )
    pq.write_table(table, path, row_group_size=group)
    corpus, units = read_all(path, grain=Grain(rows=16, bytes=unit_bytes))
    assert [text for unit in units for text in unit.texts] == texts
    assert [n for unit in units for n in unit.table["n"].to_pylist()] == list(range(len(texts)))
    places = [place.number for unit in units for place in unit.places]
    assert places == list(range(1, len(texts) + 1))
    segments = [segment for unit in corpus.units for segment in unit.segments]
    assert [segment.start for segment in segments[1:]] == [
        segment.stop for segment in segments[:-1]
    ]


def test_units_can_be_read_in_any_order(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)]}), path, row_group_size=300)
    corpus = plan(path, InputOptions(), Grain(rows=50, bytes=500))
    assert len(corpus.units) > 10
    read = sources.reader(corpus, InputOptions())
    for unit in [*corpus.units[::-1], *corpus.units[3:9:2]]:
        (segment,) = unit.segments
        assert read(unit).texts == [f"text {i}" for i in range(segment.start, segment.stop)]


KINDS = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_storage_of_strings_reads_alike(tmp_path, kind):
    texts = ["a", "", "ä\0", "a", "🙂" * 20]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": KINDS[kind](texts)}), path)
    _, units = read_all(path)
    assert units[0].texts == texts
    assert units[0].table.schema == pa.schema([("text", pa.string())])


def invalid(texts):
    """A string column with bytes that are no UTF-8, as pyarrow writes and reads it without a word."""
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers(), binary.null_count)


@pytest.mark.parametrize("column", ["text", "other"])
def test_rows_that_are_not_utf8_are_found_one_by_one(tmp_path, column):
    path = tmp_path / "a.parquet"
    good = pa.array(["a", "b", "c", "d"])
    table = {"text": good, "other": good, column: invalid([b"a", b"\xff\xfe", b"c", None])}
    pq.write_table(pa.table(table), path)
    _, units = read_all(path, InputOptions(on_error="reject"))
    codes = {reject.number: reject.fault.code for reject in units[0].rejects}
    assert codes == ({2: "not-utf8", 4: "text-null"} if column == "text" else {2: "not-utf8"})
    assert units[0].table.num_rows == len(units[0].texts) == 4 - len(codes)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_flipped_bit_is_never_read_silently(tmp_path, compression):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    texts = ["".join(chr(97 + c) for c in rng.integers(0, 26, 40)) for _ in range(200)]
    pq.write_table(
        pa.table({"text": texts}), path, compression=compression, write_page_checksum=True
    )
    sound = path.read_bytes()
    for place in rng.integers(4, len(sound), 60):
        path.write_bytes(
            sound[:place]
            + bytes([sound[place] ^ 1 << int(rng.integers(0, 8))])
            + sound[place + 1 :]
        )
        try:
            _, units = read_all(path)
        except DataError:
            continue
        assert [text for unit in units for text in unit.texts] == texts


def test_a_footer_that_counts_wrong_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * 100}), path)
    content = path.read_bytes()
    # In the footer FileMetaData.num_rows comes first, as a zigzag varint; each row group holds its own.
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    at = content.index(b"\x16\xc8\x01", footer) + 1
    path.write_bytes(content[:at] + b"\xca\x01" + content[at + 2 :])
    with pytest.raises(DataError):
        read_all(path)


def test_rows_that_are_stored_once_are_sized_by_what_they_decode_to(tmp_path):
    texts = [letter * 40_000 for letter in "abcdefgh"] * 125
    stored = {
        "dictionary": ({"text": pa.array(texts)}, {}),
        "carried": ({"text": pa.array(["a"] * 1000), "c": pa.array(texts)}, {}),
        "nested": ({"text": pa.array(["a"] * 1000), "c": pa.array([[t] for t in texts])}, {}),
        "prefixes": (
            {"text": pa.array(["a" * 40_000] * 1000)},
            {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        ),
        "null first": (
            {"text": pa.array(["a"] * 1000), "c": pa.array([[], *([t] for t in texts[1:])])},
            {},
        ),
    }
    for name, (columns, options) in stored.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(columns), path, **options)
        assert path.stat().st_size < 2**19
        corpus = plan(path, InputOptions())
        # 40 MB of texts in units of 2 MiB at most; of a carried column, eight times as much.
        least = 2 if "c" in columns else 19
        assert len(corpus.units) >= least, name
        read = sources.reader(corpus, InputOptions(on_error="reject"))
        rows = [read(unit) for unit in corpus.units]
        assert sum(len(records.texts) for records in rows) >= 1000, name


def test_ordinary_dictionaries_are_sized_by_the_footer(tmp_path, monkeypatch):
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": [f"text {i} {'x' * 300}" for i in range(80_000)]}), path)
    decoded = []
    real = parquet.decoding_of
    monkeypatch.setattr(
        parquet, "decoding_of", lambda *args: decoded.append(real(*args)) or decoded[-1]
    )
    assert len(plan(path, InputOptions()).units) > 1
    assert [(list(decoding.columns), decoding.row_bytes > 0) for decoding in decoded] == [
        (["text"], True)
    ] * len(decoded)


@pytest.mark.parametrize("name", ["other", "inner"])
def test_a_name_that_is_not_utf8_is_refused(tmp_path, name):
    path = tmp_path / "c.parquet"
    table = pa.table({"text": ["a"], "other": [1], "s": [{"inner": 1}]})
    pq.write_table(table, path, store_schema=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(name.encode(), b"\xff" + name.encode()[1:]))
    with pytest.raises(DataError, match=r"(?i)utf-8"):
        plan(path, InputOptions())
