"""Delayed Nesterov (Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", the algorithm of section 5)."""

from typing import NamedTuple


class DelayedNesterov(NamedTuple):
    """Momentum that moves once in `every` updates, with the mean of their gradients; between, w -= lr g / every.

    At the last of `every` updates m = mu m + mean(g) and w -= lr ((1 - c every + c) mu m + g / every); at the others
    w -= lr (c mu m + g / every). Gradients of stale parameters then do not build up momentum one after the other. With
    every=1 it is Nesterov in torch's form.
    """

    mu: float = 0.9
    every: float = 1  # whole
    c: float = 0.0  # share of the momentum that each of the other updates makes
    ranges = {"mu": "[0, 1)", "every": "[1, inf)", "c": "[0, 1]"}
    default_lr = 0.01
    unfit = "whose momentum moves at some steps only"  # to catch up

    def start(hp):
        return (0.0, 0.0)

    def prepare(hp, lr, t):
        last, a = (t + 1.0) % hp.every == 0.0, 1.0 / hp.every
        decay, taken, left, share = (hp.mu, a, 0.0, 1.0 - hp.c * hp.every + hp.c) if last else (1.0, 0.0, 1.0, hp.c)
        return (decay, taken, left, lr * share * hp.mu, lr * a, lr * a / (1.0 - hp.mu))

    @staticmethod
    def update(c, g, slots):
        total = slots[1] + g
        m = c[0] * slots[0] + c[1] * total
        return c[3] * m + c[4] * g, (m, c[2] * total)

    @staticmethod
    def pace(c, slots):
        return c[5]
