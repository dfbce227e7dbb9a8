"""Value codes against NumPy's float16, torch's bfloat16 and exact means; values from the network that cannot be."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from payloads import FLOAT_MAX, numbers, received, sent

from hogwild.kernels.compression.index_codes import VALUE_CODES, CorruptPayload
from hogwild.kernels.compression.value_codes import BLOCK

BITS = np.arange(2**15, dtype=np.uint16)


def rounded(v, code):
    """(what the receiver gets, what was lost) of float32 values, by their code alone."""
    payload, used, lost = sent(len(v), np.arange(len(v), dtype=np.uint32), v, "auto", code)
    return received(payload, len(v), len(v), used, code)[1], lost


def around(x):
    """Float32 values x, and the next three on both sides."""
    bits = np.asarray(x, np.float32).view(np.int32)
    return np.concatenate([bits + d for d in range(-3, 4)]).view(np.float32)


def hard_cases(exact16):
    """Every finite 16-bit value, the midpoints between neighbours, what lies close to both, and a million random bits."""
    middle = (exact16[:-1].astype(np.float64) + exact16[1:]) / 2
    special = np.float32([0.0, 1e-45, 2.0**-126, 2.0**-25, 2.0**-24, 2.0**-14, 65504, 65520, 2.0**29, 2.0**40, FLOAT_MAX])
    random = np.random.default_rng(2).integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    v = np.concatenate([around(exact16), around(middle), around(special), -around(special), random])
    return v[np.isfinite(v)]


@pytest.mark.unchecked
def test_float16_is_numpys():
    exact16 = BITS[BITS < 0x7C00].view(np.float16).astype(np.float32)
    v = hard_cases(exact16)
    got, lost = rounded(v, "float16")
    np.testing.assert_array_equal(got.astype(np.float64) + lost, v.astype(np.float64))
    below = abs(v) < 2**29
    expected = np.clip(v[below], -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got[below].view(np.uint32), expected.view(np.uint32))  # the sign of 0 too
    # Beyond, 65504 in whole units of v's last place, or the difference could not be exact.
    unit = 2.0 ** (np.frexp(v[~below].astype(np.float64))[1] - 24)
    np.testing.assert_array_equal(abs(got[~below]), 65504 // unit * unit)


@pytest.mark.unchecked
def test_bfloat16_is_torchs():
    exact16 = (BITS[BITS < 0x7F80].astype(np.uint32) << 16).view(np.float32)
    v = hard_cases(exact16)
    got, lost = rounded(v, "bfloat16")
    np.testing.assert_array_equal(got.astype(np.float64) + lost, v.astype(np.float64))
    expected = torch.from_numpy(v).bfloat16().float().clamp(-float(exact16[-1]), float(exact16[-1])).numpy()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.unchecked
@pytest.mark.parametrize("code", ["float16", "bfloat16"])
def test_every_finite_pattern_is_read(code):
    bits = np.arange(2**16, dtype=np.uint32)
    kind = torch.float16 if code == "float16" else torch.bfloat16
    expected = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(kind).float().numpy()
    bits, expected = bits[np.isfinite(expected)], expected[np.isfinite(expected)]
    count = len(bits)
    payload = np.arange(count, dtype=np.uint32).tobytes() + bits.astype(np.uint16).tobytes()
    got = received(payload, count, count, "raw", code)[1]
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@settings(max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 30))
@example([FLOAT_MAX, -FLOAT_MAX, 1.0], 1)
@example([190 * 2.0**-149, 2.0**-149], 1)
def test_int8_is_off_by_half_a_step_of_its_block(v, repeats):
    v = np.tile(np.float32(v), repeats)
    got, lost = rounded(v, "int8")
    for start in range(0, len(v), BLOCK):
        block = slice(start, start + BLOCK)
        step = max(float(abs(v[block]).max()) / 127, 2.0**-126)
        assert (abs(lost[block].astype(np.float64)) <= step / 2 * (1 + 1e-6)).all()
        steps = got[block].astype(np.float64) / step
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


@settings(max_examples=200)
@given(st.lists(numbers, min_size=1, max_size=200))
def test_1bit_sends_the_two_means(v):
    v = np.float32(v)
    got, lost = rounded(v, "1bit")
    for side in (np.signbit(v), ~np.signbit(v)):
        if side.any():
            exact = sum(Fraction(float(x)) for x in v[side]) / int(side.sum())
            np.testing.assert_allclose(got[side], float(exact), rtol=1e-7, atol=1e-45)
            assert len(set(got[side].tolist())) == 1


@pytest.mark.parametrize("value_code", VALUE_CODES)
def test_values_that_are_not_finite_do_no_harm(value_code):
    v = np.float32([1, math.nan, math.inf, -math.inf, 5])
    payload, used, _ = sent(9, np.arange(5, dtype=np.uint32), v, "auto", value_code)
    try:
        assert np.isfinite(received(payload, 5, 9, used, value_code)[1]).all()
    except CorruptPayload:
        pass


@pytest.mark.parametrize("value_code, part", [
    ("float32", np.float32([1, math.nan])), ("float32", np.float32([-math.inf, 1])),
    ("float16", np.float16([1, math.inf])), ("bfloat16", np.uint16([0x7F80, 0])), ("bfloat16", np.uint16([0, 0xFFC0])),
    *(("int8", np.r_[np.float32([step]).view(np.int8), np.int8([1, 2])])
      for step in (math.nan, math.inf, -1, 0, 1e-45, FLOAT_MAX)),
    ("int8", np.r_[np.float32([1]).view(np.int8), np.int8([1, -128])]),
    *(("1bit", np.r_[np.float32(means).view(np.uint8), np.uint8(1)])
      for means in ([math.nan, 0], [0, math.nan], [math.inf, 0], [1, -math.inf], [-1, -1], [1, 1])),
    ("1bit", np.r_[np.float32([1, -1]).view(np.uint8), np.uint8(4)])])
def test_corrupt_values_are_refused(value_code, part):
    with pytest.raises(CorruptPayload, match=value_code) as error:
        received(np.uint32([1, 4]).tobytes() + part.tobytes(), 2, 10, "raw", value_code)
    assert "\n" not in str(error.value)
