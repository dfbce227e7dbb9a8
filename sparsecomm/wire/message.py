"""One message between ranks: a header of 48 bytes, then a payload as kernels/compression/index_codes.py writes it.

The header, little-endian: magic (4 bytes); a byte each for the version, the dtype, the index and the value code; then
uint32: gradient elements of the sender that were not finite, CRC-32 of header (with 0 in its place) and payload; then
uint64: step, dimension n, count of entries, bytes of the payload. A receiver checks all of it before it uses anything.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.compression import local_index_code
from hogwild.kernels.compression.index_codes import INDEX_CODES, VALUE_CODES, CorruptPayload, decode, encode, most_bytes
from hogwild.kernels.compression.value_codes import VALUES

MAGIC, VERSION, FLOAT32 = b"HWSC", 2, 0
HEADER = struct.Struct("<4sBBBBIIQQQQ")
ALL = "all"  # index code of a message with a value for each of the n elements, and so without indices
CODES = (*INDEX_CODES, ALL)


class MessageError(UserError):
    """A message that its receiver cannot use: damaged, or of another step, dimension or version of the program."""

    names_its_rank = True  # the sender, which is to blame, not the rank that raises this


class Message(NamedTuple):
    """What a rank sent."""

    indices: np.ndarray | None  # uint32[count], ascending, below n; None: all n
    values: np.ndarray  # float32[count]
    bad: int  # gradient elements of the sender that were not finite


class Header(NamedTuple):
    """Fields of the header, in their order."""

    magic: bytes
    version: int
    dtype: int
    index_code: int
    value_code: int
    bad: int
    crc: int
    step: int
    n: int
    count: int
    nbytes: int


def room(count, n, index_code, value_code) -> int:
    """The most bytes that `pack` needs."""
    dense = index_code == ALL
    return HEADER.size + (_dense_bytes(n, value_code) if dense else most_bytes(count, n, index_code, value_code))


def most_room(n) -> int:
    """As many bytes as any message of dimension n may have: raw indices and float32 values of all, and what codes add."""
    return HEADER.size + 8 * n + 16


def _dense_bytes(n, value_code) -> int:
    return VALUES[value_code].nbytes(n) if n else 0


def _least_bytes(header) -> int:
    """The fewest bytes that can hold the entries which the header claims: receivers allocate memory for them."""
    index_code, value_code = CODES[header.index_code], VALUE_CODES[header.value_code]
    if not header.count:
        return 0
    least = {"raw": 4 * header.count, "bitmap": -(-header.n // 8), "rice": 1 + header.count // 8, ALL: 0}
    indices = least[index_code] if index_code in least else local_index_code.nbytes(header.count, header.n)
    return indices + VALUES[value_code].nbytes(header.count)


def pack(step, n, indices, values, index_code, value_code, bad=0) -> np.ndarray:
    """The message as uint8[…]; `values` becomes what was lost by rounding, exactly 0 for float32.

    indices: uint32[count], ascending, below n, or None for all n; values: float32[count], finite. index_code "auto" takes
    the smallest. Raises ValueError for arrays that are no such message.
    """
    index_code = ALL if indices is None else index_code
    if index_code == ALL and values.size != n:
        raise ValueError(f"without indices there must be a value for each of {n} elements, got {values.size}")
    out = np.empty(room(values.size, n, index_code, value_code), np.uint8)
    payload = out[HEADER.size:]
    if index_code == ALL:
        size = payload.size
        VALUES[value_code].put(values, payload) if n else None
    else:
        size, index_code = encode(indices, values, n, index_code, value_code, payload)
    header = Header(MAGIC, VERSION, FLOAT32, CODES.index(index_code), VALUE_CODES.index(value_code),
                    min(bad, 0xFFFFFFFF), 0, step, n, values.size, size)
    header = header._replace(crc=_crc(header, payload[:size]))
    out[:HEADER.size] = np.frombuffer(HEADER.pack(*header), np.uint8)
    return out[:HEADER.size + size]


def _crc(header, payload) -> int:
    return zlib.crc32(payload, zlib.crc32(HEADER.pack(*header._replace(crc=0))))


def checked(raw, step, n, sender, dense=False) -> Header:
    """The header of the message `raw` (uint8[…]); only what its payload says can then still be wrong.

    Raises MessageError, which names the sender, unless this is a whole, undamaged message of this step, dimension and kind.
    """
    if raw.size < HEADER.size:
        raise _error(step, sender, f"at least {HEADER.size} bytes", raw.size)
    header = Header(*HEADER.unpack(raw[:HEADER.size].tobytes()))
    length, crc, all_ = HEADER.size + header.nbytes, _crc(header, raw[HEADER.size:]), CODES.index(ALL)
    for fact, low, high, got in (
            ("magic", MAGIC, MAGIC, header.magic), ("protocol version", VERSION, VERSION, header.version),
            ("length", length, length, raw.size), ("checksum", crc, crc, header.crc), ("step", step, step, header.step),
            ("dimension", n, n, header.n), ("dtype", FLOAT32, FLOAT32, header.dtype),
            ("index code", *((all_, all_) if dense else (0, all_ - 1)), header.index_code),
            ("value code", 0, len(VALUE_CODES) - 1, header.value_code), ("count", n if dense else 0, n, header.count)):
        if not low <= got <= high:
            raise _error(step, sender, f"{fact} {low}" if low == high else f"{fact} between {low} and {high}", got)
    if header.nbytes < (least := _least_bytes(header)):
        raise _error(step, sender, f"a payload of at least {least} bytes for {header.count} entries", header.nbytes)
    return header


def _error(step, sender, needed, got) -> MessageError:
    return MessageError(f"step {step}: rank {sender} sent a message that cannot be used: needed {needed}, got {got}; nothing "
                        "was written, start again from the last checkpoint")


def _fill(header, raw, sender, indices, values):
    """Decode the payload into indices (None: a dense message) and values; MessageError where it is none."""
    payload, value_code = raw[HEADER.size:], VALUE_CODES[header.value_code]
    try:
        if indices is not None:
            decode(payload, header.count, header.n, CODES[header.index_code], value_code, indices, values)
        elif payload.size != _dense_bytes(header.n, value_code):
            raise CorruptPayload(f"{payload.size} bytes cannot hold {header.n} values as {value_code}")
        elif header.n:
            VALUES[value_code].get(payload, values)
            if not np.isfinite(values).all():
                raise CorruptPayload(f"values as {value_code} are not all finite")
    except CorruptPayload as error:
        raise _error(header.step, sender, "a payload that can be decoded", error) from error


def unpack_all(raws, step, sizes, dense=False, own=None, first=0) -> tuple[Message, list[int]]:
    """(the messages of ranks `first`, first + 1, … one behind the other, where each ends); `bad` is their sum.

    raws: uint8 each; sizes: the dimension of each. Where one is None, the message `own` stands in its place. Raises
    MessageError as `checked` does, before anything but these new arrays is written.
    """
    heads = [own if raw is None else checked(raw, step, n, first + r, dense) for r, (raw, n) in enumerate(zip(raws, sizes))]
    counts = [own.values.size if raw is None else head.count for raw, head in zip(raws, heads)]
    ends = np.cumsum(counts).tolist()
    indices, values = None if dense else np.empty(ends[-1], np.uint32), np.empty(ends[-1], np.float32)
    for r, (raw, head, count, end) in enumerate(zip(raws, heads, counts, ends)):
        part = slice(end - count, end)
        if raw is not None:
            _fill(head, raw, first + r, None if dense else indices[part], values[part])
            continue
        values[part] = own.values
        if not dense:
            indices[part] = own.indices
    return Message(indices, values, sum(head.bad for head in heads)), ends


def unpack(raw, step, n, sender, dense=False) -> Message:
    """The message `raw` (uint8[…]) of rank `sender`, in new arrays. Raises MessageError as `checked` does."""
    return unpack_all([raw], step, [n], dense, first=sender)[0]
