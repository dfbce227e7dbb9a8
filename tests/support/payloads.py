"""Messages for the tests of the codes, encoded into and decoded from arrays with a guard on both sides."""

import numpy as np
from hypothesis import strategies as st

from hogwild.kernels.compression.index_codes import decode, encode, most_bytes

FLOAT_MAX = float(np.finfo(np.float32).max)
GUARD = 7  # elements before and behind every array that a codec fills
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.sampled_from([1e-44, 1e-38, 1e-7, 1.0, 6e4, 1e10, 1e38])
numbers = floats | st.builds(lambda x, scale: float(np.float32(x * scale)), st.floats(-2, 2, width=32), scales)


@st.composite
def messages(draw, code="auto"):
    """(n, indices, values)"""
    sizes = [1, 2, 7, 8, 9, 63, 64, 65, 128, 300, 10**6] + [2**31, 2**32 - 1, 2**32] * (code != "bitmap")
    n = draw(st.sampled_from(sizes) | st.integers(1, 600))
    if n <= 600 and draw(st.booleans()):
        start = draw(st.integers(0, n - 1))
        indices = range(start, draw(st.integers(start, n)), draw(st.integers(1, 3)))
    else:
        indices = sorted(draw(st.sets(st.integers(0, n - 1) | st.sampled_from([0, n - 1]), max_size=min(n, 80))))
    v = draw(st.lists(numbers, min_size=len(indices), max_size=len(indices)))
    return n, np.array(indices, np.uint32), np.array(v, np.float32)


def guarded(count, dtype):
    """(array of `count`, check that nothing around it was written)."""
    whole = np.full(count + 2 * GUARD, 77, dtype)
    return whole[GUARD:GUARD + count], lambda: (whole[:GUARD] == 77).all() and (whole[GUARD + count:] == 77).all()


def sent(n, indices, v, index_code="auto", value_code="float32"):
    """(payload, index code used, what was lost)."""
    lost, (out, clean) = v.copy(), guarded(most_bytes(len(v), n, index_code, value_code), np.uint8)
    size, used = encode(indices, lost, n, index_code, value_code, out)
    assert clean() and size <= out.size and (used == index_code or index_code == "auto")
    return out[:size].tobytes(), used, lost


def received(payload, count, n, index_code, value_code="float32"):
    (indices, clean), (v, clean_too) = guarded(count, np.uint32), guarded(count, np.float32)
    try:
        decode(payload, count, n, index_code, value_code, indices, v)
    finally:
        assert clean() and clean_too()
    return indices, v
