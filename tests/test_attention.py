"""The attention of packs: the kernel for texts of any length that a GPU runs, by a stand-in on a CPU
with its real signature; and what tells a right pack from a wrong one.
"""

import functools
import inspect

import pytest
import torch
import transformers
from torch.nn.attention import varlen

from embedcli.encoder import packing

SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
REAL = inspect.signature(varlen.varlen_attn)


def bert(**options):
    return transformers.BertModel(
        transformers.BertConfig(**SIZES, **options), add_pooling_layer=False
    )


def xlm_roberta(**options):
    config = transformers.XLMRobertaConfig(**SIZES, pad_token_id=1, **options)
    return transformers.XLMRobertaModel(config, add_pooling_layer=False)


def qwen3(**options):
    config = transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, pad_token_id=0, **options
    )
    return transformers.Qwen3Model(config)


def mistral(**options):
    config = transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, sliding_window=6, pad_token_id=0, **options
    )
    return transformers.MistralModel(config)


def modernbert(**options):
    special = dict.fromkeys(("bos", "eos", "cls", "sep"), 3)
    config = transformers.ModernBertConfig(
        **SIZES,
        local_attention=16,
        pad_token_id=0,
        **{f"{name}_token_id": number for name, number in special.items()},
        **options,
    )
    return transformers.ModernBertModel(config)


MODELS = {
    "bert": (bert, False, 0),
    "xlm-roberta": (xlm_roberta, False, 2),
    "qwen3": (qwen3, True, 0),
    "mistral": (mistral, True, 0),
    "modernbert": (modernbert, False, 0),
}


def model_of(make, dtype=torch.bfloat16, layers=4, scale=3.0, attention="sdpa"):
    torch.manual_seed(0)
    model = make(num_hidden_layers=layers, initializer_range=0.02 * scale)
    model.config.use_cache = False
    model.set_attn_implementation(attention)
    return model.to(dtype).eval()


def attend(query, key, value, edges, longest, scale, window_size, enable_gqa):
    """Texts one by one, as a GPU's kernel sees them, and rounded otherwise than torch does on a CPU."""
    assert edges.dtype == torch.int32
    assert edges[0] == 0
    assert edges[-1] == len(query)
    assert edges.diff().max() == longest
    assert query.stride(-1) == 1
    if enable_gqa:
        shared = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    assert query.shape == key.shape
    left, right = (side if side >= 0 else len(query) for side in window_size)
    out = torch.empty_like(query)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        q, k, v = (states[start:stop].transpose(0, 1) for states in (query, key, value))
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        seen = (distance <= left) & (-distance <= right)
        scores = (q.float() @ k.float().transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        out[start:stop] = (scores.softmax(-1).to(q.dtype) @ v).transpose(0, 1)
    return out


def stand_in(*arguments, **options):
    """torch's kernel on a CPU: takes what the real one takes, and nothing else."""
    bound = REAL.bind(*arguments, **options)
    bound.apply_defaults()
    given = bound.arguments
    assert given["cu_seq_q"] is given["cu_seq_k"]
    return attend(
        given["query"],
        given["key"],
        given["value"],
        given["cu_seq_q"],
        given["max_q"],
        given["scale"],
        given["window_size"],
        given.get("enable_gqa", True),  # torch 2.11 doesn't ask
    )


stand_in.__signature__ = REAL


def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """Stand for the kernel of torch 2.10, which has neither scale nor window."""
    raise AssertionError("not called")


def without_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """Stand for the kernel of torch 2.11, which takes shared heads without being told."""
    return attend(query, key, value, cu_seq_q, max_q, scale, window_size, enable_gqa=True)


@pytest.fixture
def gpu(monkeypatch):
    """A function that puts a kernel in the place of torch's, and makes a CPU run it."""

    def use(kernel):
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        monkeypatch.setattr(packing, "_runs_any_length", lambda device: True)
        packing._varlen_kernel.cache_clear()

    yield use
    packing._varlen_kernel.cache_clear()


@torch.inference_mode()
def found(model, pad_id=1):
    positions = getattr(model.config, "max_position_embeddings", None)
    return packing.find_packing(model, pad_id, positions, max_length=256)


def states_of(model, way, lengths, size=0):
    ids = packing._ids(lengths)
    return packing.packed_states(model, ids, [(1, length) for length in lengths], way, size)


@pytest.mark.parametrize("kernel", [stand_in, without_groups])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_the_kernel_for_any_length_is_found_and_gives_the_padded_states(gpu, name, kernel):
    make, causal, offset = MODELS[name]
    gpu(kernel)
    model = model_of(make)
    way = found(model)
    assert (way.kernel, way.causal, way.offset, way.reason) == ("varlen", causal, offset, "")
    lengths = [40, 17, 3, 3, 1]
    with packing.unpacked(model, way):
        padded = packing._padded_states(model, lengths)
    for size in (0, 80):  # compiled code runs packs that are filled up
        states = states_of(model, way, lengths, size).float()
        assert states.shape == padded.shape
        assert torch.linalg.vector_norm(states - padded) <= 0.05 * torch.linalg.vector_norm(padded)


def test_a_kernel_without_a_window_is_not_used_and_that_is_told(gpu):
    gpu(old)
    way = found(model_of(bert))
    assert way.kernel == "groups"
    assert "varlen_attn of torch" in way.reason
    assert "has no scale" in way.reason


def test_float32_has_no_kernel_for_any_length(gpu):
    gpu(stand_in)
    way = found(model_of(bert, torch.float32))
    assert (way.kernel, way.reason) == ("groups", "varlen: it takes half precision, not float32")


def test_a_kernel_that_fails_is_told_by_its_error(gpu):
    @functools.wraps(stand_in)
    def failing(*arguments, **options):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer")

    gpu(failing)
    way = found(model_of(bert))
    assert way.kernel == "groups"
    assert "only supports Ampere" in way.reason


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), torch.AcceleratorError("CUDA error: unspecified")]
)
def test_a_lost_device_is_no_reason_to_pad(gpu, error):
    @functools.wraps(stand_in)
    def failing(*arguments, **options):
        raise error

    gpu(failing)
    with pytest.raises(type(error)):
        found(model_of(bert))


@pytest.mark.parametrize(("layers", "scale"), [(28, 1), (28, 6), (48, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_the_rounding_of_another_kernel_passes_in_deep_models(gpu, name, layers, scale):
    make, causal, offset = MODELS[name]
    gpu(stand_in)
    way = found(model_of(make, layers=layers, scale=scale))
    assert (way.kernel, way.causal, way.offset) == ("varlen", causal, offset), way.reason


@pytest.mark.parametrize(
    ("dtype", "layers"),
    [(torch.float32, 4), (torch.float16, 28), (torch.bfloat16, 28), (torch.bfloat16, 48)],
)
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_wrong_causality_and_wrong_positions_are_refused(name, layers, dtype):
    make, causal, offset = MODELS[name]
    model = model_of(make, dtype, layers)
    own = model.config._attn_implementation
    model.set_attn_implementation(packing.ATTENTION)
    right = packing.Packing(causal, offset, own, "groups")
    lengths = list(packing._PROBE)
    assert packing._problem(model, lengths, right, 256) == ""
    wrong = [packing.Packing(not causal, offset, own, "groups")]
    if name in ("bert", "xlm-roberta"):  # the others know distances, not places
        wrong += [packing.Packing(causal, offset + by, own, "groups") for by in (1, 5)]
    for way in wrong:
        assert "differ" in packing._problem(model, lengths, way, 256)


def test_a_window_is_tried_where_texts_may_outgrow_it_and_that_is_affordable(monkeypatch):
    lengths = []
    compared = packing._compared

    def noting(transformer, texts, way):
        lengths.append(max(texts))
        return compared(transformer, texts, way)

    monkeypatch.setattr(packing, "_compared", noting)
    longest = max(packing._PROBE)
    packing.find_packing(model_of(mistral), 0, None, max_length=6)
    assert max(lengths) == longest
    packing.find_packing(model_of(mistral), 0, None, max_length=7)
    assert max(lengths) == 6 + longest
    monkeypatch.setattr(packing, "_LONGEST_TRIAL", 5)
    with pytest.raises(packing.CannotPackError, match="window of 6 tokens"):
        packing.find_packing(model_of(mistral), 0, None, max_length=7)
    assert packing.find_packing(model_of(mistral), 0, None, max_length=6)


def test_a_table_of_positions_that_is_too_short_for_the_offset_is_not_left():
    """Reading behind it ends a GPU's process."""
    config = transformers.GPT2Config(
        vocab_size=200, n_positions=32, n_embd=32, n_layer=2, n_head=4, pad_token_id=150
    )
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    model.config.use_cache = False
    asked = []
    model.wpe.register_forward_hook(lambda module, inputs, out: asked.append(int(inputs[0].max())))
    with pytest.raises(packing.CannotPackError):
        found_with_nothing_right(model)
    assert max(asked) < 32


def found_with_nothing_right(model):
    """Try all guesses."""
    limits = packing._MOST
    packing._MOST = dict.fromkeys(limits, 0.0)
    try:
        return packing.find_packing(model, 150, 32, 32)
    finally:
        packing._MOST = limits
