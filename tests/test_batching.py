"""Batches: every row once, within the budget, a function of the lengths alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedcli.encoder.batching import batches

lengths = st.lists(st.integers(1, 300), max_size=200).map(
    lambda values: np.array(values, dtype=np.int32)
)


@given(lengths, st.integers(1, 2000))
def test_every_row_once_and_within_the_budget(lengths, budget):
    found = list(batches(lengths, budget))
    assert sorted(np.concatenate([*found, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


@given(lengths)
def test_rows_of_like_length_share_a_batch(lengths):
    longest = [lengths[batch].max() for batch in batches(lengths, 600)]
    shortest = [lengths[batch].min() for batch in batches(lengths, 600)]
    assert all(later <= earlier for earlier, later in zip(shortest, longest[1:], strict=False))


def test_ties_keep_the_inputs_order():
    assert [batch.tolist() for batch in batches(np.array([5, 7, 5, 7], dtype=np.int32), 14)] == [
        [1, 3],
        [0, 2],
    ]
