"""Selection against a plain NumPy twin, thresholds against sorting, and the kept share over sequences of gradients."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpi import SUPPORT
from selection_twin import buffers, same_bits, twin

from hogwild.kernels.compression import select_simd, selection, thresholds
from hogwild.kernels.compression.selection import Selector, mask, select
from hogwild.kernels.compression.thresholds import METHODS, SHIFT, TINY, threshold

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1e-39, 3.4028235e38, -3.4028235e38, math.inf, -math.inf, math.nan]
NUMBER = st.one_of(st.sampled_from(SPECIAL), st.floats(width=32), st.floats(-2, 2, width=32))
CUT = st.one_of(st.sampled_from([0.0, -1.0, 1e-45, 1.0, 3.4028235e38, math.inf]), st.floats(0, 2, width=32))


@st.composite
def tensors(draw, numbers=NUMBER, largest=90):
    """(residual, gradient or None), a block or more and a tail."""
    n = draw(st.integers(0, largest))
    residual, gradient = (np.array(draw(st.lists(numbers, min_size=n, max_size=n)), np.float32) for _ in range(2))
    return residual, draw(st.sampled_from([gradient, gradient, None]))


@pytest.mark.unchecked
@given(tensors(), CUT, st.integers(0, 3), st.integers(0, 2**32 - 100))
def test_select_is_its_twin_to_the_bit(pair, cut, slack, base):
    residual, gradient = pair
    at, taken, bad, rest = twin(residual, gradient, np.float32(cut))
    indices, values = buffers(at.size + slack)  # an exact fit, and a little more
    after = residual.copy()
    assert select(after, gradient, cut, indices, values, base=base) == (at.size, residual.size, bad)
    assert np.array_equal(indices[:at.size], (at + base).astype(np.uint32)) and same_bits(values[:at.size], taken)
    assert same_bits(after, rest)


@given(tensors(), CUT)
def test_what_was_sent_and_what_stays_is_the_sum(pair, cut):
    residual, gradient = pair
    indices, values = buffers(residual.size + 16)
    after = residual.copy()
    count, _, bad = select(after, gradient, cut, indices, values)
    total = after.copy()
    total[indices[:count]] += values[:count]
    with np.errstate(all="ignore"):
        wanted = residual + (0 if gradient is None else gradient)
    finite = np.isfinite(wanted)
    assert np.array_equal(total[finite], wanted[finite])
    assert same_bits(after[~finite], residual[~finite]) and bad == np.sum(~finite)
    assert np.all(after[indices[:count]] == 0) and np.all(np.isfinite(values[:count]) & (values[:count] != 0))


@given(tensors(largest=200), CUT, st.lists(st.integers(16, 40), min_size=1))
def test_going_on_with_new_buffers_changes_nothing(pair, cut, rooms):
    residual, gradient = pair
    at, taken, bad, rest = twin(residual, gradient, np.float32(cut))
    after, start, wrong, parts = residual.copy(), 0, 0, []
    for turn in range(100):
        indices, values = buffers(rooms[turn % len(rooms)])
        count, stopped, more = select(after, gradient, cut, indices, values, start)
        parts, wrong = [*parts, (indices[:count], values[:count])], wrong + more
        if stopped == residual.size:
            break
        assert stopped > start
        start = stopped
    assert np.array_equal(np.concatenate([i for i, _ in parts]), at)
    assert same_bits(np.concatenate([v for _, v in parts]), taken) and same_bits(after, rest) and wrong == bad


@pytest.mark.unchecked
def test_large_arrays_at_every_alignment_and_density():
    rng = np.random.default_rng(0)
    for n, cut, shift in ((100_003, 3.0, 0), (99_999, 1.5, 1), (65_536, 0.1, 3), (50_001, 0.0, 5)):
        residual, gradient = (rng.standard_normal(n + shift, dtype=np.float32)[shift:] for _ in range(2))
        gradient[rng.integers(0, n, 20)] = np.nan
        at, taken, bad, rest = twin(residual, gradient, np.float32(cut))
        indices, values = buffers(n)
        assert select(residual, gradient, cut, indices, values) == (at.size, n, bad)
        assert np.array_equal(indices[:at.size], at) and same_bits(values[:at.size], taken) and same_bits(residual, rest)


PROGRAM = """
import json, sys
import numpy as np
from numba.core.registry import cpu_target
from selection_twin import buffers, same_bits, twin
from hogwild.kernels.compression.selection import select
rng, good = np.random.default_rng(1), True
for cut in 3.0, 1.0, 0.0:
    residual, gradient = (rng.standard_normal(5003, dtype=np.float32) for _ in range(2))
    gradient[7] = np.inf
    for g in gradient, None:
        at, taken, bad, rest = twin(residual, g, np.float32(cut))
        indices, values = buffers(5003)
        after = residual.copy()
        good &= select(after, g, cut, indices, values) == (at.size, 5003, bad) and same_bits(after, rest)
        good &= np.array_equal(indices[:at.size], at) and same_bits(values[:at.size], taken)
print(json.dumps([bool(good), cpu_target.target_context.codegen().magic_tuple()[2]]))
"""


@pytest.mark.unchecked
def test_a_processor_without_avx512_gives_the_same():
    env = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, timeout=300,
                            cwd=SUPPORT)
    assert result.returncode == 0, result.stderr
    good, features = json.loads(result.stdout)
    assert good and "avx512" not in features


def test_mask_refuses_indices_out_of_range():
    r = np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="below 8"):
        mask(r, np.array([8], np.uint32))
    r += 1
    mask(r, np.array([6, 1], np.uint32))
    assert r.tolist() == [1, 0, 1, 1, 1, 1, 0, 1]


# Thresholds.


def largest(sums, keep):
    """The round(keep n)-th largest finite |x|, or the largest: by sorting."""
    finite = np.sort(np.abs(sums[np.isfinite(sums)]))[::-1]
    return finite[max(1, round(keep * finite.size)) - 1] if finite.size else np.float32(np.inf)


SHARES = st.one_of(st.sampled_from([1e-3, 0.01, 0.1, 0.5, 0.999]), st.floats(1e-4, 0.999))


@given(st.lists(tensors(), min_size=1, max_size=4), SHARES)
def test_exact_is_the_kth_largest_and_histogram_its_bin(pairs, keep):
    residuals, gradients = zip(*pairs)
    with np.errstate(all="ignore"):
        sums = np.concatenate([r if g is None else r + g for r, g in pairs])
    wanted = max(largest(sums, keep), TINY)
    assert threshold(residuals, gradients, keep, "exact") == wanted
    bits, edge = wanted.view(np.uint32), threshold(residuals, gradients, keep, "histogram")
    assert edge == max((bits >> SHIFT << SHIFT).astype(np.uint32).view(np.float32), TINY)
    assert threshold(residuals, gradients, keep, "sample") == wanted  # so few are all looked at


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_of_a_large_tensor_pass_the_share(method):
    rng = np.random.default_rng(3)
    r, g = rng.standard_normal(400_000, dtype=np.float32), rng.standard_t(3, 400_000).astype(np.float32)
    g[::1000] = np.nan
    sums = r + g
    sums = sums[np.isfinite(sums)]
    for keep in (0.01, 0.1):
        passed = [np.mean(np.abs(sums) >= threshold([r], [g], keep, method, seed=seed)) / keep for seed in range(40)]
        if method == "exact":
            assert passed[0] == pytest.approx(round(keep * sums.size) / sums.size / keep, rel=1e-12)
        elif method == "histogram":
            assert 1.0 <= passed[0] < 1.01
        else:  # by chance: within four standard errors of the mean, each with the deviation of a share of 800
            deviation = 1 / math.sqrt(thresholds.HITS)
            assert abs(np.mean(passed) - 1) < 4 * deviation / math.sqrt(40)
            assert 0.6 * deviation < np.std(passed) < 1.5 * deviation


def test_many_small_tensors_do_not_outweigh_a_large_one():
    rng = np.random.default_rng(4)
    small = [100 * rng.standard_normal(size, dtype=np.float32) for size in range(1, 60)]  # 0.2% of all, and huge
    residuals = [*small, rng.standard_normal(1_000_000, dtype=np.float32)]
    all_of_them = np.abs(np.concatenate(residuals))
    passed = [np.mean(all_of_them >= threshold(residuals, [None] * 60, 0.01, seed=seed)) / 0.01 for seed in range(20)]
    assert abs(np.mean(passed) - 1) < 0.05


def test_a_sample_depends_on_its_seed_alone():
    r = np.random.default_rng(5).standard_normal(300_000, dtype=np.float32)
    draws = [threshold([r], [None], 0.01, seed=seed) for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1] and len(set(draws)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_zeros_are_never_sent_and_equal_values_never_starve(method):
    n = 300_000
    r, none = np.zeros(n, np.float32), np.zeros(n, np.float32)
    assert Selector([n], 0.01, method).select([r], [none], 0).indices.size == 0
    r[::500] = 1e-45  # fewer than the share are not zero: all of them
    assert Selector([n], 0.01, method).select([r], [none], 0).indices.size == n // 500
    r[:] = -0.7
    assert Selector([n], 0.01, method).select([r], [none], 0).indices.size == n
    r[:] = np.linspace(-1, 1, n)
    r[[0, 1]] = np.inf, np.nan
    chosen = Selector([n], 1.0, method).select([r], [none], 0)
    assert chosen.indices.size == n - 2 and chosen.bad == 2


# Sequences of gradients with error feedback.


def heavy_tailed(n, steps, jitter, fall, seed=0):
    """Gradients whose coordinates differ in scale (log-normal) and have t-distributed noise on a mean of their own.

    From step to step their norm falls by the share `fall`, and is multiplied by exp(jitter * a normal number).
    """
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.standard_normal(n)).astype(np.float32)
    mean = rng.standard_normal(n).astype(np.float32) * np.float32(0.1)
    for t in range(steps):
        norm = np.float32((1 - fall) ** t * math.exp(jitter * rng.standard_normal()))
        yield norm * scale * (mean + rng.standard_t(3, n).astype(np.float32))


def kept(selector, gradients, sizes=None):
    """Kept shares over the target, a step each, with what was not sent added to the next gradient."""
    sizes = sizes or selector.sizes
    residuals = [np.zeros(size, np.float32) for size in sizes]
    return np.array([selector.select(residuals, np.split(g, np.cumsum(sizes)[:-1]), t).indices.size
                     for t, g in enumerate(gradients)]) / (selector.keep * sum(sizes))


@pytest.mark.parametrize("scope", selection.SCOPES)
@pytest.mark.parametrize("keep", [0.1, 0.01])
def test_a_fresh_sample_holds_the_share_through_jumps(scope, keep):
    shares = kept(Selector([150_000, 40_000, 10_000], keep, scope=scope), heavy_tailed(200_000, 40, 0.3, 0.02))
    assert np.mean(np.abs(shares - 1) < 0.1) >= 0.95 and abs(shares.mean() - 1) < 0.02


@pytest.mark.parametrize("keep", [0.1, 0.01])
@pytest.mark.parametrize("fall", [0.03, 0.01, -0.01])
def test_a_reused_threshold_holds_the_share_only_when_corrected(keep, fall):
    def shares(**options):
        return kept(Selector([60_000], keep, reuse=32, **options), heavy_tailed(60_000, 90, 0.0, fall))[10:]
    corrected, plain = shares(), shares(correct=False)
    assert abs(corrected.mean() - 1) < 0.05 and np.mean(np.abs(corrected - 1) < 0.1) > 0.7
    assert np.mean(np.abs(plain - 1) < 0.1) < 0.35 and np.ptp(plain) > 2 * np.ptp(corrected)


def test_a_threshold_that_runs_away_is_found_anew():
    gradients = [(1000.0 if t >= 5 else 1.0) * g for t, g in enumerate(heavy_tailed(50_000, 12, 0.0, 0.0))]
    shares = kept(Selector([50_000], 0.01, reuse=1000), gradients)
    assert shares[5] > 10 and np.all(np.abs(shares[6:9] - 1) < 0.35)  # and step 5 sent all that passed, far beyond its room


def test_local_and_global():
    rng, sizes = np.random.default_rng(6), [30_000, 10_000]
    gradients = [rng.standard_normal(sizes[0], dtype=np.float32), 100 * rng.standard_normal(sizes[1], dtype=np.float32)]
    counts = {}
    for scope in selection.SCOPES:
        residuals = [np.zeros(size, np.float32) for size in sizes]
        indices, values, _ = Selector(sizes, 0.01, "exact", scope).select(residuals, gradients, 0)
        counts[scope] = [int(np.sum(indices < sizes[0])), int(np.sum(indices >= sizes[0]))]
        assert np.array_equal(values, np.concatenate(gradients)[indices]) and np.all(np.diff(indices.astype(int)) > 0)
    assert counts == {"local": [300, 100], "global": [0, 400]}


def test_the_share_follows_a_warmup():
    n, residual = 50_000, np.zeros(50_000, np.float32)
    selector = Selector([n], 0.001, "exact", reuse=10)
    for t, g in enumerate(heavy_tailed(n, 8, 0.0, 0.0)):
        keep = (0.25, 0.0625, 0.0156, 0.004)[t // 2]
        share = selector.select([residual], [g], t, keep).indices.size / n
        assert share == pytest.approx(keep, rel=1e-3 if t % 2 == 0 else 0.6)


@pytest.mark.parametrize("options", [{}, {"reuse": 4}, {"scope": "global", "reuse": 3}, {"method": "histogram"}])
def test_a_resumed_selector_goes_on_to_the_bit(options):
    sizes = [70_000, 300]
    gradients = [np.split(g, [70_000]) for g in heavy_tailed(70_300, 12, 0.1, 0.01)]

    def run(selector, residuals, steps, log):
        for t in steps:
            indices, values, _ = selector.select(residuals, gradients[t], t, 0.1 if t < 3 else 0.02)
            log.append((indices.tobytes(), values.tobytes()))

    one, flat, log = Selector(sizes, 0.02, **options), [np.zeros(size, np.float32) for size in sizes], []
    run(one, flat, range(6), log)
    state, saved = {**one.state(), "another": np.zeros(3)}, [r.copy() for r in flat]
    run(one, flat, range(6, 12), log)
    other, again = Selector(sizes, 0.02, **options), []
    other.load(state)
    run(other, saved, range(6, 12), again)
    assert again == log[6:] and all(same_bits(a, b) for a, b in zip(flat, saved))
    for name, array in one.state().items():
        assert np.array_equal(array, other.state()[name])


def test_bad_elements_do_not_spoil_the_next_steps():
    n, residual = 40_000, np.zeros(40_000, np.float32)
    selector = Selector([n], 0.01, "exact", reuse=5)
    gradients = list(heavy_tailed(n, 4, 0.0, 0.0))
    gradients[1][:] = np.nan
    gradients[2][::2] = -np.inf
    chosen = [selector.select([residual], [g], t) for t, g in enumerate(gradients)]
    assert [c.bad for c in chosen] == [0, n, n // 2, 0] and np.all(np.isfinite(residual))
    assert chosen[3].indices.size == pytest.approx(400, rel=0.5)
    late = Selector([n], 0.01, reuse=5, correct=False)  # nothing but NaN at first: no threshold to use again
    assert [late.select([0 * residual], [g], t).indices.size > 0 for t, g in enumerate(gradients[1:])] == [False, True, True]


def test_the_second_call_compiles_nothing():
    g = np.ones(100, np.float32)
    jitted = select_simd.scan, thresholds._sample, thresholds._count, thresholds._bins_of, thresholds._mixed

    def run(n, cut, start, method, step):
        residual = np.ones(n, np.float32)
        select(residual, np.ones(n, np.float32), cut, *buffers(n), start=start, base=start)
        Selector([n, 100], 0.5, method, seed=step).select([residual, g], [residual, g], step)
    for method in METHODS:
        run(50_000, 1.0, 0, method, 0)
    before = [len(f.signatures) for f in jitted]
    for method in METHODS:
        run(77, np.float32(2), np.int64(3), method, np.int64(2**40))
        run(30_000, 1, np.uint8(3), method, 2**62)
    assert [len(f.signatures) for f in jitted] == before


def test_wrong_arguments_are_named():
    r, indices, values = np.zeros(20, np.float32), *buffers(20)
    with pytest.raises(ValueError, match="of 20 elements, got float32"):
        select(r, r[:19], 1.0, indices, values)
    with pytest.raises(ValueError, match="residual must be a flat contiguous float32"):
        select(r.astype(float), r, 1.0, indices, values)
    with pytest.raises(ValueError, match="contiguous"):
        select(r, np.zeros(40, np.float32)[::2], 1.0, indices, values)
    with pytest.raises(ValueError, match="threshold must be a number"):
        select(r, r, math.nan, indices, values)
    with pytest.raises(ValueError, match="indices must be a flat contiguous uint32"):
        select(r, r, 1.0, values, values)
    with pytest.raises(ValueError, match="at most 2\\*\\*32"):
        select(r, r, 1.0, indices, values, base=2**32 - 19)
    for options in ({"keep": 0.0}, {"keep": math.nan}, {"method": "best"}, {"scope": "all"}, {"reuse": 0}, {"share": 2.0}):
        with pytest.raises(ValueError, match="must be"):
            Selector([20], **{"keep": 0.1, **options})
    with pytest.raises(ValueError, match="lists of 2 arrays"):
        Selector([20, 20], 0.1).select([r], [r], 0)
    with pytest.raises(ValueError, match="state needs 'threshold'"):
        Selector([20, 20], 0.1).load(Selector([20], 0.1).state())
