"""Packs: texts one after the other in one row of tokens, each attending to itself alone.

No padding, no mask.

A transformer does the same with every token, but for attention. So a class that takes its attention
from outside (transformers' AttentionInterface) and positions as an argument runs packs, once
attention is ours. Whether a model does so is not looked up but tried: packed states must be the
padded ones.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

ATTENTION = "embedcli_packed"
# Relative error of packed against padded states, by the format's precision.
_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_PROBE = (3, 7, 5)
# Learnt positions are often a table of so many; a pack is longer than the table, which not every class allows.
_SHORT_TABLE = 1024

Groups = list[tuple[int, int]]


@dataclass(frozen=True)
class Packing:
    """How a transformer runs packs.

    causal: does a token see the ones before it only? offset: its number for a text's first
    position. own: the attention that the class has by itself. kernel: a name of KERNELS. window:
    longer texts can't be packed, since attention would reach too far (a sliding window).
    """

    causal: bool
    offset: int
    own: str
    kernel: str
    window: int | None = None


class _Running:
    """What the transformer runs on now.

    Only operators look here, so that compiled code does not depend on it.

    Not an argument, because few classes hand arguments down to their attention.
    """

    groups: Groups = []  # noqa: RUF012 - one transformer runs at a time
    causal = False
    kernel = "groups"
    edges: tuple[Tensor, int, int] | None = None
    window: int | None = None


@contextmanager
def running(groups: Groups, packing: Packing) -> Iterator[None]:
    """Have the transformer run on a pack of so many texts of each length, in this order."""
    _Running.groups, _Running.causal, _Running.kernel = groups, packing.causal, packing.kernel
    try:
        yield
    finally:
        _Running.groups, _Running.edges = [], None


@torch.library.custom_op("embedcli::packed_attention", mutates_args=())
def packed_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend within each text of the pack: [1, heads, tokens, size] to [1, tokens, heads, size]."""
    out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    KERNELS[_Running.kernel](query, key, value, scale, out)
    return out


@packed_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def _by_groups(query: Tensor, key: Tensor, value: Tensor, scale: float, out: Tensor) -> None:
    """Call the kernel once for all texts of a length: they need no mask, which opens the fastest kernel."""
    start = 0
    for count, length in _Running.groups:
        texts = slice(start, start + count * length)
        # From [heads, count * length, size] to a batch: [count, heads, length, size].
        q, k, v = (
            states[0, :, texts].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        attended = nn.functional.scaled_dot_product_attention(
            q, k, v, scale=scale, is_causal=_Running.causal
        )
        out[0, texts].unflatten(0, (count, length)).copy_(attended.transpose(1, 2))
        start = texts.stop


def _varlen(query: Tensor, key: Tensor, value: Tensor, scale: float, out: Tensor) -> None:
    """Call the kernel once for all texts, by one for texts of any length (a GPU's, in half precision)."""
    from torch.nn.attention.varlen import varlen_attn  # a second of imports, for nothing on a CPU

    if _Running.edges is None:  # the same for all layers
        lengths = [length for count, length in _Running.groups for _ in range(count)]
        edges = torch.tensor(
            [0, *itertools.accumulate(lengths)], dtype=torch.int32, device=query.device
        )
        _Running.edges = edges, sum(lengths), max(lengths)
    edges, stop, longest = _Running.edges
    # The kernel takes [tokens, heads, size]; what fills the pack up behind `stop` is left out.
    q, k, v = (states[0, :, :stop].transpose(0, 1).contiguous() for states in (query, key, value))
    window = (-1, 0) if _Running.causal else (-1, -1)
    attended = varlen_attn(q, k, v, edges, edges, longest, longest, scale=scale, window_size=window)
    assert isinstance(attended, Tensor)
    out[0, :stop] = attended


KERNELS = {"groups": _by_groups, "varlen": _varlen}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Called by transformers' classes in the place of their own attention."""
    if options.get("position_bias") is not None or options.get("softcap") is not None:
        raise NotImplementedError("attention with a bias or a cap on its scores")
    if (window := options.get("sliding_window")) is not None and not torch.compiler.is_compiling():
        _Running.window = min(window, _Running.window or window)
    # Grouped-query attention: several heads of the query share one of keys and values.
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key = key.repeat_interleave(shared, dim=1)
        value = value.repeat_interleave(shared, dim=1)
    scale = options.get("scaling")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    return packed_attention(query, key, value, scale), None


transformers.AttentionInterface.register(ATTENTION, _attention)


def find_packing(transformer: Any, pad_id: int, positions: int | None) -> Packing | None:
    """Make the transformer run packs, if it can: how, or None, and then it is as it was.

    `positions`: the size of its table of positions, if it has one.
    """
    own, parameter = transformer.config._attn_implementation, next(transformer.parameters())
    # Long enough to show that each text sees itself alone: where the table of positions is short,
    # only a pack that outgrows it shows whether the class minds.
    lengths = [*_PROBE]
    while positions is not None and positions < _SHORT_TABLE and sum(lengths) <= positions:
        lengths += _PROBE
    kernels = ["groups"]
    if parameter.is_cuda and parameter.dtype != torch.float32:
        kernels.insert(0, "varlen")
    guess = any(getattr(module, "is_causal", False) for module in transformer.modules())
    padded = _padded_states(transformer, lengths)
    transformer.set_attn_implementation(ATTENTION)
    if transformer.config._attn_implementation == ATTENTION:
        # RoBERTa numbers its positions from behind the padding token's id.
        offsets = (0, pad_id + 1)
        for kernel, causal, offset in itertools.product(kernels, (guess, not guess), offsets):
            packing = Packing(causal, offset, own, kernel)
            packing_with_window = _tried(transformer, lengths, padded, packing)
            if packing_with_window is not None:
                return packing_with_window
    transformer.set_attn_implementation(own)
    return None


def _tried(
    transformer: Any, lengths: list[int], padded: Tensor, packing: Packing
) -> Packing | None:
    """Return the packing, with its window, if packed states are the padded ones."""
    _Running.window = None
    groups = [(1, length) for length in lengths]
    try:
        states = packed_states(transformer, _ids(lengths), groups, packing)
    except Exception:  # whatever a class of transformers has against packs, there is the padded way
        return None
    error = torch.linalg.vector_norm(states.float() - padded) / torch.linalg.vector_norm(padded)
    if error >= _ERRORS[states.dtype]:
        return None
    # The class has told its window, if it has one, when it called our attention.
    return replace(packing, window=_Running.window)


@contextmanager
def unpacked(transformer: Any, packing: Packing | None) -> Iterator[None]:
    """Give the transformer its own attention back, for padded texts."""
    if packing is not None:
        transformer.set_attn_implementation(packing.own)
    try:
        yield
    finally:
        if packing is not None:
            transformer.set_attn_implementation(ATTENTION)


def packed_states(
    transformer: Any, ids: np.ndarray, groups: Groups, packing: Packing, size: int = 0
) -> Tensor:
    """Return the states [tokens, hidden] of a pack's tokens; the pack is filled up to `size` tokens."""
    device = next(transformer.parameters()).device
    positions_of_groups = [np.tile(np.arange(length), count) for count, length in groups]
    free = np.zeros(max(0, size - len(ids)), np.int64)
    with running(groups, packing):
        states = transformer(
            input_ids=_to(np.concatenate([ids, free]), device),
            position_ids=_to(np.concatenate([*positions_of_groups, free]) + packing.offset, device),
        ).last_hidden_state
    packed: Tensor = states[0, : len(ids)]
    return packed


def _to(values: np.ndarray, device: torch.device) -> Tensor:
    """Values as one row on the device; the copy to a GPU doesn't wait for what the GPU is at."""
    row = torch.from_numpy(values.astype(np.int64))[None]
    return row.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else row


def _ids(lengths: list[int]) -> np.ndarray:
    """Return some ids, the same ones each time; small, since every vocabulary has them."""
    return 5 + np.arange(sum(lengths)) * 7 % 90


def _padded_states(transformer: Any, lengths: list[int]) -> Tensor:
    device = next(transformer.parameters()).device
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(part) for part in np.split(_ids(lengths), np.cumsum(lengths)[:-1])],
        batch_first=True,
    ).to(device)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(device)
    return transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask].float()
