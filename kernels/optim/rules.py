"""The optimizer rules, see protocol.py. Conventions are torch's where torch has the rule; a variant is a hyper-parameter."""

from typing import NamedTuple

from numba.extending import register_jitable

from hogwild.kernels.compiler.jit import elementwise
from hogwild.kernels.optim.apollo import Apollo
from hogwild.kernels.optim.protocol import maximum, root


@elementwise
def coasting(mu, n):
    """(a, b, d, e): after n updates v = mu v + x the velocity is a v + b x, and the n velocities sum to d v + e x."""
    a = mu**n
    b = (1.0 - a) / (1.0 - mu)
    return a, b, mu * b, (n - mu * b) / (1.0 - mu)


@elementwise
def averaging(c, n):
    """The coefficients of two running means, the first four of c, for n updates with one value."""
    b1, b2 = c[0] ** n, c[2] ** n
    return b1, 1.0 - b1, b2, 1.0 - b2


class SGD(NamedTuple):
    """w -= lr g."""

    default_lr = 0.01

    def start(hp):
        return ()

    def prepare(hp, lr, t):
        return (lr,)

    @staticmethod
    def update(c, g, slots):
        return c[0] * g, slots


class Momentum(NamedTuple):
    """v = mu v + (1 - tau) g (first step v = g); w -= lr v. Polyak 1964, in torch's form.

    lr_inside: Polyak's and Keras' form, v = mu v + lr g; w -= v, which differs once lr changes.
    """

    mu: float = 0.9
    tau: float = 0.0
    lr_inside: bool = False
    ranges = {"mu": "[0, 1)", "tau": "[0, 1)", "lr_inside": "[0, 1]"}
    default_lr = 0.01

    def start(hp):
        return (0.0,)

    def prepare(hp, lr, t):
        take = 1.0 if t == 0 else 1.0 - hp.tau
        return (hp.mu, take * lr, 1.0) if hp.lr_inside else (hp.mu, take, lr)

    @staticmethod
    def update(c, g, slots):
        v = c[0] * slots[0] + c[1] * g
        return c[2] * v, (v,)

    def times(hp, c, n, moves):
        a, b, d, e = coasting(c[0], n)
        return a, b * c[1], c[2] * d, c[2] * e * c[1]

    @staticmethod
    def repeat(c, g, slots):
        return c[2] * slots[0] + c[3] * g, (c[0] * slots[0] + c[1] * g,)

    @staticmethod
    def pace(c, slots):
        return c[1] * c[2] / (1 - c[0])


class Nesterov(NamedTuple):
    """v = mu v + g; w -= lr (g + mu v). Sutskever et al. 2013, in torch's form.

    lr_inside: Keras' form, v = mu v + lr g; w -= mu v + lr g.
    """

    mu: float = 0.9
    lr_inside: bool = False
    ranges = {"mu": "[0, 1)", "lr_inside": "[0, 1]"}
    default_lr = 0.01

    def start(hp):
        return (0.0,)

    def prepare(hp, lr, t):
        return (hp.mu, lr, lr, hp.mu) if hp.lr_inside else (hp.mu, 1.0, lr, lr * hp.mu)

    @staticmethod
    def update(c, g, slots):
        v = c[0] * slots[0] + c[1] * g
        return c[2] * g + c[3] * v, (v,)

    def times(hp, c, n, moves):
        a, b, d, e = coasting(c[0], n)
        return a, b * c[1], c[3] * d, c[3] * e * c[1] + c[2] * n

    repeat = staticmethod(Momentum.repeat)

    @staticmethod
    def pace(c, slots):
        return c[2] + c[3] * c[1] / (1 - c[0])


class AdaGrad(NamedTuple):
    """G += g²; w -= lr g / (sqrt(G + eps_in) + eps). Duchi et al. 2011.

    Keras and optax: G0=0.1, eps=0, eps_in=1e-7.
    """

    eps: float = 1e-10
    eps_in: float = 0.0
    G0: float = 0.0
    ranges = {"eps": "[0, inf)", "eps_in": "[0, inf)", "G0": "[0, inf)"}
    default_lr = 0.01
    summed = True  # its slot is a sum of squares, to which all workers add; the other rules' slots are running means

    def start(hp):
        return (hp.G0,)

    def prepare(hp, lr, t):
        return (lr, hp.eps_in, hp.eps)

    @staticmethod
    def update(c, g, slots):
        G = slots[0] + g * g
        return c[0] * g / (root(G + c[1]) + c[2]), (G,)

    def times(hp, c, n, moves):
        return c[0] * moves, c[1], c[2], 1.0 * n

    @staticmethod
    def repeat(c, g, slots):
        G = slots[0] + c[3] * g * g
        return c[0] * g / (root(G + c[1]) + c[2]), (G,)

    @staticmethod
    def pace(c, slots):
        return c[0] / (root(slots[0] + c[1]) + c[2])


@elementwise
def centred(c, g, s, mean):
    """g over RMSProp's root, c[6] times the squared mean subtracted; rounding can leave that negative."""
    spread = s - c[6] * mean * mean
    return g / (root(maximum(spread, 0.0 * spread) + c[3]) + c[4])


class RMSProp(NamedTuple):
    """s = alpha s + (1 - alpha) g²; w -= lr g / (sqrt(s + eps_in) + eps). Tieleman & Hinton 2012.

    mu > 0 adds momentum on the scaled gradient; centred subtracts the squared mean gradient from s (Graves 2013).
    Either of the two costs two slots more. Keras and optax: alpha=0.9, eps=0, eps_in=1e-7.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    eps_in: float = 0.0
    mu: float = 0.0
    centred: bool = False
    ranges = {"alpha": "[0, 1)", "eps": "[0, inf)", "eps_in": "[0, inf)", "mu": "[0, 1)", "centred": "[0, 1]"}
    default_lr = 0.01

    def start(hp):
        return (0.0, 0.0, 0.0) if hp.mu or hp.centred else (0.0,)

    def prepare(hp, lr, t):
        return (hp.alpha, 1.0 - hp.alpha, lr, hp.eps_in, hp.eps, hp.mu, hp.centred)

    @staticmethod
    def update(c, g, slots):
        s = c[0] * slots[0] + c[1] * g * g
        if len(slots) == 1:
            return c[2] * g / (root(s + c[3]) + c[4]), (s,)
        mean = c[0] * slots[1] + c[1] * g
        v = c[5] * slots[2] + centred(c, g, s, mean)
        return c[2] * v, (s, mean, v)

    def times(hp, c, n, moves):
        alpha = c[0] ** n
        a, b, _, _ = coasting(c[5], n)
        _, _, d, e = coasting(c[5], moves)
        return alpha, 1.0 - alpha, c[2] * d, c[3], c[4], a, c[6], b, c[2] * e

    @staticmethod
    def repeat(c, g, slots):
        s = c[0] * slots[0] + c[1] * g * g
        if len(slots) == 1:
            return c[8] * g / (root(s + c[3]) + c[4]), (s,)
        mean = c[0] * slots[1] + c[1] * g
        scaled = centred(c, g, s, mean)
        return c[2] * slots[2] + c[8] * scaled, (s, mean, c[5] * slots[2] + c[7] * scaled)

    @staticmethod
    def pace(c, slots):
        mean = slots[len(slots) // 2]  # c[6] is 0 where there is no mean
        spread = slots[0] - c[6] * mean * mean
        return (c[2] if len(slots) == 1 else c[2] / (1 - c[5])) / (root(maximum(spread, 0 * spread) + c[3]) + c[4])


class Adam(NamedTuple):
    """w -= lr m̂ / (sqrt(v̂ + eps_in) + eps). Kingma & Ba 2015; amsgrad: Reddi et al. 2018, one slot more.

    eps_hat: eps is added to the uncorrected root (the paper's section 2 form; Keras).
    Géron's form: eps=0, eps_in=1e-8.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_in: float = 0.0
    eps_hat: bool = False
    amsgrad: bool = False
    ranges = {"b1": "[0, 1)", "b2": "[0, 1)", "eps": "[0, inf)", "eps_in": "[0, inf)", "eps_hat": "[0, 1]",
              "amsgrad": "[0, 1]"}
    default_lr = 1e-3

    def start(hp):
        return (0.0, 0.0, 0.0) if hp.amsgrad else (0.0, 0.0)

    def prepare(hp, lr, t):
        unbias1, unbias2 = 1.0 - hp.b1 ** (t + 1.0), 1.0 - hp.b2 ** (t + 1.0)
        a, b = (lr * unbias2**0.5 / unbias1, 1.0) if hp.eps_hat else (lr / unbias1, 1.0 / unbias2)
        return (hp.b1, 1.0 - hp.b1, hp.b2, 1.0 - hp.b2, a, b, hp.eps_in, hp.eps)

    @staticmethod
    def update(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        v = c[2] * slots[1] + c[3] * g * g
        if len(slots) == 2:
            return c[4] * m / (root(c[5] * v + c[6]) + c[7]), (m, v)
        top = maximum(slots[2], v)
        return c[4] * m / (root(c[5] * top + c[6]) + c[7]), (m, v, top)

    def times(hp, c, n, moves):
        return averaging(c, n) + (c[4] * moves, c[5], c[6], c[7])

    repeat = update

    @staticmethod
    def pace(c, slots):
        return c[4] / (root(c[5] * slots[len(slots) - 1] + c[6]) + c[7])


class AdamW(NamedTuple):
    """Adam with decoupled weight decay, by default 1e-2. Loshchilov & Hutter 2019."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_in: float = 0.0
    eps_hat: bool = False
    amsgrad: bool = False
    ranges = Adam.ranges
    default_lr = 1e-3
    default_wd = 1e-2  # what the step's Decay is when the user names none
    start, prepare, times = Adam.start, Adam.prepare, Adam.times
    update, repeat, pace = staticmethod(Adam.update), staticmethod(Adam.repeat), staticmethod(Adam.pace)


class Nadam(NamedTuple):
    """Adam with Nesterov momentum; mu_t = b1 (1 - 0.96^(psi t) / 2). Dozat 2016. Keras: psi=1."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    psi: float = 4e-3
    ranges = {"b1": "[0, 1)", "b2": "[0, 1)", "eps": "[0, inf)", "psi": "[0, inf)"}
    default_lr = 2e-3

    def start(hp):
        return (0.0, 0.0)

    def prepare(hp, lr, t):
        mu = hp.b1 * (1.0 - 0.5 * 0.96 ** (hp.psi * (t + 1.0)))
        mu_next = hp.b1 * (1.0 - 0.5 * 0.96 ** (hp.psi * (t + 2.0)))
        # Product of mu_1 … mu_{t+1}: below 1e-17 it cannot change 1 - product, so few factors ever count.
        product, i = 1.0, 0
        while i <= t and product > 1e-17:
            i += 1
            product *= hp.b1 * (1.0 - 0.5 * 0.96 ** (hp.psi * i))
        return (hp.b1, 1.0 - hp.b1, hp.b2, 1.0 - hp.b2, lr * (1.0 - mu) / (1.0 - product),
                lr * mu_next / (1.0 - product * mu_next), 1.0 / (1.0 - hp.b2 ** (t + 1.0)), hp.eps)

    @staticmethod
    def update(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        v = c[2] * slots[1] + c[3] * g * g
        return (c[4] * g + c[5] * m) / (root(c[6] * v) + c[7]), (m, v)

    def times(hp, c, n, moves):
        return averaging(c, n) + (c[4] * moves, c[5] * moves, c[6], c[7])

    repeat = update

    @staticmethod
    def pace(c, slots):
        return (c[4] + c[5]) / (root(c[6] * slots[1]) + c[7])


@register_jitable
def rectified(b1, b2, lr, t, threshold):
    """(numerator, root's factor, whether rectified) of Liu et al. 2020 at step t from 0."""
    unbias1, decay2 = 1.0 - b1 ** (t + 1.0), b2 ** (t + 1.0)
    top = 2.0 / (1.0 - b2) - 1.0
    rho = top - 2.0 * (t + 1.0) * decay2 / (1.0 - decay2)
    if rho > threshold:
        r = ((rho - 4.0) * (rho - 2.0) * top / ((top - 4.0) * (top - 2.0) * rho)) ** 0.5
        return lr * r * (1.0 - decay2) ** 0.5 / unbias1, 1.0, True
    return lr / unbias1, 0.0, False


class RAdam(NamedTuple):
    """Adam whose step is rectified by the variance of its second moment, plain m̂ before. Liu et al. 2020.

    Rectified where rho > threshold: 5 in torch, 4 in the paper.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    threshold: float = 5.0
    ranges = {"b1": "[0, 1)", "b2": "[0, 1)", "eps": "[0, inf)", "threshold": "[4, inf)"}
    default_lr = 1e-3

    def start(hp):
        return (0.0, 0.0)

    def prepare(hp, lr, t):
        a, root, is_rectified = rectified(hp.b1, hp.b2, lr, t, hp.threshold)
        return (hp.b1, 1.0 - hp.b1, hp.b2, 1.0 - hp.b2, a, root, hp.eps if is_rectified else 1.0)

    @staticmethod
    def update(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        v = c[2] * slots[1] + c[3] * g * g
        return c[4] * m / (c[5] * root(v) + c[6]), (m, v)

    def times(hp, c, n, moves):
        return averaging(c, n) + (c[4] * moves, c[5], c[6])

    repeat = update

    @staticmethod
    def pace(c, slots):
        return c[4] / (c[5] * root(slots[1]) + c[6])


class AdaBelief(NamedTuple):
    """Adam with s = b2 s + (1 - b2)(g - m)² + eps in place of v (eps accumulates). Zhuang et al. 2020.

    rectify: as RAdam, on in adabelief-pytorch 0.2 (rectified where rho >= 5, eps added to the uncorrected root).
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-16
    rectify: bool = False
    ranges = {"b1": "[0, 1)", "b2": "[0, 1)", "eps": "[0, inf)", "rectify": "[0, 1]"}
    default_lr = 1e-3

    def start(hp):
        return (0.0, 0.0)

    def prepare(hp, lr, t):
        unbias1, unbias2 = 1.0 - hp.b1 ** (t + 1.0), 1.0 - hp.b2 ** (t + 1.0)
        a, root, eps = lr / unbias1, 1.0 / unbias2**0.5, hp.eps
        if hp.rectify:
            a, root, is_rectified = rectified(hp.b1, hp.b2, lr, t, 5.0 - 1e-12)
            eps = hp.eps if is_rectified else 1.0
        return (hp.b1, 1.0 - hp.b1, hp.b2, 1.0 - hp.b2, a, root, eps, hp.eps)

    @staticmethod
    def update(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        s = c[2] * slots[1] + c[3] * (g - m) * (g - m) + c[7]
        return c[4] * m / (c[5] * root(s) + c[6]), (m, s)

    def times(hp, c, n, moves):
        b1, rest1, b2, rest2 = averaging(c, n)
        # All n updates get the first one's g - m, which n equal gradients would bring to 0, and s to eps; n real ones do not.
        return b1, rest1, b2, c[0] * c[0] * rest2, c[4] * moves, c[5], c[6], c[7] * rest2 / c[3]

    @staticmethod
    def repeat(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        s = c[2] * slots[1] + c[3] * (g - slots[0]) * (g - slots[0]) + c[7]
        return c[4] * m / (c[5] * root(s) + c[6]), (m, s)

    @staticmethod
    def pace(c, slots):
        return c[4] / (c[5] * root(slots[1]) + c[6])


RULES = {rule.__name__.lower(): rule for rule in (
    SGD, Momentum, Nesterov, AdaGrad, RMSProp, Adam, AdamW, Nadam, RAdam, AdaBelief, Apollo)}
