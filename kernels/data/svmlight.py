"""Parser of svmlight text: `label [qid:N] index:value … [# comment]`, one row a line."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hogwild.kernels.compiler.jit import kernel

(OK, NOT_A_NUMBER, OVER_RANGE, NO_VALUE, NO_COLON, BAD_INDEX, INDEX_ZERO, NEGATIVE_INDEX, INDEX_OVER_RANGE, DUPLICATE,
 UNSORTED, BAD_QID, FULL) = range(13)
LABEL, VALUE = 0, 1  # what a row of `slow` is about
TAB, LF, CR, BLANK, HASH, PLUS, MINUS, POINT, ZERO, COLON = b"\t\n\r #+-.0:"
INDEX_MAX = 2**32 - 1
POWER_MAX = 63
EXACT_POWER, EXACT_MANTISSA = 22, 2**53  # powers of ten and whole numbers up to here are exact in float64
POWERS = np.array([float(f"1e{e}") for e in range(-POWER_MAX, POWER_MAX + 1)])
TEN_17 = 10**17
# Bounds the error of mantissa * 10^e: four roundings of 2^-53 and a cut after 18 digits, with room to spare.
SLACK = 2.0**-49


# The helpers take the text as (address, size): a call that passes an array counts its references, atomically, and that
# alone made the parser six times slower.
@intrinsic
def load(typingctx, address):
    """The byte at an address."""

    def codegen(context, builder, signature, args):
        byte = builder.load(builder.inttoptr(args[0], ir.IntType(8).as_pointer()))
        return builder.zext(byte, ir.IntType(64))

    return types.int64(types.int64), codegen


@kernel
def at(text, p):
    """Byte p >= 0; a line end for every place past the text."""
    return load(text[0] + p) if p < text[1] else LF


@kernel
def ends(text, p):
    """Whether a token ends before byte p."""
    c = at(text, p)
    return c <= HASH and (c == BLANK or c == LF or c == TAB or c == HASH or (c == CR and at(text, p + 1) == LF))


@kernel
def skip(text, p):
    """The next token, or the line end if only blanks and a comment are left."""
    while ends(text, p) and at(text, p) != LF and at(text, p) != HASH:
        p += 1
    if at(text, p) == HASH:
        while at(text, p) != LF:
            p += 1
    return p


@kernel
def digits(text, p):
    """(end, number) of a run of digits; the number stops growing beyond 10^17."""
    number = np.int64(0)
    d = at(text, p) - ZERO
    while 0 <= d <= 9:
        number = number * 10 + d if number < TEN_17 else number
        p += 1
        d = at(text, p) - ZERO
    return p, number


@kernel
def number(text, p):
    """(end, value, sure, mantissa, exponent) of a decimal number that fills a token; end is -1 if it is none.

    value is float32(float64(token)) if sure: both ends of the error interval around mantissa * 10^e round alike.
    """
    negative = at(text, p) == MINUS
    p += negative or at(text, p) == PLUS
    mantissa, exponent, places, seen = np.int64(0), np.int64(0), np.int64(0), False
    while True:
        d = at(text, p) - ZERO
        if 0 <= d <= 9:
            seen = True
            if mantissa < TEN_17:
                mantissa = mantissa * 10 + d
                exponent -= places
            else:
                exponent += 1 - places
        elif d == POINT - ZERO and places == 0:
            places = np.int64(1)
        else:
            break
        p += 1
    if seen and d | 32 == 53:  # e or E, less ZERO
        below = at(text, p + 1) == MINUS
        start = p + 1 + (below or at(text, p + 1) == PLUS)
        p, power = digits(text, start)
        seen = p > start
        exponent += -power if below else power
    if not seen or not ends(text, p):
        return np.int64(-1), np.float32(0), False, mantissa, exponent
    if not -POWER_MAX <= exponent <= POWER_MAX:
        return p, np.float32(0), False, mantissa, exponent
    x = mantissa * POWERS[np.uint64(exponent + POWER_MAX)]
    low, high = np.float32(x * (1 - SLACK)), np.float32(x * (1 + SLACK))
    return p, -low if negative else low, low == high and x < 3e38, mantissa, exponent


@kernel
def label_of(text, p, end, mantissa, exponent):
    """(end, label, exact) of the label at p: a number if `number` found an end, else text; exact if rounded once."""
    if end < 0:
        end = p + 1
        while not ends(text, end):
            end += 1
        return end, np.nan, False
    if mantissa > EXACT_MANTISSA or not -EXACT_POWER <= exponent <= EXACT_POWER:
        return end, np.nan, False
    power = POWERS[np.uint64(POWER_MAX + abs(exponent))]
    x = mantissa / power if exponent < 0 else mantissa * power
    return end, -x if at(text, p) == MINUS else x, True


@kernel
def pair(text, p, base, last):
    """(status, place of the value, index) of `index:value` at p, its index counted from 0; blanks may follow the colon."""
    end, index = digits(text, p)
    if end == p:
        negative = at(text, p) == MINUS and 0 <= at(text, p + 1) - ZERO <= 9
        return NEGATIVE_INDEX if negative else BAD_INDEX, end, index
    if at(text, end) != COLON:
        return NO_COLON if ends(text, end) else BAD_INDEX, end, index
    index -= base
    if last < index <= INDEX_MAX:
        p = end + 1
        while at(text, p) == BLANK or at(text, p) == TAB:
            p += 1
        return NO_VALUE if ends(text, p) else OK, p, index
    if index < 0:
        return INDEX_ZERO, end, index
    if index > INDEX_MAX:
        return INDEX_OVER_RANGE, end, index
    return DUPLICATE if index == last else UNSORTED, end, index


@kernel
def after_qid(text, p):
    """The end of the token `qid:N` at p; p if there is none, -1 if N is no whole number."""
    if at(text, p) != 113 or at(text, p + 1) != 105 or at(text, p + 2) != 100 or at(text, p + 3) != COLON:
        return p
    start = p + 4 + (at(text, p + 4) == MINUS)
    end, _ = digits(text, start)
    return end if end > start and ends(text, end) else np.int64(-1)


@kernel
def parse_svmlight(text, base, labels, indptr, indices, values, slow):
    """(status, position, rows, nnz, n_slow) of whole lines `text` (uint8), indices counted from `base` (0 or 1).

    Fills labels float64[rows], indptr int64[rows + 1], indices uint32[nnz], values float32[nnz], and for numbers the
    caller must convert slow int64[n_slow, 4] = (LABEL or VALUE, where it goes, token's start, end). Unless status is
    OK, the token at `position` is wrong, or an array is too short for it (FULL).
    """
    chars = (np.int64(text.ctypes.data), np.int64(text.size))
    p = rows = nnz = n_slow = np.int64(0)
    last = np.int64(-2)  # the row's last index; -1: none yet; -2: its label is to come
    indptr[0] = 0
    while True:
        p = start = skip(chars, p)
        if at(chars, p) == LF:
            rows += last > -2
            if p >= text.size:
                return OK, p, rows, nnz, n_slow
            p, last = p + 1, np.int64(-2)
            continue
        kind, where, status, index = LABEL, rows, OK, np.int64(-1)
        if last > -2:
            kind, where = VALUE, nnz
            status, p, index = pair(chars, p, base, last)
        end, value, sure, mantissa, exponent = number(chars, p)
        label = np.nan
        if kind == LABEL:
            end, label, sure = label_of(chars, p, end, mantissa, exponent)
        if status == OK and end < 0:
            status = NOT_A_NUMBER if at(chars, p - 1) == COLON else NO_VALUE
        if status == OK and (rows >= min(labels.size, indptr.size - 1) or not sure and n_slow >= slow.shape[0]
                             or kind == VALUE and nnz >= min(indices.size, values.size)):
            status = FULL
        if status != OK:
            return status, start, rows, nnz, n_slow
        if not sure:
            slow[n_slow, 0], slow[n_slow, 1], slow[n_slow, 2], slow[n_slow, 3] = kind, where, p, end
            n_slow += 1
        p, last = end, index
        if kind == VALUE:
            indices[nnz], values[nnz] = index, value
            nnz += 1
        else:
            labels[rows] = label
            start = skip(chars, p)
            p = after_qid(chars, start)
            if p < 0:
                return BAD_QID, start, rows, nnz, n_slow
        indptr[rows + 1] = nnz


def parse(block: bytes, base: int):
    """(status, position, labels, indptr, indices, values, odd) of whole lines; shapes as in `parse_svmlight`.

    odd: int64[n, 3] of (row, start, end) of the labels that are to be read from their text: no numbers, or long ones.
    """
    text = np.frombuffer(block, np.uint8)
    rows, pairs = np.count_nonzero(text == LF) + 1, np.count_nonzero(text == COLON)
    labels, indptr = np.empty(rows, np.float64), np.empty(rows + 1, np.int64)
    indices, values = np.empty(pairs, np.uint32), np.empty(pairs, np.float32)
    slow = np.empty((rows + pairs, 4), np.int64)  # untouched pages of it cost nothing
    status, position, rows, nnz, n_slow = parse_svmlight(text, base, labels, indptr, indices, values, slow)
    slow = slow[:n_slow]
    odd, slow = slow[slow[:, 0] == LABEL, 1:], slow[slow[:, 0] == VALUE, 1:]
    with np.errstate(over="ignore"):
        exact = np.array([float(block[start:end]) for start, end in slow[:, 1:].tolist()]).astype(np.float32)
    values[slow[:, 0]] = exact
    if np.isinf(exact).any():
        status, position = OVER_RANGE, slow[np.isinf(exact).argmax(), 1]
    return status, position, labels[:rows], indptr[:rows + 1], indices[:nnz], values[:nnz], odd
