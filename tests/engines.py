"""`python -m tests.engines`: what each engine keeps of a corpus that it embeds with our encoder.

`python -m tests.engines ENGINE MARKS OUTPUT` is a driver of one engine, for `tests/campaigns/engines.py`:
it embeds the folder `corpus` beside the output.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import embedcli
from embedcli.store.vector_file import VectorFile
from tests.conftest import REPOSITORY

ROWS = 4_000
FILES = 8
_BATCH = 250
# What a batch takes longer in a campaign, so that there is something to kill.
_PAUSE_SECONDS = 0.1
RECIPE = {"model": "hash:64", "role": "passage"}


class MarkingEncoder:
    """An encoder that leaves its process's number in a folder, and takes its time."""

    def __init__(self, marks: str) -> None:
        self._encoder = embedcli.Encoder(**RECIPE)
        self._marks = Path(marks)

    def __call__(self, table: pa.Table) -> pa.Table:
        self._mark()
        return self._encoder(table)

    def embed_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in self._encoder.embed_batches(batches):
            self._mark()
            yield batch

    def _mark(self) -> None:
        (self._marks / str(os.getpid())).touch()
        time.sleep(_PAUSE_SECONDS)


def write_corpus(folder: Path) -> None:
    """Write a corpus of some files."""
    corpus = folder / "corpus"
    corpus.mkdir()
    texts = [f"text {number} of the corpus" for number in range(ROWS)]
    table = pa.table({"id": range(ROWS), "text": texts})
    for number in range(FILES):
        rows = table.slice(number * ROWS // FILES, ROWS // FILES)
        pq.write_table(rows, corpus / f"{number}.parquet")


def vectors_by_id(path: Path) -> tuple[list[int], bytes]:
    """Read the ids of a file or folder, whoever wrote it, in their order, and their vectors' bytes."""
    vectors = embedcli.open(str(path))
    ids = np.asarray(vectors.table(["id"])["id"])
    order = np.argsort(ids, kind="stable")
    return ids[order].tolist(), vectors.array()[order].tobytes()


def embed_by_ray_data(marks: Path, output: Path) -> None:
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    corpus = ray.data.read_parquet(str(output.parent / "corpus"))
    corpus.map_batches(
        MarkingEncoder,
        fn_constructor_kwargs={"marks": str(marks)},
        batch_format="pyarrow",
        batch_size=_BATCH,
        concurrency=2,
    ).write_parquet(str(output))


def embed_by_spark(marks: Path, output: Path) -> None:
    """Two executors."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local-cluster[2,1,1024]")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", _BATCH)
        .config("spark.executorEnv.PYTHONPATH", str(REPOSITORY))
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    corpus = spark.read.parquet(str(output.parent / "corpus")).repartition(FILES)
    schema = embedcli.Encoder(**RECIPE).schema(corpus.schema)
    corpus.mapInArrow(MarkingEncoder(str(marks)).embed_batches, schema).write.parquet(str(output))
    spark.stop()


def embed_by_polars(marks: Path, output: Path) -> None:
    import polars

    encoder = embedcli.Encoder(**RECIPE)
    corpus = polars.read_parquet(output.parent / "corpus")
    polars.from_arrow(encoder.embed(corpus.to_arrow())).write_parquet(
        output, metadata=encoder.metadata
    )


def embed_by_datasets(marks: Path, output: Path) -> None:
    import datasets

    encoder = embedcli.Encoder(**RECIPE)
    files = sorted(map(str, (output.parent / "corpus").iterdir()))
    corpus = datasets.Dataset.from_parquet(files, cache_dir=str(output.parent / "cache"))
    embedded = corpus.with_format("arrow").map(encoder.embed, batched=True, batch_size=_BATCH)
    pq.write_table(embedded[:].replace_schema_metadata(encoder.metadata), output)


ENGINES = {
    "Polars": embed_by_polars,
    "datasets": embed_by_datasets,
    "Ray Data": embed_by_ray_data,
    "Spark": embed_by_spark,
}
PROVENANCE = {
    "Polars": "by `metadata=`",
    "datasets": "by `replace_schema_metadata`",
    "Ray Data": "kept",
    "Spark": "kept with the column",
}


def row_of(engine: str, output: Path) -> str:
    """Return the row of the table of what engines keep, by what one wrote."""
    file = VectorFile(str(output))
    assert file.made.recipe.id == embedcli.Encoder(**RECIPE).recipe.id
    in_order = list(file.column("id")) == list(range(ROWS))
    is_fixed = pa.types.is_fixed_size_list(file.schema.field("embedding").type)
    kept = ["kept" if is_kept else "not kept" for is_kept in (in_order, is_fixed)]
    return f"| {engine} | {' | '.join(kept)} | {PROVENANCE[engine]} |"


def main() -> None:
    if sys.argv[1:]:
        engine, marks, output = sys.argv[1:]
        ENGINES[engine](Path(marks), Path(output))
        return
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name))
        for engine, embed in ENGINES.items():
            output = Path(name) / engine
            embed(Path(name), output)
            print(row_of(engine, output))


if __name__ == "__main__":
    # Under its own name, by which engines import it in other processes.
    from tests import engines

    engines.main()
