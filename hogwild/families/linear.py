"""Problem family "linear": binary classification and regression on sparse rows (kernel: kernels/families/linear.py)."""


import numpy as np

from hogwild.data import formats
from hogwild.errors import UserError
from hogwild.families import constant, l1_closing
from hogwild.families.predictions import classes_of, measure, outputs_of, scores, targets
from hogwild.families.targets import AS_GIVEN
from hogwild.kernels.compiler.atomics import Gate, reached
from hogwild.kernels.families import linear as kernel
from hogwild.kernels.families.linear_gradient import add_gradient
from hogwild.kernels.optim import lazy_l1 as kernel_lazy
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.merging import CLOSED, OUT, ROUND, Layout, Team
from hogwild.kernels.sharing.modes import Alone, Atomic, Locked, RoundRobin, Wild
from hogwild.kernels.sharing.parameters import Outputs, Place, new_scratch, slot_of
from hogwild.kernels.sharing.parking import DOOR
from hogwild.kernels.sharing.replicas import Private, put_back
from hogwild.training import default_rates
from hogwild.training.loop import Problem
from hogwild.training.lost_updates import Shadow
from hogwild.training.machine import demand_memory
from hogwild.training.replication import columns_of, hottest, keeps_copies, plan, rarity, sizes_of

# What each mode of sharing promises.
MODES = {
    "wild": "no worker waits for another: fastest; each trains a copy, whose changes are added up now and then, or, "
            "where the parameters are too many, of the hottest, and the others with plain stores, which may lose a change",
    "atomic": "compare-and-swap additions, of the hottest to copies: no change is ever lost",
    "locked": "a spin lock a coordinate: a row's change together, and no change is lost (the paper's AIG)",
    "round-robin": "updates in strict turn: step t after step t - 1, and no change is lost (the paper's RR)",
    "deterministic": "the same bits for a seed, whatever the number of workers",
}
BLOCK = 32  # examples that mode deterministic judges with the same weights
FRESH = 512.0, 128.0  # of a feature, updates of all workers together or of each, the larger share, that others may not know
PAYS = 20.0  # updates of others between two merges from which on these pay
ROWS_END = 2**32 - 2**24  # features: the kernels count their rows in uint32, with those that workers have of their own
SETTLED = 4096.0  # examples of a worker after which its steps tell: AdaGrad's first ones are large


def pace_of(square, rule) -> float:
    """What the intercept's gradient is multiplied by: the strongest feature's mean square, and at least a hundredth of the
    rows' mean squared length. square: float64[d], each feature's mean square.

    With rows of unit length a step of full size would throw the intercept about: it is 1 in every row where each feature
    is small. scikit-learn takes 0.01 on sparse data. Rules that scale their steps do not feel it, unless it changes from
    call to call: for them it is at most 1.
    """
    pace = max(square.max(initial=0), 0.01 * square.sum())
    return float(pace if default_rates.is_plain(rule) else np.clip(pace, 0.01, 1.0)) if pace else 1.0


class Linear(Problem):
    """W·x + b under `loss`, trained on dataset `data`, measured on `test` (a dataset or None).

    rows: the row numbers to train on, None for all. mode: how workers share the parameters, see MODES. decay: weighted at
    each touch by rows / rows that have the feature (up to where a step takes all of it), so that the sparse penalty is
    l2/2 |w|² in expectation. l1: penalty l1 |w|₁. average: step from which the weights are averaged, None for not.
    weights: float[rows of data], factors of the examples' losses. units: of real targets, see hogwild/families/targets.py.
    seen: the rows of earlier calls with these, see hogwild/families/continued.py; None: these are all. More than two
    classes give an output each: judged together by softmax, else each against the rest. copies: True has every worker of
    mode wild train a copy of the parameters, False of the intercept alone; None: of all where they are few enough, else
    of the hottest.
    """

    def __init__(self, data, test, loss, rule, decay=None, clip=None, intercept=True, workers=1, rows=None,
                 mode="wild", l1=0.0, average=None, weights=None, classes=None, copies=None, block=BLOCK, units=AS_GIVEN,
                 seen=None):
        self.units, self.rule, self.workers, self.mode = units, checked(rule), workers, mode
        self.loss = units.loss(checked(loss))
        decay, clip, l1 = units.penalties(decay, clip, l1)
        if mode not in MODES:
            raise UserError(f"unknown mode '{mode}': choose from {', '.join(MODES)}")
        self.classes = classes_of(data, rows, classes) if loss.task == "classification" else None
        self.outputs = outputs_of(loss, 0 if self.classes is None else len(self.classes))
        self.data, self.test, self.rows = data, test, rows
        self.examples = data.rows if rows is None else len(rows)
        self.test_labels = self._targets(test) if test is not None else None
        self.halt = aligned((8,), np.int64)
        self.columns = columns_of(rule, average is not None)
        self.bare = self.columns == 1 and clip is None and not hasattr(rule, "terms")
        demand_room(data.n_features, self.outputs * self.columns)
        degree = data.degrees() if decay or workers > 1 else None
        sample = np.minimum(sizes_of(data), 1e30)
        pace = pace_of(sample[2] if seen is None else seen.squares / seen.sampled, rule) if intercept else 0.0
        average = None if average is None else kernel_lazy.Average(float(average), float(max(self.examples, 1)))
        self.closed = None  # weights in place of the parameters', see `close`
        self.average, self.counted, self.clocks = average, np.zeros(1, np.int64), np.zeros((workers, 8))
        self.lasso = kernel_lazy.Lasso(l1_closing.checked(l1), np.zeros(data.n_features), np.zeros(8)) if l1 else None
        self.model = kernel.Model(
            self.loss, checked(decay), checked(clip), average, data.csr,
            float32(units.targets(self._targets(data)), data),
            None if weights is None else np.ascontiguousarray(weights, np.float32),
            rarity(*((data.rows, degree) if seen is None else seen[:2])) if decay else None, pace)
        self.lockstep, self.whole = mode in ("round-robin", "deterministic"), mode == "deterministic"
        self._lay_out(rule, degree, copies, (*sample, min(pace, pace**0.5)))  # beside features: in their unit, not its square
        if self.whole:
            total = np.concatenate(([0], np.cumsum(degree if degree is not None else [0] * data.n_features)))
            self.cuts = np.searchsorted(total, np.linspace(0, total[-1], workers + 1)).astype(np.int64)
            self.cuts[0], self.cuts[-1], self.block = 0, data.n_features, block
            self.gate, self.lost = Gate(np.zeros(16, np.int64), self.halt), np.zeros(block)
            self.slopes = np.zeros(block * self.outputs)

    def _targets(self, data):
        return targets(data, self.classes, 1 if self.outputs == 1 else 2)

    def _lay_out(self, rule, degree, copies, sample):
        """Make the parameters, and a Place in them for each worker."""
        d, size, several = self.data.n_features, self.outputs * self.columns, self.workers > 1
        self.start = (0.0, *rule.start(), *[0.0] * (self.average is not None))
        apart = several and self.mode in ("wild", "atomic")
        lasso, averaged = self.lasso is not None, self.average is not None
        self.copies = self.mode == "wild" and keeps_copies(self.data, self.workers, size, lasso, averaged, copies)
        hot, room, gap = None, 0, -(-16 // size)  # rows of a cache line
        if apart and not self.copies:
            hot, degree = hottest(degree if copies is None else np.zeros_like(degree), self.data.rows, self.workers, size)
            room = 1 + len(hot) + gap
        self.flat = self._new(d + 1 + gap + self.workers * room)
        self.table = self.flat.reshape(-1, size)
        self.shared = self.table[:d + 1].reshape(d + 1, self.outputs, self.columns)
        locks = {"locked": Locked(np.zeros(d + 1, np.uint32), self.halt), "atomic": Atomic(),
                 "round-robin": RoundRobin(np.zeros(8, np.int64), self.halt)}
        self.sharing = locks.get(self.mode, Wild() if apart else Alone())
        self.shadow = Shadow(self.workers) if several and self.mode == "wild" and not self.copies else None
        self.waits, self.doors = self.copies, aligned((DOOR * self.workers,), np.int64)
        copied = self._touched((self.workers, -(-self.shared.size // 16) * 16) if self.copies else (0, 0))
        if self.copies:
            self.places = [Place(Alone(), flat[:self.shared.size], d) for flat in copied]
        else:
            self.places = [Place(self.sharing, self.flat, d + 1 + gap + room * k if apart else d, hot)
                           for k in range(self.workers)]
        self.plan = plan(self.data, degree, *sample) if apart else None
        if apart:
            locks, gate, came = (aligned((n,), kind) for n, kind in (
                (16 * len(self.plan.ends), np.uint32), (32, np.int64), (self.workers, np.int64)))
            self.team = Team(self.flat[:self.shared.size], copied, self._part(len(self.plan.names)), locks, gate, came,
                             np.zeros(self.workers if self.lasso else 0), self.halt)
            self.kept = {}
            self.share = 1.0 if getattr(rule, "summed", False) else 1.0 / self.workers
            self.most = max(FRESH[0] / self.workers, FRESH[1])
            self.pull = getattr(self.loss, "curvature", 1.0) * self.plan.alike
            bend = getattr(self.loss, "curvature", 1.0) * (self.workers - 1)
            self.bend, self.rest = bend * self.plan.bend, bend * self.plan.rest

    def manner(self):
        """How the workers share, for a line on the console."""
        if self.copies:
            return f"copies, merged every {self.most:g} updates of a weight, or sooner"
        manner, hot = "plain stores" if self.mode == "wild" else MODES[self.mode].partition(":")[0], 0
        if self.plan:
            hot = len(self.plan.names) - 1
        return manner + (f", but for copies of {hot:,} hot {'features' if hot > 1 else 'feature'}" if hot else "")

    def _part(self, rows):
        return self._touched((rows * self.outputs * self.columns,))

    def _touched(self, shape):
        """Zeros whose pages are there: workers would wait for them in the first epoch."""
        zeros = aligned(shape)
        zeros.fill(0.0)
        return zeros

    def _new(self, rows):
        """Parameters as a run starts with them."""
        flat = self._part(rows)
        flat.reshape(-1, self.columns)[:] = self.start
        return flat

    def private(self, k):
        own = self._own(k)
        if self.plan:
            self.kept[k] = own[1].private
        return own

    def _own(self, k):
        place = self.places[k]
        longest = int(np.diff(self.data.indptr).max(initial=0)) + 1
        scratch = None if self.bare else new_scratch(self.columns - (self.average is not None), longest * self.outputs,
                                                     np.float32)
        self.scratch = scratch
        outputs = Outputs(*(aligned((self.outputs,), np.float64) for _ in range(2))) if self.outputs > 1 else None
        kept = None
        if self.plan:
            names, ends = self.plan.names, self.plan.ends
            rows = names
            if not self.copies:
                rows = (place.first + np.append(0, 1 + slot_of.py_func(place.hot, names[1:]))).astype(np.uint32)
                place = place._replace(rows=aligned((longest,), np.uint32))
            due, merges, met, state = aligned((4, max(len(ends), 8)), np.float64)
            known = np.zeros(len(ends), np.int64)
            kept = Private(k, self.team, rows, names, self._part(len(rows)), known, ends, self.plan.spacing, due, merges, met,
                           state, self.share, self.most, self.bend, self.plan.bent, self.rest, self.pull, self.plan.along,
                           self.doors)
        lasso = self.lasso
        if lasso and self.copies:
            lasso = lasso._replace(paid=np.zeros_like(lasso.paid), clock=np.zeros_like(lasso.clock))
        worker = kernel.Worker(place, scratch, outputs, lasso, kept, self.clocks[k], self.workers)
        return k, worker, worker._replace(place=place._replace(mode=self.shadow.mode(k))) if self.shadow else None

    def begin(self, t):
        """A round of the workers' copies; the turn from step t. What a worker that failed has left locked is free."""
        self.closed = None
        self.steps, self.clocks[:, 0] = t, self.lasso.clock[0] if self.lasso else 0
        if self.mode == "round-robin":
            self.sharing.turn[0] = t
        elif self.mode == "locked":
            self.sharing.locks.fill(0)
        elif self.whole:
            self.gate.marks.fill(0)
        if self.plan:
            self.team.gate[ROUND] += 1
            self.team.gate[CLOSED:] = 0
            self.team.locks[::16] = 0

    def pays(self):
        """Not where a step turns the others' gradients so much that copies are merged every few updates."""
        if not self.copies:
            return True
        state = self.kept[0].state
        return state[0] < SETTLED or (self.workers - 1) * state[4] >= PAYS * self.bend * state[3]

    def leave(self, rule, schedule, own):
        if self.plan:
            none, t = np.zeros(0, np.int64), self.steps
            kernel.work(rule, schedule, self.model, own[1], none, t, 1, none, 0, False, np.zeros(0))

    def ended(self):
        return self.copies and reached(self.team.gate, OUT, 1)

    def end(self):
        if self.plan and self.kept and not self.team.gate[OUT]:
            averaged, t = self.average is not None, float(self.steps)
            layout = Layout(self.table.shape[1], self.columns, self.columns - 1 - averaged, float(self.share),
                            max(t - self.average.start, 0.0) / self.average.scale if averaged else 0.0)
            penalty = self.lasso and kernel_lazy.Penalty(self.lasso, self.rule, self.scratch, t)
            put_back(self.kept[0], penalty if self.copies else None, layout)

    def run(self, rule, schedule, own, order, t, stride, tally):
        k, worker, _ = own
        if self.whole:
            kernel.train_blocks(rule, schedule, self.model, worker, k, self.cuts, self.gate, self.slopes, self.lost, order,
                                t, self.block, tally)
        else:  # as one chunk of `work`, which is compiled anyway
            queue, most = np.zeros(16, np.int64), max(len(order), 1)
            kernel.work(rule, schedule, self.model, worker, order, t, stride, queue, most, False, tally)

    def work(self, rule, schedule, own, order, t, queue, most, first, tally):
        k, worker, counting = own

        def call(worker):
            return kernel.work(rule, schedule, self.model, worker, order, t, 1, queue, most, first, tally)
        if counting and len(order) and self.shadow.due():
            with self.shadow.watch(k):
                return call(counting)
        if not len(order):  # compile these too
            self.leave(rule, schedule, own)
            self.ended()
            self.end()
            call(counting) if counting else None
        return call(worker)

    def settle(self, rule, t):
        """Apply the L1 penalty that untouched features owe."""
        self.steps = t
        if self.lasso:
            worker = self._own(0)[1]
            alone = worker._replace(place=Place(Alone(), self.flat, self.data.n_features), lasso=self.lasso)
            kernel.settle(rule, self.model, alone, t)
            self.lasso.paid[:], self.lasso.clock[:] = 0, 0

    def exchanged(self):
        """What the others' latest updates were that a worker had not seen when it made one, on average over all updates.

        `stale_examples` of theirs since it last merged the coordinate, with `stale_updates` of that coordinate among them.
        `lost_updates`: share of all changes; with plain stores to shared parameters an estimate
        (hogwild/training/lost_updates.py). Of shared ones each other worker makes about one example while this one does.
        """
        lost = self.shadow.lost() if self.shadow else 0.0
        if not self.plan or lost is None:
            return {}
        updates, ends, beside = self.plan.updates, self.plan.ends, self.workers - 1.0
        share, done = updates / (self.data.nnz + self.data.rows), np.array([kept.state[0] for kept in self.kept.values()])
        merges = np.maximum([kept.merges[:len(share)] for kept in self.kept.values()], 1)
        unseen = done / max(done.sum(), 1) * (done.sum() - done) @ (1 / merges)
        often = updates / np.diff(ends, prepend=0) / self.data.rows
        stale = {"stale_examples": float(share @ unseen + (1 - share.sum()) * beside)}
        return stale | ({"stale_updates": float(share @ (unseen * often))} if self.copies else {}) | {"lost_updates": lost}

    def parameters(self):
        paid = {"paid": self.lasso.paid, "clock": self.lasso.clock[:1]} if self.lasso else {}
        return {"theta": self.shared, **paid, **({"steps": self.counted} if self.average else {})}

    def named(self, i):
        return formats.where(self.data.source, i)

    def suspect(self):
        """Most likely the one with the largest value of a feature whose weight is not finite."""
        data, lost = self.data, ~np.isfinite(self.shared[:-1]).all((1, 2))
        size = np.where(lost[data.indices], np.abs(data.values), -1.0)
        if self.rows is not None:
            size[~np.repeat(np.isin(np.arange(data.rows), self.rows), np.diff(data.indptr))] = -1.0
        if size.max(initial=-1.0) < 0:
            return super().suspect()
        return f"an example, most likely {self.named(np.searchsorted(data.indptr, size.argmax(), 'right') - 1)}"

    @property
    def steps(self):
        """Steps after which the parameters are these, as the average needs to know."""
        return int(self.counted[0])

    @steps.setter
    def steps(self, t):
        self.counted[0] = t

    @property
    def w(self):
        """Weights [d + 1, K] with the intercepts last, [d + 1] for K = 1; averaged where that was asked for. float32, or
        float64 for targets that were scaled: in their unit."""
        return self.units.weights(self.scaled_w())

    def close(self):
        """After the last epoch, with an L1 penalty: weights that do not help become 0 (hogwild/families/l1_closing.py).

        Training that goes on does so from those before. (number of weights that were not 0, that still are not), or None.
        """
        self.closed = None
        if not self.lasso:
            return None
        before = self.scaled_w()
        self.closed = l1_closing.close(self)
        return np.count_nonzero(before[:-1]), np.count_nonzero(self.closed[:-1])

    def scaled_w(self):
        """`w`, of targets as they are trained on."""
        if self.closed is not None:
            return self.closed
        w = self.shared[:, :, 0]
        if self.average is not None and self.steps > self.average.start:
            w = w + self.shared[:, :, -1] * np.float32(self.average.scale / (self.steps - self.average.start))
        return w[:, 0] if self.outputs == 1 else w

    @property
    def of_loss(self):
        return self.units.of_loss

    def mean_loss(self, rows):
        """Mean weighted loss of these rows of the data under the weights as they are."""
        return self.mean_loss_of(self.data.csr, self.scaled_w(), rows)

    def mean_loss_of(self, csr, w, rows):
        """`mean_loss` of the rows of another CSR under weights w [features + 1, …] of the targets as they are trained on."""
        d = len(w) - 1
        w = np.ascontiguousarray(w, np.float32).reshape(-1)
        outputs = Outputs(np.zeros(self.outputs), np.zeros(self.outputs)) if self.outputs > 1 else None
        total = add_gradient(self.loss, Place(Alone(), w, d), outputs, csr, self.model.labels, self.model.weights, rows, 0.0,
                             1.0, np.zeros_like(w))
        return float(total) / max(len(rows), 1) * self.of_loss

    def reference(self):
        return constant.reference(self)

    def evaluate(self):
        if self.test is None:
            return {}
        return measure(scores(self.w, self.test, self.workers), self.test_labels, self.loss)


def demand_room(features, size):
    """Raise UserError where parameters, `size` float32 a feature, have no room in memory, or their rows no uint32."""
    if features >= ROWS_END:
        raise UserError(f"got {features:,} features that occur, needed fewer than {ROWS_END:,}; hash them to fewer numbers")
    demand_memory(features * (4 * size + 32), f"{features:,} features with {size} float32 each, and what is known of them,",
                  "hash the features to fewer numbers")


def float32(labels, data):
    """Targets as the kernels want them. Raises UserError where one is beyond float32."""
    with np.errstate(over="ignore"):
        found = labels.astype(np.float32)
    if not np.isfinite(found).all():
        row = int(np.isfinite(found).argmin())
        raise UserError(f"{formats.where(data.source, row)}: got target {labels[row]:g}, needed one within float32's "
                        "range, ±3.4e38; scale the targets")
    return found
