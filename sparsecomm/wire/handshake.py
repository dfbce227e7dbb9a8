"""Before anything else is sent: do all ranks run the same program on the same model with the same settings?"""

import json
import sys
from collections import defaultdict

import numba
import numpy as np

import sparsecomm
from hogwild.errors import UserError
from sparsecomm.wire.message import VERSION
from sparsecomm.wire.mpi import demand_possible

MOST = 1 << 20  # bytes of a rank's facts


def own_facts() -> dict:
    """Versions and byte order, which must be the same on all ranks that exchange messages."""
    torch = {"torch": sys.modules["torch"].__version__} if "torch" in sys.modules else {}
    return {"protocol": VERSION, "hogwild-sparsecomm": sparsecomm.__version__, "numpy": np.__version__,
            "numba": numba.__version__, "byte order": sys.byteorder, **torch}


ADVICE = "Start every rank with the same installation, data and options"


def handshake(comm, facts, advice=ADVICE):
    """Compare `own_facts` and `facts` (numbers and texts by name) over all ranks of a communicator, or a wire without MPI.

    Called by all ranks. Where anything differs, every rank raises the same UserError, which names the ranks that are
    odd, the fact, and what each has. A fact of the same name in `facts` replaces the own one.
    """
    text = json.dumps({**own_facts(), **facts}).encode()
    texts = gather(comm, text) if hasattr(comm, "Allgatherv") else comm.gather(np.frombuffer(text, np.uint8), MOST)
    everyone = [json.loads(bytes(text)) for text in texts]
    names = dict.fromkeys(name for each in everyone for name in each)
    differences = filter(None, (difference(name, [each.get(name, "nothing") for each in everyone]) for name in names))
    if text := "; ".join(differences):
        raise UserError(f"the ranks do not agree: {text}. {advice}")


def gather(comm, text) -> list[bytes]:
    """The bytes of every rank. Lengths travel as little-endian bytes, since byte order is one of the facts."""
    from mpi4py import MPI  # not above: the hook of torch's DDP compares facts without MPI
    size = comm.Get_size()
    lengths = np.empty(size, "<i8")
    comm.Allgather([np.array([len(text)], "<i8").view(np.uint8), MPI.BYTE], [lengths.view(np.uint8), MPI.BYTE])
    demand_possible(lengths.tolist(), MOST)
    ends = np.cumsum(lengths)
    every = np.empty(int(ends[-1]), np.uint8)
    comm.Allgatherv([np.frombuffer(text, np.uint8), MPI.BYTE], [every, lengths.tolist(), (ends - lengths).tolist(), MPI.BYTE])
    return [every[end - length:end].tobytes() for length, end in zip(lengths, ends)]


def difference(name, values) -> str:
    """What is odd where rank r has values[r]: "numpy is 2.1 on rank 3, but 2.4 on the others"; "" where nothing is."""
    ranks = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[json.dumps(value)].append(rank)
    if len(ranks) == 1:
        return ""
    usual = max(ranks, key=lambda value: len(ranks[value]))  # of equally many, rank 0's
    odd = " and ".join(f"{json.loads(value)} on {_named(of)}" for value, of in ranks.items() if value != usual)
    return f"{name} is {odd}, but {json.loads(usual)} on {_named(ranks[usual]) if len(ranks[usual]) < 3 else 'the others'}"


def minority(values) -> list[int]:
    """The ranks r whose values[r] is not the most frequent one; none where all are equal."""
    values = list(values)
    usual = max(values, key=values.count)
    return [rank for rank, value in enumerate(values) if value != usual]


def _named(ranks) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
