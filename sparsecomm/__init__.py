"""Floor 2: many processes that exchange sparse gradients."""

from hogwild._guard import check_kernels, lazy  # importing hogwild has checked `kernels` already

check_kernels()
__getattr__ = lazy
