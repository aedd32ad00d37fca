"""Ray, Spark, Polars, datasets: what they write with our encoder is as good as what we write."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata

import datasets
import polars
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedcli
from embedcli.run import ray_engine
from tests import engines, runs
from tests.campaigns.engines import write_long_corpus
from tests.conftest import REPOSITORY, SAMPLE, run_process, start
from tests.test_docs import place, run, sessions  # noqa: F401 - the fixture

READMES = {"README.md", "embedcli/api/README.md"}
ROWS = 60
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "PYSPARK_PYTHON": sys.executable,
    "PYTHONWARNINGS": "ignore",
    "EMBEDCLI_DTYPE": "float32",
    "RAY_ADDRESS": "local",  # not a cluster that is there by chance
}


def blocks(engine=None):
    """The READMEs' Python that needs this engine."""
    code = r"(?:^<!-- engine: (\w+) -->\n)?^```python\n(.*?)^```$"
    for name in READMES:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for needed, block in re.findall(code, text, re.MULTILINE | re.DOTALL):
            if needed == (engine or ""):
                yield block


def run_python(code, folder):
    """Run a program in a folder; see that it prints what its comments say."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    assert done.stdout.splitlines() == re.findall(r"^# (.*)$", code, re.MULTILINE)


@pytest.mark.heavy
def test_the_readmes_python_runs(place):  # noqa: F811
    for command, _ in list(sessions())[:2]:
        assert run(command, place).returncode == 0
    code = list(blocks())
    assert len(code) >= 5
    for block in code:
        run_python(block, place)


def by_variable_lists(table, path, metadata):
    fields = [field.with_type(_variable(field.type)) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields, metadata)), path)


def _variable(kind):
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind


def by_polars(table, path, metadata):
    polars.from_arrow(table).write_parquet(path, metadata=metadata)


def by_datasets(table, path, metadata):
    rows = datasets.Dataset(table).with_format("arrow")[:]
    pq.write_table(rows.replace_schema_metadata(metadata), path)


def by_folder(table, path, metadata):
    path.mkdir()
    half = len(table) // 2
    pq.write_table(table.slice(0, half), path / "part-0-a.snappy.parquet")
    pq.write_table(table.slice(half), path / "part-1-b.snappy.parquet")
    (path / "_SUCCESS").touch()


def by_spark_metadata(table, path, metadata):
    """As Spark writes it: nothing in the schema, but with the column, in JSON of its own."""
    fields = [
        {"name": name, "metadata": metadata if name == "embedding" else {}}
        for name in table.column_names
    ]
    row = json.dumps({"type": "struct", "fields": fields})
    key = "org.apache.spark.sql.parquet.row.metadata"
    by_variable_lists(table, path, {key: row})


LENGTH = "the length of the vectors' lists"
WRITERS = {
    by_variable_lists: LENGTH,
    by_polars: "",
    by_datasets: "",
    by_folder: "",
    by_spark_metadata: LENGTH,
}


@pytest.mark.parametrize("write", WRITERS)
def test_files_of_engines_are_known_to_all_verbs(cli, tmp_path, write):
    corpus, output = runs.write_corpus(tmp_path / "c.jsonl", ROWS), tmp_path / "out.parquet"
    encoder = embedcli.Encoder("hash:64", role="passage")
    write(encoder.embed(pj.read_json(corpus)), output, encoder.metadata)
    inspected = json.loads(cli("inspect", output, "--json").out)
    assert inspected["lost"] == ["the seal over all bytes", *filter(None, [WRITERS[write]])]
    assert cli("verify", output).code == 0
    hits = cli("search", output, "text number 7", "--role", "passage", "-k", "1", "--json")
    assert (hits.code, len(hits.lines)) == (0, 1)
    # As good as ours: an update reads its vectors, and leaves what a run of all rows would.
    runs.write_corpus(corpus, ROWS + 2)
    ran, report = runs.encode(cli, corpus, output, "--update")
    assert ran.code == 0, ran.err
    assert runs.counts(report, "reused", "embedded") == (ROWS, 2)
    whole = tmp_path / ("whole" if output.is_dir() else "whole.parquet")
    runs.encode(cli, corpus, f"{whole}/" if output.is_dir() else whole)
    assert runs.table(output).equals(runs.table(whole))


@pytest.mark.parametrize("write", [by_variable_lists, by_folder])
def test_a_damaged_vector_of_an_engine_is_seen(cli, tmp_path, write):
    corpus, output = runs.write_corpus(tmp_path / "c.jsonl", ROWS), tmp_path / "out.parquet"
    encoder = embedcli.Encoder("hash:64", role="passage")
    table = encoder.embed(pj.read_json(corpus))
    rows = table.to_pylist()
    rows[5]["embedding"][0] += 1
    write(pa.Table.from_pylist(rows, table.schema), output, encoder.metadata)
    assert cli("verify", output).code == 65


@pytest.mark.engines
@pytest.mark.parametrize(("engine", "folder"), [("ray", "ray_data"), ("spark", "spark")])
def test_the_readmes_recipes_give_the_vectors_of_the_command_line(place, engine, folder):  # noqa: F811
    for block in blocks(engine):
        run_python(block, place)
    encoded = run(f"embedcli encode {SAMPLE}/corpus.jsonl --role passage -o whole.parquet", place)
    assert encoded.returncode == 0, encoded.stderr
    verified = run(f"embedcli verify {folder} --corpus {SAMPLE}/corpus.jsonl", place)
    assert verified.returncode == 0, verified.stdout
    compared = run(f"embedcli compare {folder} whole.parquet --json", place)
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["compared"] == 240
    assert min(json.loads(compared.stdout)["cosines"].values()) > 0.999999
    updated = run(f"embedcli encode {SAMPLE}/corpus.jsonl --role passage -o {folder}/ --update --report r.json", place)  # fmt: skip
    assert updated.returncode == 0, updated.stderr
    counts = json.loads((place / "r.json").read_text())["counts"]
    assert (counts["reused"], counts["embedded"]) == (240, 0)


@pytest.mark.engines
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_the_table_says_what_engines_keep(tmp_path, engine):
    """But for the order of Ray Data's rows, which it doesn't promise."""
    engines.write_corpus(tmp_path)
    command = [sys.executable, "-m", "tests.engines", engine, tmp_path, tmp_path / "out"]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    row = engines.row_of(engine, tmp_path / "out").split("|")
    shown = (REPOSITORY / "embedcli" / "api" / "README.md").read_text().splitlines()
    (shown_row,) = [line.split("|") for line in shown if line.startswith(f"| {engine} |")]
    assert row[3:] == shown_row[3:]


@pytest.mark.engines
@pytest.mark.parametrize("name", ["ray-data", "spark", "ray-runs"])
def test_a_killed_process_costs_nothing(name):
    """A sample: `python -m tests.campaigns NAME` kills 20."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns", name, "--number", "2"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.engines
def test_a_cluster_that_there_is_not_is_said_at_once(tmp_path):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", ROWS)
    ran = run_process("encode", corpus, *runs.HASH, "-o", tmp_path / "o.parquet", "--engine", "ray://127.0.0.1:9")  # fmt: skip
    assert ran.code == 78
    assert "no Ray cluster can be reached" in ran.err
    assert "ray start --head" in ran.err


@pytest.mark.engines
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_keeps_what_is_finished(tmp_path, number):
    """Planning, connecting, waiting for actors, encoding."""
    corpus, output = tmp_path / "c.jsonl", tmp_path / "o.parquet"
    write_long_corpus(corpus)
    whole = runs.bytes_of_a_run(corpus)
    arguments = ["encode", corpus, *runs.HASH, "-o", output]
    for seconds in (2, 5, 8, 11):
        process = start(*arguments, "--engine", "ray", env=ENVIRONMENT)
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        # SIGTERM in the second in which Ray's C++ starts is Ray's: it aborts the process.
        aborted = {-signal.SIGABRT} if number == signal.SIGTERM else set()
        assert process.returncode in {128 + number, 0} | aborted, err
    assert run_process(*arguments).code == 0
    assert output.read_bytes() == whole


@pytest.mark.engines
def test_a_text_that_kills_actors_is_found_and_rejected(tmp_path):
    corpus = tmp_path / "c.jsonl"
    runs.poisoned(tmp_path)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    texts = [f"text {i}" + " POISON" * (i == 7_777) for i in range(10_000)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = ["encode", corpus, *runs.HASH, "-o", tmp_path / "o", "--engine", "ray"]
    ran = run_process(*arguments, env=environment)
    assert (ran.code, f"{corpus}:7778: it ends the process" in ran.err) == (65, True), ran.err
    ran = run_process(*arguments, "--on-error", "reject", env=environment)
    assert ran.code == 3, ran.err
    assert len(runs.table(tmp_path / "o")) == 9_999


def test_without_ray_the_extra_is_named(cli, tmp_path, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("embedcli.run.ray_engine.metadata.version", version)
    corpus = runs.write_corpus(tmp_path / "c.jsonl", ROWS)
    ran = cli("encode", corpus, *runs.HASH, "-o", tmp_path / "o.parquet", "--engine", "ray")
    assert (ran.code, "embedcli[ray]" in ran.err) == (78, True)
    assert os.listdir(tmp_path) == ["c.jsonl"]
    assert cli("encode", corpus, *runs.HASH, "--engine", "dask").code == 2
    assert cli("encode", corpus, *runs.HASH, "--engine", "ray", "--join").code == 2


@given(st.lists(st.integers(0, 64), min_size=1, max_size=6), st.integers(1, 12) | st.none())
def test_actors_fit_on_the_nodes_and_use_their_cores(nodes, wanted):
    count, cores = ray_engine.share_cores(nodes, wanted)
    room = sum(size // cores for size in nodes)
    assert cores >= 1
    assert count == (wanted or max(1, room))
    if wanted is not None and sum(nodes) >= wanted:
        assert room >= wanted
        assert sum(size // (cores + 1) for size in nodes) < wanted
