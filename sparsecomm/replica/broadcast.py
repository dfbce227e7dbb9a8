"""Tensors of which every rank has a replica: given out by one rank, compared, averaged."""

import time
import zlib
from contextlib import contextmanager

import numpy as np

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.wire import launch
from sparsecomm.wire.handshake import minority

CHUNK = 1 << 28  # elements in one call: MPI counts are int32


class Replicas:
    """`tensors` by name, the same on all ranks of `comm` after step `t`; `names`: what messages call these ranks.

    All calls are made by all ranks, in the main thread.
    """

    @guard.collective(lambda self: "check_equal")
    def check_equal(self):
        """Raise UserError, which names the ranks, unless all ranks have the same parameters to the bit."""
        own = 0
        for w in self.tensors.values():
            own = zlib.crc32(self._host(w), own)
        sums = np.zeros(self.size, np.int64)
        self.comm.Allgather(np.array([own], np.int64), sums)
        odd = minority(sums.tolist())
        if odd:
            raise UserError(f"step {self.t}: the parameters of rank {', '.join(map(str, odd))} differ from those of the "
                            "other ranks; memory or network corrupts data, or parameters were changed outside the optimizer")

    @guard.collective(lambda self: "average_parameters")
    def average_parameters(self):
        """Replace every tensor by its mean over the ranks, which all then have to the bit."""
        with self._clock("average"):
            for w in self.tensors.values():
                values = self._host(w)
                values /= np.float32(self.size)
                for start in range(0, values.size, CHUNK):
                    self.comm.Allreduce(launch.mpi().IN_PLACE, values[start:start + CHUNK])
                self._put(w, values)

    def _broadcast(self, w, root=0):
        array = self._host(w)
        for start in range(0, array.size, CHUNK):
            self.comm.Bcast(array[start:start + CHUNK], root)
        self._put(w, array)

    def _host(self, x) -> np.ndarray:
        """The values of x in this process's memory; `_put` brings them back."""
        return x

    def _put(self, x, values):
        if values is not x:
            x[...] = values

    @contextmanager
    def _clock(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
