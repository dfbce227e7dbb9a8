"""Low rank: PowerSGD (Vogels, Karimireddy and Jaggi 2019, algorithms 1 and 2), for tensors of two dimensions and more.

A tensor is the matrix M of its first dimension by all others; P = M Q is summed over the ranks and made orthonormal, Q = Mᵀ P
is summed, and P Qᵀ, the projection of the summed M on the columns of P, is the sum. One step of subspace iteration, which
begins with the last step's Q: at a constant gradient the best approximation of that rank. Other tensors, and those that two
factors would not make smaller, are sent whole. What a rank sent is its own part P Qᵀ, as in the paper (torch's hook subtracts
the mean of all instead; over the ranks both leave the same residual).

The ranks compute P and P Qᵀ each for itself, from equal numbers: with different processors or BLAS libraries among them the
last bits may differ, which the check of equal parameters then reports.
"""

import zlib
from typing import NamedTuple

import numpy as np

from sparsecomm.compress.operations import host, operations
from sparsecomm.compress.protocol import Payload, rounded_away


class LowRank(NamedTuple):
    """Options of compressor low-rank; a rank that is not whole is rounded."""

    rank: float = 4  # of the approximation; (rows + columns) * rank elements of each matrix are summed
    ranges = {"rank": "[1, 4096]"}
    sparse = False

    def compressor(self, bucket):
        return _LowRank(round(self.rank), bucket)


def factors(shape, rank) -> tuple[int, int, int] | None:
    """(rows, columns, rank) of a tensor that is sent as two factors; None: it is sent whole."""
    rows, columns = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (1, 1)
    rank = min(rank, rows, columns)
    return (rows, columns, rank) if rank * (rows + columns) < rows * columns else None


def elements(shapes, rank) -> int:
    """How many numbers are summed over the ranks at each step, for tensors of these shapes."""
    found = ((shape, factors(shape, rank)) for shape in shapes)
    return sum(of[2] * (of[0] + of[1]) if of else int(np.prod(shape)) for shape, of in found)


class _LowRank:
    """Remembers Q of each matrix, float32[columns, rank], the same on all ranks."""

    lossless, decay = False, 1.0

    def __init__(self, rank, bucket):
        self.names, self.parts, self.operations, self.q = bucket.names, bucket.parts, operations(bucket.device), {}
        for name, shape in zip(bucket.names, bucket.shapes):
            if of := factors(shape, rank):
                rng = np.random.default_rng([bucket.seed, zlib.crc32(name.encode())])
                self.q[name] = rng.standard_normal((of[1], of[2])).astype(np.float32)

    def rounds(self, step, gradients):
        to, tensors = self.operations, {k: x for k, x in enumerate(gradients.tensors) if x is not None}
        plain = {k: x.reshape(-1) for k, x in tensors.items() if self.names[k] not in self.q}
        matrices = {k: x.reshape(x.shape[0], -1) for k, x in tensors.items() if k not in plain}
        own = [*plain.values(), *(m @ to.orthonormal(to.here(self.q[self.names[k]])) for k, m in matrices.items())]
        answer = yield Payload(None, self._joined(own))
        sums, unsent = _apart(answer.values, own), _apart(rounded_away(answer), own)
        total = to.zeros(gradients.flat.shape)
        for k, tensor_sum, back in zip(plain, sums, unsent):
            total[self.parts[k]] = tensor_sum
            plain[k][:] = back
        if matrices:
            yield from self._project(matrices, [to.orthonormal(p) for p in sums[len(plain):]], total)
        return Payload(None, total)

    def _project(self, matrices, bases, total):
        """Project on the bases, float32[rows, rank] with orthonormal columns: into `total`, and out of the matrices."""
        own = [m.T @ p for m, p in zip(matrices.values(), bases)]
        answer = yield Payload(None, self._joined(own))
        sums, unsent = _apart(answer.values, own), _apart(rounded_away(answer), own)
        for (k, m), p, q, q_sum, back in zip(matrices.items(), bases, own, sums, unsent):
            total[self.parts[k]] = (p @ q_sum.T).reshape(-1)
            m -= p @ (q - back).T
            if bool((q_sum != 0).any()):  # from a Q of zeros no later step would find anything
                self.q[self.names[k]] = q_sum

    def _joined(self, arrays):
        return self.operations.concatenate([x.reshape(-1) for x in arrays])

    def state(self):
        return {f"{name}.q": host(q).copy() for name, q in self.q.items()}

    def load(self, state):
        for name, q in self.q.items():
            saved = state.get(f"{name}.q")
            if saved is not None and saved.shape == tuple(q.shape):  # of another rank: a Q is found anew
                self.q[name] = np.array(saved, np.float32)


def _apart(flat, parts) -> list:
    """The array `flat` as arrays of the shapes of `parts`."""
    arrays, start = [], 0
    for part in parts:
        size = int(np.prod(part.shape))
        arrays.append(flat[start:start + size].reshape(part.shape))
        start += size
    return arrays
