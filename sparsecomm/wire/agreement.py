"""One short Allreduce before each step: gradients that some rank has, and a check that all ranks make the same call."""

import json
import zlib
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from sparsecomm.wire import launch
from sparsecomm.wire.handshake import gather, handshake

ALIKE = "Every rank must do the same at every step"


class Agreed(NamedTuple):
    """What the ranks know after `agree`."""

    present: np.ndarray  # bool[n]: some rank has it
    most: int  # the largest count of any rank
    same: bool  # whether `own` is the same on all ranks


def agree(comm, facts, present, count=0, of=0, own=0) -> Agreed:
    """Combine `present` (bool[n]), `count` (at most `of`) and `own` (int) over the ranks. Collective, with the same n.

    facts: what must be alike, by name; where it is not, all ranks raise the UserError that names the ranks which are odd.
    One bitwise or over all ranks: x is the same on all where no bit is set both in the or of x and in that of its inverse.
    """
    words = np.array([zlib.crc32(json.dumps(facts).encode()), own], np.int64)
    bits = np.concatenate([np.arange(of) < count, present, np.zeros(-(of + len(present)) % 64, bool)])
    mine = np.concatenate([words, ~words, np.packbits(bits).view(np.int64)])
    comm.Allreduce(mine.copy(), mine, launch.mpi().BOR)
    apart = mine[:2] & mine[2:4]
    if apart[0]:
        handshake(comm, facts, ALIKE)
    bits = np.unpackbits(mine[4:].view(np.uint8)).astype(bool)
    return Agreed(bits[of:of + len(present)], int(bits[:of].sum()), not apart[1])


def all_fine(comm, wrong):
    """Raise UserError on all ranks where one has a line `wrong`; the other ranks name that rank. Collective."""
    lines = [json.loads(text) for text in gather(comm, json.dumps(wrong).encode())]
    if wrong:
        raise UserError(wrong)
    for rank, line in enumerate(lines):
        if line:
            raise UserError(f"rank {rank}: {line}")
