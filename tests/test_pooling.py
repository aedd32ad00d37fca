"""Poolings on states whose values are the positions, so that every answer is known by hand."""

import math

import numpy as np
import pytest
import torch

from embedcli.encoder.batching import padded
from embedcli.encoder.pooling import POOLINGS, Padded, packed_layout
from embedcli.models.facts import Pooling

# Three tokens with states 0, 1, 2.
BY_HAND = {
    "cls": 0.0,
    "mean": 1.0,
    "max": 2.0,
    "mean_sqrt_len": 3 / math.sqrt(3),
    "weighted_mean": (1 * 0 + 2 * 1 + 3 * 2) / 6,
    "last_token": 2.0,
}


def states_and_layout(before: int, after: int):
    """Three tokens between paddings, whose states must not matter."""
    values = [99.0] * before + [0.0, 1.0, 2.0] + [-77.0] * after
    ranks = [0] * before + [1, 2, 3] + [0] * after
    return torch.tensor(values).reshape(1, -1, 1), Padded(torch.tensor(ranks).reshape(1, -1))


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize(
    ("before", "after"), [(0, 0), (0, 4), (4, 0)], ids=["unpadded", "right", "left"]
)
def test_each_pooling_by_hand_whichever_side_is_padded(name, before, after):
    assert POOLINGS[name](*states_and_layout(before, after)).item() == pytest.approx(BY_HAND[name])


@pytest.mark.parametrize("name", BY_HAND)
def test_short_formats_are_pooled_in_float32(name):
    states, layout = states_and_layout(0, 2)
    assert POOLINGS[name](states.bfloat16(), layout).dtype == torch.float32


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pack_is_pooled_as_its_texts_are_side_by_side(name, dtype):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, 20).astype(np.int32)
    skipped = generator.integers(0, lengths).astype(np.int32)  # some prompts, one token is left
    states = torch.randn(int(lengths.sum()), 16, dtype=dtype)
    packed = POOLINGS[name](states, packed_layout(lengths, skipped, torch.device("cpu")))
    parts = torch.nn.utils.rnn.pad_sequence(states.split(lengths.tolist()), batch_first=True)
    batch = padded(np.zeros(lengths.sum(), np.int32), lengths, skipped, 0, pads_left=False)
    side_by_side = POOLINGS[name](parts, Padded(torch.from_numpy(batch.ranks)))
    torch.testing.assert_close(packed, side_by_side)
    assert packed.dtype == torch.float32


def test_the_names_are_the_same_everywhere():
    assert set(BY_HAND) == set(POOLINGS) == set(Pooling)
