"""lr="auto": a grid search on a sample, several rates at a time (the best-ball search of Niu et al.'s code)."""

import math

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.workers import BAD, TALLIES, spread

SAMPLE = 20_000  # most rows of the sample; a quarter of them is held out
GRID = 4.0 ** np.arange(-4, 4)  # factors of the rule's default; then twice and half the best one
BEYOND = 8  # steps by which the grid grows, at most, while its best is at an edge


def best_rate(make, rule, default: float, rows, workers=1, seed=0) -> tuple[float, dict[float, float]]:
    """(best learning rate, {learning rate: mean loss}) after one pass over a sample of the row numbers `rows`.

    make(rows): a fresh problem of one worker on these rows, with a `mean_loss` of rows. Raises UserError when no rate gives a
    finite loss.
    """
    rule, rng = checked(rule), np.random.default_rng((seed, 0))
    chosen = rng.permutation(rows)[:SAMPLE] if len(rows) > SAMPLE else rng.permutation(rows)
    held = chosen[:max(len(chosen) // 4, 1)]
    fitted = chosen[len(held):] if len(chosen) > 1 else chosen
    losses = {}

    def attempt(lr):
        problem, tally = make(fitted), np.zeros(TALLIES)
        own = problem.private(0)
        problem.begin(0)
        problem.run(rule, checked(Constant(lr)), own, fitted, 0, 1, tally)
        problem.settle(rule, len(fitted))
        # Not the loss of a run at rate 0: its velocity would still change the parameters.
        loss = problem.mean_loss(held)
        losses[lr] = loss if tally[BAD] == 0 and math.isfinite(loss) else math.inf

    def attempts(rates):
        spread(lambda a, b: [attempt(float(lr)) for lr in rates[a:b]], len(rates), workers)
        return min(losses, key=lambda lr: (losses[lr], lr))

    attempt(float(default))  # compiles, once
    best = attempts(np.setdiff1d(default * GRID, [default]))
    for _ in range(BEYOND):
        if min(losses) < best < max(losses):
            break
        best = attempts(np.array([best / 4 if best == min(losses) else best * 4]))
    best = attempts(np.array([best / 2, best * 2]))
    if not math.isfinite(losses[best]):
        raise UserError(f"no learning rate from {min(losses):g} to {max(losses):g} gives a finite loss; "
                        "scale the features or the rows")
    return best, dict(sorted(losses.items()))
