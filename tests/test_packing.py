"""Packs and compiled code: the same vectors as one text at a time, and as little padding as there
can be.
"""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedcli import encoder, machine, templates
from embedcli.computation import Computation
from embedcli.config import RunOptions
from embedcli.encoder import choice, forward, packing
from embedcli.encoder.batching import length_groups, packs
from embedcli.errors import ConfigurationError
from embedcli.models import hub
from embedcli.models.facts import FamilyFacts
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from embedcli.recipe import Recipe, Space, TemplateSource
from embedcli.run import planning
from embedcli.store.provenance import ColumnProvenance
from embedcli.store.vector_file import VectorFile
from tests import tiny
from tests.conftest import SAMPLE, run_process

lengths = st.lists(st.integers(1, 300), max_size=200).map(
    lambda values: np.array(values, dtype=np.int32)
)
AMX = machine.Cpu("GenuineIntel", frozenset({"amx_bf16", "avx512_bf16"}), 0x20)
PLAIN = ("--dtype", "float32", "--compile", "off")
TEXTS = [
    *tiny.ODD_TEXTS,
    *(f"text number {index} " + "word " * (index % 40) for index in range(60)),
]


@given(lengths, st.integers(1, 2000))
def test_every_text_is_in_one_pack_and_packs_keep_the_budget(lengths, budget):
    found = list(packs(lengths, budget))
    assert sorted(np.concatenate([*found, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    for pack in found:
        assert len(pack) == 1 or lengths[pack].sum() <= budget
        assert (np.diff(lengths[pack]) <= 0).all()


@given(lengths, st.integers(1, 2000))
def test_what_a_pack_leaves_free_is_too_small_for_any_text_that_is_left(lengths, budget):
    found = list(packs(lengths, budget))
    for at, pack in enumerate(found):
        left = np.concatenate([*found[at + 1 :], np.empty(0, int)]).astype(int)
        if len(left) and len(pack) > 1:
            assert lengths[pack].sum() + lengths[left].min() > budget


@given(lengths)
def test_groups_are_the_runs_of_equal_lengths(lengths):
    assert [
        length for count, length in length_groups(lengths) for _ in range(count)
    ] == lengths.tolist()
    assert all(
        one[1] != other[1]
        for one, other in zip(length_groups(lengths), length_groups(lengths)[1:], strict=False)
    )


def load(path, **options):
    read = read_spec(hub.find(str(path)), FamilyFacts(), ModelRequest())
    return encoder.load(read, RunOptions(**{"device": "cpu", "dtype": "float32", **options}))


def encode(model, texts=TEXTS):
    rendered, _ = templates.render(templates.parse("{text}", "query", "test"), texts, {})
    return model.encode(model.prepare(rendered), lambda rows, tokens: None)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_a_pack_gives_what_each_text_gives_alone(batch_tokens, tiny_bert):
    model = load(tiny_bert, batch_tokens=batch_tokens)
    packed = encode(model)
    alone = np.concatenate([encode(model, [text]).vectors for text in TEXTS])
    assert np.abs(packed.vectors - alone).max() <= 1e-6
    assert packed.padded == packed.tokens.sum()


def refuse(*arguments):
    raise packing.CannotPackError("its class has its own attention")


def test_a_model_that_cannot_run_packs_is_padded(tmp_path, monkeypatch, tiny_bert):
    packed = encode(load(tiny_bert))
    monkeypatch.setattr("embedcli.encoder.loading.find_packing", refuse)
    padded = encode(load(tiny_bert, batch_tokens=200))
    assert padded.padded > padded.tokens.sum()
    assert np.abs(packed.vectors - padded.vectors).max() <= 1e-6


def test_a_row_that_is_tried_again_in_float32_has_a_kernel_that_runs_float32(tiny_bert):
    model = load(tiny_bert, dtype="bfloat16")
    loaded = model._model
    again = replace(loaded, packing=replace(loaded.packing, kernel="varlen"))
    again = again.in_float32(torch.device("cpu"))
    assert (again.packing.kernel, again.dtype) == ("groups", torch.float32)
    exact = encode(load(tiny_bert)).vectors
    assert np.abs(encode(forward.TorchEncoder(again)).vectors - exact).max() <= 1e-2


@pytest.mark.heavy
@pytest.mark.skipif(not choice._has_compiler(), reason="needs a C++ compiler")
def test_compiled_code_gives_the_same_vectors(cli, tiny_bert, tmp_path):
    model, plain = load(tiny_bert, compile="on", batch_tokens=128), encode(load(tiny_bert))
    assert model.computation.compiled
    found = encode(model)
    assert np.abs(found.vectors - plain.vectors).max() <= 1e-5
    assert found.padded % 128 == 0
    assert np.array_equal(encode(model).vectors, found.vectors)


@pytest.mark.skipif(not choice._has_compiler(), reason="needs a C++ compiler")
def test_an_output_says_that_compiled_code_made_it(cli, tiny_bert, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"text": "one"}\n{"text": "two words"}\n')
    options = (
        "--role",
        "query",
        "--template",
        "{text}",
        "--model",
        tiny_bert,
        "--dtype",
        "float32",
    )
    for name, compile_it in (("with", "on"), ("without", "off")):
        ran = cli(
            "encode",
            corpus,
            *options,
            "--compile",
            compile_it,
            "--batch-tokens",
            128,
            "-o",
            tmp_path / name,
        )
        assert ran.code == 0, ran.err
        assert ("float32 by torch, compiled" in ran.err) is (compile_it == "on")
        assert VectorFile(str(tmp_path / name)).made.compiled is (compile_it == "on")
    one, other = (
        np.array(pq.read_table(tmp_path / name)["embedding"].to_pylist())
        for name in ("with", "without")
    )
    assert np.abs(one - other).max() <= 1e-6


def test_where_there_is_no_compiler_on_is_refused_and_auto_goes_without(tiny_bert, monkeypatch):
    monkeypatch.setattr(choice, "_has_compiler", lambda: True)
    monkeypatch.setattr(machine, "cpu", lambda: AMX)
    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: _Broken())
    with pytest.raises(ConfigurationError, match="can't be compiled: RuntimeError: no g") as raised:
        load(tiny_bert, compile="on")
    assert raised.value.hint == "--compile off"
    model = load(tiny_bert, compile="auto", dtype="auto", expected_tokens=10**9)
    assert (model.computation.compiled, len(encode(model).vectors)) == (False, len(TEXTS))


class _Broken(torch.nn.Linear):
    def __init__(self):
        super().__init__(1, 1)

    def forward(self, **inputs):
        raise RuntimeError("no g++")


def test_batch_tokens_is_auto_or_a_number(cli, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"text": "one"}\n')
    for value, code in (("auto", 0), ("512", 0), ("0", 2), ("many", 2)):
        ran = cli(
            "encode",
            corpus,
            "--role",
            "query",
            "--model",
            "hash:8",
            "--batch-tokens",
            value,
            "-o",
            tmp_path / "o",
        )
        assert ran.code == code, (value, ran.err)


@pytest.mark.heavy
@pytest.mark.skipif(not choice._has_compiler(), reason="needs a C++ compiler")
def test_compiled_minilm_gives_the_same_bytes_with_any_number_of_processes_and_nearly_float32s_vectors(
    tmp_path,
):
    found = {}
    for name, *options in (
        ("one", "--num-processes", 1),
        ("two", "--num-processes", 2),
        ("float32", *PLAIN),
    ):
        options = (
            options if name == "float32" else ("--dtype", "bfloat16", "--compile", "on", *options)
        )
        ran = run_process(
            "encode", SAMPLE / "corpus.jsonl", "--role", "passage", "-o", tmp_path / name, *options
        )
        assert ran.code == 0, ran.err
        found[name] = np.array(pq.read_table(tmp_path / name)["embedding"].to_pylist())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (found["one"] * found["float32"]).sum(axis=1).min() >= 0.9998


def test_an_update_on_a_machine_with_a_gpu_uses_it(monkeypatch):
    monkeypatch.setattr(machine, "may_have_cuda", lambda: True)
    recipe = Recipe(Space("m", "", "", "", "", (), 1, True), "query", "{text}", 8)
    computation = Computation("cpu", "float32", backend="openvino")
    made = ColumnProvenance(recipe, TemplateSource("option"), "float32", (computation,))
    assert planning.continue_as_before(RunOptions(), None, made).backend == "auto"
    for installed, backend in ((True, "openvino"), (False, "auto")):
        monkeypatch.setattr(planning.encoder, "has_openvino", lambda there=installed: there)
        on_cpu = planning.continue_as_before(RunOptions(device="cpu"), None, made)
        assert on_cpu.backend == backend


def test_an_interrupted_run_goes_on_compiled_or_not_as_it_began(tmp_path):
    recipe = Recipe(Space("m", "", "", "", "", (), 1, True), "query", "{text}", 8)
    for compiled, expected in ((True, "if-possible"), (False, "off")):
        made = ColumnProvenance(
            recipe, TemplateSource("option"), "float32", (Computation("cpu", "bfloat16", compiled),)
        )
        before = planning.continue_as_before(RunOptions(), made, None)
        assert before == RunOptions(backend="torch", dtype="bfloat16", compile=expected)
    updated = ColumnProvenance(
        recipe, TemplateSource("option"), "float32", (Computation("cpu", "float32", True),)
    )
    assert planning.continue_as_before(RunOptions(), None, updated) == RunOptions(
        backend="torch", dtype="float32"
    )
    assert planning.continue_as_before(RunOptions(dtype="float32"), None, None) == RunOptions(
        dtype="float32"
    )
