"""Tensors that every rank has and steps alike: parameters, slots of their rules, schedules, equality checks, averages."""

import time
import zlib
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from hogwild.kernels.optim.catch_up import catches_up
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import cycled, observed, rate
from sparsecomm import guard
from sparsecomm.replica.arrays import arrays_of
from sparsecomm.wire import checksums, launch
from sparsecomm.wire.handshake import handshake
from sparsecomm.wire.mpi import Wire

CHUNK = 1 << 28  # elements in one call: MPI counts are int32


class Group(NamedTuple):
    """Tensors that step with a rule, schedule and decay of their own."""

    names: tuple
    rule: tuple
    schedule: tuple
    decay: tuple | None = None
    asleep: frozenset = frozenset()  # names of those that are in no bucket, and do not move, until `wake`


def checked_group(group) -> Group:
    """The group with every number checked, see kernels/optim/hyperparameters.py."""
    return group._replace(rule=checked(group.rule), schedule=checked(group.schedule), decay=checked(group.decay))


class Replica:
    """`tensors` by name, flat float32 arrays or tensors on one device, the same on all ranks of `comm` after step `t`.

    They are changed in place, from the start, when rank 0's values are broadcast. default: the `Group` of tensors without
    one. settings: whose text must be the same on all ranks. names: what messages call these ranks. Collective methods are
    called in the main thread. Raises UserError on all ranks where they do not agree on tensors, settings or versions.
    """

    def __init__(self, comm, names, default, settings):
        self.comm, self.names, self.default, self.settings = comm, names, default, settings
        self.wire, self.size, self.rank = Wire(comm), comm.Get_size(), comm.Get_rank()
        self.tensors, self.groups, self.slots, self.missed, self.t = {}, {}, {}, {}, 0
        self.last = {}  # of tensors whose coordinates catch up: the step (of `t - missed`, modulo 2^16) each had last
        self.seconds, self.arrays = Counter(), None

    def adopt(self, tensors, groups) -> list:
        """Add tensors, with rank 0's values on all ranks. The names of those that are awake. Collective."""
        self.arrays = self.arrays or arrays_of(tensors, self.rank)
        self.arrays.validate(tensors, self.rank)
        of = {name: group for group in groups for name in group.names}
        self.groups |= {name: checked_group(of.get(name, self.default)) for name in tensors}
        handshake(self.comm, self._facts(tensors))
        for w in tensors.values():
            self._broadcast_from_0(w)
        self.tensors = {**self.tensors, **tensors}
        return [name for name in tensors if name not in self.groups[name].asleep]

    def _facts(self, tensors):
        """Facts that must be the same on all ranks."""
        shapes = ";".join(f"{name}:{len(w)}" for name, w in tensors.items())
        groups = [(name, *self.groups[name][1:4], name in self.groups[name].asleep) for name in tensors]
        return {"parameters": sum(len(w) for w in tensors.values()), "dtype": "float32",
                "tensors": f"{zlib.crc32(shapes.encode()):08x}",
                "configuration": f"{zlib.crc32(repr((*self.settings, groups)).encode()):08x}"}

    def start(self, names, catching_up=False):
        """Allocate the slots of tensors that step from now on. catching_up: those whose rules can, catch up."""
        for name in names:
            rule, w = self.groups[name].rule, self.tensors[name]
            self.missed[name] = self.t
            self.slots[name] = self.arrays.slots(rule, w)
            if catching_up and catches_up(rule):
                self.last[name] = self.arrays.never_stepped(w)

    def stays_at_zero(self, name) -> bool:
        """Whether a gradient of 0 changes neither the tensor nor its slots."""
        group = self.groups[name]
        return not len(self.slots[name]) and group.decay is None and not hasattr(group.rule, "terms")

    def move(self, name, g, touched, scale, lr_factor, clip):
        """Step one tensor with the gradient `scale * g`, or only at the indices `touched` (uint32)."""
        group = self.groups[name]
        lr, rule = float(rate(group.schedule, self.t)) * lr_factor, cycled(group.rule, group.schedule, self.t)
        state = self.tensors[name], self.slots[name], self.last.get(name)
        self.arrays.move(rule, state, g, touched, (scale, lr, self.t - self.missed[name]), group.decay, clip)

    def observe(self, metric):
        """Give the schedules the result of an evaluation: a plateau counts it."""
        self.groups = {name: group._replace(schedule=observed(group.schedule, metric)) for name, group in self.groups.items()}

    @guard.collective(lambda self: "check_equal")
    def check_equal(self):
        """Raise UserError, which names the ranks, unless all ranks have the same parameters to the bit."""
        checksums.check_equal(self.wire, self.t, (self.arrays.host(w) for w in self.tensors.values()))

    @guard.collective(lambda self: "average_parameters")
    def average_parameters(self):
        """Replace every tensor by its mean over the ranks, which all then have to the bit."""
        with self._clock("average"):
            for w in self.tensors.values():
                values = self.arrays.host(w)
                values /= np.float32(self.size)
                for start in range(0, values.size, CHUNK):
                    self.comm.Allreduce(launch.mpi().IN_PLACE, values[start:start + CHUNK])
                self.arrays.put(w, values)

    def _broadcast_from_0(self, w):
        array = self.arrays.host(w)
        for start in range(0, array.size, CHUNK):
            self.comm.Bcast(array[start:start + CHUNK], 0)
        self.arrays.put(w, array)

    def common(self) -> dict[str, np.ndarray]:
        """Arrays of the next step's state that all ranks have alike, the parameters not among them."""
        missed = np.array([self.missed.get(name, 0) for name in self.tensors], np.int64)
        return {"missed": missed, **{f"slots.{name}": self.arrays.host(x) for name, x in self.slots.items()},
                **{f"last.{name}": self.arrays.host(x) for name, x in self.last.items()}}

    def load_common(self, common):
        """Continue from a `common`."""
        self.missed = dict(zip(self.tensors, common["missed"].tolist()))
        for name, slots in self.slots.items():
            self.arrays.put(slots, common[f"slots.{name}"])
        for name, last in self.last.items():
            self.arrays.put(last, common[f"last.{name}"])

    @contextmanager
    def _clock(self, name):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
