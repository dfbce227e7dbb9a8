"""Apollo, a block rule."""

from typing import NamedTuple

from hogwild.kernels.optim.protocol import maximum


class Apollo(NamedTuple):
    """Diagonal quasi-Newton with a block-wise curvature update. Ma 2021; formulas of the author's apollo.py.

    Its block is the parameter tensor in `dense_step`. In the sparse steps it is the touched row, which is NOT the
    published algorithm. belief: sigma is max|g - m| instead of 0.01. stable: the decoupled decay is divided by the
    block's mean curvature. The author's warm-up is `default_warmup`: (steps, first share of lr).
    """

    b: float = 0.9
    eps: float = 1e-4
    belief: bool = False
    stable: bool = False
    ranges = {"b": "[0, 1)", "eps": "(0, inf)", "belief": "[0, 1]", "stable": "[0, 1]"}
    default_lr = 0.01
    default_warmup = (500, 1e-3)

    def start(hp):
        return (0.0, 0.0, 0.0)  # m, B, d

    def stages(hp):
        return 2 if hp.stable else 1

    def prepare(hp, lr, t):
        alpha = (1.0 - hp.b) / (1.0 - hp.b ** (t + 1.0))
        sigma, e = (0.0, hp.eps) if hp.belief else (0.01, hp.eps / 0.01)
        plus = e / alpha if hp.belief else 0.0
        return (lr, alpha, sigma, e, plus, hp.belief, 0.0, 0.0, 1.0)  # then 1/n, curvature step, mean D

    @staticmethod
    def terms(c, stage, g, slots):
        m, B, d = slots
        if stage == 0:
            return d * d * d * d, (g - m) * d, B * d * d, abs(g - m)
        v = (d * c[6]) * (d * c[6])
        D = maximum(abs(B + v * c[7]), c[2]) + c[4]
        return D, 0.0 * D, 0.0 * D, 0.0 * D

    @staticmethod
    def close(c, stage, totals, n):
        lr, alpha, sigma, e, plus, belief, shrink, curve, mean = c
        if stage == 0:
            norm = totals[0] ** 0.25 + e
            sigma = belief * totals[3] + (1.0 - belief) * sigma
            curve = -(alpha * totals[1] + totals[2]) / (norm * norm)
            return (lr, alpha, sigma, e, plus, belief, 1.0 / norm, curve, mean)
        return (lr, alpha, sigma, e, plus, belief, shrink, curve, totals[0] / n)

    @staticmethod
    def update(c, g, slots, decay):
        m, B, d = slots
        m = m + c[1] * (g - m)
        B = B + (d * c[6]) * (d * c[6]) * c[7]
        d = m / (maximum(abs(B), c[2]) + c[4]) + decay / c[8]
        return c[0] * d, (m, B, d)

    @staticmethod
    def pace(c, slots):
        return c[0] / (maximum(abs(slots[1]), c[2]) + c[4])
