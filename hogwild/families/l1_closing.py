"""How a run with an L1 penalty ends: weights that its last noisy steps left near 0, and do not help, become 0.

A pass over the examples gives every weight's derivatives. A weight for which 0 is best, as things are, is left out, and the
others, usually few, take two proximal Newton steps together. The objective is not higher afterwards.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import scipy.sparse

from hogwild.errors import UserError
from hogwild.kernels.data.csr import CSR
from hogwild.kernels.families.linear import scores
from hogwild.kernels.families.scores import Outputs
from hogwild.kernels.optim.newton import Derivatives, differentiate, sweep
from hogwild.training.workers import spread

STEPS, SWEEPS, HALVINGS = 2, 3, 8


def checked(l1):
    """The L1 penalty as float. Raises UserError."""
    if not 0 <= l1 < np.inf:
        raise UserError(f"the L1 penalty must be a finite number, not negative, got {l1}")
    return float(l1)


class Objective(NamedTuple):
    """Summed loss of the rows under penalties of the weights, of which the last row, the intercepts', has none."""

    loss: tuple
    outputs: Outputs | None
    labels: np.ndarray
    weights: np.ndarray | None
    rows: np.ndarray  # int64[m]
    l1: float  # times m, as is l2
    l2: float

    def penalty(self, w):
        return self.l1 * np.abs(w[:-1]).sum() + self.l2 / 2 * np.square(w[:-1]).sum()

    def differentiate(self, csr, z, features, intercept, workers=1):
        """(summed loss, Derivatives with the intercepts' last) at scores z of rows with so many features."""
        n, outs = z.shape
        dz, dz2 = np.zeros((2, n, outs))
        examples, parts = (csr, self.labels, self.weights), []

        def part(start, stop):
            outputs = self.outputs and Outputs(*map(np.zeros_like, self.outputs))
            sums = Derivatives(dz, dz2, *np.zeros((2, features + 1, outs)))
            parts.append((differentiate(self.loss, outputs, examples, self.rows[start:stop], z, sums), sums))
        spread(part, len(self.rows), workers)
        gradient, curvature = (sum(getattr(sums, name) for _, sums in parts) for name in ("gradient", "curvature"))
        if intercept:
            gradient[-1], curvature[-1] = dz.sum(0), dz2.sum(0)
        return sum(total for total, _ in parts), Derivatives(dz, dz2, gradient, curvature)


def scored(w, csr, workers=1):
    """Scores float64[n, K] of rows."""
    z = np.zeros((len(csr.indptr) - 1, w.shape[1]))
    spread(lambda start, stop: scores(w, csr, start, stop, z), len(z), workers)
    return z


def closed(objective, csr, w, intercept, workers=1):
    """Weights float64[d + 1, K] in place of w with an objective that is not higher, many of them 0."""
    d, outs = len(w) - 1, w.shape[1]
    # Each worker sums up gradients of its own, which should take less time than the pass.
    workers = max(min(workers, len(csr.indices) // (4 * d * outs)), 1)
    loss, at = objective.differentiate(csr, scored(w, csr, workers), d, intercept, workers)
    before = loss + objective.penalty(w)
    bend = at.curvature[:-1] + objective.l2
    helps = np.abs(at.gradient[:-1] + objective.l2 * w[:-1] - bend * w[:-1]) > objective.l1
    features = np.flatnonzero(helps.any(1))
    few = np.concatenate([np.where(helps, w[:-1], 0.0)[features], w[-1:]])
    few, after = _steps(objective, _columns(csr, features, d), few, intercept)
    if not after < before:
        return w
    result = np.zeros_like(w)
    result[features], result[-1] = few[:-1], few[-1]
    return result


def close(problem):
    """`closed` of a hogwild.families.linear.Linear: its weights float32, of targets as they are trained on."""
    w, rows, model = problem.scaled_w(), problem.rows, problem.model
    rows = np.arange(problem.data.rows) if rows is None else rows
    outputs = Outputs(np.zeros(problem.outputs), np.zeros(problem.outputs)) if problem.outputs > 1 else None
    objective = Objective(problem.loss, outputs, model.labels, model.weights, rows, problem.lasso.l1 * len(rows),
                          sum(problem.optimizer.decay or (0.0,)) * len(rows))
    found = closed(objective, problem.data.csr, w.reshape(len(w), -1).astype(np.float64), model.intercept > 0,
                   problem.workers)
    return found.astype(np.float32).reshape(w.shape)


def _columns(csr, features, d):
    """The rows with these features alone, numbered anew."""
    number = np.full(d, -1, np.int32)
    number[features] = np.arange(len(features))
    number = number[csr.indices]
    own = np.flatnonzero(number >= 0)
    shape = len(csr.indptr) - 1, len(features)
    return scipy.sparse.csr_array((csr.values[own], number[own], np.searchsorted(own, csr.indptr)), shape=shape)


def _steps(objective, rows, w, intercept):
    """(weights, objective) after the Newton steps from w [k + 1, K]; rows: a SciPy CSR of the k features."""
    n, k = rows.shape
    csr = _csr(rows)
    columns, ones = rows.tocsc(), np.arange(n) if intercept else np.zeros(0, int)
    columns = _csr(SimpleNamespace(indptr=np.append(columns.indptr, columns.nnz + len(ones)),
                                   indices=np.append(columns.indices, ones),
                                   data=np.append(columns.data, np.ones(len(ones), np.float32))))
    l1, l2 = (np.append(np.full(k, penalty), 0.0) for penalty in (objective.l1, objective.l2))
    z = scored(w, csr)
    loss, at = objective.differentiate(csr, z, k, intercept)
    value = loss + objective.penalty(w)
    for _ in range(STEPS):
        moved, change = np.zeros_like(w), np.zeros_like(z)
        for o in range(w.shape[1]):
            sweep(columns, at, o, w, moved, change, l1, l2, SWEEPS)
        for _ in range(HALVINGS):
            loss, new = objective.differentiate(csr, z + change, k, intercept)
            if loss + objective.penalty(w + moved) <= value:
                w, z, at, value = w + moved, z + change, new, loss + objective.penalty(w + moved)
                break
            moved, change = moved / 2, change / 2
    return w, value


def _csr(matrix):
    """hogwild.kernels.data.csr.CSR of a SciPy matrix, by rows or columns; read-only as a dataset's: one type for kernels."""
    arrays = CSR(matrix.indptr.astype(np.int64), matrix.indices.astype(np.uint32), matrix.data.astype(np.float32))
    for array in arrays:
        array.flags.writeable = False
    return arrays
