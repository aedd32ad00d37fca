"""Packs: texts one after the other in one row of tokens, each attending to itself alone.

No padding, no mask.

A transformer does the same with every token, but for attention. So a class that takes its attention
from outside (transformers' AttentionInterface) and positions as an argument runs packs, once
attention is ours. Whether a model does so is not looked up but tried: packed states must be the
padded ones.
"""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from embedcli.encoder.devices import to_device
from embedcli.encoder.memory import is_exhausted

ATTENTION = "embedcli_packed"
# Packed states may differ from padded ones by what another kernel rounds otherwise. That grows with the layers and the
# weights: in bfloat16 it was 0.001 to 0.16 of their norm with 28 and 48 layers. So it is compared with what the other
# causality makes, which was 4.5 to 70 times as much; wrong positions made at least 1.5 times the share that is allowed.
_MOST = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
_SHARE_OF_WRONG = 0.25
_PROBE = (3, 7, 5)
# Learnt positions are often a table of so many; a pack is longer than the table, which not every class allows.
_SHORT_TABLE = 1024
# Of a text that shows a window, on a CPU: it is run three times.
_LONGEST_TRIAL = 1024
# What the kernel for texts of any length must understand; and what it may: several heads of the query share one of
# keys and values, and numbers that don't depend on the other texts.
_NEEDED, _GROUPED, _INVARIANT = ("scale", "window_size"), "enable_gqa", "num_splits"

Groups = list[tuple[int, int]]


@dataclass(frozen=True)
class Packing:
    """How a transformer runs packs.

    causal: does a token see the ones before it only? offset: its number for a text's first
    position. own: the attention that the class has by itself. kernel: a name of KERNELS. reason:
    why it isn't a faster one.
    """

    causal: bool
    offset: int
    own: str
    kernel: str
    reason: str = ""


@dataclass(frozen=True)
class _Pack:
    """The pack that the transformer runs on: so many texts of each length, in this order.

    edges: int32 [n + 1], where each text begins and the last one ends, for the kernel that wants it.
    """

    groups: Groups
    packing: Packing
    edges: Tensor | None = None

    @property
    def stop(self) -> int:
        """The number of tokens; what fills the pack up comes behind it."""
        return sum(count * length for count, length in self.groups)

    @property
    def longest(self) -> int:
        """The tokens of the longest text."""
        return max(length for _, length in self.groups)


class _Running:
    """The pack that runs now, and the window that the class asked for when it last ran.

    Not an argument, because few classes hand arguments down to their attention. Only operators
    look here, so that compiled code does not depend on it.
    """

    pack: _Pack | None = None
    window = 0


@contextmanager
def running(groups: Groups, packing: Packing, device: torch.device) -> Iterator[None]:
    """Have the transformer run on a pack of so many texts of each length, in this order."""
    edges = None
    if packing.kernel == "varlen":
        lengths = np.repeat([length for _, length in groups], [count for count, _ in groups])
        edges = to_device(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
    _Running.pack = _Pack(groups, packing, edges)
    try:
        yield
    finally:
        _Running.pack = None


@torch.library.custom_op("embedcli::packed_attention", mutates_args=())
def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
) -> Tensor:
    """Attend within each text of the pack: [1, heads, tokens, size] to [1, tokens, heads, size].

    A token sees those at a distance below `window`; 0 is no limit. Keys and values may have fewer
    heads, which are then shared.
    """
    pack = _Running.pack
    assert pack is not None
    return KERNELS[pack.packing.kernel](pack, query, key, value, scale, window)


@packed_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


def _by_groups(
    pack: _Pack, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
) -> Tensor:
    """Call the kernel once for all texts of a length: they need no mask, which opens the fastest kernel."""
    causal = pack.packing.causal
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    out = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    start = 0
    for count, length in pack.groups:
        texts = slice(start, start + count * length)
        # From [heads, count * length, size] to a batch: [count, heads, length, size].
        q, k, v = (
            states[0, :, texts].unflatten(1, (count, length)).transpose(0, 1)
            for states in (query, key, value)
        )
        if window and length > window:
            mask = _band(length, window, causal, query.device)
            attended = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        else:
            attended = nn.functional.scaled_dot_product_attention(
                q, k, v, scale=scale, is_causal=causal
            )
        out[0, texts].unflatten(0, (count, length)).copy_(attended.transpose(1, 2))
        start = texts.stop
    return out


def _band(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """Return which token [T, 1] sees which [1, T]: those at a distance below `window`."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    return (distance.abs() < window) & ((distance >= 0) | (not causal))


def _varlen(
    pack: _Pack, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
) -> Tensor:
    """Call the kernel once for all texts, by one for texts of any length (a GPU's, in half precision)."""
    attend, options = _varlen_kernel()
    stop, longest, edges = pack.stop, pack.longest, pack.edges
    # Before torch 2.12 the kernel takes shared heads without being told.
    if query.shape[1] != key.shape[1] and _GROUPED in options:
        options = {**options, _GROUPED: True}
    reach = window - 1 if window else -1
    sides = (reach, 0 if pack.packing.causal else reach)
    # From [1, heads, tokens, size] to [tokens, heads, size].
    q, k, v = (states[0, :, :stop].transpose(0, 1) for states in (query, key, value))
    attended: Tensor = attend(
        q, k, v, edges, edges, longest, longest, scale=scale, window_size=sides, **options
    )
    tokens = query.shape[2]
    if stop == tokens:
        return attended[None]
    return nn.functional.pad(attended, (0, 0, 0, 0, 0, tokens - stop))[None]


@cache
def _varlen_kernel() -> tuple[Any, dict[str, Any]]:
    """Return torch's kernel and the options that this version of it understands.

    Raises NotImplementedError where it lacks what is needed.
    """
    from torch.nn.attention.varlen import varlen_attn  # a second of imports, for nothing on a CPU

    known = inspect.signature(varlen_attn).parameters
    lacking = [name for name in _NEEDED if name not in known]
    if lacking:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} has no {lacking[0]}")
    options = {_GROUPED: False, _INVARIANT: 1}
    return varlen_attn, {name: value for name, value in options.items() if name in known}


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
    window = options.get("sliding_window") or 0
    if not torch.compiler.is_compiling():
        _Running.window = max(window, _Running.window)
    scale = options.get("scaling")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    return packed_attention(query, key, value, scale, window), None


transformers.AttentionInterface.register(ATTENTION, _attention)


class CannotPackError(Exception):
    """A transformer can't run packs, and why."""


def find_packing(transformer: Any, pad_id: int, positions: int | None, max_length: int) -> Packing:
    """Make the transformer run packs of texts of at most `max_length` tokens, and return how.

    `positions`: the size of its table of positions, if it has one. Raises CannotPackError, and then it
    is as it was.
    """
    own, parameter = transformer.config._attn_implementation, next(transformer.parameters())
    # Long enough to show that each text sees itself alone: where the table of positions is short,
    # only a pack that outgrows it shows whether the class minds.
    lengths = [*_PROBE]
    while positions is not None and positions < _SHORT_TABLE and sum(lengths) <= positions:
        lengths += _PROBE
    guess = any(getattr(module, "is_causal", False) for module in transformer.modules())
    # RoBERTa numbers its positions from behind the padding token's id, if its table reaches that far.
    offsets = [0]
    if positions is None or pad_id + 1 + max(_PROBE) <= positions:
        offsets.append(pad_id + 1)
    reasons: dict[str, str] = {}
    kernels = ["groups"]
    if _runs_any_length(parameter.device) and parameter.dtype != torch.float32:
        kernels.insert(0, "varlen")
    elif _runs_any_length(parameter.device):
        reasons["varlen"] = "varlen: it takes half precision, not float32"
    try:
        transformer.set_attn_implementation(ATTENTION)
        if transformer.config._attn_implementation != ATTENTION:
            raise CannotPackError("its class has its own attention")
        for kernel, causal, offset in itertools.product(kernels, (guess, not guess), offsets):
            why_not_faster = "" if kernel == "varlen" else reasons.get("varlen", "")
            packing = Packing(causal, offset, own, kernel, why_not_faster)
            reason = _problem(transformer, lengths, packing, max_length)
            if not reason:
                return packing
            # The first thing that was wrong: later guesses are worse.
            reasons.setdefault(kernel, f"{kernel}: {reason}")
        raise CannotPackError("; ".join(reasons.values()))
    except CannotPackError:
        transformer.set_attn_implementation(own)
        raise


def _runs_any_length(device: torch.device) -> bool:
    """Tell whether the device has a kernel for texts of any length."""
    return device.type == "cuda"


def _problem(transformer: Any, lengths: list[int], packing: Packing, max_length: int) -> str:
    """Return what is wrong with packed states; nothing where they are the padded ones."""
    _Running.window, parameter = 0, next(transformer.parameters())
    try:
        reason = _compared(transformer, lengths, packing)
        # The class has told its window when it called our attention.
        if 0 < _Running.window < max_length and not reason:
            if parameter.device.type == "cpu" and _Running.window > _LONGEST_TRIAL:
                return f"its window of {_Running.window} tokens would take a CPU long to try"
            # A longer text shows whether the window is kept.
            longer = [*lengths, _Running.window + max(_PROBE)]
            reason = _compared(transformer, longer, packing)
    except (
        Exception
    ) as error:  # whatever a class of transformers has against packs, there is the padded way
        if isinstance(error, torch.AcceleratorError) or is_exhausted(error):
            raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:150]
    return reason


def _compared(transformer: Any, lengths: list[int], packing: Packing) -> str:
    with unpacked(transformer, packing):
        padded = _padded_states(transformer, lengths)
    share = _difference(transformer, lengths, packing, padded)
    if not share < _MOST[next(transformer.parameters()).dtype]:
        return f"its states differ from the padded ones by {share:.2g} of their norm"
    wrong = replace(packing, causal=not packing.causal)
    most = _SHARE_OF_WRONG * _difference(transformer, lengths, wrong, padded)
    if share > most:
        return f"its states differ from the padded ones by {share:.2g} of their norm, more than {most:.2g}"
    return ""


def _difference(transformer: Any, lengths: list[int], packing: Packing, padded: Tensor) -> float:
    """Return by how much packed states differ from padded ones [tokens, hidden], relative to their norm."""
    groups = [(1, length) for length in lengths]
    states = packed_states(transformer, _ids(lengths), groups, packing).float()
    difference = torch.linalg.vector_norm(states - padded)
    return float(difference / torch.linalg.vector_norm(padded))


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
    positions = np.concatenate([*positions_of_groups, free]) + packing.offset
    with running(groups, packing, device):
        states = transformer(
            input_ids=to_device(np.concatenate([ids, free])[None], device),
            position_ids=to_device(positions[None], device),
        ).last_hidden_state
    packed: Tensor = states[0, : len(ids)]
    return packed


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
