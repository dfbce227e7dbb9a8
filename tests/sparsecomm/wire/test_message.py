"""Messages: what is packed comes out again, and nothing else is taken for a message."""

import binascii
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hogwild.errors import UserError
from hogwild.kernels.compression.index_codes import INDEX_CODES, VALUE_CODES
from sparsecomm.wire.message import HEADER, Message, MessageError, most_room, pack, room, unpack, unpack_all
from sparsecomm.wire.mpi import demand_possible

CODES = [(index, value) for index in (*INDEX_CODES, "all") for value in VALUE_CODES]
N, STEP = 100, 2**40 + 7


def entries(n, count, seed=0):
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n, count, replace=False)).astype(np.uint32), rng.standard_normal(count).astype(np.float32)


def packed(index_code, value_code, bad=3):
    indices, values = entries(N, N if index_code == "all" else 9)
    return pack(STEP, N, None if index_code == "all" else indices, values, index_code, value_code, bad)


def forged(raw, payload=None, **fields):
    """`raw` with other content and a checksum that is right."""
    names = "magic version dtype index_code value_code bad crc step n count nbytes".split()
    header = dict(zip(names, HEADER.unpack(raw[:48].tobytes())))
    payload = raw[48:].tobytes() if payload is None else payload
    header.update(nbytes=len(payload), crc=0)
    header.update(fields)
    header["crc"] = binascii.crc32(HEADER.pack(*header.values()) + payload)
    return np.frombuffer(HEADER.pack(*header.values()) + payload, np.uint8)


@given(st.sampled_from(["auto", *INDEX_CODES]), st.sampled_from(VALUE_CODES), st.integers(1, 3000), st.floats(0, 1),
       st.integers(0, 2**64 - 1), st.integers(0, 2**33))
def test_what_was_packed_comes_out(index_code, value_code, n, share, step, bad):
    indices, values = entries(n, int(share * n))
    lost = values.copy()
    raw = pack(step, n, indices, lost, index_code, value_code, bad)
    assert raw.dtype == np.uint8 and raw.size <= room(indices.size, n, index_code, value_code)
    got = unpack(raw, step, n, 1)
    assert np.array_equal(got.indices, indices) and got.bad == min(bad, 2**32 - 1)
    assert got.indices.dtype == np.uint32 and got.values.dtype == np.float32
    assert np.allclose(got.values + lost, values, rtol=1e-6, atol=0 if value_code != "1bit" else 1e-6)
    if value_code == "float32":
        assert np.array_equal(got.values, values) and not lost.any() and raw.size >= 48 + 4 * values.size


@pytest.mark.parametrize("value_code", VALUE_CODES)
@pytest.mark.parametrize("n", [0, 1, 700])
def test_dense_messages_have_no_indices(value_code, n):
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    lost = values.copy()
    raw = pack(5, n, None, lost, "auto", value_code)
    got = unpack(raw, 5, n, 0, dense=True)
    assert got.indices is None and np.allclose(got.values + lost, values, rtol=1e-6, atol=1e-6) and got.bad == 0
    assert raw.size == room(n, n, "all", value_code)


def test_header_is_the_documented_one():
    raw = packed("raw", "float32").tobytes()
    assert struct.unpack("<4s4B2I", raw[:16])[:6] == (b"HWSC", 2, 0, 0, 0, 3)
    assert struct.unpack("<4Q", raw[16:48]) == (STEP, N, 9, 72) and len(raw) == 120
    assert int.from_bytes(raw[12:16], "little") == binascii.crc32(raw[:12] + bytes(4) + raw[16:])


@pytest.mark.parametrize("index_code, value_code", CODES)
def test_a_flipped_bit_anywhere_and_any_other_length_are_noticed(index_code, value_code):
    raw, dense = packed(index_code, value_code), index_code == "all"
    unpack(raw, STEP, N, 6, dense)
    for bit in range(8 * raw.size):
        wrong = raw.copy()
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MessageError, match=r"^step \d+: rank 6 sent a message that cannot be used: needed .*, got .*;"):
            unpack(wrong, STEP, N, 6, dense)
    for size in range(raw.size):
        with pytest.raises(MessageError, match="rank 6"):
            unpack(raw[:size], STEP, N, 6, dense)
    with pytest.raises(MessageError, match="needed length"):
        unpack(np.append(raw, np.uint8(0)), STEP, N, 6, dense)


def ints(*indices):
    return np.array(indices, np.uint32).tobytes() + np.ones(len(indices), np.float32).tobytes()


@pytest.mark.parametrize("wrong, what", [
    (dict(step=STEP + 1), f"needed step {STEP}, got {STEP + 1}"), (dict(n=N + 1), "needed dimension 100, got 101"),
    (dict(version=1), "protocol version 2, got 1"), (dict(dtype=1), "dtype 0, got 1"),
    (dict(index_code=4), "index code between 0 and 3, got 4"), (dict(value_code=5), "value code between 0 and 4, got 5"),
    (dict(count=101), "count between 0 and 100, got 101"), (dict(count=2**63), "count between 0 and 100"),
    (dict(count=3), "payload that can be decoded"), (dict(nbytes=2**63), "needed length"), (dict(magic=b"HWSD"), "magic"),
    (dict(payload=ints(5, 6, 100), count=3), "payload that can be decoded"),
    (dict(payload=ints(5, 6, 2**32 - 1), count=3), "payload that can be decoded"),
    (dict(payload=ints(5, 6, 6), count=3), "payload that can be decoded"),
    (dict(payload=ints(5, 7, 6), count=3), "payload that can be decoded"),
    (dict(payload=ints(5, 6), count=3), "a payload of at least 24 bytes for 3 entries, got 16"),
    (dict(payload=ints(5) + np.array([np.nan], np.float32).tobytes(), count=1), "payload that can be decoded")])
def test_a_wrong_message_with_a_right_checksum_is_refused(wrong, what):
    raw = packed("raw", "float32")
    unpack(forged(raw), STEP, N, 4)
    with pytest.raises(MessageError, match="rank 4 sent .*" + what) as caught:
        unpack(forged(raw, **wrong), STEP, N, 4)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("index_code", [*INDEX_CODES, "all"])
@pytest.mark.parametrize("value_code", VALUE_CODES)
def test_a_short_message_that_claims_many_entries_takes_no_memory(index_code, value_code):
    """It would be refused while it is decoded: after memory was taken for all entries that it claims."""
    n, dense = 200_000_000, index_code == "all"
    codes = dict(index_code=[*INDEX_CODES, "all"].index(index_code), value_code=VALUE_CODES.index(value_code))
    short = forged(packed("raw", "float32"), payload=b"x", n=n, count=n, **codes)
    tracemalloc.start()
    with pytest.raises(MessageError, match=f"a payload of at least [0-9]+ bytes for {n} entries, got 1"):
        unpack(short, STEP, n, 4, dense)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    fewest = unpack(pack(0, n, np.arange(5, dtype=np.uint32), np.ones(5, np.float32), "rice", value_code), 0, n, 0)
    assert fewest.indices.size == 5


def test_sizes_are_checked_before_memory_is_taken():
    demand_possible([0, 5, most_room(10)], most_room(10))
    for sizes, most, rank in ([0, 1 << 60], 100, 1), ([101, 0], [100, 100], 0), ([3, -1], 9, 1), ([5, 5], [5, 4], 1):
        with pytest.raises(MessageError, match=f"rank {rank} announces a message of {sizes[rank]} bytes"):
            demand_possible(sizes, most)


@pytest.mark.parametrize("n", [*range(20), 700])
def test_no_message_is_longer_than_is_possible(n):
    for value_code in VALUE_CODES:
        assert room(n, n, "all", value_code) <= most_room(n)
        assert all(room(count, n, code, value_code) <= most_room(n) for count in range(n + 1) for code in INDEX_CODES)


def test_dense_and_sparse_are_not_taken_for_each_other():
    sparse, dense = packed("raw", "float32"), packed("all", "float32")
    with pytest.raises(MessageError, match="needed index code 4, got 0"):
        unpack(sparse, STEP, N, 0, dense=True)
    with pytest.raises(MessageError, match="needed index code between 0 and 3, got 4"):
        unpack(dense, STEP, N, 0)
    with pytest.raises(MessageError, match="needed count 100, got 99"):
        unpack(forged(dense, payload=dense[48:-4].tobytes(), count=99), STEP, N, 0, dense=True)
    with pytest.raises(MessageError, match="payload of at least 400 bytes for 100 entries, got 396"):
        unpack(forged(dense, payload=dense[48:-4].tobytes()), STEP, N, 0, dense=True)
    with pytest.raises(MessageError, match="payload that can be decoded"):
        unpack(forged(dense, payload=dense[48:-4].tobytes() + struct.pack("<f", np.inf)), STEP, N, 0, dense=True)


def test_messages_of_all_ranks_in_a_row():
    pairs = [entries(n, k, n) for n, k in ((50, 4), (60, 0), (70, 9), (80, 80))]
    raws = [pack(1, n, at, v.copy(), "auto", "float32", n) for n, (at, v) in zip((50, 60, 70, 80), pairs)]
    raws[2], own = None, Message(*pairs[2], 70)
    every, ends = unpack_all(raws, 1, [50, 60, 70, 80], own=own)
    assert ends == [4, 4, 13, 93] and every.bad == 260
    assert np.array_equal(every.indices, np.concatenate([at for at, _ in pairs]))
    assert np.array_equal(every.values, np.concatenate([v for _, v in pairs]))
    raws[1] = raws[1].copy()
    raws[1][40] ^= 1
    with pytest.raises(MessageError, match="rank 1 sent"):
        unpack_all(raws, 1, [50, 60, 70, 80], own=own)


def test_what_is_no_message_is_not_packed():
    at, values = entries(N, 5)
    with pytest.raises(ValueError, match="ascend strictly"):
        pack(1, N, at[::-1].copy(), values, "raw", "float32")
    with pytest.raises(ValueError, match="index code"):
        pack(1, N, at, values, "huffman", "float32")
    with pytest.raises(ValueError, match="each of 100 elements, got 5"):
        pack(1, N, None, values, "raw", "float32")
    with pytest.raises(ValueError, match="value code"):
        pack(1, N, at, values, "raw", "float64")
