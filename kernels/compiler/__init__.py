"""How Numba compiles the kernels, and the disk cache of their machine code."""
