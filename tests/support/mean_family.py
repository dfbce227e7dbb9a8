"""A problem family of one parameter, the mean of the labels, as a user of the registry would write it."""

from dataclasses import dataclass, field

import numpy as np

from hogwild.data import dataset
from hogwild.data.options import Files
from hogwild.families.family import Job
from hogwild.kernels.optim.rules import SGD
from hogwild.training.loop import Problem
from hogwild.training.options import Output, Span, Training, schedule_of


@dataclass(frozen=True)
class TrainMean:
    """Fit the mean of the labels."""

    data: Files = field(default_factory=Files)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)


class Mean(Problem):
    def __init__(self, labels):
        self.labels, self.examples, self.w = labels, len(labels), np.zeros(1)

    def run(self, rule, schedule, own, order, t, stride, tally):
        for k, i in enumerate(order):
            error = self.w[0] - self.labels[i]
            self.w[0] -= error / (t + k + 1)
            tally[:3] += error**2, 1, 1

    def parameters(self):
        return {"w": self.w}


class Fitted:
    def __init__(self, path, mean):
        self.path, self.mean = path, mean

    def read(self, path, **reading):
        return dataset.read(path, **reading), ["read for its mean"]

    def measure(self, data):
        return {"rmse": float(np.sqrt(np.mean((data.labels - self.mean)**2)))}, []

    def check_probabilities(self):
        pass

    def predict(self, data, probabilities):
        yield from (f"{self.mean!r}\n" for _ in range(data.rows))

    def for_python(self):
        return self.mean


class MeanFamily:
    options = TrainMean

    def prepare(self, options):
        data = dataset.read(options.data.data, **options.data.reading())
        problem, rule = Mean(data.labels), SGD()
        schedule = schedule_of(options.training, rule, Span(2, problem.examples), 1.0, "loss")
        return Job(problem, "Mean", rule, schedule, options.training.epochs or 2, 1, 1.0, [f"{data.source}: its mean"],
                   {"data": {"rows": data.rows}}, data.content(), lambda: ({"w": problem.w}, {"family": "mean"}))

    def load(self, path, tensors, header):
        return Fitted(path, float(tensors["w"][0]))

    def describe(self, options):
        data = dataset.read(options.data, **options.reading.reading())
        return [], [f"mean {data.labels.mean():.6f}"]


FAMILY = MeanFamily()
