"""Data-parallel training of equal replicas: gradients are summed over the ranks, then every rank steps alike."""

import math
import zlib
from collections import Counter

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.compiler.cache import announce
from hogwild.kernels.optim.catch_up import unfit
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import Clip
from sparsecomm import guard
from sparsecomm.compress.registry import options_of
from sparsecomm.config import Config
from sparsecomm.exchange.bucketed import BucketedExchange, bucket_names
from sparsecomm.exchange.choice import make_exchange
from sparsecomm.faults.nonfinite import SKIPS, demand_skippable, where
from sparsecomm.replica import state
from sparsecomm.replica.replica import CHUNK, Group, Replica
from sparsecomm.wire import launch
from sparsecomm.wire.agreement import all_fine
from sparsecomm.wire.communicators import shared
from sparsecomm.wire.handshake import handshake


class Synchronizer(BucketedExchange, Replica):
    """Float32 tensors, equal on all ranks of `comm`, that step with the mean of the ranks' gradients.

    tensors: flat contiguous float32 arrays by name, or torch tensors on one device, in the order of the forward pass, the
    same on all ranks. clip: `Clip` of the mean gradient, by norm over all tensors. groups: tensors with settings of their
    own. say: called with each line of text, on rank 0 alone. shapes: by name, of the tensors that are not flat for a
    compressor. Raises UserError as `Replica` does.

        for name, gradient in …:            # in any order; the exchange of a full bucket starts at once
            synchronizer.ready(name, gradient)
        synchronizer.step()

    The thread of the exchange has a communicator of its own: the main thread may use `comm` meanwhile. On a device the
    exchange does not overlap with backward: all its work is in the caller's stream.
    """

    def __init__(self, tensors, rule, schedule, comm=None, config=None, decay=None, clip=None, groups=(), seed=0, say=print,
                 shapes=None):
        config, self.clip, self.seed = config or Config(), checked(clip), seed
        names = guard.install(launch.mpi().COMM_WORLD if comm is None else comm)
        with guard.together(names, "the making of an optimizer"):
            comm = shared(comm)
        Replica.__init__(self, comm, names, Group((), rule, schedule, decay), (config, self.clip))
        self.say = say if self.rank == 0 else lambda line: None
        if self.rank == 0:
            announce()
        awake, shapes = self.adopt(tensors, groups), shapes_of(tensors, shapes)
        made = bucket_names(awake, shapes, config)
        ahead = self._ahead(len(made), config)
        self.lane = self.comm.Dup() if ahead else self.comm
        exchange, config, line = make_exchange(self.lane, config, sum(len(w) for w in self.tensors.values()))
        BucketedExchange.__init__(self, exchange, config, shapes, self.arrays.device, ahead)
        self.skipped, self.most_skips, self.loaded = 0, SKIPS, False  # skipped, of which so many in a row are an error
        self.undecided = set()  # tensors that catch up, unless most of their first gradient is 0
        self._fill(made)
        self.say(f"{line}; stepping catch-up" if self.last else line)

    def add(self, tensors, groups, shapes=None):
        """Adopt more tensors between two steps, on all ranks. Raises UserError as at the start."""
        self.shapes |= shapes_of(tensors, shapes)
        self.wake(self.adopt(tensors, groups))

    def wake(self, names):
        """Put tensors that were asleep into buckets of their own: they step from now on. Collective, with the same names."""
        self._fill(bucket_names([name for name in names if name not in self.place], self.shapes, self.config))

    def _fill(self, made):
        if made:
            self.fill(made, self.seed)
            names = [name for part in made for name in part]
            for rule in (self.groups[name].rule for name in names if self.config.stepping == "catch-up"):
                if unfit(rule):
                    raise UserError(f"stepping catch-up is not defined for {type(rule).__name__}, {unfit(rule)}; leave it at "
                                    "auto, which steps every coordinate, or name another rule")
            compressor = self.buckets[-1].pipeline.compressor
            waits = options_of(self.config).sparse and compressor.decay and not compressor.lossless
            self.start(names, self.config.catches_up and waits)
            self.undecided |= self.last.keys() & set(names if self.config.stepping == "auto" else ())

    def _ahead(self, count, config):
        """Whether `count` buckets are exchanged by a thread of their own."""
        mpi = launch.mpi()
        many = self.size > 1 and count > 1 and mpi.Query_thread() == mpi.THREAD_MULTIPLE
        return config.overlap is not False and many and not config.clip_local and self.arrays.device is None

    @guard.collective(lambda self: f"step {self.round + 1}")
    def step(self, lr_factor=1.0, idle=frozenset(), norm=math.inf) -> bool:
        """Finish the exchange and step every tensor; False: some rank's gradient was not finite, and nothing was done.

        lr_factor: multiplies the learning rate, or a dict with a factor for each tensor, alike on all ranks; idle as for
        `reduce`; norm: a bound on the norm of the mean gradient at this step. Raises UserError for what is not finite where
        the configuration says so, and after many such steps in a row.
        """
        fine = self.commit(idle)
        self.round += 1
        if not fine:
            self._skip()
        else:
            with self._clock("apply"):
                self._apply(lr_factor, idle, min(norm, self.clip.norm if self.clip else math.inf))
            self.t, self.skipped = self.t + 1, 0
            self._check()
        self.empty()
        return fine

    def _skip(self):
        given, bad = self.given(), self.bad
        for bucket in self.reduced():
            bucket.pipeline.undo()
        self.skipped += 1
        line = f"step {self.t}: gradient elements that are not finite ({where(self.wire, given, bad)})"
        demand_skippable(line, self.config, self.skipped, self.most_skips)
        self.say(f"warning: {line}: the step is skipped on all ranks")

    def _apply(self, lr_factor, idle, norm):
        """Step every tensor with the mean gradient, clipped to `norm` over all of them."""
        shorten = min(1.0, norm / (self.norm() + 1e-6)) if norm < math.inf else 1.0
        clip = Clip(self.clip.value, math.inf) if self.clip is not None else None
        for name in idle & self.place.keys():
            self.missed[name] += 1
        names = [name for bucket in self.reduced() for name in bucket.names if name not in idle]
        for name in names:
            g, scale = self.total(name), shorten * (1.0 / self.size)
            if name in self.replaced:
                g, scale = self.replaced[name], shorten
            factor = lr_factor[name] if isinstance(lr_factor, dict) else lr_factor
            self.move(name, g, self._stepped(name), scale, factor, clip)

    def commit(self, idle=frozenset()):
        """As of the buckets; at their first steps tensors are told apart, before anyone changes their gradients."""
        first, fine = not self.committed, super().commit(idle)
        if fine and first and self.undecided:
            self._decide([name for bucket in self.reduced() for name in bucket.names
                          if name in self.undecided and name not in idle])
        return fine

    def _decide(self, names):
        """Let tensors most of whose mean gradient is 0 step every element: of a rare feature 0 is the gradient, none waits.

        One that is 0 everywhere tells nothing yet. Collective.
        """
        sparse = []
        for name in names:
            b, k = self.place[name]
            g, some = self.gradients[b][k], np.zeros(len(self.tensors[name]), np.uint8)
            if g is not None:
                some[:] = self.arrays.host(g != 0)
            for start in range(0, some.size, CHUNK):
                self.comm.Allreduce(launch.mpi().IN_PLACE, some[start:start + CHUNK], launch.mpi().MAX)
            if count := int(np.count_nonzero(some)):
                self.undecided.discard(name)
                sparse += [name] if 2 * count < some.size else []
        self.last = {name: last for name, last in self.last.items() if name not in sparse}
        if sparse:
            self.say(f"stepping dense, since most of their gradient is 0: {', '.join(sparse)}")

    def _stepped(self, name):
        """uint32[m]: the coordinates that step; None: all."""
        part = self.config.stepping == "touched" or name in self.last
        if not part and (name in self.replaced or not self.stays_at_zero(name)):
            return None
        touched = self.touched(name)
        if name not in self.replaced or touched is None:
            return touched
        return np.union1d(touched, np.flatnonzero(self.arrays.host(self.replaced[name]))).astype(np.uint32)

    def _check(self):
        """Average the parameters, and check that they are equal on all ranks, at the steps where each is due."""
        every, check = self.config.average_every, self.config.check_every
        if every and self.t % every == 0:
            self.average_parameters()
        equal = self.config.combine == "global" or (every and self.t % every == 0)
        if equal and (self.loaded or (check and self.t % check == 0)):
            self.loaded = False
            with self._clock("check"):
                self.check_equal()

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of this rank by phase; those of the exchange may overlap with the backward pass."""
        return dict(Counter(super().phases) + self.seconds)

    def close(self):
        """End the thread of the exchange, and free its communicator. Called by all ranks."""
        if self.thread:
            self.end()
            self.lane.Free()
            self.lane = self.comm

    def comms(self) -> list:
        """The communicators in use."""
        return [self.comm] if self.lane is self.comm else [self.comm, self.lane]

    def common(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that all ranks have alike, the parameters not among them."""
        return {"clock": np.array([self.t, self.round], np.int64), **super().common()}

    @guard.collective(lambda self: "the loading of a state")
    def load(self, common, own):
        """Continue from `common` and `own`. Called by all ranks.

        Raises UserError on all of them, before anything is changed, where they do not fit, or the ranks' differ.
        """
        self.wake([name for name in self.tensors if f"slots.{name}" in common])
        wrong, decided = "", self._decided(common)
        needed = {name: x for name, x in self.common().items() if not name.startswith("last.")}
        try:
            state.fit(needed | {f"last.{name}": self.arrays.host(x) for name, x in decided.items()}, common)
            state.fit(self.own(), own)
        except UserError as error:
            wrong = str(error)
        all_fine(self.comm, wrong)
        t, rounds = (int(x) for x in common["clock"])
        facts = {"the number of steps": t, "the number of rounds": rounds}
        if self.config.combine == "global":
            facts["the rule's state"] = zlib.crc32(b"".join(x.tobytes() for name, x in sorted(common.items()) if x.size))
        handshake(self.comm, facts, "Load on every rank what the ranks have saved at one step")
        self.t, self.round, self.loaded, self.last = t, rounds, True, decided
        self.load_common(common)
        if self.config.stepping == "auto":  # what has never stepped anywhere
            self.undecided = {name for name, last in self.last.items() if (self.arrays.host(last) == -1).all()}
        self.load_own(own)


    def _decided(self, common):
        """The last steps of the tensors that catch up, as those that saved `common` had decided; not yet filled."""
        if self.config.stepping != "auto" or not self.config.catches_up:
            return self.last
        return {name: self.last[name] if name in self.last else self.arrays.never_stepped(self.tensors[name])
                for name in self.slots if f"last.{name}" in common}


def shapes_of(tensors, shapes) -> dict[str, tuple]:
    """The shape of every tensor: of `shapes`, or its own."""
    return {name: (shapes or {}).get(name, tuple(w.shape)) for name, w in tensors.items()}
