"""Every choice about what happens to a gradient between the ranks."""

from dataclasses import dataclass, fields
from numbers import Real

from hogwild.errors import UserError
from hogwild.kernels.compression.index_codes import INDEX_CODES, VALUE_CODES

WARMUP_KEEP = 0.25  # the kept share with which a warm-up starts …
WARMUP_STAGES = 4  # … and its stages down to `keep`: 25, 6.3, 1.6, 0.4, then 0.1% in Lin et al. 2018

CHOICES = {"threshold": ("sample", "histogram", "exact"), "scope": ("local", "global"),
           "exchange": ("auto", "sparse", "dense", "allgather", "balanced", "server"), "index_code": ("auto", *INDEX_CODES),
           "value_code": VALUE_CODES, "combine": ("global", "local"), "nonfinite": ("skip", "stop"),
           "stepping": ("auto", "catch-up", "dense", "touched")}


@dataclass(frozen=True)
class Config:
    """Gradient dropping (Aji & Heafield 2017) and its relatives. Raises UserError for a value outside its range."""

    keep: float = 0.01
    """Share of the gradient's elements that is sent at each step; 0.01 drops 99%."""
    compressor: str = "threshold"
    """What is sent: threshold (the largest elements), chunk-top-k (the k largest of every 4096), low-rank (PowerSGD), sign
    (majority vote), none (everything), or your own class MODULE.CLASS; each with options, as low-rank:rank=4."""
    threshold: str = "sample"
    """How the threshold is found: from a sample, from a histogram of all, or exact."""
    scope: str = "local"
    """A threshold for each tensor (local), or one over all tensors (global; then nothing overlaps with backward)."""
    exchange: str = "sparse"
    """sparse (allgather up to 4 ranks, else balanced), allgather, balanced (split by index range), dense (everything, by
    Allreduce), auto: measured at the start, and dense where that is fastest, or server: a parameter server, of the command
    `sparsecomm train` alone; in Python: sparsecomm.Client and sparsecomm.Server."""
    index_code: str = "auto"
    """Code of the indices: raw, bitmap, rice, local (12 bits in a chunk of 4096), or auto: the smallest, for chunk-top-k
    local."""
    value_code: str = "float32"
    """Code of the values: float32, bfloat16, float16, int8, 1bit. The rounding error stays in the residual."""
    momentum: float = 0.0
    """Momentum correction (Lin et al. 2018): factor of each rank's velocity; 0: none. The rule is then best sgd."""
    masking: bool = True
    """With momentum correction: set the velocity of sent elements to 0 (momentum factor masking)."""
    clip_local: float | None = None
    """Clip each rank's gradient before it is accumulated, to this L2 norm times the root of the number of ranks: the mean of
    independent gradients then has this norm (Lin et al. 2018, whose gradients are parts of the mean)."""
    drop_warmup: int = 0
    """Steps over which the kept share falls in stages from 25% to `keep` (on the command line epochs, too: --drop-warmup)."""
    residual: bool = True
    """Accumulate unsent gradient in the residual (error feedback); false: it is discarded."""
    combine: str = "global"
    """global: step with the sparse sum of all ranks. local: add to it the unsent gradient of the rank itself (Aji & Heafield
    2019); the parameters of the ranks then differ until they are averaged."""
    average_every: int = 0
    """Steps between two averages of the parameters over the ranks; 0: none."""
    nonfinite: str = "skip"
    """After a NaN or infinity in the gradient of any rank, all ranks skip the step (skip) or end the run (stop)."""
    check_every: int = 100
    """Steps between two checks that all ranks have the same parameters; 0: none."""
    bucket_mb: float = 4.0
    """Size in megabytes of a bucket, whose tensors are exchanged together."""
    overlap: bool | None = None
    """Exchange a full bucket in a thread of its own during the backward pass. None: true, but in DistributedOptimizer false,
    since a script may change a gradient after it was sent."""
    stepping: str = "auto"
    """What a coordinate does whose gradient was not sent. catch-up: nothing, and when its sum of n steps arrives, n steps
    with the mean, as dense training would; touched: nothing, and then one step; dense: a step with gradient 0. auto:
    catch-up where elements are dropped, wait in a residual, and the rule can (all but apollo and centred rmsprop); dense for
    tensors most of whose first gradient is 0, as of rare features, which is what they step with."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in CHOICES and value not in CHOICES[field.name]:
                raise UserError(f"{field.name} must be one of {', '.join(CHOICES[field.name])}, got {value!r}")
            switch = isinstance(field.default, bool) or (field.name == "overlap" and value is not None)
            if switch and not isinstance(value, bool):
                raise UserError(f"{field.name} must be true or false, got {value!r}")
        if self.compressor != Config.compressor:
            from sparsecomm.compress.registry import COMPRESSORS, compressor  # which imports this file
            options = compressor(self)
            if self.stepping == "catch-up" and not options.sparse:
                raise UserError(f"stepping catch-up needs a compressor that drops elements; with {self.compressor} every "
                                "coordinate gets something at every step, and none has to catch up")
            kind = type(options)
            for name, known in COMPRESSORS.items():
                if kind is known and not known._fields:  # nothing is lost: an object without options becomes its name
                    object.__setattr__(self, "compressor", name)
        self._number("keep", 0, 1, low_open=True)
        self._number("momentum", 0, 1, high_open=True)
        self._number("bucket_mb", 0, float("inf"), low_open=True, high_open=True)
        if self.clip_local is not None:
            self._number("clip_local", 0, float("inf"), low_open=True, high_open=True)
        for name in ("drop_warmup", "average_every", "check_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UserError(f"{name} must be a whole number of steps, at least 0, got {value!r}")
        if self.combine == "local" and not self.average_every:
            raise UserError("combine local needs average_every: without averages the ranks drift apart; 500 is usual")
        everything = self.compressor == "none" or (self.compressor == Config.compressor and self.exchange == "dense")
        for option, used in ("combine local", self.combine == "local"), ("momentum correction", self.momentum):
            if used and everything:
                raise UserError(f"{option} needs a compressor that drops elements and no dense exchange: sending everything "
                                "leaves nothing for it to do")
        if self.stepping == "catch-up" and not self.residual:
            raise UserError("stepping catch-up needs the residual: without it what arrives is the gradient of one step, and "
                            "there is nothing to catch up with")

    @property
    def catches_up(self) -> bool:
        """Whether a coordinate that has waited steps for all that time. With combine local none waits: each gets this rank's
        own gradient at every step."""
        dropping = self.keep < 1 or self.compressor != "threshold"
        return dropping and self.residual and self.combine == "global" and self.stepping in ("auto", "catch-up")

    def _number(self, name, low, high, low_open=False, high_open=False):
        x = getattr(self, name)
        inside = isinstance(x, Real) and not isinstance(x, bool) and (low < x if low_open else low <= x) and (
            x < high if high_open else x <= high)
        if not inside:
            raise UserError(f"{name} must be a number in {'([' [not low_open]}{low}, {high}{')]' [not high_open]}, got {x!r}")

    def share(self, step: int) -> float:
        """The share that is kept at step `step` (from 0)."""
        if step >= self.drop_warmup or self.keep >= WARMUP_KEEP:
            return self.keep
        stage = step * WARMUP_STAGES // self.drop_warmup
        return WARMUP_KEEP * (self.keep / WARMUP_KEEP) ** (stage / WARMUP_STAGES)
