"""Gather, scatter and broadcast of named arrays: flat buffers with a JSON header, never pickles."""

import json

import numpy as np
from mpi4py import MPI

from hogwild.errors import UserError
from hogwild.training.machine import memory

CHUNK = 1 << 30  # bytes in one message: MPI counts are int32


def flat(arrays) -> np.ndarray:
    """uint8[…]: 8 bytes with the length of a JSON text, the text (names, dtypes, shapes), the arrays' bytes."""
    arrays = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    head = json.dumps([[name, x.dtype.str, x.shape] for name, x in arrays.items()]).encode()
    parts = [np.array([len(head)], "<u8").view(np.uint8), np.frombuffer(head, np.uint8),
             *(x.reshape(-1).view(np.uint8) for x in arrays.values())]
    return np.concatenate(parts)


def named(raw) -> dict[str, np.ndarray]:
    """The arrays of which `flat` made `raw`, as copies."""
    at = 8 + int(raw[:8].view("<u8")[0])
    arrays = {}
    for name, dtype, shape in json.loads(raw[8:at].tobytes()):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = raw[at:at + size].copy().view(dtype).reshape(shape)
        at += size
    return arrays


def gathered(comm, arrays) -> list[dict[str, np.ndarray]]:
    """The named arrays of every rank, in a list on rank 0; an empty list on the others. Collective."""
    if comm.rank:
        _send(comm, flat(arrays), 0)
        return []
    return [arrays, *(named(_received(comm, rank)) for rank in range(1, comm.size))]


def scattered(comm, states) -> dict[str, np.ndarray]:
    """states[r] on rank r; only the `states` of rank 0 are read. Collective."""
    if comm.rank:
        return named(_received(comm, 0))
    for rank in range(1, comm.size):
        _send(comm, flat(states[rank]), rank)
    return states[0]


def broadcast_arrays(comm, arrays) -> dict[str, np.ndarray]:
    """The named arrays of rank 0, on all ranks. Collective."""
    raw = flat(arrays) if comm.rank == 0 else None
    size = np.array([0 if raw is None else raw.size], np.int64)
    comm.Bcast(size)
    raw = _room(size[0], 0) if raw is None else raw
    for start in range(0, raw.size, CHUNK):
        comm.Bcast([raw[start:start + CHUNK], MPI.BYTE])
    return arrays if comm.rank == 0 else named(raw)


def broadcast_json(comm, value):
    """The value of rank 0, of types that JSON has, on all ranks. Collective."""
    text = json.dumps(value).encode() if comm.rank == 0 else b""
    return json.loads(broadcast_arrays(comm, {"json": np.frombuffer(text, np.uint8)})["json"].tobytes())


def on_root(comm, work):
    """work() on rank 0, None elsewhere; a UserError of it is raised on all ranks. Collective."""
    result, wrong = None, None
    if comm.rank == 0:
        try:
            result = work()
        except UserError as error:
            wrong = str(error)
    wrong = broadcast_json(comm, wrong)
    if wrong is not None:
        raise UserError(wrong)
    return result


def _send(comm, raw, to):
    comm.Send(np.array([raw.size], np.int64), to)
    for start in range(0, raw.size, CHUNK):
        comm.Send([raw[start:start + CHUNK], MPI.BYTE], to)


def _room(size, source) -> np.ndarray:
    """uint8[size] for what a rank has announced. Raises UserError for a size that nothing can have."""
    if not 8 <= size <= memory():
        raise UserError(f"rank {source} announces {size:,} bytes of arrays, needed 8 to {memory():,}, the memory here; the "
                        "ranks may run different versions")
    return np.empty(size, np.uint8)


def _received(comm, source) -> np.ndarray:
    size = np.empty(1, np.int64)
    comm.Recv(size, source)
    raw = _room(size[0], source)
    for start in range(0, raw.size, CHUNK):
        comm.Recv([raw[start:start + CHUNK], MPI.BYTE], source)
    return raw
