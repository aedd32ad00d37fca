"""JSONL: units cover every row once, and a unit read alone gives what a plain reading of the file
gives.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli import sources
from embedcli.config import InputOptions
from embedcli.errors import InputChangedError
from embedcli.records import InputFile
from embedcli.sources import json_rows
from embedcli.sources import lines as jsonl
from embedcli.sources.cuts import FINE, Grain

OPTIONS = InputOptions(on_error="reject")


def read_all(path, options=OPTIONS, grain=FINE):
    corpus = jsonl.plan([InputFile(str(path), str(path), "jsonl", "line")], options, grain)
    read = sources.reader(corpus, options)
    return corpus, [read(unit) for unit in corpus.units]


rows = st.fixed_dictionaries(
    {"text": st.text(max_size=60)}, optional={"n": st.integers(), "s": st.text(max_size=5)}
)
breaks = st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n", "\n" * 50])


@given(st.lists(st.tuples(rows, breaks), max_size=30), st.integers(8, 400), st.booleans())
def test_units_cover_the_file_whatever_its_line_ends(tmp_path_factory, lines, unit_bytes, ends):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=False) + end for row, end in lines)
    path.write_bytes((content if ends else content.rstrip("\n\r ")).encode())
    corpus, units = read_all(path, grain=Grain(rows=8, bytes=unit_bytes))
    assert [text for unit in units for text in unit.texts] == [row["text"] for row, _ in lines]
    assert corpus.rows == len(lines)
    segments = [segment for unit in corpus.units for segment in unit.segments]
    assert [segment.start for segment in segments[1:]] == [
        segment.stop for segment in segments[:-1]
    ]
    numbers = [
        number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()
    ]
    assert [place.number for unit in units for place in unit.places] == numbers


@given(st.lists(st.tuples(rows, breaks), max_size=60), st.integers(1, 90))
def test_in_what_ranges_a_file_is_planned_plays_no_part(tmp_path_factory, lines, size):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes("".join(json.dumps(row) + end for row, end in lines).encode())
    grain = Grain(rows=8, bytes=300)
    whole, _ = read_all(path, grain=grain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "_RANGE_BYTES", size)
        patch.setattr(jsonl, "_BATCH_BYTES", max(1, size // 3))
        parts, _ = read_all(path, grain=grain)
    assert rows_of(parts) == rows_of(whole)
    assert parts.schema.names == whole.schema.names


def rows_of(corpus):
    """The rows of each unit, blank lines at its ends aside."""
    return [unit.rows for unit in corpus.units if unit.rows]


def test_small_files_share_units(tmp_path):
    files = []
    for number in range(50):
        path = tmp_path / f"{number:02d}.jsonl"
        path.write_text("".join(f'{{"text": "row {number} {i}"}}\n' for i in range(20)))
        files.append(InputFile(path.name, str(path), "jsonl", "line"))
    corpus = jsonl.plan(files, OPTIONS, FINE)
    assert len(corpus.units) == 1
    assert len(corpus.units[0].segments) == 50
    records = sources.reader(corpus, OPTIONS)(corpus.units[0])
    assert records.texts == [f"row {number} {i}" for number in range(50) for i in range(20)]
    assert [(place.file, place.number) for place in records.places] == [
        (number, line) for number in range(50) for line in range(1, 21)
    ]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), values), st.booleans(), st.data())
def test_the_fast_parser_takes_nothing_that_the_strict_one_does_not(row, escaped, data):
    content = bytearray(json.dumps(row, ensure_ascii=escaped, allow_nan=False).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(content)))
        junk = data.draw(
            st.sampled_from([b"", b'"', b"\\", b"{", b'"a":1,', b"1", b"\xff", b"\\u"])
        )
        content[place : place + data.draw(st.integers(0, 2))] = junk
    line = json_rows.Line(1, 0, len(content), bytes(content), b"")
    fast = json_rows.parse_all([bytes(content)], bytes(content))
    if fast is not None:
        strict = json_rows._parse_strictly(line, bytes(content))
        assert repr(fast[0]) == repr(strict)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": "", "b": ""}}', '[{"a": 1}]'])
def test_what_only_the_strict_parser_can_refuse(text):
    assert json_rows.parse_all([text.encode()], text.encode()) is None


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    corpus = jsonl.plan([InputFile("a", str(path), "jsonl", "line")], OPTIONS, FINE)
    path.write_text('{"text": "x"}\n')
    with pytest.raises(InputChangedError, match="a: was changed while the run read it"):
        sources.reader(corpus, OPTIONS)(corpus.units[0])


def test_no_columns_at_all_can_be_carried(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    _, units = read_all(path, InputOptions(columns=()))
    assert (units[0].table.num_rows, units[0].table.num_columns) == (2, 0)


def test_fields_are_found_along_a_path_and_may_be_missing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"doc": {"text": "x", "title": "t"}}\n{"doc": {"text": "y"}}\n{"doc.text": "z"}\n'
    )
    _, units = read_all(path, InputOptions(text_column="doc.text", fields=("doc.title",)))
    assert units[0].texts == ["x", "y", "z"]
    assert units[0].fields == {"doc.title": ["t", None, None]}
