"""What is known of an epoch, for the console, records and checkpoints."""

from dataclasses import dataclass, field


@dataclass
class Epoch:
    """What one epoch did. A family that counts otherwise has a class of its own, with epoch, loss, metrics, `of`, `rates`."""

    epoch: int  # from 1
    loss: float  # mean over the examples, each before its own update
    lr: float  # at the end of the epoch
    examples: int
    seconds: float  # training alone, without evaluation
    examples_per_s: float
    nonzeros_per_s: float
    metrics: dict[str, float]
    exchange: dict[str, float] = field(default_factory=dict)  # how fresh the workers' view of each other was

    @classmethod
    def of(cls, epoch, loss, lr, done, metrics, exchange):
        """done: loss, examples, non-zeros and seconds of the epoch."""
        _, examples, nonzeros, seconds = done
        return cls(epoch, loss, lr, int(examples), seconds, examples / max(seconds, 1e-9), nonzeros / max(seconds, 1e-9),
                   metrics, exchange)

    def rates(self) -> str:
        """How fast it went, for the console."""
        return f"{self.examples_per_s / 1e3:,.0f} k examples/s  {self.nonzeros_per_s / 1e6:,.0f} M non-zeros/s"
