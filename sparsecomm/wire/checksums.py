"""Checksums of arrays, compared over the ranks."""

import zlib

import numpy as np

from hogwild.errors import UserError
from sparsecomm.wire.handshake import minority


def checksum(arrays) -> int:
    """CRC-32 of the bytes of NumPy arrays, in their order."""
    own = 0
    for x in arrays:
        own = zlib.crc32(x, own)
    return own


def check_equal(wire, step, arrays):
    """Raise UserError, which names the ranks, unless all that have arrays have the same parameters. Called by all ranks."""
    arrays = list(arrays)
    table = wire.numbers([checksum(arrays), bool(arrays)])
    ranks = np.flatnonzero(table[:, 1])
    odd = [int(ranks[k]) for k in minority(table[ranks, 0])] if ranks.size else []
    if odd:
        ranks = ", ".join(map(str, odd))
        raise UserError(f"step {step}: the parameters of rank {ranks} differ from those of the other ranks; memory or "
                        "network corrupts data, or parameters were changed outside the optimizer")


def all_alike(wire, arrays) -> bool:
    """Whether several ranks have the same arrays, not all of them 0: a sign that they read the same data. Collective."""
    arrays = list(arrays)
    table = wire.numbers([checksum(arrays), any(x.any() for x in arrays)])
    return wire.size > 1 and bool(table[0, 1]) and bool((table == table[0]).all())
