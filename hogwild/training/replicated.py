"""Problems whose workers share parameters in memory: modes, replicas, checkpoints and recovery, for any family.

A family says which tables of rows it trains, and its kernel steps on one example after another (kernels/sharing/worker.py).
"""

from typing import Any, NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.compiler.atomics import Gate
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.lazy_l1 import Average, Lasso, Penalty
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.deterministic import Blocks, train_blocks
from hogwild.kernels.sharing.examples import Rows as ExampleRows
from hogwild.kernels.sharing.merging import CLOSED, OUT, ROUND, Layout, ReplicaGroup
from hogwild.kernels.sharing.modes import Alone, Atomic, Locked, RoundRobin, Wild
from hogwild.kernels.sharing.parameters import View, new_scratch, slot_of
from hogwild.kernels.sharing.replicas import Replica, put_back
from hogwild.kernels.sharing.worker import Chunks, Worker, apply_pending, work
from hogwild.kernels.sharing.workspace import Optimizer, Workspace
from hogwild.training.loop import Problem
from hogwild.training.lost_updates import Shadow
from hogwild.training.machine import demand_memory
from hogwild.training.replication import Touches, choose, columns_of, hottest, plan

BLOCK = 32  # examples that mode deterministic judges with the same parameters
FRESH = 512.0, 128.0  # of a row, updates of all workers together or of each, the larger share, that others may not know
PAYS = 20.0  # updates of others between two merges from which on these pay
SETTLED = 4096.0  # examples of a worker after which its steps tell: AdaGrad's first ones are large
ROWS_END = 2**32 - 2**24  # rows: the kernels count them in uint32, with those of the workers' replicas


class Tables(NamedTuple):
    """The parameters of a family, as rows of coordinates that change together; rows are numbered through all tables."""

    rows: dict[str, int]  # of each table
    width: int = 1  # coordinates of a row, in all tables
    longest: int = 1  # rows that an example touches, at most
    penalized: int = 0  # the rows before this one are shrunk by an L1 penalty
    judged: int = 1  # numbers that the update of an example needs in mode deterministic
    own_slots: bool = False  # the family lays out a row itself, with the rule's slots in it; then no row is replicated


class Steps(NamedTuple):
    """What makes a change of the parameters out of a gradient, beside the schedule."""

    rule: tuple
    decay: tuple | None = None
    clip: tuple | None = None
    average: float | None = None  # the step from which on the weights are averaged
    l1: float = 0.0


class Sharing(NamedTuple):
    """How workers share the parameters, see MODES and REPLICAS of hogwild/training/replication.py."""

    workers: int = 1
    mode: str = "wild"
    replicas: str = "auto"
    block: int = BLOCK


class ReplicatedProblem(Problem):
    """A Problem whose workers share tables of parameters.

    A family calls `__init__`, sets `model` (a NamedTuple with methods of kernels/sharing/examples.py)
    and may set weights in `shared` float32[rows, width, columns] before it is trained. The attributes `examples`, and `rows`
    where these are not all, are as of Problem.
    """

    model: tuple
    scratchless = False  # whether the family's kernel does without a scratch where a rule has no slots and nothing is clipped

    def __init__(self, tables: Tables, steps: Steps, sharing: Sharing, examples: int):
        self.tables, self.rule, self.examples, self.l1 = tables, checked(steps.rule), examples, steps.l1
        self.workers, self.mode, _, self.block = sharing
        self.halt, self.count = aligned((8,), np.int64), sum(tables.rows.values())
        averaged = steps.average is not None
        self.columns = 1 if tables.own_slots else columns_of(self.rule, averaged)
        self.size = tables.width * self.columns  # float32 of a row
        demand_room(self.count, self.size)
        self.average = Average(float(steps.average), float(max(examples, 1))) if averaged else None
        self.counted, self.clocks = np.zeros(1, np.int64), np.zeros((self.workers, 8))
        self.lasso = Lasso(steps.l1, np.zeros(tables.penalized), np.zeros(8)) if steps.l1 else None
        self.optimizer = Optimizer(self.rule, None, checked(steps.decay), checked(steps.clip), self.average)
        self.bare = tables.own_slots or (self.scratchless and self.columns == 1 and steps.clip is None
                                         and not hasattr(self.rule, "terms"))
        self.lockstep, self.whole = self.mode in ("round-robin", "deterministic"), self.mode == "deterministic"
        touches = self.touches() if self.workers > 1 else None
        if touches:
            self.epoch, self.updates = max(touches.examples, 1), max(int(touches.counts.sum()), 1)
        self.replicas = choose(sharing, self.size, (self.count, touches.counts.sum() if touches else 0), bool(steps.l1),
                               averaged)
        self._share(touches)
        if self.whole:
            self.divide(touches)

    def touches(self) -> Touches:
        """How the examples touch the rows; asked for where there are several workers."""
        raise NotImplementedError

    def buffers(self, view) -> Any:
        """What a worker's kernel needs beside its view of the parameters, a NamedTuple. `row_in(view, row)` is where a row is
        in view.flat."""
        return ExampleRows(aligned((self.tables.longest,), np.uint32))

    def table(self, name):
        """The rows of one table, float32[rows, width, columns]: weights, the rule's slots, and maybe an average."""
        names = list(self.tables.rows)
        first = sum(self.tables.rows[each] for each in names[:names.index(name)])
        return self.shared[first:first + self.tables.rows[name]]

    # How the workers share.

    def _share(self, touches):
        """Make the parameters, and a View of them for each worker."""
        count, several = self.count, self.workers > 1
        hot_rows, room, gap = None, 0, -(-16 // self.size)  # rows of a cache line
        counts = touches.counts if touches else None
        if self.replicas == "hot":
            hot_rows, counts = hottest(counts, touches.examples, self.workers, self.size)
            room = len(hot_rows) + gap
        self.flat = self._new(count + (gap + self.workers * room if self.replicas == "hot" else 0))
        self.shared = self.flat[:count * self.size].reshape(count, self.tables.width, self.columns)
        modes = {"locked": Locked(np.zeros(count, np.uint32), self.halt), "atomic": Atomic(),
                 "round-robin": RoundRobin(np.zeros(8, np.int64), self.halt)}
        self.sharing = modes.get(self.mode, Wild() if several and self.mode == "wild" else Alone())
        self.shadow = Shadow(self.workers) if several and self.mode == "wild" and self.replicas != "all" else None
        self.plan = None if self.replicas == "none" else plan(touches, counts, self.tables.penalized)
        if self.plan is None:  # there is nothing to replicate
            self.replicas = "none"
        width = self.tables.width if self.tables.width > 1 else None
        wholes = self._touched((self.workers, -(-self.shared.size // 16) * 16) if self.replicas == "all" else (0, 0))
        if self.replicas == "all":
            self.views = [View(Alone(), flat[:self.shared.size], width) for flat in wholes]
        elif self.replicas == "hot":
            self.views = [View(self.sharing, self.flat, width, count + gap + room * k, hot_rows) for k in range(self.workers)]
        else:
            self.views = [View(self.sharing, self.flat, width)] * self.workers
        if self.plan:
            self._gather(wholes)

    def _gather(self, wholes):
        """The group of the workers' replicas; wholes float32[W, values]: theirs of all parameters, or none."""
        locks, gate, rounds = (aligned((n,), kind) for n, kind in (
            (16 * len(self.plan.ends), np.uint32), (32, np.int64), (self.workers, np.int64)))
        self.group = ReplicaGroup(self.flat[:self.shared.size], wholes, self._part(len(self.plan.shared_rows)),
                                  self.tables.penalized, locks, gate, rounds, np.zeros(self.workers if self.lasso else 0),
                                  self.halt)
        self.kept = {}
        self.share = 1.0 if getattr(self.rule, "summed", False) else 1.0 / self.workers
        self.most = max(FRESH[0] / self.workers, FRESH[1])
        curvature = self.curvature()
        self.mean_curvature = curvature * self.plan.mean_curvature
        self.dense_coupling, self.sparse_coupling = (
            curvature * (self.workers - 1) * x for x in (self.plan.dense_coupling, self.plan.sparse_coupling))

    def curvature(self) -> float:
        """Largest second derivative of the loss by a score, for families that know how their examples are coupled."""
        return 1.0

    def said(self) -> str:
        """How the workers share, for a line on the console."""
        if self.replicas == "all":
            return f"mode {self.mode}, replicas all (merged every {self.most:g} updates of a weight, or sooner)"
        if self.replicas == "hot":
            rows = len(self.plan.shared_rows)
            return f"mode {self.mode}, replicas hot ({rows:,} row{'s' * (rows > 1)} of {self.count:,})"
        return f"mode {self.mode}, replicas none"

    def _part(self, rows):
        return self._touched((rows * self.size,))

    def _touched(self, shape):
        """Zeros whose pages are there: workers would wait for them in the first epoch."""
        zeros = aligned(shape)
        zeros.fill(0.0)
        return zeros

    def _new(self, rows):
        """Parameters as a run starts with them."""
        flat = self._part(rows)
        if not self.tables.own_slots:
            flat.reshape(-1, self.columns)[:] = (0.0, *self.rule.start(), *[0.0] * (self.average is not None))
        return flat

    # What a worker owns.

    def private(self, k):
        own = self._own(k)
        if self.plan:
            self.kept[k] = own[1].replica
        return own

    def _workspace(self, view, lasso):
        longest = self.tables.longest
        scratch = None if self.bare else new_scratch(self.columns - (self.average is not None), longest * self.tables.width,
                                                     np.float32)
        return Workspace(view, scratch, lasso, self.buffers(view))

    def _own(self, k):
        view, lasso = self.views[k], self.lasso
        if self.replicas == "hot":
            view = view._replace(local_rows=aligned((self.tables.longest,), np.uint32))
        if lasso and self.replicas == "all":
            lasso = lasso._replace(applied=np.zeros_like(lasso.applied), clock=np.zeros_like(lasso.clock))
        space = self._workspace(view, lasso)
        self.scratch = space.scratch
        worker = Worker(space, self._replica(k, view) if self.plan else None, self.clocks[k], self.workers)
        counting = None
        if self.shadow:
            counting = worker._replace(space=space._replace(params=view._replace(mode=self.shadow.mode(k))))
        return k, worker, counting

    def _replica(self, k, view):
        shared_rows, ends = self.plan.shared_rows, self.plan.ends
        local_rows = shared_rows
        if self.replicas == "hot":
            local_rows = (view.first_replica + slot_of.py_func(view.hot_rows, shared_rows)).astype(np.uint32)
        due, merges, damped_at, state = aligned((4, max(len(ends), 8)), np.float64)
        base, synced_round = self._part(len(shared_rows)), np.zeros(len(ends), np.int64)
        return Replica(k, self.group, local_rows, shared_rows, base, synced_round, ends, self.plan.free,
                       self.plan.spacing, due, merges, damped_at, state, self.share, self.most,
                       self.dense_coupling, self.plan.dense_blocks, self.sparse_coupling, self.mean_curvature,
                       self.plan.mean_direction)

    # A round.

    def begin(self, t):
        """A round of the workers' replicas; the turn from step t. What a worker that failed has left locked is free."""
        self.steps, self.clocks[:, 0] = t, self.lasso.clock[0] if self.lasso else 0
        if self.mode == "round-robin":
            self.sharing.turn[0] = t
        elif self.mode == "locked":
            self.sharing.locks.fill(0)
        elif self.whole:
            self.begin_whole()
        if self.plan:
            self.group.gate[ROUND] += 1
            self.group.gate[CLOSED:] = 0
            self.group.locks[::16] = 0

    def pays(self):
        """Not where a step turns the others' gradients so much that replicas are merged every few updates."""
        if self.replicas != "all":
            return True
        state = self.kept[0].state
        return state[0] < SETTLED or (self.workers - 1) * state[4] >= PAYS * self.dense_coupling * state[3]

    def leave(self, rule, schedule, own):
        if self.plan:
            none, t = np.zeros(0, self.numbers), self.steps
            work(self.model, self._optimizer(rule, schedule), own[1], Chunks(none, t, 1, none, 0, False), np.zeros(0))

    def end(self):
        if self.plan and self.kept and not self.group.gate[OUT]:
            averaged, t = self.average is not None, float(self.steps)
            layout = Layout(self.size, self.columns, self.columns - 1 - averaged, float(self.share),
                            max(t - self.average.start, 0.0) / self.average.scale if averaged else 0.0)
            penalty = self.lasso and Penalty(self.lasso, self.rule, self.scratch, t)
            put_back(self.kept[0], penalty if self.replicas == "all" else None, layout)

    def _optimizer(self, rule, schedule):
        return self.optimizer._replace(rule=rule, schedule=schedule)

    def run(self, rule, schedule, own, order, t, stride, tally):
        k, worker, _ = own
        optimizer = self._optimizer(rule, schedule)
        if self.whole:
            self.run_whole(optimizer, k, worker, order, t, tally)
        else:  # as one chunk of `work`, which is compiled anyway
            queue, most = np.zeros(16, np.int64), max(len(order), 1)
            work(self.model, optimizer, worker, Chunks(order, t, stride, queue, most, False), tally)

    def call_end(self, order, at):
        return min(-(-at // self.block) * self.block, len(order))

    def work(self, rule, schedule, own, order, t, queue, most, first, tally):
        k, worker, counting = own
        optimizer, chunks = self._optimizer(rule, schedule), Chunks(order, t, 1, queue, most, first)
        if counting and len(order) and self.shadow.due():
            with self.shadow.watch(k):
                return work(self.model, optimizer, counting, chunks, tally)
        if not len(order):  # compile these too
            self.leave(rule, schedule, own)
            self.end()
            work(self.model, optimizer, counting, chunks, tally) if counting else None
        return work(self.model, optimizer, worker, chunks, tally)

    def settle(self, rule, t):
        """Apply the L1 penalty that untouched rows owe."""
        self.steps = t
        if self.lasso:
            view = View(Alone(), self.flat, self.views[0].width)
            apply_pending(self._optimizer(rule, None), self._workspace(view, self.lasso), t)
            self.lasso.applied[:], self.lasso.clock[:] = 0, 0

    # Mode deterministic. A family that has its own way of it replaces these three.

    def divide(self, touches):
        """Divide the rows among the workers of mode deterministic, who own about as many updates each."""
        total = np.concatenate(([0], np.cumsum(touches.counts if touches else np.zeros(self.count, np.int64))))
        cuts = np.searchsorted(total, np.linspace(0, total[-1], self.workers + 1)).astype(np.int64)
        cuts[0], cuts[-1] = 0, self.count
        if hasattr(self.rule, "terms"):  # it looks at all coordinates of an example together
            cuts[1:] = self.count
        self.cuts, self.losses = cuts, np.zeros(self.block)
        self.gate, self.gradients = Gate(np.zeros(16, np.int64), self.halt), np.zeros((self.block, self.tables.judged))

    def begin_whole(self):
        """Called by `begin`."""
        self.gate.marks.fill(0)

    def run_whole(self, optimizer, k, worker, order, t, tally):
        """Worker k's part of a call of mode deterministic, which all workers make with the same examples."""
        blocks = Blocks(k, int(self.cuts[k]), int(self.cuts[k + 1]), self.gate, self.gradients, self.losses)
        train_blocks(self.model, optimizer, worker, blocks, order, t, tally)

    # What the record and checkpoints hold.

    def exchanged(self):
        """What the others' latest updates were that a worker had not seen when it made one, on average over all updates.

        `stale_examples` of theirs since it last merged the row, with `stale_updates` of that row among them. `lost_updates`:
        share of all changes; with plain stores to shared parameters an estimate (hogwild/training/lost_updates.py). Of shared
        rows each other worker makes about one example while this one does.
        """
        lost = self.shadow.lost() if self.shadow else 0.0
        if self.workers == 1 or self.mode not in ("wild", "atomic") or lost is None:
            return {}
        beside = self.workers - 1.0
        if not self.plan:
            return {"stale_examples": beside, "lost_updates": lost}
        updates, ends = self.plan.updates, self.plan.ends
        share, done = updates / self.updates, np.array([kept.state[0] for kept in self.kept.values()])
        merges = np.maximum([kept.merges[:len(share)] for kept in self.kept.values()], 1)
        unseen = done / max(done.sum(), 1) * (done.sum() - done) @ (1 / merges)
        often = updates / np.diff(ends, prepend=0) / self.epoch
        stale = {"stale_examples": float(share @ unseen + (1 - share.sum()) * beside)}
        stale |= {"stale_updates": float(share @ (unseen * often))} if self.replicas == "all" else {}
        return stale | {"lost_updates": lost}

    def parameters(self):
        applied = {"paid": self.lasso.applied, "clock": self.lasso.clock[:1]} if self.lasso else {}
        return {"theta": self.shared, **applied, **({"steps": self.counted} if self.average else {})}

    @property
    def steps(self):
        """Steps after which the parameters are these, as the average needs to know."""
        return int(self.counted[0])

    @steps.setter
    def steps(self, t):
        self.counted[0] = t

    def weights(self):
        """The weights float32[rows, width], averaged where that was asked for."""
        w = self.shared[:, :, 0]
        if self.average is not None and self.steps > self.average.start:
            w = w + self.shared[:, :, -1] * np.float32(self.average.scale / (self.steps - self.average.start))
        return w


def row_in(view, row) -> int:
    """Where a row is in view.flat."""
    if view.hot_rows is None:
        return int(row)
    slot = int(slot_of.py_func(view.hot_rows, np.uint32(row)))
    return int(view.first_replica) + slot if view.hot_rows[slot] == row else int(row)


def demand_room(rows, size, noun="rows of parameters", remedy="use fewer rows"):
    """Raise UserError where parameters, `size` float32 a row, have no room in memory, or their rows no uint32."""
    if rows >= ROWS_END:
        raise UserError(f"got {rows:,} {noun}, needed fewer than {ROWS_END:,}; {remedy}")
    demand_memory(rows * (4 * size + 32), f"{rows:,} {noun} with {size} float32 each, and what is known of them,", remedy)
