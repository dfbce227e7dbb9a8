"""Whether a run gets anywhere: its losses beside those of predictions that know nothing of the rows."""

from typing import NamedTuple

FAR = 10.0  # times the loss of a run's start: parameters that give so much are no place to go back to
LOST = 1000.0  # the same, for those that no later steps will bring back: AdaGrad's first ones may well give FAR
NOISE = 0.05  # of the constant prediction's loss, that an epoch's may lie above it by chance


class Reference(NamedTuple):
    """Mean losses over the training examples, weighted as in training."""

    constant: float  # of the best constant prediction
    start: float  # of score 0, which a model gives before its first step

    def worse(self, loss, part=False) -> bool:
        """Whether an epoch's mean loss is above the constant prediction's; part: it was not a whole epoch."""
        bar = FAR * self.start if part else (1 + NOISE) * self.constant + 1e-3 * self.start
        return not loss <= max(bar, 1e-12)

    def line(self, epoch, loss) -> str:
        """What is said of a run that ends worse than the constant prediction."""
        return (f"the training loss of epoch {epoch} is {loss:.4g}, that of a constant prediction {self.constant:.4g}: this "
                "model predicts worse than a constant; use a smaller lr, or scale the features or the rows")


def known(constant, start) -> Reference | None:
    """A Reference; None where it would say nothing: the perceptron's loss of score 0 is 0, as that of equal targets."""
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
