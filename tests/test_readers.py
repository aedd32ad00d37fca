"""Other people's tools read the output: pandas, polars, duckdb, datasets."""

import numpy as np
import pytest

from tests.conftest import SAMPLE, run_process

pytestmark = pytest.mark.heavy  # a model is loaded, and four libraries are
QUESTION = "where does aspirin come from"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The sample corpus and its queries, embedded with the real default model."""
    folder = tmp_path_factory.mktemp("sample")
    found = {}
    for name, role in (("corpus", "passage"), ("queries", "query")):
        found[name] = folder / f"{name}.parquet"
        ran = run_process("encode", SAMPLE / f"{name}.jsonl", "--role", role, "-o", found[name])
        assert ran.code == 0, ran.err
    return found


def test_pandas(outputs):
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(outputs["corpus"])
    assert len(frame) == 240
    assert np.stack(frame["embedding"]).shape == (240, 384)
    assert frame["embedding_tokens"].min() > 10


def test_polars(outputs):
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(outputs["corpus"])
    assert frame["embedding"].dtype == polars.Array(polars.Float32, 384)
    assert frame.filter(polars.col("subject") == "trees").height == 20


def test_duckdb_finds_the_right_passage(outputs):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"""
        SELECT c._id
        FROM '{outputs["corpus"]}' c, '{outputs["queries"]}' q
        WHERE q.text = '{QUESTION}'
        ORDER BY array_cosine_similarity(c.embedding::FLOAT[384], q.embedding::FLOAT[384]) DESC
        LIMIT 1
    """).fetchall()
    assert found == [("trees-12",)]


def test_datasets(outputs, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(
        "parquet", data_files=str(outputs["corpus"]), cache_dir=str(tmp_path)
    )["train"]
    assert found.num_rows == 240
    assert len(found[0]["embedding"]) == 384
