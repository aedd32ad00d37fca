"""Cuts by content: a change moves the cuts beside it and no others."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedcli.sources.cuts import COARSE, FINE, Cutter, Grain, Rows, grain_of

GRAIN = Grain(rows=32, bytes=2_000)


def rows_of(texts):
    contents = [text.encode() for text in texts]
    return Rows(
        np.array([zlib.crc32(content) for content in contents], np.uint32),
        np.array([len(content) for content in contents], np.int64),
        np.ones(len(contents), np.bool_),
    )


def units(texts, grain=GRAIN, piece=10**9):
    """The texts, unit by unit, cut in pieces of so many rows."""
    cutter, result, start = Cutter(grain), [], 0
    for first in range(0, len(texts), piece):
        rows = rows_of(texts[first : first + piece])
        for cut in cutter.cuts(rows):
            result.append(tuple(texts[start : first + cut]))
            start = first + cut
    return [*result, tuple(texts[start:])] if start < len(texts) else result


def corpus(count, seed=0):
    rng = np.random.default_rng(seed)
    return [f"text {number} " + "x" * int(rng.integers(0, 90)) for number in range(count)]


@settings(max_examples=50)
@given(st.integers(0, 400), st.integers(1, 50), st.integers(0, 9))
def test_how_rows_come_plays_no_part(count, piece, seed):
    texts = corpus(count, seed)
    assert units(texts, piece=piece) == units(texts)


def test_units_are_as_large_as_they_should_be():
    sizes = [len(unit) for unit in units(corpus(20_000))]
    assert max(sizes) <= GRAIN.most[0]
    # The least size is put before what the average says.
    assert 0.6 * GRAIN.rows < np.mean(sizes) < 1.6 * GRAIN.rows
    long_texts = [f"{number} " + "x" * 700 for number in range(2_000)]
    for unit in units(long_texts)[:-1]:
        total = sum(map(len, unit))
        assert GRAIN.least[1] <= total <= GRAIN.most[1] + 800


@settings(max_examples=100)
@given(st.data())
def test_an_edit_changes_the_units_beside_it(data):
    texts = corpus(2_000, data.draw(st.integers(0, 5)))
    start = data.draw(st.integers(0, len(texts)))
    removed = data.draw(st.sampled_from([0, 1, 5, 100]))
    inserted = [f"new {number}" for number in range(data.draw(st.sampled_from([0, 1, 5, 100])))]
    edited = texts[:start] + inserted + texts[start + removed :]
    before, after = set(units(texts)), units(edited)
    changed = [unit for unit in after if unit not in before]
    # Those that hold the change, and a few until the cuts meet again.
    assert len(changed) <= 3 + sum(map(len, changed)) // GRAIN.least[0] // 4 + len(inserted) // 8
    assert len(changed) <= 14


@pytest.mark.parametrize("text", ["same", "x" * 5_000])
def test_equal_rows_are_cut_at_the_most_or_each(text):
    sizes = {len(unit) for unit in units([text] * 1_000)[:-1]}
    assert len(sizes) == 1
    assert sizes <= {1, GRAIN.least[0], GRAIN.most[0], -(-GRAIN.least[1] // len(text))}


def test_the_size_of_a_corpus_chooses_among_two_grains():
    assert grain_of(0) == grain_of(10**6) == FINE
    assert grain_of(10**8) == grain_of(10**12) == COARSE
