"""Files of vectors that another program saved again: searched if people say what made the vectors."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedcli
from tests.runs import encode, write_corpus


def as_lists(table):
    """As pandas and DuckDB write it: lists that have lost their length."""
    vectors = table.column("embedding").combine_chunks().to_pylist()
    index = table.column_names.index("embedding")
    return table.set_column(index, "embedding", pa.array(vectors, pa.list_(pa.float32())))


FORMS = {"as it was": lambda table: table, "lists": as_lists}


@pytest.fixture(params=FORMS)
def saved_again(request, cli, tmp_path):
    """An index, and the same without its metadata."""
    index = tmp_path / "index.parquet"
    assert encode(cli, write_corpus(tmp_path / "c.jsonl", 20), index)[0].code == 0
    other = tmp_path / "other.parquet"
    table = pq.read_table(index).replace_schema_metadata(None)
    pq.write_table(FORMS[request.param](table), other)
    return index, other


TEXT = ("text number 7", "-k", 2)


def hits(ran):
    return [line.partition('"file"')[0] for line in ran.lines]


def test_it_is_searched_as_another_file_or_by_a_model(cli, saved_again):
    index, other = saved_again
    wanted = cli("search", index, *TEXT)
    ran = cli("search", other, *TEXT)
    assert ran.code == 65
    assert "--like FILE or --model NAME" in ran.err
    for options in (("--like", index), ("--model", "hash:64")):
        ran = cli("search", other, *TEXT, *options)
        assert (ran.code, hits(ran)) == (0, hits(wanted)), ran.err


def test_python_opens_it_like_another_file(saved_again):
    index, other = saved_again
    with pytest.raises(embedcli.EmbedcliError):
        embedcli.open(str(other))
    vectors = embedcli.open(str(other), like=str(index))
    assert np.array_equal(vectors.array(), embedcli.open(str(index)).array())
    assert vectors.search(["text number 7"], k=1)[0][0].score == pytest.approx(
        embedcli.open(str(index)).search(["text number 7"], k=1)[0][0].score
    )


def test_another_dimension_is_refused(cli, saved_again):
    ran = cli("search", saved_again[1], *TEXT, "--model", "hash:32")
    assert ran.code in (65, 78)
    assert "64" in ran.err
    assert "32" in ran.err


def test_like_is_checked_where_the_file_says_how_it_was_made(cli, tmp_path, saved_again):
    index, _ = saved_again
    encode(cli, tmp_path / "c.jsonl", tmp_path / "small.parquet", "--model", "hash:8")
    assert cli("search", index, *TEXT, "--like", tmp_path / "small.parquet").code == 78
    assert cli("search", index, *TEXT, "--like", index).code == 0
