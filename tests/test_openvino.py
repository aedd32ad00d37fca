"""OpenVINO's graphs: the same vectors as torch, by a conversion that is kept and never believed blindly.

Needs the extra `openvino`, which .ci/run installs for `pytest -m openvino`.
"""

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from embedcli import encoder, machine, processes, templates
from embedcli.config import RunOptions
from embedcli.encoder import conversion, environment
from embedcli.errors import ConfigurationError, DeviceError
from embedcli.models import hub
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from embedcli.records import Rendered
from tests import families, runs, tiny
from tests.conftest import REPOSITORY

environment.prepare()  # before openvino is imported
pytest.importorskip("openvino")
from embedcli.encoder import tracing  # noqa: E402 - it imports openvino

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
    model = encoder.load(spec, by_itself)
    assert model.computation.backend == "torch"
    assert "OpenVINO can't run it" in model.note
    # What stands in the output says nothing of this machine's folders.
    assert model.computation.reason.endswith("float32 by openvino")


def test_bfloat16_is_accurate_with_a_real_model():
    if not machine.cpu().has_bfloat16:
        pytest.skip("this CPU has no bfloat16")
    spec, template = families.spec_of("all-minilm", hub.find(None).path)
    short = RunOptions(device="cpu", dtype="bfloat16", backend="openvino")
    assert_same(encoded(spec, template, short), encoded(spec, template, TORCH), least=0.9998)


def test_roles_with_weights_of_their_own_are_converted_apart(tmp_path):
    """jina-embeddings-v3: one space, an adapter for each role."""
    build = families.CASES["jina-v3"].build
    files, family = (
        hub.find(str(build(tmp_path / "m"))),
        families.families.find_family([], "jina-v3"),
    )
    request = ModelRequest(max_length=tiny.LENGTH)
    template = templates.parse("{text}", "query", "here")
    specs = [
        read_spec(files, family.facts, request, role, family.adapters)
        for role in ("query", "passage")
    ]
    assert conversion._folder(specs[0]) != conversion._folder(specs[1])
    vectors = []
    for spec in specs:
        by_torch = encoded(spec, template, TORCH)
        assert_same(encoded(spec, template, OPENVINO), by_torch)
        vectors.append(by_torch.vectors)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3  # else the test shows nothing


def test_the_dimension_asked_for_needs_no_conversion_of_its_own(bert):
    spec, _ = bert
    shorter = dataclasses.replace(spec, dim=spec.dim - 1, max_length=5)
    assert conversion._folder(shorter) == conversion._folder(spec)


def test_a_dtype_that_the_cpu_lacks_is_refused(bert, monkeypatch):
    made = conversion.Conversion(cosines={"float32": 1.0})
    monkeypatch.setattr(conversion, "_read_whole", lambda folder: made)
    with pytest.raises(ConfigurationError, match="bfloat16, which this CPU doesn't have"):
        encoder.load(bert[0], dataclasses.replace(OPENVINO, dtype="bfloat16"))


class Killing:
    """A pool whose process dies of a signal."""

    def __init__(self, number):
        self._number = number

    def __call__(self, count):
        self._pool = processes.pool(count)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._pool.shutdown()

    def submit(self, *call):
        submitted = self._pool.submit(signal.raise_signal, self._number)
        self._processes = self._pool._processes
        return submitted


@pytest.mark.parametrize(
    ("number", "words", "is_kept"),
    [(signal.SIGKILL, "it was killed", False), (signal.SIGFPE, "it dies of it", True)],
)
def test_what_says_nothing_of_the_model_is_not_kept(new_bert, monkeypatch, number, words, is_kept):
    monkeypatch.setattr(conversion, "pool", Killing(number))
    with pytest.raises(conversion.NotConvertedError, match=words):
        encoder.load(new_bert[0], OPENVINO)
    assert (conversion._read(conversion._folder(new_bert[0])) is not None) == is_kept


@pytest.mark.parametrize(("free", "is_kept"), [(0, False), (2**40, True)])
def test_a_full_disk_is_no_fault_of_the_model(bert, tmp_path, monkeypatch, free, is_kept):
    def fail(*arguments):
        raise RuntimeError("can't write")

    monkeypatch.setattr(tracing, "trace", fail)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    if is_kept:
        assert "can't write" in conversion._trace(bert[0], tmp_path, 1).problem
    else:
        with pytest.raises(OSError, match="No space left"):
            conversion._trace(bert[0], tmp_path, 1)


def test_a_moved_conversion_is_not_believed(bert, cache):
    spec, template = bert
    encoded(spec, template, OPENVINO)
    folder = conversion._folder(spec)
    moved = folder.with_name("0" * 32)
    shutil.copytree(folder, moved)
    moved.chmod(0o700)
    assert conversion._read(folder) is not None
    assert conversion._read(moved) is None


def test_nothing_is_told_to_openvinos_makers(tmp_path):
    """By itself it writes a number for each user, and sends it, whenever it is imported."""
    script = (
        "from embedcli.encoder import environment\nenvironment.prepare()\n"
        "from embedcli.encoder import tracing\nimport openvino\n"
        "assert openvino.convert_model"
    )
    hidden = {"CI", "HOME", "PYTHONPATH"}
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    variables |= {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], check=True, env=variables)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "kind"),
    [("Failed to allocate 5 bytes", DeviceError), ("no such op", conversion.NotConvertedError)],
)
def test_errors_of_openvino_are_foreseen(bert, monkeypatch, words, kind):
    model = encoder.load(bert[0], OPENVINO)

    def fail(*arguments):
        raise RuntimeError(words)

    monkeypatch.setattr(model._graph, "_queue", SimpleNamespace(set_callback=id, start_async=fail))
    with pytest.raises(kind, match=words):
        model.encode(model.prepare(Rendered(["a"], [0], [1])), lambda rows, tokens: None)


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
        "import atexit, sys\nfrom embedcli.cli import main\n"
        "libraries = lambda: sorted({'torch', 'transformers'} & set(sys.modules))\n"
        "atexit.register(lambda: print(libraries(), flush=True))\nmain()"
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
