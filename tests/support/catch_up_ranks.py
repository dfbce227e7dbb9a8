"""Checks of synchronizer_ranks.py: a coordinate that has waited catches up, whatever has made it wait.

The twin, in float64 on each rank, knows when each coordinate of the sums arrived, and makes that many literal updates.
"""

import numpy as np
from mpi4py import MPI
from rank_helpers import configured, raises
from synchronizer_ranks import COMM, RANK, SIZE, SIZES, SMALL, feed, gradient, gradients, same_everywhere, start

from hogwild.kernels.optim.catch_up import low16
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad, Adam, Apollo, Momentum, RMSProp
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.optim.steps import Clip, Decay
from sparsecomm.config import Config
from sparsecomm.replica.replica import Group
from sparsecomm.replica.state import reshared
from sparsecomm.replica.synchronizer import Synchronizer

RATE = 0.01
GROUPS = [Group(("large",), Momentum(), Constant(RATE), Decay(0.1, 0.2)),
          Group(("bias", "scalar"), AdaGrad(), Constant(RATE))]


def make(rule=Adam(), groups=GROUPS, tensors=None, comm=COMM, said=None, **options):  # noqa: B008
    config, options = configured(options, keep=0.05, exchange="allgather", bucket_mb=SMALL)
    return Synchronizer(start() if tensors is None else tensors, rule, Constant(RATE), comm, config, groups=groups,
                        say=([] if said is None else said).append, **options)


class Twin:
    """What the tensors of a synchronizer should be. Give it the synchronizer before its first step, or when it has loaded."""

    def __init__(self, sync, of=None):
        self.sync, self.held = sync, {} if of is None else of.held
        for name in sync.slots:
            self.adopt(name)

    def adopt(self, name):
        """A tensor whose first step is the next one: its weights, slots, last step of each coordinate, steps."""
        w, rule = self.sync.tensors[name], self.sync.groups[name].rule
        self.held.setdefault(name, [w.astype(float), np.array([np.full(len(w), x) for x in rule.start()]),
                                    np.full(len(w), -1), 0])

    def step(self, idle=(), clip=None, factor=1.0):
        """Follow a step that the synchronizer has made."""
        sync, norm = self.sync, 1.0
        means = {name: sync.total(name).astype(float) / sync.size for name in self.held if name not in idle}
        if clip and clip.norm < np.inf:
            norm = min(1, clip.norm / np.sqrt(sum((g**2).sum() for g in means.values())))
            assert norm < 1
        for name, g in means.items():
            self.move(name, norm * g, sync.touched(name), clip.value if clip else np.inf, factor)
        self.compare()

    def move(self, name, g, at, value, factor):
        w, slots, last, t = self.held[name]
        rule, decay = checked(self.sync.groups[name].rule), self.sync.groups[name].decay or Decay()
        n, lr = t - last[at], RATE * factor
        a, few, c = np.clip(g[at], -value, value) / n + decay.l2 * w[at], slots[:, at], rule.prepare(lr, t)
        moved, cap = np.zeros(len(at)), 30
        while cap > 3 and (np.minimum(n, cap) ** 2).sum() > len(w):
            cap -= 1
        for i in range(n.max(initial=0)):
            delta, new = rule.update(c, a, tuple(few))
            moved = np.where(n <= i, moved, moved + delta if isinstance(rule, Momentum) else min(i + 1, cap) * delta)
            few = np.where(n > i, np.array(new), few)
        w[at] = (1 - lr * decay.wd) ** n * w[at] - moved
        slots[:, at], last[at], self.held[name][3] = few, t, t + 1

    def compare(self):
        for name, (w, slots, last, t) in self.held.items():
            assert np.array_equal(self.sync.last[name], [low16(x) for x in last]), name
            assert t == self.sync.t - self.sync.missed[name]
            for got, want in (self.sync.tensors[name], w), (self.sync.slots[name], slots):
                assert np.abs(got - want).max() < 2e-5 * (1 + np.abs(want).max()), (name, np.abs(got - want).max())

    def waited(self):
        """The longest of the waits that go on."""
        return max((t - 1 - last).max() for _, _, last, t in self.held.values())


CHUNKS = {"compressor": "chunk-top-k:k=50"}
CASES = [{}, {"exchange": "balanced"}, {"exchange": "balanced", "scope": "global", "value_code": "float16"}, CHUNKS,
         {**CHUNKS, "exchange": "dense"}, {"momentum": 0.5}, {"drop_warmup": 6, "keep": 0.001}, {"overlap": False},
         {"clip": Clip(norm=1.0)}, {"clip": Clip(value=0.3, norm=5.0), "clip_local": 20.0}]


def check_caught_up():
    """As n updates with the mean, for every way by which a coordinate comes to wait."""
    for options in CASES:
        said = []
        sync = make(said=said, **options)
        assert sync.last.keys() == SIZES.keys() and (RANK or "catch-up" in said[0])
        twin = Twin(sync)
        for step in range(9):
            factor = 1 / (1 + step / 4)
            assert feed(sync, step, lr_factor=factor)
            twin.step(clip=options.get("clip"), factor=factor)
        assert twin.waited() >= 8, options  # something has never arrived
        arrived = np.concatenate([last for _, _, last, _ in twin.held.values()])
        assert len(set(arrived)) > 5, options
        same_everywhere(sync)
        sync.close()


def check_caught_up_around_gaps():
    """Time stands still where a step is skipped, and for a tensor that is idle; one that is new begins with no wait."""
    groups = [*GROUPS, Group(("first",), Adam(), Constant(RATE), asleep=frozenset(["first"]))]
    sync = make(groups=groups)
    twin = Twin(sync)
    for step in range(14):
        idle = {"large"} if step in (3, 4, 8) else set()
        if step == 6:
            sync.wake(["first"])
            twin.adopt("first")
        if step == 9:
            sync.add({"new": np.ones(SIZES["large"], np.float32)}, [Group(("new",), Momentum(), Constant(RATE))])
            twin.adopt("new")
        given = {name: gradient(step, "large" if name == "new" else name) for name in twin.held if name not in idle}
        if step in (2, 6, 7) and RANK == SIZE - 1:
            given["last"][7] = np.nan
        fine = feed(sync, step, given, idle=frozenset(idle))
        assert fine == (step not in (2, 6, 7))
        twin.step(idle) if fine else twin.compare()
    assert [t for *_, t in (twin.held[name] for name in ("last", "large", "first", "new"))] == [11, 8, 6, 5]


def check_nothing_waits():
    """Where nothing waits, or the rule cannot catch up, steps are dense, and there are no waits to hold."""
    for options in ({"keep": 1.0}, {"residual": False}, {"combine": "local", "average_every": 3}, {"stepping": "dense"},
                    {"stepping": "touched"}, {"compressor": "low-rank:rank=2", "exchange": "sparse"},
                    {"compressor": "sign:feedback=1", "exchange": "sparse"}, {"exchange": "dense"},
                    {"rule": Apollo()}, {"rule": RMSProp(centred=True)}, {"rule": SGD()}):
        said, rule = [], options.pop("rule", Adam())
        sync = make(rule, (), said=said, **options)
        assert not sync.last and (RANK or "catch-up" not in said[0]), options
    raises(["catch-up", "residual"], lambda: Config(stepping="catch-up", residual=False))
    for rule, word in (Apollo(), "whole tensor"), (RMSProp(centred=True), "variance"):
        raises(["catch-up", type(rule).__name__, word, "auto"], lambda: make(rule, stepping="catch-up"))  # noqa: B023
        assert make(rule).last.keys() == {"large", "bias", "scalar"}
    for decay in None, Decay(0.1, 0.2):
        ends = {}
        for stepping in "auto", "catch-up", "dense":
            sync = make(SGD(), (), decay=decay, stepping=stepping)
            for step in range(5):
                feed(sync, step)
            ends[stepping] = np.concatenate([sync.tensors[name] for name in SIZES]).tobytes()
        assert len(set(ends.values())) == 1


def check_caught_up_on_other_ranks():
    """Loaded on as many ranks, and on one fewer, coordinates go on waiting for what they had waited."""
    sync = make(exchange="balanced")
    twin = Twin(sync)
    for step in range(5):
        feed(sync, step)
        twin.step()
    common, owns = {k: x.copy() for k, x in sync.common().items()}, COMM.allgather(sync.own())
    assert common["last.last"].dtype == np.int16 and len(set(common["last.last"].tolist())) > 3
    tensors = {name: w.copy() for name, w in sync.tensors.items()}
    again = make(exchange="balanced", tensors={name: w.copy() for name, w in tensors.items()})
    again.load(common, owns[RANK])
    for step in range(5, 8):
        feed(sync, step)
        feed(again, step)
    for name, w in sync.tensors.items():
        assert w.tobytes() == again.tensors[name].tobytes() and np.array_equal(sync.last[name], again.last[name])
    if SIZE == 1:
        return
    part = COMM.Split(0 if RANK < SIZE - 1 else MPI.UNDEFINED, RANK)
    if part != MPI.COMM_NULL:
        fewer = make(exchange="balanced", tensors=tensors, comm=part)
        fewer.load(common, reshared(owns, SIZE - 1)[RANK])
        twin = Twin(fewer, of=twin)
        for step in range(5, 9):
            feed(fewer, step, gradients(step))
            twin.step()
        assert twin.waited() >= 8
        fewer.close()
        part.Free()
