"""OpenVINO's graphs: the same vectors as torch, by a conversion that is kept and never believed blindly.

Needs the extra `openvino`, which .ci/run installs for `pytest -m openvino`.
"""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from embedcli import encoder, machine, templates
from embedcli.config import RunOptions
from embedcli.encoder import conversion
from embedcli.errors import ConfigurationError
from embedcli.models import hub
from tests import families, runs, tiny

pytest.importorskip("openvino")
pytestmark = pytest.mark.openvino

# transformers makes their masks in a way that torch can't trace.
NOT_CONVERTED = {"embeddinggemma"}
TWINS = {
    "multilingual-e5-instruct",
    "bge-en",
    "bge-m3",
    "multi-qa-mpnet-dot",
    "sfr",
    "bge-icl",
    "gritlm",
}
OPENVINO = RunOptions(device="cpu", dtype="float32", backend="openvino")
TORCH = RunOptions(device="cpu", dtype="float32", backend="torch")
TEXTS = families.TEXTS
SEEDS = itertools.count(1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model that the tests share; it is converted once."""
    return spec_of_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def new_bert(tmp_path):
    """A model of its own, not converted yet."""
    return spec_of_bert(tmp_path / "bert", seed=next(SEEDS))


def spec_of_bert(path, **layout):
    return families.spec_of("e5", tiny.bert(path, positions=tiny.LENGTH, **layout))


def encoded(spec, template, options, texts=TEXTS):
    rendered, _ = templates.render(template, texts, {})
    model = encoder.load(spec, options)
    return model.encode(model.prepare(rendered), lambda rows, tokens: None)


def folders_of(cache):
    return [path for path in (cache / "embedcli" / "openvino").iterdir() if path.is_dir()]


def assert_same(first, second, least=0.99999):
    assert first.failed.keys() == second.failed.keys()
    kept = [row for row in range(len(first.vectors)) if row not in first.failed]
    left, right = (each.vectors[kept].astype(np.float64) for each in (first, second))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    assert ((left * right).sum(axis=1) / norms).min() >= least


@pytest.mark.parametrize("name", families.CASES)
def test_every_architecture_gives_torchs_vectors_or_is_refused(tmp_path, name, full):
    if name in TWINS and not full:
        pytest.skip("an architecture that another family stands for")
    case = families.CASES[name]
    spec, template = families.spec_of(name, case.build(tmp_path / "m"))
    texts = families.texts_of(case)
    if name in NOT_CONVERTED:
        with pytest.raises(ConfigurationError, match="OpenVINO can't run it"):
            encoder.load(spec, OPENVINO)
        return
    assert_same(encoded(spec, template, OPENVINO, texts), encoded(spec, template, TORCH, texts))


def test_what_can_not_be_converted_is_found_out_once_and_run_by_torch(tmp_path, monkeypatch):
    # Its own choice would be OpenVINO.
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("GenuineIntel", frozenset({"avx2"})))
    build = families.CASES["embeddinggemma"].build
    spec, _ = families.spec_of("embeddinggemma", build(tmp_path / "m"))
    monkeypatch.setattr(encoder.choice, "_CONVERTED", {spec.model_type})
    with pytest.raises(ConfigurationError):
        encoder.load(spec, OPENVINO)
    monkeypatch.setattr(conversion, "_convert", None)  # isn't asked again
    by_itself = RunOptions(device="cpu", expected_tokens=10_000_000)
    computation = encoder.load(spec, by_itself).computation
    assert computation.backend == "torch"
    assert "OpenVINO can't run it" in computation.reason


def test_bfloat16_is_accurate_with_a_real_model():
    if not machine.cpu().has_bfloat16:
        pytest.skip("this CPU has no bfloat16")
    spec, template = families.spec_of("all-minilm", hub.find(None).path)
    short = RunOptions(device="cpu", dtype="bfloat16", backend="openvino")
    assert_same(encoded(spec, template, short), encoded(spec, template, TORCH), least=0.9998)


def test_a_conversion_is_made_once(new_bert, monkeypatch):
    spec, template = new_bert
    first = encoded(spec, template, OPENVINO)
    monkeypatch.setattr(conversion, "_convert", None)
    assert np.array_equal(first.vectors, encoded(spec, template, OPENVINO).vectors)


def test_a_damaged_conversion_is_made_again(bert):
    spec, template = bert
    expected = encoded(spec, template, OPENVINO)
    folder = conversion._folder(spec)
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        half = len(content) // 2
        flipped = bytes([*content[:half], content[half] ^ 1, *content[half + 1 :]])
        for damaged in (flipped, content[:half], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            assert conversion._read_whole(folder) is None, path
            path.write_bytes(content)
        assert conversion._read_whole(folder) is not None
    (folder / "graph.bin").write_bytes(b"\0" * (folder / "graph.bin").stat().st_size)
    assert_same(expected, encoded(spec, template, OPENVINO))
    assert conversion._read_whole(folder) is not None


def test_a_folder_that_others_may_write_is_not_believed(new_bert):
    spec, template = new_bert
    encoded(spec, template, OPENVINO)
    folder = conversion._folder(spec)
    folder.chmod(0o777)
    assert not conversion.is_ready(spec)
    encoded(spec, template, OPENVINO)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_conversion_left_is_removed(new_bert, cache):
    spec, template = new_bert
    leftover = conversion._folder(spec)
    leftover = leftover.with_name(f"{leftover.name}.unfinished-abc")
    leftover.mkdir(parents=True)
    encoded(spec, template, OPENVINO)
    assert not leftover.exists()


def test_where_nothing_can_be_kept_it_is_said(bert, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(ConfigurationError, match="can't be kept") as raised:
        encoder.load(bert[0], OPENVINO)
    assert "XDG_CACHE_HOME" in raised.value.hint


def test_rows_without_a_finite_vector_are_tried_again_in_float32(bert, monkeypatch):
    spec, template = bert
    rendered, _ = templates.render(template, ["the sea", "bread", "salt"], {})
    model = encoder.load(spec, OPENVINO)
    expected = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    run = model._graph.run

    def spoiled(batches):
        for rows, vectors in run(batches):
            vectors[rows == 1] = np.nan
            yield rows, vectors

    monkeypatch.setattr(model._graph, "run", spoiled)
    repaired = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    assert not repaired.failed
    np.testing.assert_allclose(repaired.vectors, expected.vectors, atol=1e-6)


def test_once_converted_no_torch_is_imported(tmp_path, new_bert):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 20)
    model = new_bert[0].folder
    options = [
        "--role",
        "passage",
        "--template",
        "{text}",
        "--model",
        str(model),
        "--backend",
        "openvino",
        "--quiet",
    ]
    script = (
        "import sys\nfrom embedcli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )  # fmt: skip
    for expected in (None, b"[]"):  # the first one converts, in another process
        output = tmp_path / f"{expected}.parquet"
        command = [sys.executable, "-c", script, "encode", str(corpus), *options, "-o", str(output)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(b"[]")
    assert (tmp_path / "None.parquet").read_bytes() == (tmp_path / "b'[]'.parquet").read_bytes()


def test_any_number_of_processes_gives_the_same_bytes_and_backends_stay(tmp_path, cli, bert):
    corpus = runs.write_corpus(tmp_path / "c.jsonl", 3000)
    options = ["--template", "{text}", "--model", bert[0].folder, "--quiet"]
    outputs = [tmp_path / f"{count}.parquet" for count in (1, 2)]
    for count, output in enumerate(outputs, 1):
        chosen = ["--backend", "openvino", "--num-processes", count]
        assert runs.encode(cli, corpus, output, *options, *chosen)[0].code == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    runs.write_corpus(corpus, 3100)
    for backend in ("openvino", "torch"):
        output = tmp_path / f"{backend}.parquet"
        for update in ([], ["--update"]):
            chosen = update or ["--backend", backend]
            assert runs.encode(cli, corpus, output, *options, *chosen)[0].code == 0
            runs.write_corpus(corpus, 3200)
        assert {made["backend"] for made in runs.made_of(output)["made"]} == {backend}
