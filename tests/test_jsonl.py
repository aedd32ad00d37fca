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
from embedcli.sources import jsonl, sizes

OPTIONS = InputOptions(on_error="reject")


def read_all(path, options=OPTIONS, unit_bytes=2**20):
    corpus = jsonl.plan([InputFile(str(path), str(path), "jsonl", "line")], options, unit_bytes)
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
    corpus, units = read_all(path, unit_bytes=unit_bytes)
    assert [text for unit in units for text in unit.texts] == [row["text"] for row, _ in lines]
    assert corpus.rows == len(lines)
    assert [unit.start for unit in corpus.units[1:]] == [unit.stop for unit in corpus.units[:-1]]
    numbers = [
        number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()
    ]
    assert [place for unit in units for place in unit.places] == numbers


def test_appending_rows_keeps_the_earlier_cuts(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": "word " * 20}) + "\n" for _ in range(100)]
    path.write_text("".join(lines[:60]))
    before, _ = read_all(path, unit_bytes=1000)
    path.write_text("".join(lines))
    after, _ = read_all(path, unit_bytes=1000)
    assert after.units[: len(before.units) - 1] == before.units[:-1]


def test_a_unit_has_at_most_so_many_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_UNIT_ROWS", 7)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 30)
    corpus, _ = read_all(path)
    assert [unit.rows for unit in corpus.units] == [7, 7, 7, 7, 2]
    assert [unit.first for unit in corpus.units] == [1, 8, 15, 22, 29]


def test_the_size_of_a_unit_follows_from_the_input_alone():
    assert sizes.unit_bytes(0) == sizes.MIN_UNIT_BYTES
    assert sizes.unit_bytes(100 * 2**20) == 4 * 2**20
    assert sizes.unit_bytes(10**12) == sizes.MAX_UNIT_BYTES


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"text": "y"}\n')
    corpus = jsonl.plan([InputFile("a", str(path), "jsonl", "line")], OPTIONS, 2**20)
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
