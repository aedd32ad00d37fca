"""`import embedcli`: the vectors of the command line, in Python."""

import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedcli
from embedcli.errors import ConfigurationError, DataError, UsageError
from embedcli.store.vector_file import VectorFile
from tests import runs, tiny
from tests.conftest import REPOSITORY

TEXTS = ["tides follow the moon", "bread", "", "salt of the sea"]
FOUR = ["embedding", "embedding_hash", "embedding_tokens", "embedding_truncated"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.bert(tmp_path_factory.mktemp("bert"), positions=tiny.LENGTH))


@pytest.fixture
def hashed():
    return embedcli.Encoder("hash:8", role="query", template="q: {text}")


def table_of(texts=TEXTS, **columns):
    return pa.table(
        {"id": list(range(len(texts))), "text": pa.array(texts, pa.string()), **columns}
    )


def test_the_public_names_are_there_and_nothing_is_loaded_for_them():
    assert set(embedcli.__all__) <= set(dir(embedcli))
    for name in embedcli.__all__:
        assert getattr(embedcli, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = embedcli.nothing
    script = "import sys, embedcli\nprint(len({'numpy', 'torch', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.strip() == b"0"


def test_vectors_are_float32_in_the_order_of_the_texts(hashed):
    vectors = hashed.encode(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 8))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    for row, text in enumerate(TEXTS):
        assert np.array_equal(hashed.encode([text])[0], vectors[row])
    assert hashed.encode([]).shape == (0, 8)


def test_the_role_chooses_the_template(bert):
    encoder = embedcli.Encoder(bert, role="query", template="e5", max_length=tiny.LENGTH)
    passage = embedcli.Encoder(bert, role="passage", template="e5", max_length=tiny.LENGTH)
    assert np.array_equal(encoder.encode(TEXTS, role="passage"), passage.encode(TEXTS))
    assert not np.array_equal(encoder.encode(TEXTS), passage.encode(TEXTS))
    assert encoder._loaded["query"] is passage._loaded["passage"]  # one model for both


@pytest.mark.parametrize("count", [50, 9000])
def test_tables_hold_what_the_command_line_writes_to_the_last_bit(cli, tmp_path, count):
    texts = [f"{index % 4000} {'word ' * (index % 90)}" for index in range(count)]
    table = table_of(texts)
    with (
        pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    options = ["--model", "hash:8", "--template", "q: {text}"]
    output = tmp_path / "o.parquet"
    assert runs.encode(cli, tmp_path / "c.arrow", output, *options)[0].code == 0
    written = pq.read_table(output)
    encoder = embedcli.Encoder("hash:8", role="passage", template="q: {text}")
    embedded = encoder.embed(table)
    assert embedded.equals(written)
    assert embedded.schema.equals(encoder.schema(table.schema))
    provenance = VectorFile(str(output)).provenance
    stored = embedcli.store.provenance.Provenance.from_bytes(embedded.schema.metadata[b"embedcli"])
    assert stored.columns == provenance.columns


def test_a_real_class_gives_the_bits_of_the_command_line(cli, tmp_path, bert):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 300)
    output = tmp_path / "o.parquet"
    options = ["--model", bert, "--template", "e5", "--max-length", tiny.LENGTH]
    assert runs.encode(cli, corpus, output, *options)[0].code == 0
    written = pq.read_table(output)
    encoder = embedcli.Encoder(bert, role="passage", template="e5", max_length=tiny.LENGTH)
    embedded = encoder.embed(written.drop_columns(FOUR))
    assert embedded.column("embedding").equals(written.column("embedding"))
    assert embedded.column("embedding_hash").equals(written.column("embedding_hash"))


def test_record_batches_give_record_batches(hashed):
    for texts in (TEXTS, []):
        batch = pa.RecordBatch.from_pydict({"text": pa.array(texts, pa.string())})
        embedded = hashed.embed(batch)
        assert isinstance(embedded, pa.RecordBatch)
        assert embedded.schema.names == ["text", *FOUR]
        for of_spark in hashed.embed_batches([batch, batch]):
            assert of_spark.to_pylist() == embedded.to_pylist()
            assert not any("fixed_size" in str(kind) for kind in of_spark.schema.types)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_texts_of_any_arrow_type(hashed, kind):
    table = pa.table({"text": pa.array(TEXTS).cast(kind)})
    expected = hashed.embed(pa.table({"text": TEXTS}))
    assert hashed.embed(table).equals(expected)


def test_columns_and_fields(hashed):
    encoder = embedcli.Encoder(
        "hash:8", role="query", template="{title}: {text}", columns=["id"],
        embedding_column="v", vector_type="float16", text_column="body",
    )  # fmt: skip
    table = pa.table({"id": [1], "title": ["sea"], "body": ["salt"]})
    embedded = encoder.embed(table)
    assert embedded.schema.names == ["id", "v", "v_hash", "v_tokens", "v_truncated"]
    assert embedded.schema.field("v").type == pa.list_(pa.float16(), 8)
    again = embedcli.Encoder("hash:8", role="query", template="{title}: {text}")
    vector = again.encode(["salt"], fields={"title": ["sea"]})
    assert np.array_equal(vector[0].astype(np.float16), embedded.column("v")[0].values.to_numpy())
    with pytest.raises(DataError, match="names 'title'"):
        again.encode(["salt"])


@pytest.mark.parametrize("texts", [["a", None, "b"], [None], [None, None]])
def test_rows_without_a_vector_raise_or_are_null_with_their_reason(hashed, texts):
    table = table_of(texts)
    with pytest.raises(DataError, match=f"row {texts.index(None)}: column 'text' is null") as error:
        hashed.embed(table)
    assert error.value.__notes__ == ['on_error="null" gives null in its place']
    lenient = embedcli.Encoder("hash:8", role="query", template="q: {text}", on_error="null")
    embedded = lenient.embed(table)
    assert embedded.schema.equals(lenient.schema(table.schema))
    assert embedded.column("id").to_pylist() == table.column("id").to_pylist()
    for name in FOUR:
        assert embedded.column(name).is_null().to_pylist() == [text is None for text in texts]
    reasons = embedded.column("embedding_error").to_pylist()
    assert reasons == [None if text else "column 'text' is null" for text in texts]
    good = [row for row, text in enumerate(texts) if text]
    expected = hashed.encode([texts[row] for row in good])
    stored = embedded.column("embedding").take(pa.array(good, pa.int64())).to_pylist()
    assert np.array_equal(np.array(stored, np.float32).reshape(-1, 8), expected)


def test_a_row_that_is_not_utf8_keeps_its_other_columns():
    bad = pa.array([b"good", b"\xff\xfe"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    table = pa.table({"id": [1, 2], "text": text})
    encoder = embedcli.Encoder("hash:8", role="query", template="{text}", on_error="null")
    embedded = encoder.embed(table)
    embedded.validate(full=True)
    assert embedded.column("id").to_pylist() == [1, 2]
    assert embedded.column("text").to_pylist() == ["good", None]
    assert embedded.column("embedding_error").to_pylist() == [None, "column 'text' is not UTF-8"]


def test_a_text_that_the_model_gives_no_vector_for(bert, monkeypatch):
    options = {"role": "query", "template": "{text}", "max_length": tiny.LENGTH}
    encoder = embedcli.Encoder(bert, **options)
    loaded = encoder._load(encoder._resolve(None)).model
    real = loaded.encode

    def spoiled(prepared, on_batch):
        encoded = real(prepared, on_batch)
        encoded.failed[0] = "it is no number"
        return encoded

    monkeypatch.setattr(loaded, "encode", spoiled)
    with pytest.raises(DataError, match="text 0: it is no number"):
        encoder.encode(["a", "b"])
    lenient = embedcli.Encoder(bert, on_error="null", **options)
    vectors = lenient.encode(["a", "b", "a"])
    assert np.isnan(vectors).all(axis=1).tolist() == [True, False, True]  # equal texts fail alike


def test_what_is_no_text_is_refused(hashed):
    with pytest.raises(TypeError, match="one string"):
        hashed.encode("a text")
    with pytest.raises(TypeError, match="NoneType"):
        hashed.encode(["a", None])
    with pytest.raises(TypeError, match="batch_format"):
        hashed.embed({"text": np.array(["a"])})
    with pytest.raises(DataError, match="no column 'body' for text_column"):
        hashed.embed(table_of(), "body")
    with pytest.raises(ConfigurationError, match="already has a column") as error:
        hashed.embed(table_of(embedding=[0] * 4))
    assert "embedding_column names ours" in error.value.__notes__[0]


def test_pickled_it_is_a_recipe(bert):
    encoder = embedcli.Encoder(bert, role="query", template="e5", max_length=tiny.LENGTH)
    vectors = encoder.encode(TEXTS)
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 10_000
    copy = pickle.loads(pickled)
    assert np.array_equal(copy.encode(TEXTS), vectors)
    assert len(pickle.dumps(copy)) < 10_000


@pytest.mark.torch
def test_a_copy_refuses_another_model(tmp_path):
    path = tmp_path / "m"
    tiny.bert(path, positions=tiny.LENGTH)
    encoder = embedcli.Encoder(str(path), role="query", template="e5", max_length=tiny.LENGTH)
    pickled = pickle.dumps(encoder)
    config = (path / "tokenizer_config.json").read_text()
    (path / "tokenizer_config.json").write_text(config.replace("{", '{"added": 1,', 1))
    with pytest.raises(ConfigurationError, match="another one: tokenizer is"):
        pickle.loads(pickled).encode(["a"])


def test_threads_share_an_encoder(bert):
    encoder = embedcli.Encoder(bert, role="query", template="e5", max_length=tiny.LENGTH)
    texts = [[f"{word} {index}" for word in tiny.WORDS] for index in range(8)]
    results = [None] * 8

    def encode(index):
        results[index] = encoder.encode(texts[index])

    threads = [threading.Thread(target=encode, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, vectors in enumerate(results):
        assert np.array_equal(vectors, encoder.encode(texts[index])), index


def test_a_forked_process_loads_its_own(bert):
    script = (
        "import os, sys, embedcli\n"
        f"encoder = embedcli.Encoder({bert!r}, role='query', template='e5', max_length={tiny.LENGTH})\n"
        "before = encoder.encode(['a b']).tobytes()\n"
        "if not os.fork():\n"
        "    os._exit(encoder.encode(['a b']).tobytes() != before)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, timeout=120)


@pytest.fixture
def index(cli, tmp_path, bert):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 40)
    output = tmp_path / "index.parquet"
    options = ["--model", bert, "--template", "e5", "--max-length", tiny.LENGTH]
    assert runs.encode(cli, corpus, output, *options)[0].code == 0
    return str(output)


def test_an_index_is_opened_and_searched(index, bert):
    vectors = embedcli.open(index)
    assert (len(vectors), vectors.dim, vectors.recipe.role) == (40, 32, "passage")
    table = pq.read_table(index)
    stored = np.stack(table.column("embedding").to_numpy())
    assert np.array_equal(vectors.array(), stored)
    assert vectors.table().column_names == vectors.columns
    text = table.column("text")[7].as_py()
    model = {"model": bert}
    encoder = vectors.encoder(**model)
    assert encoder.recipe.role == "query"
    queries = encoder.encode([text])
    by_vector = vectors.search(queries, k=3)
    assert [len(hits) for hits in by_vector] == [3]
    best = np.argsort(-(stored @ queries[0]), kind="stable")[:3].tolist()
    assert [hit.row for hit in by_vector[0]] == best
    with pytest.raises(ConfigurationError, match="dimensions"):
        vectors.search(np.zeros((1, 3)))
    # A file never names a path to open.
    with pytest.raises(ConfigurationError, match="which is not looked for"):
        vectors.search([text])


def test_an_encoder_like_a_file(index, bert):
    encoder = embedcli.Encoder.like(index, role="query", model=bert)
    direct = embedcli.Encoder(bert, role="query", template="e5", max_length=tiny.LENGTH)
    assert encoder.recipe.space == direct.recipe.space
    copy = pickle.loads(pickle.dumps(encoder))
    assert np.array_equal(copy.encode(TEXTS), encoder.encode(TEXTS))


def test_the_verb_gives_the_summary(cli, tmp_path):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 30)
    options = {"model": "hash:8", "template": "{text}"}
    summary = embedcli.encode(str(corpus), role="passage", **options)
    assert summary.counts.rows_out == 30
    assert summary.output == str(tmp_path / "c.passage.parquet")
    by_cli = tmp_path / "cli.parquet"
    assert (
        runs.encode(cli, corpus, by_cli, "--model", "hash:8", "--template", "{text}")[0].code == 0
    )
    assert (tmp_path / "c.passage.parquet").read_bytes() == by_cli.read_bytes()
    runs.write_corpus(corpus, 33)
    again = embedcli.encode(
        [corpus.as_posix()], role="passage", output=summary.output, update=True, **options
    )
    assert (again.counts.reused, again.counts.embedded) == (30, 3)
    hits = embedcli.search(summary.output, ["a"], k=2, role="passage")
    assert [hit.rank for hit in hits[0]] == [1, 2]
    with pytest.raises(ConfigurationError, match="given by hand"):  # which one would a query need?
        embedcli.search(summary.output, ["a"])


def test_errors_of_the_verb_speak_python(tmp_path):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 3)
    with pytest.raises(TypeError, match="did you mean overwrite"):
        embedcli.encode(str(corpus), role="passage", overwite=True)
    with pytest.raises(UsageError, match="update and fresh exclude"):
        embedcli.encode(str(corpus), role="passage", model="hash:8", update=True, fresh=True)
    with pytest.raises(UsageError, match="standard output"):
        embedcli.encode(str(corpus), role="passage", model="hash:8", output="-")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": 1}\n')
    with pytest.raises(DataError) as error:
        embedcli.encode(str(bad), role="passage", model="hash:8", template="{text}")
    assert "on_error reject" in error.value.__notes__[0]


def test_everything_of_an_option_is_an_option_of_the_command_line():
    import inspect

    from embedcli.api.verbs import EncodeOptions
    from embedcli.commands.encode import encode

    of_command = set(inspect.signature(encode).parameters)
    of_terminals = {
        *("inputs", "role", "output", "format", "dry_run", "wait", "retry"),
        *("report", "as_json", "log", "quiet"),
    }
    assert set(EncodeOptions.__annotations__) == of_command - of_terminals


SCRIPT = """
import numpy as np
import numpy.typing as npt
import pyarrow as pa

import embedcli

encoder = embedcli.Encoder("hash:8", role="query", on_error="null", template="{text}")
vectors: npt.NDArray[np.float32] = encoder.encode(["a"])
table: pa.Table = encoder.embed(pa.table({"text": ["a"]}))
recipe: embedcli.Recipe = encoder.recipe
try:
    summary: embedcli.Summary = embedcli.encode("c.jsonl", role="passage", update=True, dtype="float32")
    hits: list[list[embedcli.Hit]] = embedcli.open(summary.output).search(["a"], k=3)
    print(embedcli.search("x.parquet", ["a"])[0][0].score + 1.0, hits)
except embedcli.EmbedcliError as error:
    print(error.message)
embedcli.encode("c.jsonl", role="passage", dtype="floaty")
"""


@pytest.mark.heavy
def test_a_users_script_is_checked_by_its_types(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports", "script.py"]
    environment = {**os.environ, "MYPYPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    *lines, last = done.stdout.splitlines()
    assert last.startswith("Found 1 error"), done.stdout  # the last line of the script
    (error,) = [line for line in lines if "error:" in line]
    assert "floaty" in error
