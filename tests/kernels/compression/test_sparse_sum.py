"""Sums of sparse lists, the largest of them, and what returns, against NumPy and plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hogwild.kernels.compression.sparse_sum import add_lists, largest, settle

N = 2**32
PLACES = st.integers(0, 40) | st.integers(2**14 - 3, 2**14 + 3) | st.integers(0, 2**18) | st.integers(N - 70, N - 1)
VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
LIST = st.dictionaries(PLACES, VALUES, max_size=60)


def arrays(entries):
    return np.array(sorted(entries), np.uint32), np.array([entries[i] for i in sorted(entries)], np.float32)


@pytest.mark.unchecked
@given(st.lists(LIST, max_size=6))
def test_sums_are_those_in_the_order_of_the_lists_to_the_bit(lists):
    pairs = [arrays(entries) for entries in lists]
    expected = {}
    for indices, values in pairs:
        for i, v in zip(indices.tolist(), values):
            expected[i] = expected.get(i, np.float32(0)) + v
    both = [np.concatenate([*parts, np.zeros(0, dtype)]).astype(dtype)
            for parts, dtype in zip(zip(*pairs) if pairs else ((), ()), (np.uint32, np.float32))]
    with np.errstate(all="ignore"):
        indices, sums = add_lists(*both, np.cumsum([len(entries) for entries in lists]))
    assert indices.dtype == np.uint32 and indices.tolist() == sorted(expected)
    assert sums.tobytes() == arrays(expected)[1].tobytes()


@pytest.mark.unchecked
def test_large_lists_equal_dense_addition():
    rng, n = np.random.default_rng(0), 1_000_000
    lists = [np.sort(rng.choice(n, k, replace=False)).astype(np.uint32) for k in (100_000, 3, 0, 50_000, 100_000)]
    values = [rng.standard_normal(at.size).astype(np.float32) * 10**r for r, at in enumerate(lists)]
    dense = np.zeros(n, np.float32)
    for at, v in zip(lists, values):
        dense[at] += v
    indices, sums = add_lists(np.concatenate(lists), np.concatenate(values), np.cumsum([at.size for at in lists]))
    assert np.array_equal(indices, np.unique(np.concatenate(lists))) and np.array_equal(sums, dense[indices])


@given(st.lists(VALUES | st.sampled_from([3.0, -3.0]), max_size=80), st.integers(-1, 90))
def test_largest_are_as_many_as_asked_for_and_none_left_is_larger(values, share):
    values = np.array(values, np.float32)
    chosen = largest(values, share)
    assert chosen.sum() == min(max(share, 0), values.size)
    assert np.abs(values[~chosen]).max(initial=0) <= np.abs(values[chosen]).min(initial=np.inf)


def test_equal_magnitudes_are_taken_from_everywhere():
    chosen = np.flatnonzero(largest(np.tile(np.array([1, -1], np.float32), 500), 100))
    assert chosen.size == 100 and np.all(np.abs(np.diff(chosen) - 10) <= 1) and chosen[-1] >= 989


@given(LIST, st.sets(PLACES), st.randoms(use_true_random=False))
def test_what_did_not_arrive_returns_whole_and_the_rest_what_it_lost(entries, arrived, random):
    indices, values = arrays(entries)
    arrived |= set(random.sample(sorted(entries), len(entries) // 2))
    lost = np.array([random.choice([0.0, 0.25, -2.0]) for _ in entries], np.float32)
    expected = {i: (x if i in arrived else v) for i, v, x in zip(indices.tolist(), values, lost)}
    at, back = settle(indices, values, lost, np.array(sorted(arrived), np.uint32))
    assert list(zip(at.tolist(), back)) == [(i, v) for i, v in expected.items() if v != 0]


@pytest.mark.parametrize("indices, values, ends, what", [
    (np.zeros(3, np.int64), np.zeros(3, np.float32), [3], "indices"),
    (np.zeros(3, np.uint32), np.zeros(3), [3], "values"), (np.zeros(3, np.uint32), np.zeros(3, np.float32), [2], "indices"),
    (np.zeros(3, np.uint32), np.zeros(3, np.float32), [2, 1, 3], "ends"),
    (np.zeros(6, np.uint32)[::2], np.zeros(3, np.float32), [3], "indices")])
def test_other_arrays_are_refused(indices, values, ends, what):
    with pytest.raises(ValueError, match=f"^{what} must"):
        add_lists(indices, values, ends)
    with pytest.raises(ValueError, match="^arrived must"):
        settle(np.zeros(0, np.uint32), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(1))
