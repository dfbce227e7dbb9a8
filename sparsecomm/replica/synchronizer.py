"""Parameters that many ranks hold and keep equal: gradients are summed over the ranks, then every rank steps alike."""

import math
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import cycled, observed, rate
from hogwild.kernels.optim.steps import Clip, dense_step, new_slots, step
from sparsecomm import guard
from sparsecomm.compress.reducer import Dense, Sparse
from sparsecomm.config import Config
from sparsecomm.exchange.sparse import make_exchange
from sparsecomm.replica import state
from sparsecomm.replica.broadcast import Replicas
from sparsecomm.replica.groups import Bucket, Group, checked_group, validate
from sparsecomm.wire import launch
from sparsecomm.wire.agreement import all_fine
from sparsecomm.wire.communicators import shared
from sparsecomm.wire.handshake import handshake

SKIPS = 20  # so many skipped steps in a row are no accident


class Synchronizer(Replicas):
    """Float32 tensors, equal on all ranks of `comm`, that step with the mean of the ranks' gradients.

    tensors: flat contiguous float32 arrays by name, in the order of the forward pass, the same on all ranks; they are
    changed in place, from the start, when rank 0's values are broadcast. clip: `Clip` of the mean gradient, by norm over
    all tensors. groups: tensors with settings of their own. say: is given each line there is to say, on rank 0 alone.
    Raises UserError on all ranks where they do not agree on tensors, settings or versions.

        for name, gradient in …:            # in any order; the exchange of a full bucket starts at once
            synchronizer.ready(name, gradient)
        synchronizer.step()

    The thread of the exchange has a communicator of its own: the main thread may use `comm` meanwhile.
    """

    def __init__(self, tensors, rule, schedule, comm=None, config=None, decay=None, clip=None, groups=(), seed=0, say=print):
        self.config, self.clip, self.seed = config or Config(), checked(clip), seed
        self.default = Group((), rule, schedule, decay)
        self.names = guard.install(launch.mpi().COMM_WORLD if comm is None else comm)
        with guard.together(self.names, "the making of an optimizer"):
            self.comm = shared(comm)
        self.size, self.rank = self.comm.Get_size(), self.comm.Get_rank()
        self.say = say if self.rank == 0 else lambda line: None
        self.tensors, self.groups, self.slots, self.place, self.missed = {}, {}, {}, {}, {}
        self.t, self.round, self.skipped, self.buckets = 0, 0, 0, []
        self.seconds, self.loaded = Counter(), False
        awake = self._adopted(tensors, groups)
        parts = self._parts(awake)
        ahead = self._ahead(len(parts))
        self.lane = self.comm.Dup() if ahead else self.comm
        self.thread = ThreadPoolExecutor(1, "exchange") if ahead else None
        self.exchange, line = make_exchange(self.lane, self.config, sum(len(w) for w in self.tensors.values()))
        self.say(line)
        self._empty()
        self._fill(parts)

    def add(self, tensors, groups):
        """Take more tensors between two steps, on all ranks. Raises UserError as at the start."""
        self.wake(self._adopted(tensors, groups))

    def _adopted(self, tensors, groups) -> list:
        """Make the tensors those of all ranks, with rank 0's values. The names of those that are awake."""
        of = {name: group for group in groups for name in group.names}
        self._validate(tensors)
        self.groups |= {name: checked_group(of.get(name, self.default)) for name in tensors}
        handshake(self.comm, self._facts(tensors))
        for w in tensors.values():
            self._broadcast(w)
        self.tensors = {**self.tensors, **tensors}
        return [name for name in tensors if name not in self.groups[name].asleep]

    def wake(self, names):
        """Let those of the tensors move that were asleep, in buckets of their own. On all ranks alike."""
        self._fill(self._parts([name for name in names if name not in self.place]))

    def _facts(self, tensors):
        """What must be the same on all ranks."""
        shapes = ";".join(f"{name}:{len(w)}" for name, w in tensors.items())
        groups = [(name, *self.groups[name][1:4], name in self.groups[name].asleep) for name in tensors]
        return {"parameters": sum(len(w) for w in tensors.values()), "dtype": "float32",
                "tensors": f"{zlib.crc32(shapes.encode()):08x}",
                "configuration": f"{zlib.crc32(repr((self.config, self.clip, groups)).encode()):08x}"}

    def _parts(self, names) -> list[list]:
        """The names of each bucket, from the last tensor on: the order in which backward finishes them."""
        room = math.inf if self.config.scope == "global" else self.config.bucket_mb * 2**20 / 4
        parts, size = [], math.inf
        for name in reversed(names):
            if size and size + len(self.tensors[name]) > room or not parts:
                parts.append([])
                size = 0
            parts[-1].append(name)
            size += len(self.tensors[name])
        return parts

    def _fill(self, parts):
        """Make a bucket of each part, and what the rules need of each tensor in it."""
        for names in parts:
            sizes, b = [len(self.tensors[name]) for name in names], len(self.buckets)
            reducer = self._reducer(sizes, self.seed * len(parts) + b)
            self.buckets.append(Bucket(tuple(names), tuple(sizes), tuple(np.cumsum([0, *sizes[:-1]]).tolist()), reducer))
            for k, name in enumerate(names):
                self.place[name], self.missed[name] = (b, k), self.t
                self.slots[name] = self._slots(self.groups[name].rule, self.tensors[name])
            self.gradients.append([None] * len(names))
            self.wanting.append(len(names))

    def _ahead(self, count):
        """Whether `count` buckets are exchanged by a thread of their own."""
        mpi = launch.mpi()
        many = self.size > 1 and count > 1 and mpi.Query_thread() == mpi.THREAD_MULTIPLE
        return self.config.overlap is not False and many and not self.config.clip_local

    # What depends on where the tensors are: sparsecomm/replica/device_synchronizer.py has the same for tensors on a device.

    def _validate(self, tensors):
        validate(tensors, self.rank)

    def _slots(self, rule, w):
        return new_slots(rule, w.size)

    def _reducer(self, sizes, seed):
        if self.exchange.dense:
            return Dense(sizes, self.exchange, self.config)
        return Sparse(sizes, self.exchange.bucket(), self.config, seed)

    def _move(self, rule, w, slots, g, touched, lr, t, decay, clip, scale):
        """Step w and its slots, the t-th time, with gradient `scale * g`, or only at the indices `touched`."""
        if touched is None:
            dense_step(rule, w, g, slots, lr, t, decay, clip, scale)
        else:
            step(checked(rule), w, tuple(slots), touched, g[touched], 0, touched.size, scale, lr, t, decay, clip, None)

    def _empty(self):
        self.gradients = [[None] * len(bucket.names) for bucket in self.buckets]
        self.wanting = [len(bucket.names) for bucket in self.buckets]
        self.going = []  # a future, or the number of elements that are not finite, for each bucket that was sent off
        self.bad = None  # the number in all, once every bucket has been exchanged

    def ready(self, name, gradient):
        """`gradient` (float32, flat) of tensor `name` is complete; it must stay as it is until `step` has returned."""
        b, k = self.place[name]
        self.wanting[b] -= self.gradients[b][k] is None
        self.gradients[b][k] = gradient
        while self.thread and len(self.going) < len(self.buckets) and not self.wanting[len(self.going)]:
            self._launch()

    def _launch(self):
        """Send off the next bucket. Where no tensor of it has a gradient there is nothing to send."""
        bucket, gradients = self.buckets[len(self.going)], self.gradients[len(self.going)]
        if all(g is None for g in gradients):
            self.going.append(0)
        elif self.thread:
            self.going.append(self.thread.submit(bucket.reducer.reduce, self.round, gradients))
        else:
            self.going.append(bucket.reducer.reduce(self.round, gradients))

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
            while len(self.going) < len(self.buckets):
                self._launch()
            self.bad = self._waited()
        return self.bad

    def _waited(self) -> int:
        """Wait for what was sent off; its elements that are not finite."""
        start = time.perf_counter()
        bad = sum(going.result() if hasattr(going, "result") else going for going in self.going)
        if self.thread:
            self.seconds["wait"] += time.perf_counter() - start
        return int(bad)

    def _reduced(self) -> list[Bucket]:
        """The buckets that were exchanged at this step."""
        return [bucket for bucket, gradients, _ in zip(self.buckets, self.gradients, self.going)
                if any(g is not None for g in gradients)]

    @guard.collective(lambda self: f"step {self.round + 1}")
    def step(self, lr_factor=1.0, idle=frozenset(), norm=math.inf) -> bool:
        """Finish the exchange and step every tensor; False: some rank's gradient was not finite, and nothing was done.

        lr_factor: multiplies the learning rate, or a dict with a factor for each tensor, alike on all ranks; idle as for
        `reduce`; norm: a bound on the norm of the mean gradient at this step. Raises UserError for what is not finite where
        the configuration says so, and after many such steps in a row.
        """
        bad = self.reduce(idle)
        self.round += 1
        if bad:
            self._skip(bad)
        else:
            for bucket in self._reduced():
                bucket.reducer.commit()
            with self._clock("apply"):
                self._apply(lr_factor, idle, min(norm, self.clip.norm if self.clip else math.inf))
            self.t, self.skipped = self.t + 1, 0
            self._check()
        self._empty()
        return not bad

    def cancel(self, count):
        """Forget this step's gradients, as if none had been given: the first `count` buckets, which some rank has sent off,
        are exchanged and taken back. On all ranks alike.
        """
        while len(self.going) < count:
            self._launch()
        self._waited()
        for bucket in self._reduced():
            bucket.reducer.undo()
        self._empty()

    def norm(self) -> float:
        """L2 norm of the mean gradient, after `reduce`; NaN where some of it is not finite."""
        squares = sum(float(bucket.reducer.total @ bucket.reducer.total) for bucket in self._reduced())
        return math.nan if self.bad else math.sqrt(squares) / self.size

    def _clip_local(self):
        flat = [g for bucket in self.gradients for g in bucket if g is not None]
        norm = math.sqrt(sum(float(g @ g) for g in flat))
        bound = self.config.clip_local * math.sqrt(self.size)
        if bound < norm < math.inf:
            for g in flat:
                g *= bound / norm

    def _skip(self, bad):
        for bucket in self._reduced():
            bucket.reducer.undo()
        self.skipped += 1
        own = sum(int((~(abs(g) < math.inf)).sum()) for bucket in self.gradients for g in bucket if g is not None)
        told = np.array([own], np.int64)
        counts = np.zeros(self.size, np.int64)
        self.comm.Allgather(told, counts)
        where = ", ".join(f"{k:,} on rank {r}" for r, k in enumerate(counts) if k) or f"{bad:,} in the sums"
        line = f"step {self.t}: gradient elements that are not finite ({where})"
        if self.config.nonfinite == "stop" or self.skipped >= SKIPS:
            raise UserError(f"{line}; use a smaller learning rate, or clip the gradient")
        self.say(f"{line}: the step is skipped on all ranks")

    def _apply(self, lr_factor, idle, norm):
        """Step every tensor with the mean gradient, clipped to `norm` over all of them."""
        scale = 1.0 / self.size
        if norm < math.inf:
            scale *= min(1.0, norm / (self.norm() + 1e-6))
        clip = Clip(self.clip.value, math.inf) if self.clip is not None else None
        for name in idle & self.place.keys():
            self.missed[name] += 1
        for bucket in self._reduced():
            touched = bucket.reducer.touched
            for name, start in zip(bucket.names, bucket.starts):
                if name in idle:
                    continue
                group, w, slots = self.groups[name], self.tensors[name], self.slots[name]
                lr = float(rate(group.schedule, self.t)) * (lr_factor[name] if isinstance(lr_factor, dict) else lr_factor)
                rule = cycled(group.rule, group.schedule, self.t)
                still = not len(slots) and group.decay is None and not hasattr(rule, "terms")  # a zero moves nothing
                at = None
                if touched is not None and (self.config.lazy or still):
                    first, last = np.searchsorted(touched, (start, start + len(w)))
                    at = touched[first:last] - np.uint32(start)
                g = bucket.reducer.total[start:start + len(w)]
                self._move(rule, w, slots, g, at, lr, self.t - self.missed[name], group.decay, clip, scale)

    def _check(self):
        """Average the parameters where that is due, and see that all ranks have the same."""
        every, check = self.config.average_every, self.config.check_every
        if every and self.t % every == 0:
            self.average_parameters()
        equal = self.config.combine == "global" or (every and self.t % every == 0)
        if equal and (self.loaded or (check and self.t % check == 0)):
            self.loaded = False
            with self._clock("check"):
                self.check_equal()

    def observe(self, metric):
        """Tell the schedules what an evaluation gave: a plateau counts it."""
        self.groups = {name: group._replace(schedule=observed(group.schedule, metric)) for name, group in self.groups.items()}

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
        """End the thread of the exchange, and free its communicator. Called by all ranks."""
        if self.thread:
            self.thread.shutdown()
            self.lane.Free()
            self.thread, self.lane = None, self.comm

    def comms(self) -> list:
        """The communicators that this uses."""
        return [self.comm] if self.lane is self.comm else [self.comm, self.lane]

    def abandon(self):
        """End the thread of the exchange, after the death of a rank."""
        if self.thread:
            self.thread.shutdown()

    def common(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that all ranks have alike, the parameters not among them."""
        slots = {f"slots.{name}": self._host(x) for name, x in self.slots.items()}
        missed = np.array([self.missed.get(name, 0) for name in self.tensors], np.int64)
        return {"clock": np.array([self.t, self.round], np.int64), "missed": missed, **slots}

    def own(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that each rank has for itself."""
        parts = (state.split(bucket, b, bucket.reducer.state()) for b, bucket in enumerate(self.buckets))
        return {name: x for part in parts for name, x in part.items()}

    @guard.collective(lambda self: "the loading of a state")
    def load(self, common, own):
        """Go on from `common` and `own`. Called by all ranks.

        Raises UserError on all of them, before anything is changed, where they do not fit, or the ranks' differ.
        """
        self.wake([name for name in self.tensors if f"slots.{name}" in common])
        wrong = ""
        try:
            state.fit(self.common(), common)
            state.fit(self.own(), own)
        except UserError as error:
            wrong = str(error)
        all_fine(self.comm, wrong)
        t, rounds = (int(x) for x in common["clock"])
        facts = {"the number of steps": t, "the number of rounds": rounds}
        if self.config.combine == "global":
            facts["the rule's state"] = zlib.crc32(b"".join(x.tobytes() for name, x in sorted(common.items()) if x.size))
        handshake(self.comm, facts, "Load on every rank what the ranks have saved at one step")
        self.t, self.round, self.loaded = t, rounds, True
        self.missed = dict(zip(self.tensors, common["missed"].tolist()))
        for name, slots in self.slots.items():
            self._put(slots, common[f"slots.{name}"])
        for b, bucket in enumerate(self.buckets):
            bucket.reducer.load(state.joined(bucket, b, own, bucket.reducer.state()))
