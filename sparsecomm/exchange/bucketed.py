"""Gradients of many tensors, summed over the ranks bucket by bucket: the part shared by optimizer, hook and training run."""

import math
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress import protocol
from sparsecomm.compress.memory import SUMMED
from sparsecomm.compress.pipeline import Pipeline


class Pipelines:
    """The pipelines of one exchange. The unsent gradient of a tensor follows it from one bucket to another.

    shapes: of the tensors, by name. device: the gradients' torch device; None: they are NumPy arrays. ahead: `submit` runs
    work in a thread of its own, in order.
    """

    def __init__(self, exchange, config, shapes, device=None, ahead=False):
        self.exchange, self.config, self.shapes, self.device = exchange, config, shapes, device
        self.pipelines, self.held = [], defaultdict(dict)  # by name and kind: arrays of tensors that are in no bucket
        self.past = Counter(), Counter()
        self.thread = ThreadPoolExecutor(1, "exchange") if ahead else None

    def make(self, names, seed, device=None) -> Pipeline:
        """The pipeline of one bucket, with the state of its tensors. device: where not all tensors are on one."""
        shapes = tuple(self.shapes[name] for name in names)
        bucket = protocol.Bucket(tuple(names), shapes, self.config, seed, device or self.device)
        made = Pipeline(bucket, self.exchange.bucket())
        made.load({f"{name}.{kind}": x for name in names for kind, x in self.held.pop(name, {}).items()})
        self.pipelines.append(made)
        return made

    def release(self, pipeline):
        """Remove a pipeline; the state of its tensors stays in `held`."""
        self.pipelines.remove(pipeline)
        for past, now in zip(self.past, (pipeline.counts, pipeline.seconds)):
            past.update(now)
        for key, x in pipeline.state().items():
            name, _, kind = key.rpartition(".")
            self.held[name][kind] = x.copy()

    def own(self) -> dict[str, np.ndarray]:
        """State of this rank alone: host arrays by "TENSOR.kind"."""
        held = {f"{name}.{kind}": x for name, kinds in self.held.items() for kind, x in kinds.items()}
        return held | {key: x for pipeline in self.pipelines for key, x in pipeline.state().items()}

    def load_own(self, own):
        """Continue from an `own`, of any buckets."""
        for pipeline in self.pipelines:
            pipeline.load(own)
        there = {name for pipeline in self.pipelines for name in pipeline.bucket.names}
        for key, x in own.items():
            name, _, kind = key.rpartition(".")
            if name in self.shapes and name not in there:
                self.held[name][kind] = np.array(x)

    def scale(self, factor):
        """Multiply the unsent gradient, as the unit of the gradients changes."""
        for pipeline in self.pipelines:
            pipeline.memory.scale(factor)
        for kinds in self.held.values():
            kinds.update({kind: x * factor for kind, x in kinds.items() if kind in SUMMED})

    def residual_norm(self) -> float:
        """L2 norm of the residual of this rank."""
        return math.sqrt(sum(float(np.dot(x, x)) for key, x in self.own().items() if key.endswith(".residual")))

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of this rank by phase; those of the exchange may overlap with the backward pass."""
        return dict(sum((pipeline.seconds for pipeline in self.pipelines), self.past[1]) + self.exchange.seconds)

    @property
    def counts(self) -> dict[str, int]:
        """Elements kept, and bytes meant to be sent and received, of this rank."""
        total = Counter(self.past[0])
        for pipeline in self.pipelines:
            total.update(pipeline.counts)
        return dict(total)

    def end(self):
        """End the thread."""
        if self.thread:
            self.thread.shutdown()
        self.thread = None


class Bucket(NamedTuple):
    """Tensors that are exchanged together."""

    names: tuple
    sizes: tuple
    starts: tuple  # where each tensor begins in the bucket
    pipeline: Pipeline


class BucketedExchange(Pipelines):
    """Buckets in a fixed order, each of which is exchanged once its gradients are complete.

        for name, gradient in …:            # in any order; with a thread, the exchange of a full bucket starts at once
            bucketed.ready(name, gradient)
        bucketed.reduce() -> elements that are not finite; then commit(), or undo it all by cancel()
        bucketed.empty()
    """

    def __init__(self, exchange, config, shapes, device=None, ahead=False):
        super().__init__(exchange, config, shapes, device, ahead)
        self.rank, self.size = exchange.rank, exchange.size
        self.seeds = 0
        self.buckets, self.place, self.round = [], {}, 0  # place: of each tensor (bucket, number in it); round: steps so far
        self.seconds = Counter()
        self.empty()

    def fill(self, made, seed):
        """Make a bucket of each list of names, as of `bucket_names`, between two steps."""
        self.seeds = self.seeds or len(made)  # of a run; more buckets have those of the next seeds
        for names in made:
            sizes, b = [math.prod(self.shapes[name]) for name in names], len(self.buckets)
            pipeline = self.make(names, seed * self.seeds + b)
            self.buckets.append(Bucket(tuple(names), tuple(sizes), tuple(np.cumsum([0, *sizes[:-1]]).tolist()), pipeline))
            self.place |= {name: (b, k) for k, name in enumerate(names)}
        self.empty()

    def empty(self):
        """Drop this step's gradients."""
        self.gradients = [[None] * len(bucket.names) for bucket in self.buckets]
        self.incomplete = [len(bucket.names) for bucket in self.buckets]  # tensors without a gradient, of each
        self.launched = []  # a future, or the number of elements that are not finite, for each bucket that was sent off
        self.bad = None  # the number in all, once every bucket has been exchanged
        self.committed, self.replaced = False, {}  # whether the sums are final; gradients in place of exchanged ones

    def ready(self, name, gradient):
        """`gradient` (float32, flat) of tensor `name` is complete; it must stay as it is until the step has ended."""
        b, k = self.place[name]
        self.incomplete[b] -= self.gradients[b][k] is None
        self.gradients[b][k] = gradient
        while self.thread and len(self.launched) < len(self.buckets) and not self.incomplete[len(self.launched)]:
            self._launch()

    def _launch(self):
        """Start the exchange of the next bucket, unless none of its tensors has a gradient."""
        bucket, gradients = self.buckets[len(self.launched)], self.gradients[len(self.launched)]
        if all(g is None for g in gradients):
            self.launched.append(0)
        elif self.thread:
            self.launched.append(self.thread.submit(bucket.pipeline.reduce, self.round, gradients))
        else:
            self.launched.append(bucket.pipeline.reduce(self.round, gradients))

    def reduce(self, idle=frozenset()) -> int:
        """Finish the exchange: how many elements are not finite, on all ranks together.

        idle: tensors, the same on all ranks, that are left alone at this step: none of them has a gradient here.
        """
        if self.bad is None:
            missing = [name for name, (b, k) in self.place.items() if self.gradients[b][k] is None and name not in idle]
            if missing:
                raise UserError(f"rank {self.rank}: no gradient for {missing[0]}; call ready for every tensor, with zeros if "
                                "need be")
            if self.config.clip_local:
                self._clip_local()
            while len(self.launched) < len(self.buckets):
                self._launch()
            self.bad = self._waited()
        return self.bad

    def _waited(self) -> int:
        """Wait for the buckets in exchange; their elements that are not finite."""
        start = time.perf_counter()
        bad = sum(each.result() if hasattr(each, "result") else each for each in self.launched)
        if self.thread:
            self.seconds["wait"] += time.perf_counter() - start
        return int(bad)

    def reduced(self) -> list[Bucket]:
        """The buckets that were exchanged at this step."""
        return [bucket for bucket, gradients, _ in zip(self.buckets, self.gradients, self.launched)
                if any(g is not None for g in gradients)]

    def commit(self, idle=frozenset()) -> bool:
        """Finish the exchange and make its sums final. False: some of it is not finite."""
        if not self.reduce(idle) and not self.committed:
            for bucket in self.reduced():
                bucket.pipeline.commit()
            self.committed = True
        return not self.bad

    def cancel(self, count=0):
        """Drop this step's gradients, as if none had been given: the first `count` buckets, whose exchange some rank has
        started, are exchanged and undone. Collective, with the same count.
        """
        while len(self.launched) < count:
            self._launch()
        self._waited()
        for bucket in self.reduced():
            bucket.pipeline.undo()
        self.empty()

    def total(self, name):
        """The sum (float32, flat, a view) of a tensor of a bucket that was exchanged."""
        b, k = self.place[name]
        bucket = self.buckets[b]
        return bucket.pipeline.total[bucket.starts[k]:bucket.starts[k] + bucket.sizes[k]]

    def touched(self, name) -> np.ndarray | None:
        """uint32[m]: where that may differ from 0; None: anywhere."""
        b, k = self.place[name]
        bucket, touched = self.buckets[b], self.buckets[b].pipeline.touched
        if touched is None:
            return None
        first, last = np.searchsorted(touched, (bucket.starts[k], bucket.starts[k] + bucket.sizes[k]))
        return touched[first:last] - np.uint32(bucket.starts[k])

    def mean(self, name):
        """The mean gradient (float32, flat, a copy) of a tensor after `commit`; None where no rank had one in its bucket."""
        if all(g is None for g in self.gradients[self.place[name][0]]):
            return None
        return self.total(name) * (1.0 / self.size)

    def replace(self, name, gradient):
        """Step with `gradient` (float32, flat, the same on all ranks) in place of the mean that was exchanged."""
        self.replaced[name] = gradient
        self.bad += int((~(abs(gradient) < math.inf)).sum())

    def norm(self) -> float:
        """L2 norm of the mean gradient, after `reduce`; NaN where some of it is not finite."""
        if self.bad:
            return math.nan
        if not self.replaced:
            totals = (bucket.pipeline.total for bucket in self.reduced())
            return math.sqrt(sum(float(x @ x) for x in totals)) / self.size
        means = (self.replaced[name] if name in self.replaced else self.mean(name)
                 for bucket in self.reduced() for name in bucket.names)
        return math.sqrt(sum(float(g @ g) for g in means))

    def _clip_local(self):
        flat = [g for bucket in self.gradients for g in bucket if g is not None]
        norm = math.sqrt(sum(float(g @ g) for g in flat))
        bound = self.config.clip_local * math.sqrt(self.size)
        if bound < norm < math.inf:
            for g in flat:
                g *= bound / norm

    def given(self) -> list:
        """The gradients of this step on this rank."""
        return [g for bucket in self.gradients for g in bucket if g is not None]


def bucket_names(names, shapes, config) -> list[list]:
    """The names of each bucket, from the last tensor on: the order in which backward completes them."""
    room = math.inf if config.scope == "global" else config.bucket_mb * 2**20 / 4
    found, size = [], math.inf
    for name in reversed(names):
        more = math.prod(shapes[name])
        if size and size + more > room or not found:
            found.append([])
            size = 0
        found[-1].append(name)
        size += more
    return found
