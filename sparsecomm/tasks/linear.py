"""Task `linear`: the ground floor's sparse linear models, with the gradient of a whole batch."""

from types import SimpleNamespace

import numpy as np

from hogwild.families import constant, linear, linear_examples, linear_model, predictions
from hogwild.kernels.families import linear as kernel
from hogwild.kernels.families.linear_gradient import add_gradient
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.steps import aligned
from hogwild.training import default_rates
from hogwild.training.record import versions
from hogwild.training.registry import build
from sparsecomm.tasks.base import Task, summed


class LinearTask(Task):
    """Data, classes, transforms and what is held out are those of `hogwild train linear`; the intercept never decays."""

    undecayed = frozenset({"intercept"})

    def __init__(self, name, options, rank, size):
        super().__init__(name, options, rank, size)
        self.loss = build(options.loss, LOSSES, "loss")
        self.data = linear_examples.read(options, (self.loss, options.intercept), options.seed)
        self.train, self.rows, self.test, _, self.weights, self.classes, self.units = self.data[:7]
        self.examples, d, self.notes = self.data.count, self.train.n_features, self.data.notes
        self.metric = "rmse" if self.classes is None else "accuracy"
        self.count = predictions.outputs_of(self.loss, 0 if self.classes is None else len(self.classes))
        linear.demand_room(d, 2 * self.count)  # weights and their gradient
        targets = predictions.targets(self.train, self.classes, 1 + (self.count > 1))
        self.test_labels = predictions.targets(self.test, self.classes, 1 + (self.count > 1)) if self.test else None
        self.flat, self.gradient = aligned(((d + 1) * self.count,)), aligned(((d + 1) * self.count,))
        self.features, self.space = d, linear.alone(self.flat.reshape(d + 1, -1), self.count)
        self.model = kernel.Model(self.units.loss(self.loss), self.train.csr,
                                  linear.float32(self.units.targets(targets), self.train), self.weights, None,
                                  float(options.intercept))
        self.facts = {"source": self.train.source, "examples": self.examples, "held_out": self.test.rows if self.test else 0,
                      "features": d, "classes": len(self.classes) if self.classes is not None else 0,
                      "parameters": (d + options.intercept) * self.count}
        best = self.data.best_accuracy()
        self.facts |= {} if best is None else {"best_accuracy": best}
        self._add(np.zeros(0, np.int64), 1.0)  # compiles before the clock starts

    def _named(self, flat):
        end = self.features * self.count
        return {"weights": flat[:end]} | ({"intercept": flat[end:]} if self.options.intercept else {})

    def tensors(self):
        return self._named(self.flat)

    def _add(self, rows, factor):
        return add_gradient(self.model, self.space, rows, float(factor), self.gradient)

    def reference(self):
        return constant.reference(SimpleNamespace(
            data=self.train, rows=self.rows, classes=self.classes, loss=self.loss, outputs=self.count, model=self.model,
            mean_loss_of=self._mean_loss_of))

    def _mean_loss_of(self, csr, w, rows):
        w = np.ascontiguousarray(w, np.float32)
        total = add_gradient(self.model._replace(csr=csr, intercept=1.0), linear.alone(w, 1), rows, 0.0, np.zeros_like(w))
        return float(total) / max(len(rows), 1) * self.units.of_loss

    def _batch(self, k):
        """(rows of the training data, the factor of their summed gradient) of this rank's examples of batch k."""
        examples, factor = self.own_share(k)
        return examples if self.rows is None else self.rows[examples], factor

    def needs(self, k):
        rows, _ = self._batch(k)
        indptr, indices, _ = self.train.csr
        starts = indptr[rows]
        lengths = indptr[rows + 1] - starts
        before = np.cumsum(lengths) - lengths
        features = np.unique(indices[np.repeat(starts - before, lengths) + np.arange(lengths.sum())])
        keys = (features[:, None].astype(np.uint32) * np.uint32(self.count) + np.arange(self.count, dtype=np.uint32)).ravel()
        return {"weights": keys} | ({"intercept": None} if self.options.intercept else {})

    def step(self, k, ready):
        rows, factor = self._batch(k)
        self.gradient[:] = 0
        loss = self._add(rows, factor)
        for name, gradient in self._named(self.gradient).items():
            ready(name, gradient)
        return loss * self.units.of_loss, len(rows)

    @property
    def default_epochs(self):
        return default_rates.default_epochs(self.examples)

    def default_lr(self, rule):
        return default_rates.default_lr(rule, self.loss, default_rates.sizes_of(self.train, self.rows, self.weights))

    def penalties(self, decay, clip):
        return self.units.penalties(decay, clip, 0.0)[:2]

    @property
    def w(self):
        """Weights as a model has them, see `hogwild.families.linear.Linear.w`."""
        w = self.flat.reshape(-1, self.count)
        return self.units.weights(w if self.count > 1 else w[:, 0])

    def evaluate(self, comm=None):
        if self.test is None:
            return {}
        w, n = self.w, self.test.rows
        z = np.zeros((n, self.count), w.dtype)
        kernel.scores(w.reshape(-1, self.count), self.test.csr, n * self.rank // self.size,
                      n * (self.rank + 1) // self.size, z)
        z = summed(comm, z)
        return predictions.measure(z[:, 0] if self.count == 1 else z, self.test_labels, self.loss)

    def arrays(self):
        return self.data.content() | ({"weights": self.weights} if self.options.sample_weight else {})

    def export(self):
        return linear_model.contents(self.w.copy(), self.train, self.options.loss, self.data.transform,
                                     self.data.state, self.classes, versions=versions())
