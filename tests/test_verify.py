"""`embedcli verify`: whatever happened to a file is found, and a good file is good."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.analysis import verification
from embedcli.config import InputOptions
from embedcli.models.request import ModelRequest
from tests.conftest import SAMPLE

TEXTS = [f"text number {i}" for i in range(60)]


@pytest.fixture
def output(cli, tmp_path):
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS))
    )
    assert cli("encode", tmp_path / "c.jsonl", "--role", "passage", "--model", "hash:16").code == 0
    return tmp_path / "c.passage.parquet"


def verify(cli, path, *options):
    ran = cli("verify", path, "--json", *options)
    verdict = json.loads(ran.out)
    assert ran.code == (0 if verdict["good"] else 65), ran.err
    return verdict["good"], {check["name"]: check for check in verdict["checks"]}


def source(sample=0):
    return verification.VerifyOptions(ModelRequest(), None, InputOptions(), sample, None, "cpu")


def rewritten(path, table):
    """The file with other rows, as another program would write it."""
    target = path.with_name("changed.parquet")
    pq.write_table(table, target, write_page_checksum=True)
    return target


def with_vector(table, row, vector):
    vectors = table["embedding"].to_pylist()
    vectors[row] = vector
    at = table.column_names.index("embedding")
    return table.set_column(
        at, table.schema.field(at), pa.array(vectors, table.schema.field(at).type)
    )


def test_what_encode_wrote_is_good(cli, output, tmp_path):
    assert (
        cli(
            "encode",
            tmp_path / "c.jsonl",
            "--role",
            "passage",
            "--model",
            "hash:16",
            "-o",
            f"{tmp_path}/d/",
        ).code
        == 0
    )
    for path in (output, tmp_path / "d"):
        good, checks = verify(cli, path)
        assert good
        assert {name: check["good"] for name, check in checks.items()} == dict.fromkeys(
            ("seal", "vectors", "texts", "vectors again"), True
        )
        assert verify(cli, path, "--corpus", tmp_path / "c.jsonl")[0]


@pytest.mark.parametrize("directory", [False, True])
def test_every_flipped_bit_is_found(cli, output, tmp_path, directory):
    if directory:
        folder = tmp_path / "d"
        assert (
            cli(
                "encode",
                tmp_path / "c.jsonl",
                "--role",
                "passage",
                "--model",
                "hash:16",
                "-o",
                f"{folder}/",
            ).code
            == 0
        )
        files, path = sorted(folder.iterdir()), folder
    else:
        files, path = [output], output
    dice = random.Random(0)
    for _ in range(150):
        file = dice.choice(files)
        content = file.read_bytes()
        bit = dice.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        verdict = verification.verify(str(path), source())
        assert not verdict.good, (file.name, bit)
        file.write_bytes(content)
    assert verification.verify(str(path), source()).good


def test_a_file_cut_short_and_an_emptied_one_are_found(output):
    content = output.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        output.write_bytes(content[:size])
        assert not verification.verify(str(output), source()).good


def test_a_part_that_is_missing_or_another_is_found(cli, output, tmp_path):
    corpus = tmp_path / "big.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": i, "text": f"{i} " + "word " * 60}) + "\n" for i in range(5000))
    )
    folder = tmp_path / "d"
    assert (
        cli("encode", corpus, "--role", "passage", "--model", "hash:8", "-o", f"{folder}/").code
        == 0
    )
    parts = sorted(folder.glob("part-*"))
    assert len(parts) > 1
    parts[0].rename(tmp_path / "away")
    good, checks = verify(cli, folder, "--sample", "0")
    assert (good, checks["parts"]["good"]) == (False, False)
    shutil.copy(parts[1], parts[0])
    assert not verify(cli, folder, "--corpus", corpus, "--sample", "0")[0]


def test_one_replaced_text_one_zeroed_vector_and_one_of_another_model_are_found(
    cli, output, tmp_path
):
    table = pq.read_table(output)
    texts = table["text"].to_pylist()
    texts[17] = "another text"
    changed = rewritten(output, table.set_column(1, "text", pa.array(texts)))
    good, checks = verify(cli, changed)
    assert (good, checks["texts"]["rows"], checks["vectors again"]["good"]) == (False, [17], True)
    changed = rewritten(output, with_vector(table, 23, [0.0] * 16))
    good, checks = verify(cli, changed)
    assert (good, checks["vectors"]["rows"], checks["vectors again"]["rows"]) == (False, [23], [23])
    foreign = np.random.default_rng(0).normal(size=16)
    changed = rewritten(
        output, with_vector(table, 42, (foreign / np.linalg.norm(foreign)).tolist())
    )
    good, checks = verify(cli, changed, "--sample", "all")
    assert (good, checks["vectors"]["good"], checks["vectors again"]["rows"]) == (False, True, [42])
    changed = rewritten(output, with_vector(table, 5, None))
    assert verify(cli, changed)[1]["vectors"]["rows"] == [5]
    assert checks["seal"]["good"] is False


def test_what_is_stale_is_named(cli, output, tmp_path):
    now = tmp_path / "now.jsonl"
    rows = [{"text": text} for text in ["new", *TEXTS[1:], "newer"]]
    now.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, checks = verify(cli, output, "--corpus", now)
    assert not good
    assert checks["stale"]["rows"] == [0]
    assert "2 rows of" in checks["corpus"]["result"]
    assert checks["corpus"]["result"].endswith("row 0, 60")


def test_texts_that_are_not_carried_come_from_the_corpus(cli, tmp_path, output):
    bare = tmp_path / "bare.parquet"
    options = ("--role", "passage", "--model", "hash:16", "--columns", "id", "-o", bare)
    assert cli("encode", tmp_path / "c.jsonl", *options).code == 0
    good, checks = verify(cli, bare)
    assert (good, checks["texts"]["good"]) == (True, None)
    assert "--corpus" in checks["texts"]["result"]
    good, checks = verify(cli, bare, "--corpus", tmp_path / "c.jsonl")
    assert (good, checks["vectors again"]["good"]) == (True, True)


def test_a_sample_by_the_plainest_path_shows_what_half_precision_costs(cli, tmp_path, tiny_bert):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(
        "".join(json.dumps({"title": f"t{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    for dtype in ("float32", "bfloat16"):
        output = tmp_path / f"{dtype}.parquet"
        options = (
            "--role",
            "passage",
            "--model",
            tiny_bert,
            "--template",
            "{title}: {text}",
            "--dtype",
            dtype,
        )
        assert cli("encode", corpus, *options, "-o", output).code == 0
        good, checks = verify(cli, output, "--sample", "20", "--model", tiny_bert)
        assert good, checks
        assert checks["vectors again"]["result"].startswith("20 rows encoded again")
        strict = verify(
            cli, output, "--sample", "20", "--model", tiny_bert, "--least-cosine", "0.999999"
        )[0]
        assert strict is (dtype == "float32")


def test_an_empty_output_is_good_and_stale_once_the_corpus_is_not(cli, tmp_path, output):
    (tmp_path / "none.jsonl").write_text("")
    empty = tmp_path / "empty.parquet"
    options = ("--role", "passage", "--model", "hash:16", "-o", empty)
    assert cli("encode", tmp_path / "none.jsonl", *options, "--allow-empty").code == 0
    assert verify(cli, empty)[0]
    assert verify(cli, empty, "--corpus", tmp_path / "none.jsonl")[0]
    assert not verify(cli, empty, "--corpus", tmp_path / "c.jsonl")[0]
    assert not verify(cli, output, "--corpus", tmp_path / "none.jsonl")[0]
    assert json.loads(cli("compare", empty, output, "--json").out)["rows"]["in both"] == 0


def test_bad_input_is_named(cli, tmp_path, output):
    (tmp_path / "x").write_text("no vectors")
    for args, code in (
        ((tmp_path / "none",), 66),
        ((tmp_path / "x",), 65),
        ((output, "--sample", "many"), 2),
    ):
        ran = cli("verify", *args)
        assert ran.code == code, ran.err
        assert "Traceback" not in ran.err


@pytest.mark.torch
def test_the_embedded_models_vectors_are_what_it_gives(cli, tmp_path):
    output = tmp_path / "o.parquet"
    ran = cli(
        "encode", SAMPLE / "corpus.jsonl", "--role", "passage", "-o", output, "--dtype", "float32"
    )
    assert ran.code == 0, ran.err
    ran = cli("verify", output, "--sample", "20")
    assert ran.code == 0
    assert "least cosine 1.000000" in ran.out.decode()
    assert ran.lines[-1].split(maxsplit=2) == ["ok", "verdict", "the file is what it says"]
    output.write_bytes(output.read_bytes()[:-1])
    ran = cli("verify", output, "--sample", "0")
    assert (ran.code, ran.lines[-1].split()[:2]) == (65, ["BAD", "verdict"])
