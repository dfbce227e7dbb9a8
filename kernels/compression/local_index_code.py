"""The index code "local": of every index the 12 bits that place it in its chunk of 4096 elements.

    counts   uint16 for each of the ceil(n / 4096) chunks: how many indices lie in it
    places   12 bits an index, ascending: two of them in three bytes, the first in the lower bits; an odd last one in two

A message therefore has a size that n and the count give, wherever the indices lie (as in SparseLoCo, Sarfi et al. 2025).
"""

import numpy as np

from hogwild.kernels.compression.value_codes import CorruptPayload

CHUNK = 4096
BITS = 12
LOW = np.uint32(CHUNK - 1)


def chunks(n) -> int:
    """Number of chunks of n elements."""
    return -(-n // CHUNK)


def nbytes(count, n) -> int:
    """Bytes of `count` indices below n."""
    return 2 * chunks(n) + -(-count * BITS // 8)


def put(indices, n, out):
    """Write all of out (uint8[nbytes]); indices: uint32[count], strictly ascending, below n."""
    cut = 2 * chunks(n)
    edges = np.arange(1, chunks(n), dtype=np.int64) * CHUNK
    counts = np.diff(np.searchsorted(indices, edges), prepend=0, append=indices.size)
    out[:cut] = counts.astype("<u2").view(np.uint8)
    places = np.zeros(indices.size + indices.size % 2, np.uint16)
    places[:indices.size] = indices & LOW
    triples = np.empty((places.size // 2, 3), np.uint8)
    first, second = places[0::2], places[1::2]
    triples[:, 0], triples[:, 1], triples[:, 2] = first & 255, first >> 8 | (second & 15) << 4, second >> 4
    out[cut:] = triples.reshape(-1)[:out.size - cut]


def get(part, n, indices):
    """Fill indices (uint32[count]) from `part` (uint8[nbytes]), whoever wrote it: order and bounds hold afterwards.

    Raises CorruptPayload.
    """
    cut, count = 2 * chunks(n), indices.size
    counts = part[:cut].copy().view("<u2")
    if int(counts.sum(dtype=np.int64)) != count or counts.max(initial=0) > CHUNK:
        raise CorruptPayload(f"local part: the chunks of {n} elements do not hold {count} indices")
    triples = np.zeros((-(-count // 2), 3), np.uint8)
    triples.reshape(-1)[:part.size - cut] = part[cut:]
    a, b, c = (triples[:, i].astype(np.uint32) for i in range(3))
    places = np.stack([a | (b & 15) << 8, b >> 4 | c << 4], axis=1).reshape(-1)
    if places[count:].any():
        raise CorruptPayload(f"local part of {count} indices is not padded with zeros")
    np.add(places[:count], np.repeat(np.arange(counts.size, dtype=np.uint32) * np.uint32(CHUNK), counts), out=indices)
    if count and (int(indices[-1]) >= n or not np.all(indices[1:] > indices[:-1])):
        raise CorruptPayload(f"local indices do not ascend strictly below {n}")
