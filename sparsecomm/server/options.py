"""What a server does: one dataclass, the same on all servers."""

import math
from dataclasses import dataclass, field

from hogwild.errors import UserError
from hogwild.kernels.compression.index_codes import VALUE_CODES
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import Clip, Decay
from sparsecomm.server.together import OnArrival, Together
from sparsecomm.server.updates import Updates

CONSISTENCIES = "bsp", "ssp", "async"
STEPPINGS = "touched", "catch-up", "dense"


@dataclass(frozen=True)
class ServerOptions:
    """Everything about a server but its rule and schedule. Raises UserError for what cannot be.

    updates: called with the elements of a shard, makes what adds up its pushes; with bsp, whose steps are of one push of each
    worker, its `pushes_per_step` is not used. views: called with a shard's tensors, makes what is sent of them, see views.py;
    None: pulls get the values themselves.
    """

    consistency: str = "bsp"  # who waits for whom: each for all, each for those more than `staleness` behind, nobody
    staleness: int = 0  # clocks that a worker may be ahead of the slowest, with ssp
    stepping: str = "touched"  # which elements step: those pushed, these for all steps since they last were, or all
    decay: Decay | None = None  # weight decay: ∂Ω of L2
    l1: float | dict = 0.0  # L1 penalty, by its proximal step; a number for every tensor, or numbers by tensor
    clip: Clip | None = None  # by value; by norm is the workers' work, before they push
    groups: tuple = ()  # sparsecomm.replica.replica.Group: tensors with a rule, schedule and decay of their own
    value_code: str = "float32"  # of the values that a pull gets
    updates: object = field(default=Updates, repr=False)
    views: object = field(default=None, repr=False)

    def __post_init__(self):
        for name, value, known in (("consistency", self.consistency, CONSISTENCIES), ("stepping", self.stepping, STEPPINGS),
                                   ("value_code", self.value_code, VALUE_CODES)):
            if value not in known:
                raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if isinstance(self.staleness, bool) or not isinstance(self.staleness, int) or self.staleness < 0:
            raise UserError(f"staleness must be a whole number of clocks, at least 0, got {self.staleness!r}")
        if self.staleness and self.consistency != "ssp":
            raise UserError(f"staleness is a bound of ssp, got {self.staleness} with {self.consistency}; leave it out")
        for l1 in self.l1.values() if isinstance(self.l1, dict) else [self.l1]:
            if not 0 <= l1 < math.inf:
                raise UserError(f"l1 must be a finite number, not negative, got {l1}")
        if (clip := checked(self.clip)) and clip.norm < math.inf:
            raise UserError("a server has a part of each gradient, so it clips by value alone; clip by norm before the push")

    @property
    def bound(self) -> float:
        """Clocks that a worker may be ahead of the slowest."""
        return math.inf if self.consistency == "async" else self.staleness

    def new_order(self):
        """Which pushes of a shard wait for others."""
        return OnArrival() if self.bound else Together()

    def l1_of(self, name) -> float:
        """The L1 penalty of a tensor."""
        return float(self.l1.get(name, 0) if isinstance(self.l1, dict) else self.l1)


def whole_tensors(rule, servers):
    """Raise UserError for a rule whose step depends on the whole tensor where several servers have parts of it."""
    if hasattr(rule, "terms") and servers > 1:
        raise UserError(f"the step of {type(rule).__name__.lower()} depends on the whole tensor, of which each of {servers} "
                        "servers has a part: use one server, or another rule")
