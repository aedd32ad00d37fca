"""The right vector: equal to sentence-transformers' for the same model, prompt and texts, in float32."""

import json

import numpy as np
import pytest
import sentence_transformers
import torch

from embedcli import encoder, templates
from embedcli.config import RunOptions
from embedcli.models import families, hub
from embedcli.models.facts import FamilyFacts
from embedcli.models.request import ModelRequest
from embedcli.models.spec import read_spec
from tests import tiny
from tests.conftest import SAMPLE

TEXTS = [
    *tiny.ODD_TEXTS,
    "because the moon pulls the water " * 20,
    "Приливы и отливы 🌊🌙 👩‍👩‍👧",
    "x" * 500,
    *(f"text number {index} " + "word " * (index % 50) for index in range(52)),
]


def ours(path_or_none, texts=TEXTS, option="{text}", **wishes):
    files = hub.find(None if path_or_none is None else str(path_or_none))
    template = families.choose_template(files.id, "query", option=option)
    read = read_spec(files, FamilyFacts(), ModelRequest(**wishes))
    model = encoder.load(read, RunOptions(device="cpu", dtype="float32"))
    rendered, _ = templates.render(template, texts, {})
    return model.encode(model.prepare(rendered), lambda rows, tokens: None)


def theirs(path, texts=TEXTS, prompt=None, **options):
    model = sentence_transformers.SentenceTransformer(
        str(path), device="cpu", local_files_only=True
    )
    return model.encode(
        texts, prompt=prompt, convert_to_numpy=True, show_progress_bar=False, **options
    )


def assert_equal(left, right, normalized=True):
    assert left.dtype == np.float32
    assert left.shape == right.shape
    if not normalized:
        scale = np.linalg.norm(right, axis=1, keepdims=True)
        left, right = left / scale, right / scale
    assert np.abs(left - right).max() <= 1e-5
    assert (left * right).sum(axis=1).min() >= 0.99999


@pytest.fixture(scope="module")
def minilm():
    return hub.find(None).path


@pytest.mark.parametrize("generation", [5, 6])
@pytest.mark.parametrize("pooling", [*tiny.POOLING_FLAGS, ("cls", "mean")], ids=str)
def test_every_pooling_in_both_generations_of_layout(tmp_path, pooling, generation):
    path = tiny.bert(tmp_path / "m", pooling, generation=generation)
    assert_equal(ours(path).vectors, theirs(path))


@pytest.mark.parametrize(
    "activation", ["torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"]
)
def test_dense_layers(tmp_path, activation):
    path = tiny.bert(
        tmp_path / "m", dense=[(24, activation), (16, "torch.nn.modules.linear.Identity")]
    )
    assert_equal(ours(path).vectors, theirs(path))


def test_without_normalization(tmp_path):
    path = tiny.bert(tmp_path / "m", normalize=False)
    assert_equal(ours(path, normalize=False).vectors, theirs(path), normalized=False)


def test_fewer_dimensions_are_cut_then_normalized(tiny_bert):
    assert_equal(
        ours(tiny_bert, dim=8).vectors, theirs(tiny_bert, truncate_dim=8, normalize_embeddings=True)
    )


def test_prompts(tiny_bert):
    assert_equal(
        ours(tiny_bert, option="query: {text}").vectors, theirs(tiny_bert, prompt="query: ")
    )


def test_lower_casing_that_the_model_asks_for(tmp_path):
    path = tiny.bert(tmp_path / "m")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    tiny.write_json(path / "tokenizer.json", tokenizer)
    tiny.write_json(
        path / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": True}
    )
    assert_equal(ours(path).vectors, theirs(path))


def test_one_by_one_is_the_same_as_batched(tiny_bert):
    batched = ours(tiny_bert).vectors
    single = np.concatenate([ours(tiny_bert, [text]).vectors for text in TEXTS[:12]])
    assert_equal(batched[:12], single)


def test_minilm_on_the_whole_sample_corpus_with_two_empty_texts(minilm):
    texts = [
        json.loads(line)["text"] for line in (SAMPLE / "corpus.jsonl").read_text().splitlines()
    ]
    texts[7], texts[100] = "", "   "
    assert_equal(ours(None, texts).vectors, theirs(minilm, texts))


def test_minilm_on_odd_texts_and_their_lengths(minilm):
    encoded = ours(None)
    assert_equal(encoded.vectors, theirs(minilm))
    import transformers

    own = transformers.AutoTokenizer.from_pretrained(minilm)
    lengths = [len(ids) for ids in own(TEXTS)["input_ids"]]
    assert encoded.tokens.tolist() == [min(length, 256) for length in lengths]
    assert encoded.truncated.tolist() == [length > 256 for length in lengths]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shorter_formats_are_close_and_normalized(dtype, tiny_bert):
    files = hub.find(str(tiny_bert))
    model = encoder.load(
        read_spec(files, FamilyFacts(), ModelRequest()), RunOptions(device="cpu", dtype=dtype)
    )
    rendered, _ = templates.render(templates.parse("{text}", "query", "test"), TEXTS, {})
    vectors = model.encode(model.prepare(rendered), lambda rows, tokens: None).vectors
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert (vectors * ours(tiny_bert).vectors).sum(axis=1).min() > 0.999


def test_rows_without_a_finite_vector_are_tried_again_in_float32(tiny_bert, monkeypatch):
    from embedcli.encoder import forward

    real = forward.embed

    def overflowing(modules, tokens, rows):
        vectors, lengths = real(modules, tokens, rows), torch.from_numpy(tokens.lengths[rows])
        if modules.dtype == torch.bfloat16:
            vectors[lengths > 40] = float("inf")
        vectors[lengths == 2] = float("nan")  # the blank texts, whatever is tried
        return vectors

    monkeypatch.setattr(forward, "embed", overflowing)
    files = hub.find(str(tiny_bert))
    model = encoder.load(
        read_spec(files, FamilyFacts(), ModelRequest()), RunOptions(device="cpu", dtype="bfloat16")
    )
    rendered, _ = templates.render(templates.parse("{text}", "query", "test"), TEXTS, {})
    encoded = model.encode(model.prepare(rendered), lambda rows, tokens: None)
    blank = [index for index, count in enumerate(encoded.tokens) if count == 2]
    assert sorted(encoded.failed) == blank != []
    assert np.isfinite(encoded.vectors).all()
    rest = np.delete(encoded.vectors, blank, axis=0)
    assert np.abs(np.linalg.norm(rest, axis=1) - 1).max() < 1e-5
