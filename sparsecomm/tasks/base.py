"""Training jobs as one rank sees them: its share of every batch, its gradients, its part of the evaluation."""

import numpy as np

from hogwild.data.files import demand_file


class Task:
    """One rank's view of a training job; the same on all ranks but for the share of the examples.

    A rank's gradient is that of the sum over its own part of the batch, times ranks / size of the whole batch: the mean
    over the ranks is the mean over the batch, however unequal the parts.
    """

    metric = "accuracy"  # of evaluate(): what a plateau watches where --early-stopping names none
    undecayed: frozenset = frozenset()  # tensors that no penalty touches
    default_epochs = 5
    examples: int  # of an epoch
    facts: dict  # what it trains on and what it trains, for people and records
    notes = ()  # lines for people on how the data were read

    def __init__(self, name, options, rank, size):
        self.name, self.options, self.order = name, options, None
        for path in (getattr(options, name, None) for name in ("data", "test", "labels", "test_labels", "sample_weight")):
            if path is not None and size > 1:
                demand_file(path, f"each of {size} ranks reads it")
        self.reshard(rank, size)

    def reshard(self, rank, size):
        """Be rank `rank` of `size` from here on; begin() must follow."""
        self.rank, self.size = rank, size

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.examples // (self.size * self.options.batch))

    def tensors(self) -> dict[str, np.ndarray]:
        """The parameters by name: flat float32 views of the memory that the model computes with."""
        raise NotImplementedError

    def shapes(self) -> dict[str, tuple]:
        """Of the tensors that are matrices or more, by name: compressors see them."""
        return {}

    def default_lr(self, rule) -> float:
        """The learning rate where the user names none, before what a batch makes of it."""
        return getattr(rule, "default_lr", 0.01)

    def penalties(self, decay, clip) -> tuple:
        """(Decay or None, Clip or None) as its gradients want them, of those that were asked for."""
        return decay, clip

    def reference(self):
        """Losses of a constant prediction and of a run's start (hogwild.training.divergence.Reference); None: not known."""

    def begin(self, epoch):
        """Shuffle for an epoch (from 1): the same permutation on all ranks."""
        self.order = np.random.default_rng((self.options.seed, epoch)).permutation(self.examples)
        self.epoch = epoch

    def own_share(self, k) -> tuple[np.ndarray, float]:
        """(this rank's examples of batch k, the factor of their summed gradient)."""
        whole = self.size * self.options.batch
        batch = self.order[k * whole:(k + 1) * whole]
        a, b = (len(batch) * r // self.size for r in (self.rank, self.rank + 1))
        return batch[a:b], self.size / len(batch)

    def step(self, k, ready) -> tuple[float, int]:
        """(loss sum, number) of this rank's examples of batch k, from 0.

        Calls ready(name, gradient float32, flat) once for every tensor, as soon as it is final; the array is overwritten
        by the next step.
        """
        raise NotImplementedError

    def needs(self, k) -> dict[str, np.ndarray | None] | None:
        """Where the gradient of this rank's examples of batch k may differ from 0, and what of the parameters it depends on:
        by tensor, ascending elements (uint32[m]), or None for the whole tensor. None: everything.
        """

    def evaluate(self, comm=None) -> dict[str, float]:
        """Metrics of the held-out part, the same to the bit for any number of ranks; {} where nothing is held out.

        comm: of all `size` ranks, which must all call this; None for one rank.
        """
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """What of this rank's the next step depends on, besides parameters, epoch and k."""
        return {}

    def load(self, state):
        """Go on from a `state` of the same rank of as many ranks, after begin()."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The training data, by which a resumed run knows that they are the same."""
        raise NotImplementedError

    def export(self) -> tuple[dict[str, np.ndarray], dict]:
        """(tensors, header) for a model file, whose "family" is the task's name."""
        raise NotImplementedError

    @classmethod
    def from_model(cls, tensors, header, data, labels) -> tuple["Task", str]:
        """(a task that can `evaluate` alone, line on its data) from a model file's content and the files `data` and `labels`
        (or None). Raises UserError for bad data, whatever else for a damaged model."""
        raise NotImplementedError


def summed(comm, part) -> np.ndarray:
    """Sum of the ranks' arrays; with zeros in each other's places no rounding happens. comm None: one rank."""
    if comm is None:
        return part
    total = np.empty_like(part)
    comm.Allreduce(part, total)
    return total
