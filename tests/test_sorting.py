"""Sorting on the disk equals sorting in memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vargface.data import sorting
from vargface.data.sorting import blocks_of, sorted_rows

KIND = np.dtype([("word", "u8"), ("number", "i8")])


@given(st.lists(st.integers(0, 2**64 - 1)), st.integers(1, 20))
def test_rows_come_by_key_and_equal_keys_in_their_order(words, block):
    rows = np.array([(word, number) for number, word in enumerate(words)], dtype=KIND)
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    found = list(sorted_rows(iter(blocks), "word", 2**64 - 1))
    expected = sorted((word, number) for number, word in enumerate(words))
    assert [row for part in found for row in part.tolist()] == expected
    keys = [set(part["word"].tolist()) for part in found]
    assert sum(map(len, keys)) == len(set(words))  # equal keys are in one block


def test_rows_beyond_memory_come_from_the_disk(monkeypatch):
    monkeypatch.setattr(sorting, "_IN_MEMORY", 100)
    words = np.random.default_rng(0).permutation(50_000)
    rows = blocks_of(((int(word), number) for number, word in enumerate(words)), KIND)
    found = np.concatenate(list(sorted_rows(rows, "word", 50_000)))
    assert found["word"].tolist() == list(range(50_000))
    assert np.array_equal(words[found["number"]], found["word"])
