"""Foreign optimizers and transcriptions of published formulas, as oracles of the rules."""

import contextlib
import io
import math

import numpy as np
import torch

optim = torch.optim

# Oracles: a function of the first weights that gives `step(g, lr) -> weights`.

def torch_step(cls, clip=None, **options):
    def start(w):
        p = torch.nn.Parameter(torch.tensor(w))
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = cls([p], lr=1.0, **options)

        def step(g, lr):
            p.grad = torch.tensor(g)
            if clip:
                clip([p])
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            return p.detach().numpy()
        return step
    return start


def adabelief(b1=0.9, b2=0.999, **options):
    from adabelief_pytorch import AdaBelief as Theirs
    return torch_step(Theirs, betas=(b1, b2), print_change_log=False, **options)


def apollo_dqn(**options):
    """pytorch-optimizer's, without its warm-up, which is shifted by one step."""
    from pytorch_optimizer import ApolloDQN
    return torch_step(ApolloDQN, warmup_steps=0, **options)


def numpy_step(formula, slots=1, start=0.0):
    """A transcription: `formula(w, g, lr, t, *slots)`, t from 1, works in place on w and its slots."""
    def begin(w):
        w, state, t = w.copy(), [np.full_like(w, start) for _ in range(slots)], [0]

        def step(g, lr):
            t[0] += 1
            formula(w, g, lr, t[0], *state)
            return w
        return step
    return begin


def keras_sgd(mu, nesterov=False):
    def formula(w, g, lr, t, v):
        v[:] = mu * v - lr * g
        w += mu * v - lr * g if nesterov else v
    return numpy_step(formula)


def keras_adagrad(G0, eps_in):
    def formula(w, g, lr, t, G):
        G += g**2
        w -= lr * g / np.sqrt(G + eps_in)
    return numpy_step(formula, start=G0)


def keras_rmsprop(rho, eps_in, mu=0.0, centred=False):
    def formula(w, g, lr, t, s, mean, v):
        s[:] = rho * s + (1 - rho) * g**2
        mean[:] = rho * mean + (1 - rho) * g
        v[:] = mu * v + lr * g / np.sqrt((s - mean**2 if centred else s) + eps_in)
        w -= v
    return numpy_step(formula, 3)


def adam_variant(b1, b2, eps_hat=None, eps_in=None):
    """Kingma & Ba, section 2's efficient form (eps_hat), or Géron's, with epsilon inside the root."""
    def formula(w, g, lr, t, m, v):
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g**2 - v)
        if eps_hat is not None:
            w -= lr * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps_hat)
        else:
            w -= lr * (m / (1 - b1**t)) / np.sqrt(v / (1 - b2**t) + eps_in)
    return numpy_step(formula, 2)


def radam_paper(b1, b2, eps):
    """Liu et al. 2020, algorithm 2: rectified where rho > 4; epsilon as torch has it."""
    def formula(w, g, lr, t, m, v):
        m[:] = b1 * m + (1 - b1) * g
        v[:] = b2 * v + (1 - b2) * g**2
        top = 2 / (1 - b2) - 1
        rho, mean = top - 2 * t * b2**t / (1 - b2**t), m / (1 - b1**t)
        if rho > 4:
            r = math.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
            w -= lr * r * mean * math.sqrt(1 - b2**t) / (np.sqrt(v) + eps)
        else:
            w -= lr * mean
    return numpy_step(formula, 2)


def apollo(beta=0.9, eps=1e-4, belief=False, kind="l2", wd=0.0):
    """Ma 2021, in the order of the author's apollo.py."""
    def formula(w, g, lr, t, m, B, d):
        g = g + wd * w if kind == "l2" else g
        alpha, change = (1 - beta) / (1 - beta**t), g - m
        sigma, e = (np.abs(change).max(), eps) if belief else (0.01, eps / 0.01)
        m += alpha * change
        n = (d**4).sum() ** 0.25 + e
        d /= n
        v = d**2
        B += v * (-alpha * (change * d).sum() / n - (B * v).sum())
        D = np.maximum(np.abs(B), sigma) + (e / alpha if belief else 0)
        d[:] = m / D
        if kind != "l2":
            d += (wd / D.mean() if kind == "stable" else wd) * w
        w -= lr * d
    return numpy_step(formula, 3)


def clipped(w):
    """Momentum behind both clips, in Clip's order: norm, then value."""
    def clip(ps):
        torch.nn.utils.clip_grad_norm_(ps, 3.0)
        torch.nn.utils.clip_grad_value_(ps, 0.5)
    return torch_step(optim.SGD, clip, momentum=0.9)(w)


def by_norm(ps):
    torch.nn.utils.clip_grad_norm_(ps, 2.0)


def by_value(ps):
    torch.nn.utils.clip_grad_value_(ps, 0.7)
