"""Value codes of a sparse message: float32 values into few bytes, and what each lost, which is the residual's.

float32   as they are
bfloat16, float16  rounded to nearest, ties to even; too large ones saturate, none becomes infinite
int8      a float32 step for each block of 256 values, all of these first; then an int8 each, in steps: 127 of them are
          the largest magnitude of the block, so that no error is above half a step
1bit      two float32, the mean of the positive values (0 is one) and that of the negative (-0.0 is one), 0 where there
          is none; then a bit each, from the lowest of each byte, 1: negative (Seide et al. 2014)

All little-endian. The difference is exact, sent + lost == v, for all but 1bit (one rounding): v - rounded is a multiple
of v's last place no larger than v, or within a factor of two of v (Sterbenz' lemma). Values must be finite.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.bit_intrinsics import as_bits, as_float
from hogwild.kernels.compiler.jit import LOOP, kernel

BLOCK = 256  # values that share an int8 step: 1.6% more bytes, and one outlier coarsens only its neighbours
SIGN, MAGNITUDE, INFINITY = 0x80000000, 0x7FFFFFFF, 0x7F800000  # of a float32's bits
STEP_MIN = np.float32(2.0**-126)  # a denormal step would be too coarse to bring every value within 127 of them
SHARE = np.float32(1 / 127)
STEP_MAX = np.finfo(np.float32).max * SHARE  # 127 of the next one are infinite


class CorruptPayload(ValueError):
    """A payload that no `encode` has written for this count, n and pair of codes."""


def _exact(function):
    """Compile `function`, when a kernel calls it, without reassociation and contraction."""
    overload(function, strict=False, **LOOP)(lambda *args: function)
    return function


@_exact
def _bfloat16(v):
    """(bits of float32 v rounded to bfloat16, v - that)."""
    a, sign = as_bits(v) & MAGNITUDE, as_bits(v) & SIGN
    bits = min(a + 0x7FFF + (a >> 16 & 1), 0x7F7F0000) & 0x7FFF0000 | sign
    return np.uint16(bits >> 16), v - as_float(bits)


@_exact
def _float16(v):
    """(bits of float32 v rounded to float16, v - that).

    What saturates is sent as the largest multiple of v's last place up to 65504, or the difference would not be exact:
    65504 itself below 2^29, nothing from 2^40 on.
    """
    a, sign = as_bits(v) & MAGNITUDE, as_bits(v) & SIGN
    exponent = min(max(a >> 23, 155), 166)
    a = min(a, 0x477FE000 >> exponent - 142 << exponent - 142 if exponent < 166 else 0)
    shifted = as_float(a) + np.float32(0.5)  # its last place is float16's smallest denormal
    small, normal = a < 0x38800000, a + 0xFFF + (a >> 13 & 1) & 0xFFFFE000
    bits = as_bits(shifted) - 0x3F000000 if small else normal - 0x38000000 >> 13
    rounded = as_bits(shifted - np.float32(0.5)) if small else normal
    return np.uint16(bits | sign >> 16), v - as_float(rounded | sign)


@_exact
def _from_float16(bits):
    """The float32 with the value of a float16's bits."""
    a, sign = (bits & 0x7FFF) << 13, (bits & 0x8000) << 16
    denormal = as_bits(as_float(a + 0x38800000) - np.float32(2.0**-14))
    normal = denormal if a < 0x800000 else a + 0x38000000
    return as_float((normal if a < 0x0F800000 else INFINITY) | sign)


@_exact
def _int8(v, step):
    """(v in steps, v - that many of them)."""
    steps = min(max(np.rint(v / step), np.float32(-127)), np.float32(127))
    return np.int8(steps), v - steps * step


@kernel
def _to_bfloat16(values, bits):
    for i in range(np.uint64(values.size)):
        bits[i], values[i] = _bfloat16(values[i])


@kernel
def _to_float16(values, bits):
    for i in range(np.uint64(values.size)):
        bits[i], values[i] = _float16(values[i])


@kernel
def _of_float16(bits, values):
    for i in range(np.uint64(values.size)):
        values[i] = _from_float16(bits[i])


@kernel
def _to_int8(values, steps, codes):
    for block in range(np.uint64(steps.size)):
        start = block * np.uint64(BLOCK)
        stop = min(start + np.uint64(BLOCK), np.uint64(values.size))
        peak = 0
        for i in range(start, stop):
            peak = max(peak, as_bits(values[i]) & MAGNITUDE)
        step = max(as_float(peak) * SHARE, STEP_MIN)
        steps[block] = step
        for i in range(start, stop):
            codes[i], values[i] = _int8(values[i], step)


@kernel
def _to_1bit(values, means, signs):
    plus, minus, count = 0.0, 0.0, 0
    for i in range(np.uint64(values.size)):
        negative = as_bits(values[i]) >> 31
        count += negative
        plus += np.float64(np.float32(0) if negative else values[i])
        minus += np.float64(values[i] if negative else np.float32(0))
    means[0], means[1] = np.float32(plus / max(values.size - count, 1)), np.float32(minus / max(count, 1))
    plus32, minus32 = means[0], means[1]
    for byte in range(np.uint64(signs.size)):
        start = byte * np.uint64(8)
        bits = 0
        for i in range(start, min(start + np.uint64(8), np.uint64(values.size))):
            negative = as_bits(values[i]) >> 31
            bits |= negative << (i - start)
            values[i] -= minus32 if negative else plus32
        signs[byte] = bits


@kernel
def _of_1bit(means, signs, values):
    plus, minus = means[0], means[1]
    for i in range(np.uint64(values.size)):
        values[i] = minus if signs[i // np.uint64(8)] >> (i % np.uint64(8)) & 1 else plus


# The codes. put(values, out): write all of out (uint8) and leave in values what was lost; get(part, values): fill
# values from part (uint8). Neither is called without a value.


def _put_float32(values, out):
    out[:] = values.view(np.uint8)
    values.fill(0)


def _get_float32(part, values):
    values.view(np.uint8)[:] = part


def _put_bfloat16(values, out):
    bits = np.empty(values.size, np.uint16)
    _to_bfloat16(values, bits)
    out[:] = bits.view(np.uint8)


def _get_bfloat16(part, values):
    np.left_shift(part.copy().view(np.uint16), 16, out=values.view(np.uint32), dtype=np.uint32)


def _put_float16(values, out):
    bits = np.empty(values.size, np.uint16)
    _to_float16(values, bits)
    out[:] = bits.view(np.uint8)


def _get_float16(part, values):
    _of_float16(part.copy().view(np.uint16), values)


def _blocks(count):
    return -(-count // BLOCK)


def _put_int8(values, out):
    steps, codes = np.empty(_blocks(values.size), np.float32), np.empty(values.size, np.int8)
    _to_int8(values, steps, codes)
    out[:steps.nbytes], out[steps.nbytes:] = steps.view(np.uint8), codes.view(np.uint8)


def _get_int8(part, values):
    cut = 4 * _blocks(values.size)
    steps, codes = part[:cut].copy().view(np.float32), part[cut:].view(np.int8)
    if not ((steps >= STEP_MIN) & (steps <= STEP_MAX)).all() or codes.min() < -127:
        raise CorruptPayload(f"int8 values must be within 127 steps between {STEP_MIN} and {STEP_MAX}")
    np.multiply(codes, np.repeat(steps, BLOCK)[:values.size], out=values)


def _put_1bit(values, out):
    means = np.empty(2, np.float32)
    _to_1bit(values, means, out[8:])
    out[:8] = means.view(np.uint8)


def _get_1bit(part, values):
    means, signs = part[:8].copy().view(np.float32), part[8:].copy()
    if not 0 <= means[0] < np.inf or not -np.inf < means[1] <= 0 or signs[-1] >> (values.size - 1) % 8 > 1:
        raise CorruptPayload(f"1bit values need a mean >= 0, one <= 0, and no bit past the last, got means {means}")
    _of_1bit(means, signs, values)


class ValueCode(NamedTuple):
    """How many bytes a number of values takes, and the two functions."""

    nbytes: callable
    put: callable
    get: callable


VALUES = {
    "float32": ValueCode(lambda count: 4 * count, _put_float32, _get_float32),
    "bfloat16": ValueCode(lambda count: 2 * count, _put_bfloat16, _get_bfloat16),
    "float16": ValueCode(lambda count: 2 * count, _put_float16, _get_float16),
    "int8": ValueCode(lambda count: 4 * _blocks(count) + count, _put_int8, _get_int8),
    "1bit": ValueCode(lambda count: 8 + -(-count // 8), _put_1bit, _get_1bit)}
