"""Parameters that many ranks hold and keep equal: gradients are summed over the ranks, then every rank steps alike."""

import math
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from hogwild.errors import UserError
from kernels.hyper import checked
from kernels.schedules import cycled, observed, rate, scaled
from kernels.steps import Clip, dense_step, new_slots, step
from sparsecomm import guard
from sparsecomm.config import Config
from sparsecomm.exchange import make_exchange
from sparsecomm.handshake import handshake, minority
from sparsecomm.reducer import Dense, Sparse

SKIPS = 20  # so many skipped steps in a row are no accident


class Group(NamedTuple):
    """Tensors that step with a rule, schedule and decay of their own."""

    names: tuple
    rule: tuple
    schedule: tuple
    decay: tuple | None = None


class Bucket(NamedTuple):
    """Tensors that are exchanged together."""

    names: tuple
    reducer: object
    starts: tuple  # where each tensor begins in the bucket


class Synchronizer:
    """Float32 tensors, equal on all ranks of `comm`, that step with the mean of the ranks' gradients.

    tensors: flat contiguous float32 arrays by name, in the order of the forward pass, the same on all ranks; they are
    changed in place, from the start, when rank 0's values are broadcast. clip: `Clip` of the mean gradient, by norm over
    all tensors. groups: tensors with settings of their own. say: is given each line there is to say, on rank 0 alone.
    Raises UserError on all ranks where they do not agree on tensors, settings or versions.

        for name, gradient in …:            # in any order; the exchange of a full bucket starts at once
            synchronizer.ready(name, gradient)
        synchronizer.step()
    """

    def __init__(self, tensors, rule, schedule, comm=None, config=None, decay=None, clip=None, groups=(), seed=0, say=print):
        self.config, self.tensors, self.clip = config or Config(), tensors, checked(clip)
        comm = MPI.COMM_WORLD if comm is None else comm
        default = Group((), rule, schedule, decay)
        of = {name: group for group in groups for name in group.names}
        self.groups = {name: _checked(of.get(name, default)) for name in tensors}
        self.names = guard.install(comm)
        with guard.together(self.names, "the making of an optimizer"):
            self.comm, self.size, self.rank = comm.Dup(), comm.Get_size(), comm.Get_rank()
        self.say = say if self.rank == 0 else lambda line: None
        self._validate()
        handshake(self.comm, self._facts())
        for w in tensors.values():
            self._broadcast(w)
        self.slots = {name: self._slots(self.groups[name].rule, w) for name, w in tensors.items()}
        self.t, self.round, self.skipped = 0, 0, 0
        self.seconds, self.factor = Counter(), 1.0
        exchange, line = make_exchange(self.comm, self.config, sum(len(w) for w in tensors.values()))
        self.say(line)
        self.exchange = exchange
        self.buckets = self._buckets(seed)
        self.place = {name: (b, k) for b, bucket in enumerate(self.buckets) for k, name in enumerate(bucket.names)}
        self._empty()
        self.thread = ThreadPoolExecutor(1, "exchange") if self._ahead() else None

    def _facts(self):
        """What must be the same on all ranks."""
        shapes = ";".join(f"{name}:{len(w)}" for name, w in self.tensors.items())
        settings = repr((self.config, self.clip, sorted((name, repr(group)) for name, group in self.groups.items())))
        return {"parameters": sum(len(w) for w in self.tensors.values()), "dtype": "float32",
                "tensors": f"{zlib.crc32(shapes.encode()):08x}", "configuration": f"{zlib.crc32(settings.encode()):08x}"}

    def _buckets(self, seed):
        """Buckets from the last tensor on: the order in which backward finishes them."""
        room = math.inf if self.config.scope == "global" else self.config.bucket_mb * 2**20 / 4
        parts, size = [[]], 0
        for name in reversed(self.tensors):
            if size and size + len(self.tensors[name]) > room:
                parts.append([])
                size = 0
            parts[-1].append(name)
            size += len(self.tensors[name])
        buckets = []
        for b, names in enumerate(parts):
            sizes = [len(self.tensors[name]) for name in names]
            reducer = self._reducer(sizes, seed * len(parts) + b)
            buckets.append(Bucket(tuple(names), reducer, tuple(np.cumsum([0, *sizes[:-1]]).tolist())))
        return buckets

    def _ahead(self):
        """Whether buckets are exchanged by a thread of their own."""
        many = self.size > 1 and len(self.buckets) > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE
        return self.config.overlap and many and not self.config.clip_local

    # What depends on where the tensors are: sparsecomm/optimizer.py has the same for torch tensors on a device.

    def _validate(self):
        _valid(self.tensors, self.rank)

    def _slots(self, rule, w):
        return new_slots(rule, w.size)

    def _reducer(self, sizes, seed):
        if self.exchange.dense:
            return Dense(sizes, self.exchange, self.config)
        return Sparse(sizes, self.exchange.bucket(), self.config, seed)

    def _host(self, x) -> np.ndarray:
        """The values of x in this process's memory; `_put` brings them back."""
        return x

    def _put(self, x, values):
        if values is not x:
            x[...] = values

    def _move(self, rule, w, slots, g, touched, lr, decay, clip, scale):
        """Step w and its slots with gradient `scale * g`, or only at the indices `touched`."""
        if touched is None:
            dense_step(rule, w, g, slots, lr, self.t, decay, clip, scale)
        else:
            step(checked(rule), w, tuple(slots), touched, g[touched], 0, touched.size, scale, lr, self.t, decay, clip, None)

    def _empty(self):
        self.gradients = [[None] * len(bucket.names) for bucket in self.buckets]
        self.going = []  # a future, or None, for each bucket that was sent off

    def ready(self, name, gradient):
        """`gradient` (float32, flat) of tensor `name` is complete; it must stay as it is until `step` has returned."""
        b, k = self.place[name]
        self.gradients[b][k] = gradient
        if self.thread:
            self._launch()

    def _launch(self):
        """Send off the buckets that are complete, in their order."""
        while len(self.going) < len(self.buckets) and all(g is not None for g in self.gradients[len(self.going)]):
            b = len(self.going)
            work = self.buckets[b].reducer.reduce
            self.going.append(self.thread.submit(work, self.round, self.gradients[b]) if self.thread
                              else work(self.round, self.gradients[b]))

    @guard.collective(lambda self: f"step {self.round + 1}")
    def step(self, lr_factor=1.0) -> bool:
        """Finish the exchange and step every tensor; False: some rank's gradient was not finite, and nothing was done.

        lr_factor: multiplies the learning rate, or a dict with a factor for each tensor, alike on all ranks. Raises UserError
        for what is not finite where the configuration says so, and after many such steps in a row.
        """
        missing = [name for name, (b, k) in self.place.items() if self.gradients[b][k] is None]
        if missing:
            raise UserError(f"rank {self.rank}: no gradient for {missing[0]}; call ready for every tensor, with zeros if "
                            "need be")
        if self.config.clip_local:
            self._clip_local()
        start = time.perf_counter()
        self._launch()
        bad = sum(going.result() if self.thread else going for going in self.going)
        if self.thread:
            self.seconds["wait"] += time.perf_counter() - start
        self.round += 1
        if bad:
            self._skip(int(bad))
        else:
            for bucket in self.buckets:
                bucket.reducer.commit()
            with self._clock("apply"):
                self._apply(lr_factor)
            self.t, self.skipped = self.t + 1, 0
            self._check()
        self._empty()
        return not bad

    def _clip_local(self):
        flat = [g for bucket in self.gradients for g in bucket]
        norm = math.sqrt(sum(float(g @ g) for g in flat))
        bound = self.config.clip_local * math.sqrt(self.size)
        if bound < norm < math.inf:
            for g in flat:
                g *= bound / norm

    def _skip(self, bad):
        for bucket in self.buckets:
            bucket.reducer.undo()
        self.skipped += 1
        own = sum(int((~(abs(g) < math.inf)).sum()) for bucket in self.gradients for g in bucket)
        told = np.array([own], np.int64)
        counts = np.zeros(self.size, np.int64)
        self.comm.Allgather(told, counts)
        where = ", ".join(f"{k:,} on rank {r}" for r, k in enumerate(counts) if k) or f"{bad:,} in the sums"
        line = f"step {self.t}: gradient elements that are not finite ({where})"
        if self.config.nonfinite == "stop" or self.skipped >= SKIPS:
            raise UserError(f"{line}; use a smaller learning rate, or clip the gradient")
        self.say(f"{line}: the step is skipped on all ranks")

    def _apply(self, lr_factor):
        """Step every tensor with the mean gradient, clipped over all of them."""
        scale = 1.0 / self.size
        if self.clip is not None and self.clip.norm < math.inf:
            square = sum(float(bucket.reducer.total @ bucket.reducer.total) for bucket in self.buckets)
            scale *= min(1.0, self.clip.norm / (math.sqrt(square) * scale + 1e-6))
        clip = Clip(self.clip.value, math.inf) if self.clip is not None else None
        for bucket in self.buckets:
            touched = bucket.reducer.touched
            for name, start in zip(bucket.names, bucket.starts):
                group, w, slots = self.groups[name], self.tensors[name], self.slots[name]
                lr = float(rate(group.schedule, self.t)) * (lr_factor[name] if isinstance(lr_factor, dict) else lr_factor)
                rule = cycled(group.rule, group.schedule, self.t)
                still = not len(slots) and group.decay is None and not hasattr(rule, "terms")  # a zero moves nothing
                at = None
                if touched is not None and (self.config.lazy or still):
                    first, last = np.searchsorted(touched, (start, start + len(w)))
                    at = touched[first:last] - np.uint32(start)
                g = bucket.reducer.total[start:start + len(w)]
                self._move(rule, w, slots, g, at, lr, group.decay, clip, scale)

    def _check(self):
        """Average the parameters where that is due, and see that all ranks have the same."""
        every, check = self.config.average_every, self.config.check_every
        if every and self.t % every == 0:
            self.average_parameters()
        if check and self.t % check == 0 and (self.config.combine == "global" or (every and self.t % every == 0)):
            with self._clock("check"):
                self.check_equal()

    @guard.collective(lambda self: "check_equal")
    def check_equal(self):
        """Raise UserError, which names the ranks, unless all ranks have the same parameters to the bit."""
        own = 0
        for w in self.tensors.values():
            own = zlib.crc32(self._host(w), own)
        sums = np.zeros(self.size, np.int64)
        self.comm.Allgather(np.array([own], np.int64), sums)
        odd = minority(sums.tolist())
        if odd:
            raise UserError(f"step {self.t}: the parameters of rank {', '.join(map(str, odd))} differ from those of the "
                            "other ranks; memory or network corrupts data, or parameters were changed outside the optimizer")

    @guard.collective(lambda self: "average_parameters")
    def average_parameters(self):
        """Replace every tensor by its mean over the ranks, which all then have to the bit."""
        with self._clock("average"):
            for w in self.tensors.values():
                values = self._host(w)
                values /= np.float32(self.size)
                self.comm.Allreduce(MPI.IN_PLACE, values)
                self._put(w, values)

    def scale_rate(self, factor):
        """Multiply the learning rate of every group, as a restart does."""
        self.groups = {name: group._replace(schedule=scaled(group.schedule, factor)) for name, group in self.groups.items()}

    def observe(self, metric):
        """Tell the schedules what an evaluation gave: a plateau counts it."""
        self.groups = {name: group._replace(schedule=observed(group.schedule, metric)) for name, group in self.groups.items()}

    def _broadcast(self, w, root=0):
        array = self._host(w)
        for start in range(0, array.size, 1 << 28):  # MPI counts are int32
            self.comm.Bcast(array[start:start + (1 << 28)], root)
        self._put(w, array)

    @contextmanager
    def _clock(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of this rank by phase; those of the exchange may have passed beside the backward pass."""
        total = Counter(self.seconds) + Counter(self.exchange.seconds)
        for bucket in self.buckets:
            total.update(bucket.reducer.seconds)
        return dict(total)

    @property
    def counts(self) -> dict[str, int]:
        """Elements kept, and bytes meant to be sent and received, of this rank."""
        total = Counter()
        for bucket in self.buckets:
            total.update(bucket.reducer.counts)
        return dict(total)

    def residual_norm(self) -> float:
        """L2 norm of what this rank has not sent."""
        parts = [bucket.reducer.state().get("residual") for bucket in self.buckets]
        return math.sqrt(sum(float(np.dot(r, r)) for r in parts if r is not None))

    def close(self):
        """End the thread of the exchange."""
        if self.thread:
            self.thread.shutdown()

    def common(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that all ranks have alike, the parameters not among them."""
        slots = {f"slots.{name}": self._host(x) for name, x in self.slots.items()}
        return {"clock": np.array([self.t, self.round], np.int64), **slots}

    def own(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that each rank has for itself."""
        return {f"{b}.{name}": x for b, bucket in enumerate(self.buckets) for name, x in bucket.reducer.state().items()}

    def load(self, common, own):
        """Go on from `common` and `own`. Raises UserError, before anything is changed, where they do not fit."""
        for needed, got in (self.common(), common), (self.own(), own):
            # The ranges of a balanced exchange come with its first step, and are agreed anew by another number of ranks.
            _fit(*({name: f"{x.dtype}{list(x.shape)}" for name, x in part.items() if not name.endswith(".bounds")}
                   for part in (needed, got)))
        self.t, self.round = (int(x) for x in common["clock"])
        for name, slots in self.slots.items():
            self._put(slots, common[f"slots.{name}"])
        for b, bucket in enumerate(self.buckets):
            bucket.reducer.load({name.partition(".")[2]: x for name, x in own.items() if name.startswith(f"{b}.")})


def _checked(group):
    return group._replace(rule=checked(group.rule), schedule=checked(group.schedule), decay=checked(group.decay))


def _fit(needed, got):
    """Raise UserError unless both have the same names, dtypes and shapes."""
    for name in sorted(set(needed) | set(got)):
        if needed.get(name) != got.get(name):
            raise UserError(f"the state does not fit: needed {needed.get(name, 'no')} {name}, got {got.get(name, 'none')}; "
                            "go on with the same tensors, rule and config, its exchange named instead of auto")


def _valid(tensors, rank):
    """Raise UserError unless every tensor is what the kernels can step in place."""
    if not tensors:
        raise UserError(f"rank {rank}: there are no parameters to train")
    for name, w in tensors.items():
        if not isinstance(w, np.ndarray) or w.dtype != np.float32 or w.ndim != 1 or not w.flags.c_contiguous \
                or not w.flags.writeable or not w.size:
            raise UserError(f"rank {rank}: parameter {name} must be a flat, contiguous, writable float32 array that is not "
                            f"empty, got {getattr(w, 'dtype', type(w).__name__)} of shape {getattr(w, 'shape', '?')}")


def reshared(own, size) -> list[dict[str, np.ndarray]]:
    """States of `size` ranks from the `own` states of another number: residuals and velocities keep their sum.

    Old rank r is added to new rank r modulo size; the other arrays are taken from the old rank of that number.
    """
    new = []
    for rank in range(size):
        old = own[rank::size] or [{name: np.zeros_like(x) if _summed(name) else x for name, x in own[0].items()}]
        new.append({name: np.sum([state[name] for state in old], axis=0, dtype=x.dtype) if _summed(name) else x
                    for name, x in old[0].items()})
    return new


def _summed(name):
    return name.rpartition(".")[2] in ("residual", "velocity")
