"""One request to a server, or its reply: a header of 72 bytes, then nothing or one message of sparsecomm/wire/message.py.

The header, little-endian: magic (4 bytes); a byte each for the version and the kind, two of zeros; uint32: the worker, CRC-32
of the header (with 0 in its place); then uint64: run, sequence, clock, version of the shard, checksum of the list of
keys, count of keys, bytes of the body. A receiver checks all of it before it uses anything.
"""

import hashlib
import struct
import zlib
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from sparsecomm.wire.message import ALL, CODES, Message, most_room, pack, unpack

MAGIC, VERSION = b"HWPS", 1
HEADER = struct.Struct("<4sBBHIIQQQQQQQ")
KINDS = START, PUSH, PULL, PAUSE, BYE, DONE, VALUES, CHANGES, UNKNOWN = range(9)
# Of workers: START (initial values), PUSH, PULL, PAUSE, BYE. Of servers: DONE, VALUES or CHANGES (what a pull asked for), and
# UNKNOWN: a list of keys was named by a checksum that the server does not have.
NAMES = "START", "PUSH", "PULL", "PAUSE", "BYE", "DONE", "VALUES", "CHANGES", "UNKNOWN"
NOTHING = np.zeros(0, np.uint8)


class RequestError(UserError):
    """A request that its receiver cannot use: damaged, of another run, or of other sizes."""

    names_its_rank = True  # the sender, which is to blame, not the rank that raises this


class Request(NamedTuple):
    """Fields of the header after magic and version, in their order."""

    kind: int
    worker: int  # its rank; in replies too
    run: int = 0
    sequence: int = 0  # of the worker to this server, from 1; a reply has its request's
    clock: int = 0  # of a push: pushes of the worker before it; of a pull: before what it is for; of a reply: the least clock
    version: int = 0  # steps of the shard: of a reply, so far; of a push, when its gradient's values were pulled
    keys: int = 0  # checksum of a list of keys, see `checksum_of`; 0: the whole shard
    count: int = 0  # keys in that list; of a pull without one: 0: what the server's views give, else the values themselves


def checksum_of(keys) -> int:
    """64 bits of a list of keys, never 0."""
    return int.from_bytes(hashlib.blake2b(keys.tobytes(), digest_size=8).digest(), "little") or 1


def packed(request, body=NOTHING) -> np.ndarray:
    """uint8[…]: the header and its body."""
    fields = request._asdict()
    kind, worker = fields.pop("kind"), fields.pop("worker")
    fields = MAGIC, VERSION, kind, 0, worker, 0, *fields.values(), body.size
    head = HEADER.pack(*fields[:5], zlib.crc32(HEADER.pack(*fields)), *fields[6:])
    return np.concatenate([np.frombuffer(head, np.uint8), body])


def most(n) -> int:
    """The most bytes of a request about a shard of n elements."""
    return HEADER.size + most_room(n)


def unpacked(raw, run, sender) -> tuple[Request, np.ndarray]:
    """(the request, its body) of `raw` (uint8[…]) from a rank; run: the id that it must have.

    Raises RequestError, which names the sender, unless this is a whole, undamaged request of this run.
    """
    if raw.size < HEADER.size:
        raise refused(sender, f"at least {HEADER.size} bytes", raw.size)
    magic, version, kind, zeros, worker, crc, *fields, nbytes = HEADER.unpack(raw[:HEADER.size].tobytes())
    if magic != MAGIC or version != VERSION:
        raise refused(sender, f"magic {MAGIC} and version {VERSION}", f"{magic} and {version}")
    if zlib.crc32(HEADER.pack(magic, version, kind, zeros, worker, 0, *fields, nbytes)) != crc:
        raise refused(sender, "a header of the checksum that it states", "another: it was damaged on its way")
    request = Request(kind, worker, *fields)
    if request.run != run:
        raise refused(sender, f"a request of run {run:016x}", f"one of run {request.run:016x}; end the workers of other runs")
    if kind not in KINDS or raw.size != HEADER.size + nbytes:
        raise refused(sender, f"a known kind and {HEADER.size + nbytes} bytes", f"kind {kind} and {raw.size} bytes")
    return request, raw[HEADER.size:]


def refused(sender, needed, got) -> RequestError:
    """The error about a request of a rank."""
    return RequestError(f"rank {sender} sent a request that cannot be used: needed {needed}, got {got}")


def pack_keys(keys, n) -> np.ndarray:
    """The body of a list of keys of a shard of n: uint32[m], ascending. Its values mean nothing: they take a bit each."""
    return pack(0, n, keys, np.ones(keys.size, np.float32), "auto", "1bit" if keys.size > 4 else "bfloat16")


def unpack_body(body, n, sender, dense=None, step=0) -> Message:
    """The message in a body of dimension n; dense: whether it has no indices, None: either. Raises MessageError."""
    if dense is None:
        dense = body.size > 6 and body[6] == CODES.index(ALL)
    return unpack(body, step, n, sender, dense)


def pack_values(payload, n, value_code, bad=0) -> np.ndarray:
    """The body of a payload of dimension n; its values become what was lost by rounding. bad: as of `pack`."""
    return pack(0, n, payload.indices, payload.values, payload.index_code or "auto", payload.value_code or value_code, bad)
