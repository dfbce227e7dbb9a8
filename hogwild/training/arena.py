"""Memory that a process shares with those that it spawns: one block without a name, so that no kind of death leaves it."""

import errno
import math
import mmap
import os
import tempfile
from multiprocessing.reduction import DupFd

import numpy as np

from hogwild.errors import UserError
from hogwild.training.units import bytes_text

LINE = 64  # bytes: every array starts on a cache line of its own


class Arena:
    """Zeros, as arrays by name: `arrays[name]`.

    Made of shapes: {name: (shape, dtype)}. Sent to a spawned process, as an argument of its function, it is the same memory
    there. Raises UserError where there is not enough memory.
    """

    def __init__(self, shapes: dict):
        self.shapes = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}
        size = self.size(shapes)
        descriptor = _descriptor()
        try:
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)  # now, and not by a signal when a page is first touched
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.ENOMEM, errno.ENOSPC):
                raise
            raise UserError(f"shared memory of {bytes_text(size)} for parameters and data: {error.strerror}; use a smaller "
                            "model, or free memory") from None
        self._map(descriptor)

    @staticmethod
    def size(shapes) -> int:
        """Bytes of an Arena of these shapes."""
        return max(sum(_lines(shape, np.dtype(dtype)) for shape, dtype in shapes.values()), LINE)

    def _map(self, descriptor):
        self.descriptor, self.arrays, at = descriptor, {}, 0
        memory = mmap.mmap(descriptor, self.size(self.shapes))
        for name, (shape, dtype) in self.shapes.items():
            self.arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), at).reshape(shape)
            at += _lines(shape, dtype)

    def __reduce__(self):
        return _attached, (DupFd(self.descriptor), self.shapes)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)  # the memory itself stays while an array refers to it


def _lines(shape, dtype) -> int:
    """Bytes of an array, in whole cache lines."""
    return -(-math.prod(shape) * dtype.itemsize // LINE) * LINE


def _attached(duplicate, shapes):
    arena = Arena.__new__(Arena)
    arena.shapes = shapes
    arena._map(duplicate.detach())
    return arena


def _descriptor():
    if hasattr(os, "memfd_create"):
        return os.memfd_create("hogwild")
    with tempfile.TemporaryFile() as file:  # has no name either
        return os.dup(file.fileno())
