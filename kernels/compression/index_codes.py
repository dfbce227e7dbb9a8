"""Codes of a sparse message: ascending indices below n <= 2^32 and a float32 value each, in few bytes.

A payload is the index part and then the value part (kernels/compression/value_codes.py), little-endian, as this library's
hosts are; an empty message has no byte at all. Count, n and the codes travel in the caller's header, a code as its place
in INDEX_CODES or VALUE_CODES. The index part:

raw     a uint32 each
bitmap  n bits, from the lowest of each byte on, 1 where an index is
local   12 bits in its chunk of 4096 elements, and how many lie in each chunk (local_index_code.py)
rice    Golomb-Rice on the gaps, index - previous - 1 (Golomb 1966; Rice and Plaunt 1971): a byte b < 32; the low b bits
        of every gap, from the lowest bit of each byte on; then what is left of every gap in unary, that many 0 and a 1.
        The streams lie apart because the first then needs no search, and the second is read a word at a time.

Each stream is padded to a byte with zeros.
"""

import numpy as np

from hogwild.kernels.compiler.bit_intrinsics import count_ones, trailing_zeros
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.compression import local_index_code
from hogwild.kernels.compression.value_codes import VALUES, CorruptPayload

INDEX_CODES = "raw", "bitmap", "rice", "local"
VALUE_CODES = tuple(VALUES)
N_MAX = 2**32
LOW_MAX = 31  # bits
OK, TOO_MANY, TOO_FEW, OUT_OF_RANGE = range(4)
WRONG = {TOO_MANY: "holds more", TOO_FEW: "holds fewer", OUT_OF_RANGE: "goes past n"}
ZERO, ONE, SIX, WORD = (np.uint64(x) for x in (0, 1, 6, 64))


@kernel
def _survey(indices, b):
    """(whether indices ascend strictly, sums of gap >> b, gap >> b + 1, gap >> b + 2)."""
    ascend, gap = True, np.uint64(indices[0])
    s0, s1, s2 = gap >> b, gap >> b + ONE, gap >> b + ONE + ONE
    for i in range(ONE, np.uint64(indices.size)):
        ascend &= indices[i] > indices[i - ONE]
        gap = np.uint64(np.uint32(indices[i] - indices[i - ONE] - ONE))
        s0 += gap >> b
        s1 += gap >> b + ONE
        s2 += gap >> b + ONE + ONE
    return ascend, s0, s1, s2


@kernel
def _pack(indices, b, low, unary):
    """Write every word of the two streams of the gaps, low and unary (uint64)."""
    mask, before = (ONE << b) - ONE, ZERO - ONE
    bits, fill, w = ZERO, ZERO, ZERO
    ones, at, u = ZERO, ZERO, ZERO
    for i in range(np.uint64(indices.size)):
        gap = np.uint64(indices[i]) - before - ONE
        before = np.uint64(indices[i])
        bits |= (gap & mask) << fill
        fill += b
        if fill >= WORD:
            low[w] = bits
            w += ONE
            fill -= WORD
            bits = (gap & mask) >> (b - fill)
        at += gap >> b
        while at >= WORD:
            unary[u] = ones
            u += ONE
            at -= WORD
            ones = ZERO
        ones |= ONE << at
        at += ONE
    if w < np.uint64(low.size):
        low[w] = bits
    unary[u] = ones
    unary[u + ONE:] = ZERO


@kernel
def _unpack(low, unary, b, n, indices):
    """Fill indices from the streams; low has a word more than they need. OK, or what is wrong.

    The sum cannot wrap and no index is lost by its cut to 32 bits: the caller has bounded the length of unary.
    """
    mask, count, k = (ONE << b) - ONE, np.uint64(indices.size), ZERO
    index, before = ZERO - ONE, ZERO - ONE
    for w in range(np.uint64(unary.size)):
        bits = unary[w]
        if k + np.uint64(count_ones(bits)) > count:
            return TOO_MANY
        while bits != ZERO:
            place = (w << SIX) + np.uint64(trailing_zeros(bits))
            bits &= bits - ONE
            word, shift = k * b >> SIX, k * b & (WORD - ONE)
            part = (low[word] >> shift | low[word + ONE] << ONE << (WORD - ONE - shift)) & mask
            index += ONE + (place - before - ONE << b) + part
            before = place
            indices[k] = index
            k += ONE
    if k < count:
        return TOO_FEW
    return OK if index < n else OUT_OF_RANGE


def _bytes(bits):
    return -(-bits // 8)


def _fixed(count, n) -> dict[str, int]:
    """Bytes of the index part by code, where they do not depend on the indices."""
    return {"raw": 4 * count, "bitmap": _bytes(n), "local": local_index_code.nbytes(count, n)}


def _check(count, n, index_code, index_codes, value_code):
    for name, code, codes in ("index", index_code, index_codes), ("value", value_code, VALUE_CODES):
        if code not in codes:
            raise ValueError(f"{name} code must be one of {', '.join(codes)}, got {code!r}")
    if not 0 <= count <= n <= N_MAX:
        raise ValueError(f"needed 0 <= count <= n <= 2^32, got count {count} and n {n}")


def _check_array(name, array, dtype, size):
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1 or not array.flags.carray:
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a contiguous, aligned, writeable 1-D {np.dtype(dtype)} array, got {got}")
    if array.size < size:
        raise ValueError(f"{name} must have room for {size}, got {array.size}")


def most_bytes(count, n, index_code, value_code) -> int:
    """The most that `encode` writes for any `count` indices below n; index_code may be "auto".

    Rice: the best b is no worse than any, and gaps that add up to n - count leave at most (n - count) >> b in unary.
    Raises ValueError.
    """
    _check(count, n, index_code, (*INDEX_CODES, "auto"), value_code)
    if not count:
        return 0
    rice = min(count * (b + 1) + (n - count >> b) for b in range(LOW_MAX + 1))
    sizes = {**_fixed(count, n), "rice": 1 + (rice + 14) // 8}
    return VALUES[value_code].nbytes(count) + (min(sizes.values()) if index_code == "auto" else sizes[index_code])


def _plan(indices, n, index_code):
    """(code, bytes, b, bits in unary) of the index part; "auto": the smallest, the first of equals.

    b needs no search: it costs an index b + 1 and what is left of its gap, of mean / 2^b by less than 1 rounded down.
    With 2^f <= mean < 2^(f + 1) that is below f + 3 for f + 1, and none above is as good; nor is any below f - 1.
    """
    count, last = indices.size, int(indices[-1])
    first = min(max(((last + 1 - count) // count).bit_length() - 2, 0), LOW_MAX - 2)
    ascend, *rest = _survey(indices, np.uint64(first))
    if not ascend or last >= n:
        raise ValueError(f"indices must ascend strictly and be below {n}, got {indices[:3]} … {last}")
    b, ones = min(enumerate((count + int(total) for total in rest), first), key=lambda pair: pair[0] * count + pair[1])
    plans = {code: (code, size, 0, n) for code, size in _fixed(count, n).items()}
    plans["rice"] = "rice", 1 + _bytes(count * b) + _bytes(ones), b, ones
    return min(plans.values(), key=lambda plan: plan[1]) if index_code == "auto" else plans[index_code]


def _put_indices(indices, code, b, bits, out):
    if code == "raw":
        out[:] = indices.view(np.uint8)
        return
    if code == "local":
        local_index_code.put(indices, bits, out)
        return
    low, unary = (np.empty(-(-length // 64), np.uint64) for length in (indices.size * b, bits))
    _pack(indices, np.uint64(b), low, unary)
    if code == "rice":
        out[0] = b
        cut = 1 + _bytes(indices.size * b)
        out[1:cut] = low.view(np.uint8)[:cut - 1]
        out = out[cut:]
    out[:] = unary.view(np.uint8)[:out.size]


def encode(indices, values, n, index_code, value_code, out):
    """(bytes written to the start of out, index code used): `indices` and `values`, which becomes what was lost.

    indices: uint32[count], strictly ascending, below n. values: float32[count], finite; on return v - what the receiver
    will decode, see kernels/compression/value_codes.py for how exactly. index_code "auto" takes the smallest. out: uint8,
    `most_bytes` are always enough. Raises ValueError before it writes anything.
    """
    _check(np.size(indices), n, index_code, (*INDEX_CODES, "auto"), value_code)
    count = np.size(indices)
    _check_array("indices", indices, np.uint32, count)
    _check_array("values", values, np.float32, count)
    if values.size != count:
        raise ValueError(f"indices and values must be equally long, got {count} and {values.size}")
    if not count:
        return 0, INDEX_CODES[0] if index_code == "auto" else index_code
    code, cut, b, bits = _plan(indices, n, index_code)
    size = cut + VALUES[value_code].nbytes(count)
    _check_array("out", out, np.uint8, size)
    _put_indices(indices, code, b, bits, out[:cut])
    VALUES[value_code].put(values, out[cut:size])
    return size, code


def _words(part):
    """The bytes as uint64 and at least a word of zeros, aligned."""
    words = np.zeros(part.size // 8 + 2, np.uint64)
    words.view(np.uint8)[:part.size] = part
    return words


def _streams(part, count, n):
    """(low, unary, b) of a rice part."""
    b = int(part[0]) if part.size else 0
    cut = 1 + _bytes(count * b)
    low, unary = part[1:cut], part[cut:]
    if b > LOW_MAX or not 0 < unary.size <= _bytes(count + (n - count >> b)):
        raise CorruptPayload(f"rice part of {count} indices below {n} cannot have {b} low bits and {part.size} bytes")
    if unary[-1] == 0 or low.size and low[-1] >> (count * b - 1) % 8 > 1:
        raise CorruptPayload(f"rice part of {count} indices below {n} is not padded as it should be")
    return low, unary, b


def _get_indices(part, n, code, indices):
    count = indices.size
    if code == "raw":
        indices.view(np.uint8)[:] = part
        if not _survey(indices, ZERO)[0] or indices[-1] >= n:
            raise CorruptPayload(f"raw indices do not ascend strictly below {n}")
        return
    if code == "local":
        local_index_code.get(part, n, indices)
        return
    low, unary, b = _streams(part, count, n) if code == "rice" else (part[:0], part, 0)
    status = _unpack(_words(low), _words(unary), np.uint64(b), np.uint64(n), indices)
    if status != OK:
        raise CorruptPayload(f"{code} part of {count} indices below {n} {WRONG[status]}")


def decode(payload, count, n, index_code, value_code, indices, values):
    """Fill the first `count` of indices (uint32) and values (float32) from what `encode` wrote.

    payload: a contiguous buffer, all of it, from anyone: every length, order and bound is checked, and that the values
    are finite. Raises CorruptPayload, with rubbish in indices and values; ValueError for a wrong argument.
    """
    _check(0, n, index_code, INDEX_CODES, value_code)
    if not 0 <= count <= n:
        raise CorruptPayload(f"needed a count between 0 and {n}, got {count}")
    _check_array("indices", indices, np.uint32, count)
    _check_array("values", values, np.float32, count)
    payload = np.frombuffer(payload, np.uint8)
    cut = payload.size - VALUES[value_code].nbytes(count) if count else 0
    needed = _fixed(count, n).get(index_code, max(cut, 0)) if count else 0
    if cut != needed or not count and payload.size:
        raise CorruptPayload(f"{payload.size} bytes cannot hold {count} indices below {n} as {index_code} and values as "
                             f"{value_code}")
    if not count:
        return
    indices, values = indices[:count], values[:count]
    _get_indices(payload[:cut], n, index_code, indices)
    VALUES[value_code].get(payload[cut:], values)
    if not np.isfinite(values).all():
        raise CorruptPayload(f"{count} values as {value_code} are not all finite")
