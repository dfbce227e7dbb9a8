"""Floor 1: lock-free training on one machine."""

from hogwild._guard import check_kernels, lazy

check_kernels()
__getattr__ = lazy
