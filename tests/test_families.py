"""Every family right: its strings, and its vectors on a tiny random model of the real class.

With random weights a missing end token, an instruction that is pooled, or a causal mask changes the
vector; that each of these would be noticed is tested too, by taking the fact away.
"""

import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedcli import templates
from embedcli.models import families as shipped
from tests import families

RENDERED = tomllib.loads((Path(__file__).parent / "rendered.toml").read_text())


@pytest.mark.parametrize("model", RENDERED)
def test_verified_models_are_rendered_byte_for_byte(model):
    family = shipped.find_family([model])
    assert family is not None
    assert not family.unsure
    for role, wanted in RENDERED[model].items():
        task = "T" if family.task is None and "{task}" in family.roles[role] else None
        template = shipped.choose_template(model, role, task, family=family)
        names = {name: ["{title}"] for name in template.fields}
        rendered, faults = templates.render(template, ["T"], names)
        assert (rendered.strings, faults) == ([wanted], {}), role


def test_every_newline_of_a_template_is_a_line_feed():
    for family in shipped.families():
        for string in family.roles.values():
            assert "\\" not in string
            assert not set(string) & {"\r", "\u2028", "\u0085", "\t"}


def test_no_model_stands_in_two_families():
    models = [model for family in shipped.families() for model in family.models]
    assert len(models) == len(set(models))
    assert all(family.source for family in shipped.families())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family's folder, built when first asked for."""
    root, built = tmp_path_factory.mktemp("families"), {}

    def folder(name):
        if name not in built:
            built[name] = families.CASES[name].build(root / name)
        return built[name]

    return folder


# Attention with a bias of positions (MPNet, T5) or a cap on its scores (Gemma 2) is the class's own affair.
PADDED = {"all-mpnet", "multi-qa-mpnet-dot", "bge-gemma2", "instructor"}


@pytest.mark.parametrize("name", families.CASES)
def test_vectors_are_those_of_the_reference(name, folders):
    cosine, difference, found = families.parity(name, folders(name))
    assert cosine >= 0.99999
    assert difference <= 1e-5
    assert (found.packing is None) == (name in PADDED)
    # GritLM pools nothing of an empty text: the reference gives no vector either
    assert list(found.encoded.failed) == ([0] if name == "gritlm" else [])


# family -> first and last token id of a text: <s> 0, [CLS] 2, [SEP] 3, </s> 2, <|endoftext|> 4, <eos> 6, <bos> 7
ENDS = {
    "e5": (2, 3), "bge-en": (2, 3), "multilingual-e5": (0, 2), "e5-mistral": (0, 2), "sfr": (0, 2), "bge-icl": (0, 2),
    "gte-qwen2": (None, 4), "qwen3-embedding": (None, 4), "bge-gemma2": (7, 6), "nv-embed": (0, 2), "gritlm": (0, None),
    "instructor": (None, 2), "embeddinggemma": (7, 6), "nomic-v1.5": (0, 2), "jina-v3": (0, 2), "nemotron-8b": (0, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_first_and_last_token_of_a_text(name, folders):
    found = families.ours(name, folders(name), families.texts_of(families.CASES[name])[:5])
    first, last = ENDS[name]
    special = range(4, 8) if name not in ("e5", "bge-en") else range(5)
    assert found.first == first if first is not None else found.first not in special
    assert found.last == last if last is not None else found.last not in special


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("e5-mistral", {"end_token": None}),
        ("sfr", {"end_token": None}),
        ("bge-icl", {"end_token": None}),
        ("bge-gemma2", {"end_token": None}),
        ("gte-qwen2", {"end_token": None}),
        ("gte-qwen2", {"attention": None}),
        ("stella-1.5b", {"attention": None}),
        ("nemotron-8b", {"attention": None}),
        ("gritlm", {"attention": None}),
        ("gritlm", {"pooled": "all"}),
        ("instructor", {"pooled": "all"}),
        ("nv-embed", {"pooled": "text"}),
        ("nv-embed", {"pooled": "all"}),
        ("nv-embed", {"attention": None}),
        ("nomic-v1.5", {"layer_norm": None}),
        ("bge-en", {"pooling": "mean"}),
    ],
)
def test_taking_a_fact_away_is_noticed(name, fact, folders):
    case, texts = families.CASES[name], families.texts_of(families.CASES[name])
    found = families.ours(name, folders(name), texts, **fact)
    reference = families.reference_vectors(case, folders(name), found.template, texts)
    kept = [
        index
        for index in range(len(texts))
        if index not in found.encoded.failed and reference[index].any()
    ]
    # by far more than the 1e-5 that the test above allows
    assert np.abs(found.encoded.vectors[kept] - reference[kept]).max() > 1e-4


@pytest.mark.parametrize("name", families.CASES)
def test_one_by_one_is_the_same_as_batched(name, folders):
    texts = families.texts_of(families.CASES[name])[3:6]
    batched = families.ours(name, folders(name), texts * 2).encoded.vectors
    for index, text in enumerate(texts):
        alone = families.ours(name, folders(name), [text] * 5).encoded.vectors[0]
        assert np.abs(alone - batched[index]).max() <= 1e-5 * max(1.0, np.abs(alone).max())


@pytest.mark.parametrize(
    "name", ["e5-mistral", "sfr", "gte-qwen2", "gritlm", "nv-embed", "qwen3-embedding"]
)
def test_left_padded_is_the_same_as_right_padded_where_positions_are_relative(
    name, folders, monkeypatch
):
    from embedcli.encoder.tokenizer import Tokenizer

    found = {}
    for side in (True, False):
        real = Tokenizer.__init__

        def init(self, *arguments, _real=real, _side=side, **options):
            _real(self, *arguments, **options)
            self.pads_left = _side

        with monkeypatch.context() as patch:
            patch.setattr(Tokenizer, "__init__", init)
            found[side] = families.ours(
                name, folders(name), families.texts_of(families.CASES[name])
            ).encoded.vectors
    assert np.abs(found[True] - found[False]).max() <= 1e-5


def test_stella_has_a_layer_for_each_dimension(folders):
    case = families.CASES["stella-1.5b"]
    default = families.ours("stella-1.5b", folders("stella-1.5b"), families.TEXTS).encoded.vectors
    other = families.ours(
        "stella-1.5b", folders("stella-1.5b"), families.TEXTS, dim=12
    ).encoded.vectors
    assert (default.shape[1], other.shape[1]) == (24, 12)
    assert np.abs(families.normalized(default[:, :12]) - other).max() > 0.1, (
        "a layer of its own, not a cut"
    )
    assert case.config == {"is_causal": False}


def test_jina_v3_roles_have_adapters_of_their_own(folders, monkeypatch):
    from dataclasses import replace

    query = families.ours("jina-v3", folders("jina-v3"), families.TEXTS).encoded.vectors
    monkeypatch.setitem(
        families.CASES, "jina-v3", replace(families.CASES["jina-v3"], role="passage")
    )
    passage = families.ours("jina-v3", folders("jina-v3"), families.TEXTS).encoded.vectors
    assert (query * passage).sum(axis=1).max() < 0.999


@pytest.mark.parametrize(
    "name", ["e5", "gte-qwen2", "nv-embed", "instructor", "jina-v3", "embeddinggemma"]
)
def test_encode_writes_what_the_library_gives(name, folders, cli, tmp_path):
    import json

    case = families.CASES[name]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in families.TEXTS)
    )
    arguments = [
        "--model",
        folders(name),
        "--template",
        name,
        "--max-length",
        160,
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    ran = cli("encode", tmp_path / "a.jsonl", "--role", case.role, *arguments)
    assert ran.code == 0, ran.err
    written = np.array(pq.read_table(ran.lines[-1])["embedding"].to_pylist(), np.float32)
    assert np.array_equal(
        written, families.ours(name, folders(name), families.TEXTS).encoded.vectors
    )
