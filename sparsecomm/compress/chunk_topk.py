"""Chunk-wise top-k: the k largest of every 4096 gradient elements, with indices of 12 bits (SparseLoCo, Sarfi et al. 2025).

Exactly k of each chunk, also where they are zeros: every message has one size, known before the first step. The
selection of a chunk does not depend on the others: a layer with a large gradient cannot crowd out the rest.
"""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.compression.local_index_code import CHUNK, nbytes
from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Payload, put_back


class ChunkTopK(NamedTuple):
    """Options of compressor chunk-top-k; a k that is not whole is rounded."""

    k: float = 41  # elements sent of each 4096 (1%), and of the shorter chunk at a tensor's end, or all that it has
    ranges = {"k": f"[1, {CHUNK}]"}
    sparse = True

    def compressor(self, bucket):
        return _ChunkTopK(round(self.k), bucket)


def entries(k, sizes) -> int:
    """How many elements are sent of tensors of these sizes."""
    return sum(size // CHUNK * k + min(k, size % CHUNK) for size in sizes)


def message_bytes(k, sizes) -> int:
    """Bytes of a message's indices and values for one bucket, with value code float32."""
    count = entries(k, sizes)
    return nbytes(count, sum(sizes)) + 4 * count


class _ChunkTopK:
    """Without state: unsent gradient stays in the residual."""

    lossless, decay = False, 1.0

    def __init__(self, k, bucket):
        self.k, self.parts, self.operations = k, bucket.parts, operations(bucket.device)
        self.index_code = "local" if bucket.config.index_code == "auto" else None

    def rounds(self, step, gradients):
        flat = gradients.flat
        tensors, none = zip(self.parts, gradients.tensors), self.operations.here(np.zeros(0, np.int64))
        at = self.operations.concatenate([none, *(part.start + self._largest(x.reshape(-1)) for part, x in tensors
                                                  if x is not None)])
        values = flat[at]
        flat[at] = 0
        total = yield Payload(at.astype(np.uint32) if isinstance(at, np.ndarray) else at, values, index_code=self.index_code)
        put_back(flat, total.unsent)
        return total

    def _largest(self, x):
        """int64, ascending: indices of the k largest magnitudes of each chunk of x (flat)."""
        whole_chunks, parts = x.shape[0] // CHUNK, []
        if whole_chunks:
            table = self.operations.largest_in_rows(x[:whole_chunks * CHUNK].reshape(whole_chunks, CHUNK), self.k)
            for row in range(1, whole_chunks):
                table[row] += row * CHUNK
            parts.append(table.reshape(-1))
        if rest := x.shape[0] % CHUNK:
            last = x[whole_chunks * CHUNK:].reshape(1, rest)
            parts.append(whole_chunks * CHUNK + self.operations.largest_in_rows(last, min(self.k, rest)).reshape(-1))
        return self.operations.concatenate(parts)

    def state(self):
        return {}

    def load(self, state):
        pass
