"""Problem family "linear": classification and regression on sparse rows (kernel: kernels/families/linear.py)."""

import numpy as np

from hogwild.errors import UserError
from hogwild.families import constant, l1_closing
from hogwild.families.linear_statistics import pace_of, rarity, sizes_of, touches
from hogwild.families.predictions import classes_of, measure, outputs_of, scores, targets
from hogwild.families.targets import AS_GIVEN
from hogwild.kernels.families import linear as kernel
from hogwild.kernels.families.linear_gradient import add_gradient
from hogwild.kernels.families.scores import Buffers, Outputs
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.modes import Alone
from hogwild.kernels.sharing.parameters import View
from hogwild.kernels.sharing.workspace import Workspace
from hogwild.training import replicated
from hogwild.training.replicated import ReplicatedProblem, Sharing, Steps, Tables, row_in
from hogwild.training.replication import check_sharing


class Linear(ReplicatedProblem):
    """W·x + b under `loss`, trained on dataset `data`, measured on `test` (a dataset or None).

    rows: the row numbers to train on, None for all. mode, replicas: how workers share the parameters, see MODES and REPLICAS
    of hogwild/training/replication.py. decay: weighted at each touch by rows / rows that have the feature (up to where a step
    takes all of it), so that the sparse penalty is l2/2 |w|² in expectation. l1: penalty l1 |w|₁. average: step from which
    the weights are averaged, None for not. weights: float[rows of data], factors of the examples' losses. units: of real
    targets, see hogwild/families/targets.py. seen: the rows of earlier calls with these, see hogwild/families/continued.py;
    None: these are all. More than two classes give an output each: judged together by softmax, else each against the rest.
    """

    scratchless = True

    def __init__(self, data, test, loss, rule, decay=None, clip=None, intercept=True, workers=1, rows=None,
                 mode="wild", l1=0.0, average=None, weights=None, classes=None, replicas="auto", block=replicated.BLOCK,
                 units=AS_GIVEN, seen=None):
        self.units, self.loss = units, units.loss(checked(loss))
        decay, clip, l1 = units.penalties(decay, clip, l1)
        check_sharing(mode, replicas)
        self.classes = classes_of(data, rows, classes) if loss.task == "classification" else None
        self.outputs = outputs_of(loss, 0 if self.classes is None else len(self.classes))
        self.data, self.test, self.rows = data, test, rows
        self.test_labels = self._targets(test) if test is not None else None
        demand_room(data.n_features, self.outputs * replicated.columns_of(rule, average is not None))
        self.degree = data.degrees() if decay or workers > 1 else None
        self.sample = sizes_of(data)
        square = np.minimum(self.sample[2], 1e30) if seen is None else seen.squares / seen.sampled
        self.pace = pace_of(square, checked(rule)) if intercept else 0.0
        self.closed = None  # weights in place of the parameters', see `close`
        longest = int(np.diff(data.indptr).max(initial=0)) + 1
        tables = Tables({"features": data.n_features, "intercept": 1}, self.outputs, longest, data.n_features, self.outputs)
        super().__init__(tables, Steps(rule, decay, clip, average, l1_closing.checked(l1)),
                         Sharing(workers, mode, replicas, block), data.rows if rows is None else len(rows))
        self.model = kernel.Model(
            self.loss, data.csr, float32(units.targets(self._targets(data)), data),
            None if weights is None else np.ascontiguousarray(weights, np.float32),
            rarity(*((data.rows, self.degree) if seen is None else seen[:2])) if decay else None, self.pace)
        self.degree = self.sample = None

    def touches(self):
        return touches(self.data, self.degree, self.sample, self.pace)

    def curvature(self):
        return getattr(self.loss, "curvature", 1.0)

    def buffers(self, view):
        outputs = Outputs(*(aligned((self.outputs,), np.float64) for _ in range(2))) if self.outputs > 1 else None
        return Buffers(outputs, row_in(view, self.data.n_features))

    def _targets(self, data):
        return targets(data, self.classes, 1 if self.outputs == 1 else 2)

    def begin(self, t):
        self.closed = None
        super().begin(t)

    def named(self, i):
        return self.data.where(i)

    def suspect(self):
        """Most likely the one with the largest value of a feature whose weight is not finite."""
        data, lost = self.data, ~np.isfinite(self.shared[:-1]).all((1, 2))
        size = np.where(lost[data.indices], np.abs(data.values), -1.0)
        if self.rows is not None:
            size[~np.repeat(np.isin(np.arange(data.rows), self.rows), np.diff(data.indptr))] = -1.0
        if size.max(initial=-1.0) < 0:
            return super().suspect()
        return f"an example, most likely {self.named(np.searchsorted(data.indptr, size.argmax(), 'right') - 1)}"

    @property
    def w(self):
        """Weights [d + 1, K] with the intercepts last, [d + 1] for K = 1; averaged where that was asked for. float32, or
        float64 for targets that were scaled: in their unit."""
        return self.units.weights(self.scaled_w())

    def close(self):
        """After the last epoch, with an L1 penalty: weights that do not help become 0 (hogwild/families/l1_closing.py).

        Training that goes on does so from those before. (number of weights that were not 0, that still are not), or None.
        """
        self.closed = None
        if not self.lasso:
            return None
        before = self.scaled_w()
        self.closed = l1_closing.close(self)
        return np.count_nonzero(before[:-1]), np.count_nonzero(self.closed[:-1])

    def scaled_w(self):
        """`w`, of targets as they are trained on."""
        if self.closed is not None:
            return self.closed
        w = self.weights()
        return w[:, 0] if self.outputs == 1 else w

    @property
    def of_loss(self):
        return self.units.of_loss

    def mean_loss(self, rows):
        """Mean weighted loss of these rows of the data under the weights as they are."""
        return self.mean_loss_of(self.data.csr, self.scaled_w(), rows)

    def mean_loss_of(self, csr, w, rows):
        """`mean_loss` of the rows of another CSR under weights w [features + 1, …] of the targets as they are trained on."""
        w = np.ascontiguousarray(w, np.float32)
        model = self.model._replace(csr=csr, decay_weight=None, intercept=1.0)
        total = add_gradient(model, alone(w, self.outputs), rows, 0.0, np.zeros(w.size, np.float32))
        return float(total) / max(len(rows), 1) * self.of_loss

    def reference(self):
        return constant.reference(self)

    def evaluate(self):
        if self.test is None:
            return {}
        return measure(scores(self.w, self.test, self.workers), self.test_labels, self.loss)


def alone(w, outputs) -> Workspace:
    """For `add_gradient`: weights w float32[d + 1, …] of so many outputs that nobody else changes."""
    kept = Outputs(np.zeros(outputs), np.zeros(outputs)) if outputs > 1 else None
    return Workspace(View(Alone(), w.reshape(-1), outputs if outputs > 1 else None), None, None, Buffers(kept, len(w) - 1))


def demand_room(features, size):
    """Raise UserError where parameters, `size` float32 a feature, have no room in memory, or their rows no uint32."""
    replicated.demand_room(features, size, "features that occur", "hash the features to fewer numbers")


def float32(labels, data):
    """Targets as the kernels want them. Raises UserError where one is beyond float32."""
    with np.errstate(over="ignore"):
        found = labels.astype(np.float32)
    if not np.isfinite(found).all():
        row = int(np.isfinite(found).argmin())
        raise UserError(f"{data.where(row)}: got target {labels[row]:g}, needed one within float32's "
                        "range, ±3.4e38; scale the targets")
    return found
