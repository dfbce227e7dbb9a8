"""The options of `--exchange server`: how workers and servers go together."""

from dataclasses import dataclass, fields

from hogwild.errors import UserError
from hogwild.training.options import at_least, not_negative


@dataclass(frozen=True)
class Serving:
    """With --exchange server: the last ranks hold the parameters and step them, the others compute gradients."""

    group = "server"

    servers: int = 1
    """Ranks that hold the parameters, by ranges of them, and step them."""
    consistency: str = "bsp"
    """bsp: the gradients of all workers are averaged before anyone goes on; ssp: nobody is more than --staleness steps ahead
    of the slowest worker; async: nobody waits."""
    staleness: int | None = None
    """With ssp: steps that a worker may be ahead of the slowest; 0 is bsp."""
    pull: str = "sparse"
    """What a worker gets of the parameters: sparse, the largest changes since its last pull, the rest later (the servers then
    keep a copy a worker), or dense, all. Of linear, always the features of its next batch."""
    pull_keep: float | None = None
    """With --pull sparse: share of the parameters that a pull gets; default: that of --keep."""
    pushes_per_step: int = 1
    """With ssp and async: pushes that are averaged into one step."""
    staleness_scaling: bool = False
    """With ssp and async: divide a step by 1 + the steps made since the parameters of its gradient were pulled."""
    delayed_momentum: int = 0
    """With rule nesterov: let the momentum move once in so many pushes (Liu et al. 2024); 0: at each step."""
    l1: float = 0.0
    """Penalty l1 |w|, by the servers' proximal step."""
    kkt: float = 0.0
    """With --l1: do not push gradients of parameters at 0 that are no larger than this share of the penalty; 0: push all."""
    random_skip: float = 0.0
    """Hold each entry of a push back with this probability."""
    significant: float = 0.0
    """With --pull sparse: hold changes back that are no larger than this share of the value."""
    slow_worker: str | None = None
    """RANK:FACTOR: let a worker take so many times as long for each step, for experiments."""

    def check(self, config, size):
        """Raise UserError for values that cannot be, or that do not go together. config: of --exchange …; size: the ranks."""
        if config.exchange != "server":
            for field in fields(self):
                if getattr(self, field.name) != field.default:
                    raise UserError(f"--{field.name.replace('_', '-')} needs --exchange server")
            return
        at_least(self, servers=1, pushes_per_step=1, staleness=0, delayed_momentum=0)
        not_negative(self, "l1", "kkt")
        if self.servers >= size:
            raise UserError(f"--servers {self.servers} of {size} rank{'s' * (size > 1)} leaves no worker: start at least "
                            f"{self.servers + 1} with mpiexec -n, or name fewer servers")
        for name, known in ("consistency", ("bsp", "ssp", "async")), ("pull", ("sparse", "dense")):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} must be one of {', '.join(known)}, got '{getattr(self, name)}'")
        for name, high in ("random_skip", 1), ("significant", float("inf")):
            if not 0 <= getattr(self, name) < high:
                raise UserError(f"--{name.replace('_', '-')} must be in [0, {high}), got {getattr(self, name):g}")
        if self.pull_keep is not None and not 0 < self.pull_keep <= 1:
            raise UserError(f"--pull-keep must be in (0, 1], got {self.pull_keep:g}")
        self._together(config)
        self.slowed(size - self.servers)

    def _together(self, config):
        waits = self.bound == 0
        for wrong, line in (
                ((self.staleness is None) == (self.consistency == "ssp"),
                 "--consistency ssp needs --staleness S" if self.staleness is None else
                 f"--staleness is the bound of --consistency ssp, got it with {self.consistency}"),
                (waits and (self.pushes_per_step > 1 or self.staleness_scaling),
                 "--pushes-per-step and --staleness-scaling are for ssp and async: where all wait for all, the pushes of all "
                 "workers are one step"),
                (self.pull == "dense" and (self.pull_keep is not None or self.significant),
                 "--pull-keep and --significant are for --pull sparse"),
                (self.kkt and not self.l1, "--kkt is a share of the penalty --l1, of which there is none"),
                (config.average_every, "--average-every is not defined for --exchange server, where servers have the "
                                       "parameters")):
            if wrong:
                raise UserError(line)
        from sparsecomm.server.push_exchange import demand_pushable  # which imports what --help does not need
        demand_pushable(config, bool(self.kkt or self.random_skip))

    def rule_of(self, rule):
        """The rule of the servers. Raises UserError where its momentum cannot be delayed, or they cannot share a tensor."""
        from sparsecomm.server.options import whole_tensors
        whole_tensors(rule, self.servers)
        if not self.delayed_momentum:
            return rule
        from sparsecomm.server.updates import delayed
        return delayed(rule, self.delayed_momentum)

    @property
    def bound(self) -> float:
        """Steps that a worker may be ahead of the slowest."""
        return {"bsp": 0, "ssp": self.staleness or 0, "async": float("inf")}[self.consistency]

    def pace(self, workers) -> float:
        """Steps that the servers make while each worker makes one."""
        return workers / self.pushes_per_step if self.bound else 1.0

    def slowed(self, workers) -> tuple[int, float]:
        """(worker, how many times as long its steps take). Raises UserError for a text that says none."""
        if self.slow_worker is None:
            return -1, 1.0
        rank, colon, factor = self.slow_worker.partition(":")
        try:
            rank, factor = int(rank), float(factor)
        except ValueError:
            rank, factor = -1, 0.0
        if not (colon and 0 <= rank < workers and 1 <= factor < float("inf")):
            raise UserError(f"--slow-worker must be RANK:FACTOR with a worker from 0 to {workers - 1} and a factor of at "
                            f"least 1, got '{self.slow_worker}'")
        return rank, factor
