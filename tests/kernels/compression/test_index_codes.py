"""Codes of a sparse message: plain bit strings as the oracle, conservation, the entropy, and hostile bytes."""

import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpi import SUPPORT
from numba.core.dispatcher import Dispatcher
from payloads import messages, received, sent

from hogwild.kernels.compression import index_codes, value_codes
from hogwild.kernels.compression.index_codes import INDEX_CODES, VALUE_CODES, CorruptPayload, decode, encode, most_bytes

CHOICES = *INDEX_CODES, "auto"


@pytest.mark.parametrize("value_code", VALUE_CODES)
@pytest.mark.parametrize("index_code", CHOICES)
@settings(max_examples=25)
@given(data=st.data())
def test_what_was_received_and_what_was_lost_is_what_was_sent(index_code, value_code, data):
    n, indices, v = data.draw(messages(index_code))
    payload, used, lost = sent(n, indices, v, index_code, value_code)
    got, approx = received(payload, len(v), n, used, value_code)
    np.testing.assert_array_equal(got, indices)
    assert np.isfinite(approx).all() and bool(payload) == bool(len(v))
    if value_code == "1bit":
        np.testing.assert_array_equal(lost, v - approx)  # one rounding
    else:
        assert all(Fraction(float(a)) + Fraction(float(b)) == Fraction(float(x)) for a, b, x in zip(approx, lost, v))
    if value_code == "float32":
        assert not lost.any()


def bits_of(indices, b):
    """Golomb-Rice by its definition: (low, unary), strings of 0 and 1."""
    low = unary = ""
    for before, index in zip([-1, *indices[:-1].tolist()], indices.tolist()):
        gap = index - before - 1
        low += format(gap % 2**b, f"0{b}b")[::-1] if b else ""
        unary += "0" * (gap >> b) + "1"
    return low, unary


def packed(bits):
    return bytes(int(bits[i:i + 8][::-1], 2) for i in range(0, len(bits), 8))


@settings(max_examples=100)
@given(messages())
@example((2**32, np.array([2**32 - 1], np.uint32), np.zeros(1, np.float32)))
@example((2**32, np.array([0, 2**32 - 1], np.uint32), np.zeros(2, np.float32)))
def test_rice_is_the_plain_code_with_the_best_of_all_parameters(message):
    n, indices, v = message
    payload = sent(n, indices, v, "rice")[0]
    if not len(v):
        return
    gaps = [int(index) - before - 1 for before, index in zip([-1, *indices[:-1].tolist()], indices)]
    costs = [len(v) * (b + 1) + sum(gap >> b for gap in gaps) for b in range(32)]
    b = payload[0]
    assert costs[b] == min(costs)
    low, unary = bits_of(indices, b)
    assert payload[1:-4 * len(v)] == packed(low) + packed(unary)


@settings(max_examples=100)
@given(st.data())
def test_every_parameter_of_rice_is_read(data):
    n, indices, v = data.draw(messages())
    if len(v):
        lowest = max(0, int(indices[-1]).bit_length() - 14)  # longer in unary than plain strings are good for
        b = data.draw(st.integers(lowest, 31))
        low, unary = bits_of(indices, b)
        got, approx = received(bytes([b]) + packed(low) + packed(unary) + v.tobytes(), len(v), n, "rice")
        assert (got == indices).all() and (approx == v).all()


@settings(max_examples=100)
@given(messages("bitmap"))
def test_bitmap_and_raw_against_numpy(message):
    n, indices, v = message
    if len(v):
        bitmap = np.packbits(np.isin(np.arange(n), indices), bitorder="little").tobytes()
        assert sent(n, indices, v, "bitmap")[0] == bitmap + v.tobytes()
        assert sent(n, indices, v, "raw")[0] == indices.astype("<u4").tobytes() + v.astype("<f4").tobytes()
        smallest = min(len(sent(n, indices, v, code)[0]) for code in INDEX_CODES)
        assert len(sent(n, indices, v)[0]) == smallest


@settings(max_examples=100)
@given(messages("bitmap"))
def test_local_is_a_count_for_each_chunk_and_twelve_bits_an_index(message):
    n, indices, v = message
    if len(v):
        counts = np.bincount(indices // 4096, minlength=-(-n // 4096)).astype("<u2").tobytes()
        places = packed("".join(format(int(index) % 4096, "012b")[::-1] for index in indices))
        assert sent(n, indices, v, "local")[0] == counts + places + v.tobytes()


def test_local_is_padded_with_zeros():
    for extra, good in (0, True), (16, False):
        payload = np.array([1], "<u2").tobytes() + bytes([7, extra]) + bytes(4)
        if good:
            assert received(payload, 1, 10, "local")[0] == 7
        else:
            with pytest.raises(CorruptPayload, match="padded"):
                received(payload, 1, 10, "local")


def entropy(p):
    """Bits an index of random positions with density p."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / p


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_within_three_percent_of_the_entropy(density):
    n, rng = 4_000_000, np.random.default_rng(5)
    indices = np.flatnonzero(rng.random(n) < density).astype(np.uint32)
    v = rng.standard_normal(len(indices)).astype(np.float32)
    payload, used, _ = sent(n, indices, v)
    assert used == "rice"
    assert 0.999 < (len(payload) - v.nbytes) * 8 / len(v) / entropy(len(v) / n) < 1.03
    assert (received(payload, len(v), n, used)[0] == indices).all()


def test_half_the_positions_are_no_more_than_a_bit_each():
    n = 100_000
    indices = np.flatnonzero(np.random.default_rng(1).random(n) < 0.6).astype(np.uint32)
    payload, used, _ = sent(n, indices, np.zeros(len(indices), np.float32))
    assert used in ("bitmap", "rice") and len(payload) - 4 * len(indices) <= n / 8 + 1


@given(st.integers(1, 2**32), st.data())
def test_the_bound_holds_for_what_costs_rice_most(n, data):
    """One index at the end after a run of neighbours, or equal gaps one above a multiple of 2^b."""
    count = data.draw(st.integers(1, min(n, 200)))
    gap = min(n // count, data.draw(st.sampled_from([1, 2, 9, 17, 2**20 + 1])))
    for indices in (np.r_[np.arange(count - 1), n - 1], np.arange(count) * gap):
        sent(n, indices.astype(np.uint32), np.ones(count, np.float32), "rice")
        assert most_bytes(count, n, "auto", "int8") <= most_bytes(count, n, "rice", "int8")


N, COUNT = 1000, 12
INDICES = np.arange(3, 3 + 80 * COUNT, 80, dtype=np.uint32)
PLAIN = np.linspace(-1, 2, COUNT, dtype=np.float32)
PLAIN_BYTES = PLAIN.tobytes()


def raw(indices):
    return np.uint32(indices).tobytes() + PLAIN_BYTES


def changed(array, k, value):
    array = array.copy()
    array[k] = value
    return array


def rice(b, low="", unary="", tail=b""):
    return bytes([b]) + packed(low) + packed(unary) + tail + PLAIN_BYTES


def bitmap(*places):
    bits = np.zeros(-(-N // 8) * 8, np.uint8)
    bits[[*INDICES, *places]] = 1
    return np.packbits(bits, bitorder="little").tobytes() + PLAIN_BYTES


def local(*places, count=COUNT, tail="0000"):
    bits = "".join(format(int(place), "012b")[::-1] for place in (places or INDICES)) + (tail if len(places) % 2 else "")
    return np.array([count], "<u2").tobytes() + packed(bits) + PLAIN_BYTES


@pytest.mark.parametrize("index_code, payload, text", [
    ("local", local(*INDICES[:5], *INDICES[4:-1]), "ascend"), ("local", local(*INDICES[:-1], N), "below 1000"),
    ("local", local(count=COUNT + 1), "do not hold 12"), ("local", local()[1:], "67 bytes"),
    ("raw", raw(changed(INDICES, 5, 2)), "ascend"), ("raw", raw(changed(INDICES, 5, INDICES[4])), "ascend"),
    ("raw", raw(changed(INDICES, -1, N)), "below 1000"), ("raw", raw(INDICES)[:-1], "95 bytes"),
    ("raw", raw(INDICES) + b"\0", "97 bytes"), ("raw", b"", "0 bytes"),
    ("bitmap", bitmap(4), "more"), ("bitmap", bitmap()[:-1], "172 bytes"),
    ("bitmap", bytes(125) + PLAIN_BYTES, "fewer"), ("bitmap", bitmap() + b"\0", "174 bytes"),
    ("rice", b"", "0 bytes"), ("rice", PLAIN_BYTES, "0 bytes"), ("rice", bytes(1) + PLAIN_BYTES, "and 1 bytes"),
    ("rice", rice(32, "0" * 32 * COUNT, "1" * COUNT), "32 low bits"),
    ("rice", rice(255, "", "1" * COUNT), "255 low bits"),
    ("rice", rice(6, "0" * 6 * COUNT, "1" * (COUNT + 1)), "more"),
    ("rice", rice(6, "0" * 6 * COUNT, "1" * (COUNT - 1)), "fewer"),
    ("rice", rice(6, "0" * 6 * COUNT, "0" * 16 + "1" * COUNT), "past n"),
    ("rice", rice(6, "1" * 6 * COUNT, "0" * 4 + "1" * COUNT), "past n"),
    ("rice", rice(6, "0" * 6 * COUNT, "0" * 999 + "1" * COUNT), "bytes"),
    ("rice", rice(6, "0" * 6 * COUNT, "1" * COUNT, b"\0"), "padded"),
    ("rice", rice(3, "0" * 3 * COUNT + "0001", "1" * COUNT), "padded"),
    ("rice", rice(6, "0" * 30), "and 5 bytes")])
def test_corrupt_indices_are_refused(index_code, payload, text):
    with pytest.raises(CorruptPayload, match=text) as error:
        received(payload, COUNT, N, index_code)
    assert "\n" not in str(error.value)


def test_a_gap_of_2_to_the_32_does_not_wrap():
    """3 + 2^32 would be 3 again in 32 bits, ascending and below n."""
    low, unary = bits_of(np.array([3, 4]), 31)
    unary = unary[:-1] + "00" + "1"
    with pytest.raises(CorruptPayload):
        received(bytes([31]) + packed(low) + packed(unary) + bytes(8), 2, 2**32, "rice")


def test_bits_past_n_are_refused():
    bits = np.zeros(16, np.uint8)
    bits[[1, 10]] = 1
    payload = np.packbits(bits, bitorder="little").tobytes() + bytes(8)
    with pytest.raises(CorruptPayload, match="past n"):
        received(payload, 2, 10, "bitmap")
    assert received(payload, 2, 11, "bitmap")[0].tolist() == [1, 10]


@pytest.mark.parametrize("count", [-1, 6, 2**40])
def test_a_count_that_cannot_be_is_refused(count):
    with pytest.raises(CorruptPayload, match="between 0 and 5"):
        decode(bytes(24), count, 5, "raw", "float32", np.empty(6, np.uint32), np.empty(6, np.float32))


@pytest.mark.parametrize("code", INDEX_CODES)
def test_an_empty_message_has_no_bytes(code):
    empty = np.empty(0, np.uint32), np.empty(0, np.float32)
    for n in (0, 5, 2**32):
        assert sent(n, *empty, code)[:2] == (b"", code)
        received(b"", 0, n, code)
        with pytest.raises(CorruptPayload, match="1 bytes"):
            received(b"\0", 0, n, code)


@pytest.mark.parametrize("value_code", VALUE_CODES)
@pytest.mark.parametrize("index_code", INDEX_CODES)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_payloads_give_valid_indices_or_an_error(index_code, value_code, data):
    n, indices, v = data.draw(messages(index_code))
    payload = bytearray(sent(n, indices, v, index_code, value_code)[0])
    for _ in range(data.draw(st.integers(0, 3)) if payload else 0):
        place = data.draw(st.integers(0, len(payload) - 1) | st.integers(0, min(len(payload) - 1, 40)))
        payload[place] ^= data.draw(st.integers(1, 255))
    del payload[data.draw(st.integers(max(0, len(payload) - 20), len(payload))):]
    payload += data.draw(st.binary(max_size=9))
    count = max(0, len(v) + data.draw(st.sampled_from([0, 0, 0, 0, 1, -1, 8])))
    n = data.draw(st.sampled_from([n, n, n, max(n - 1, 0), min(n + 1, 2**32)]))
    try:
        got, approx = received(payload, count, n, index_code, value_code)
    except CorruptPayload:
        return
    got = got.astype(np.int64)
    assert (np.diff(got) > 0).all() and (got < n).all() and np.isfinite(approx).all()


GOOD = dict(indices=INDICES, values=PLAIN, n=N, index_code="auto", value_code="float16", out=np.zeros(999, np.uint8))


@pytest.mark.parametrize("wrong, text", [
    (dict(indices=INDICES[::-1].copy()), "ascend"), (dict(indices=changed(INDICES, 3, INDICES[2])), "ascend"),
    (dict(n=883), "below 883"), (dict(n=11), "count 12 and n 11"), (dict(n=2**32 + 1), "2\\^32"),
    (dict(indices=INDICES.astype(np.int64)), "uint32 array, got int64"), (dict(indices=[1, 2]), "got list"),
    (dict(values=PLAIN.astype(np.float64)), "float32 array, got float64"), (dict(values=PLAIN[:-1]), "room for 12"),
    (dict(values=np.zeros(13, np.float32)), "equally long"), (dict(values=np.zeros(24, np.float32)[::2]), "contiguous"),
    (dict(index_code="gamma"), "one of raw, bitmap, rice, local, auto, got 'gamma'"),
    (dict(value_code="int4"), "one of float32"), (dict(out=np.zeros(36, np.uint8)), "room for 38")])
def test_a_wrong_argument_is_refused_before_anything_is_written(wrong, text):
    arguments = GOOD | wrong
    out, v = arguments["out"], arguments["values"]
    before = v.copy()
    with pytest.raises(ValueError, match=text):
        encode(**arguments)
    assert (v == before).all() and not out.any()


def test_any_buffer_is_read_and_longer_arrays_are_filled_in_part():
    payload, used, _ = sent(N, INDICES, PLAIN)
    odd = np.frombuffer(b"x" + payload, np.uint8)[1:]  # read-only, not aligned
    for form in (payload, bytearray(payload), memoryview(payload), odd):
        indices, v = np.full(20, 7, np.uint32), np.full(20, 7, np.float32)
        decode(form, COUNT, N, used, "float32", indices, v)
        assert (indices[:COUNT] == INDICES).all() and (v[:COUNT] == PLAIN).all() and (indices[COUNT:] == 7).all()
    with pytest.raises(ValueError, match="indices must have room for 12, got 3"):
        decode(payload, COUNT, N, used, "float32", np.empty(3, np.uint32), v)


def everything(n, indices, v):
    for index_code in CHOICES:
        for value_code in VALUE_CODES:
            payload, used, _ = sent(n, indices, v, index_code, value_code)
            received(payload, len(v), n, used, value_code)


KERNELS = [item for module in (index_codes, value_codes) for item in vars(module).values() if isinstance(item, Dispatcher)]


def test_a_second_call_compiles_nothing():
    everything(N, INDICES, PLAIN)
    everything(2**16, np.arange(300, dtype=np.uint32), np.ones(300, np.float32))
    assert all(len(kernel.signatures) == 1 for kernel in KERNELS)


def test_a_second_process_compiles_nothing():
    code = ("from test_index_codes import *; everything(N, INDICES, PLAIN);"
            "print(sum(sum(kernel.stats.cache_misses.values()) for kernel in KERNELS))")
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(SUPPORT), str(Path(__file__).parent)))}
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ended.stdout.split() == ["0"]
