"""What a rank accumulates of its gradients: residuals, and velocities for momentum correction (Lin et al. 2018, 3.1)."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel


@kernel
def accumulate(old, g, m, out):
    """out = m old + g (float32[n], m float32) where that is finite, else old; the number of elements where it is not."""
    bad = 0
    for i in range(np.uint64(out.size)):
        new = m * old[i] + g[i]
        finite = abs(new) < np.float32(np.inf)
        bad += not finite
        out[i] = new if finite else old[i]
    return bad


@kernel
def copy_finite(g, out):
    """out = g (float32[n]) where that is finite, else 0; the number of elements where it is not."""
    bad = 0
    for i in range(np.uint64(out.size)):
        finite = abs(g[i]) < np.float32(np.inf)
        bad += not finite
        out[i] = g[i] if finite else np.float32(0)
    return bad


@kernel
def count_bad(x):
    """How many of x (float32[n]) are not finite."""
    bad = 0
    for i in range(np.uint64(x.size)):
        bad += not abs(x[i]) < np.float32(np.inf)
    return bad
