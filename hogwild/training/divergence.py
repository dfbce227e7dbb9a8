"""Divergence: the losses of a run compared with those of constant predictions."""

from typing import NamedTuple

FAR = 10.0  # times the loss of a run's start: no rollback to parameters whose loss is above it
LOST = 1000.0  # times the loss of a run's start: the run has diverged; AdaGrad's first steps may give FAR and recover
NOISE = 0.05  # share of the constant prediction's loss by which an epoch's may exceed it by chance


class Reference(NamedTuple):
    """Mean losses over the training examples, weighted as in training."""

    constant: float  # of the best constant prediction
    start: float  # of score 0, which a model gives before its first step

    def worse(self, loss, part=False) -> bool:
        """Whether an epoch's mean loss is above the constant prediction's; part: it was not a whole epoch."""
        bar = FAR * self.start if part else (1 + NOISE) * self.constant + 1e-3 * self.start
        return not loss <= max(bar, 1e-12)

    def line(self, epoch, loss) -> str:
        """The warning for a run that ends worse than the constant prediction."""
        return (f"the training loss of epoch {epoch} is {loss:.4g}, that of a constant prediction {self.constant:.4g}: this "
                "model predicts worse than a constant; use a smaller lr, or scale the features or the rows")


def known(constant, start) -> Reference | None:
    """A Reference; None where score 0 has no loss, as with the perceptron or equal targets: no loss can be compared to it."""
    return Reference(constant, start) if start > 0 else None


def far(loss, losses, reference) -> bool:
    """Whether `loss` is far above the best of `losses` and of the run's start (a Reference, or None)."""
    best = [*losses] if reference is None else [*losses, reference.start]
    return bool(best) and not loss <= FAR * min(best)


def diverges(losses, reference) -> bool:
    """Whether the last two epochs were far above the run's start, and the last one more so."""
    if reference is None or len(losses) < 2:
        return False
    last, before = losses[-1], losses[-2]
    return not last <= before and before > LOST * max(reference.start, 1e-12)
