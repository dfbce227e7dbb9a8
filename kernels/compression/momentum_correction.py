"""A rank's velocity under momentum correction: Lin et al. 2018, section 3.1."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel


@kernel
def gather_speed(u, g, m):
    """u = m u + g in place (float32[n]) where that is finite; the number of elements where it is not."""
    bad = 0
    for i in range(np.uint64(u.size)):
        new = m * u[i] + g[i]
        finite = abs(new) < np.float32(np.inf)
        bad += not finite
        u[i] = new if finite else u[i]
    return bad


@kernel
def count_bad(x):
    """How many of x (float32[n]) are not finite."""
    bad = 0
    for i in range(np.uint64(x.size)):
        bad += not abs(x[i]) < np.float32(np.inf)
    return bad
