"""A device whose memory doesn't suffice: batches are halved, order is kept, what fits alone is
encoded.
"""

import copy
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embedcli.encoder import forward, loading
from embedcli.encoder.model import LoadedModel

# What torch and its libraries say on a GPU, and on a CPU.
KINDS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory"),
    "cuda, taken by others": torch.AcceleratorError("CUDA error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    "cublas, first use": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "python": MemoryError(),
    "cpu": RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    ),
}


@pytest.fixture
def corpus(tmp_path):
    texts = [" ".join(["word"] * (1 + (7 * i) % 40)) + f" {i}" for i in range(60)]
    path = tmp_path / "c.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    )
    return path


@pytest.fixture
def memory(monkeypatch):
    """A device that holds so many tokens, padding included; gives the sizes of the batches that it
    computed.
    """

    def limit(tokens, error):
        real, sizes = forward.embed, []

        def embed(modules, texts, rows):
            size = modules.computed_tokens(texts, rows)
            if size > tokens:
                raise error
            sizes.append(size)
            return real(modules, texts, rows)

        monkeypatch.setattr(forward, "embed", embed)
        return sizes

    return limit


def encode(cli, tiny_bert, corpus, name, *options):
    options = (
        "--role",
        "query",
        "--template",
        "{text}",
        "--model",
        tiny_bert,
        "--dtype",
        "float32",
        *options,
    )
    return cli("encode", corpus, *options, "-o", corpus.parent / name)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_halved_until_they_fit(kind, cli, tiny_bert, corpus, memory):
    assert encode(cli, tiny_bert, corpus, "free").code == 0
    sizes = memory(200, KINDS[kind])
    ran = encode(cli, tiny_bert, corpus, "tight")
    assert ran.code == 0, ran.err
    free, tight = (pq.read_table(corpus.parent / name) for name in ("free", "tight"))
    assert tight["id"].to_pylist() == list(range(60))
    vectors = [np.array(one["embedding"].to_pylist()) for one in (free, tight)]
    assert np.abs(vectors[0] - vectors[1]).max() <= 1e-6
    assert max(sizes) <= 200
    assert max(sizes) > 50


def test_halving_ends_where_one_text_is_much_longer_than_the_others(cli, tiny_bert, corpus, memory):
    texts = ["word " * 40, *map(str, range(200))]
    corpus.write_text(
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
    )
    sizes = memory(100, KINDS["cpu"])
    ran = encode(cli, tiny_bert, corpus, "tight")
    assert ran.code == 0, ran.err
    assert 50 < max(sizes) <= 100
    assert pq.read_table(corpus.parent / "tight")["id"].to_pylist() == list(range(201))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_never_fits_is_rejected(kind, cli, tiny_bert, corpus, memory):
    memory(30, KINDS[kind])
    ran = encode(cli, tiny_bert, corpus, "tight", "--on-error", "reject")
    assert ran.code == 3, ran.err
    rejected = [
        json.loads(line)
        for line in (corpus.parent / "tight.rejects.jsonl").read_text().splitlines()
    ]
    assert all("don't fit into the device's memory" in one["reason"] for one in rejected)
    kept = pq.read_table(corpus.parent / "tight")
    assert sorted([*kept["id"].to_pylist(), *(one["line"] - 1 for one in rejected)]) == list(
        range(60)
    )
    assert max(kept["embedding_tokens"].to_pylist()) <= 30
    assert kept["id"].to_pylist() == sorted(kept["id"].to_pylist())
    ran = encode(cli, tiny_bert, corpus, "strict")
    assert (ran.code, f"{corpus}:" in ran.err) == (65, True)


def test_other_faults_of_the_device_are_not_swallowed(cli, tiny_bert, corpus, memory):
    memory(30, RuntimeError("CUDA error: device-side assert triggered"))
    ran = encode(cli, tiny_bert, corpus, "o")
    assert (ran.code, "the device failed: CUDA error: device-side assert" in ran.err) == (69, True)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_do_not_fit_beside_the_model_are_kept_by_the_cpu(
    kind, cli, tiny_bert, corpus, monkeypatch
):
    assert encode(cli, tiny_bert, corpus, "free").code == 0
    zeros, refused = torch.zeros, []

    def without_room(*arguments, **options):
        if "device" in options and not refused:
            refused.append(arguments)
            raise KINDS[kind]
        return zeros(*arguments, **options)

    monkeypatch.setattr(forward.torch, "zeros", without_room)
    ran = encode(cli, tiny_bert, corpus, "tight")
    assert (ran.code, len(refused)) == (0, 1), ran.err
    assert pq.read_table(corpus.parent / "free").equals(pq.read_table(corpus.parent / "tight"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_fit_is_69_and_says_what_helps(
    kind, cli, tiny_bert, corpus, monkeypatch
):
    def without_room(*arguments, **options):
        raise KINDS[kind]

    monkeypatch.setattr(loading.transformers.AutoModel, "from_pretrained", without_room)
    ran = encode(cli, tiny_bert, corpus, "o")
    assert ran.code == 69, ran.err
    assert "doesn't fit into the memory of cpu" in ran.err
    assert "--dtype bfloat16" in ran.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_repaired_on_the_cpu_where_its_device_has_no_room(
    kind, cli, tiny_bert, corpus, monkeypatch
):
    """The first model is in bfloat16, its copy in float32 doesn't fit; the CPU's does."""
    assert encode(cli, tiny_bert, corpus, "exact").code == 0
    embed, copies = forward.embed, LoadedModel.in_float32
    places = []

    def spoiled(model, tokens, rows):
        vectors = embed(model, tokens, rows)
        return vectors if model.dtype == torch.float32 else vectors * torch.nan

    def first_refused(model, device):
        places.append(str(device))
        if device.type == "meta":
            raise KINDS[kind]
        return copies(model, device)

    def elsewhere(encoder, tokens, rows):
        """As `_again`, on a device that isn't the CPU."""
        elsewhere_encoder = copy.copy(encoder)
        elsewhere_encoder._model = OnAnotherDevice(encoder._model)
        return again(elsewhere_encoder, tokens, rows)

    again = forward.TorchEncoder._again
    monkeypatch.setattr(forward, "embed", spoiled)
    monkeypatch.setattr(LoadedModel, "in_float32", first_refused)
    monkeypatch.setattr(forward.TorchEncoder, "_again", elsewhere)
    options = ["--dtype", "bfloat16", "--compile", "off"]
    ran = encode(cli, tiny_bert, corpus, "repaired", *options)
    assert ran.code == 0, ran.err
    assert places[:2] == ["meta", "cpu"]
    vectors = [
        np.array(pq.read_table(corpus.parent / name)["embedding"].to_pylist())
        for name in ("exact", "repaired")
    ]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() >= 0.999


class OnAnotherDevice:
    """A model that says it is on a device without room; the rest is its own."""

    def __init__(self, model):
        self._model, self.device = model, torch.device("meta")

    def in_float32(self, device):
        return self._model.in_float32(device)
