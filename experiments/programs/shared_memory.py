"""What `hogwild train` cannot say of its workers: one measurement a process, with a record like a run's.

python -m hogwild.experiments.programs.shared_memory copies|factorizations|lost|memory|shadow|wide … --record FILE

copies, factorizations: examples/s of W trainings that share nothing, at the same time, which is what the machine can give.
lost: the share of the updates that lock-free workers lose, exactly, from a sum that is known. memory: growth of the resident
set of a process that reads parsed data from the cache and trains. shadow: what the counters cost that estimate lost updates.
"""

import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from hogwild.cli.arguments import parsed
from hogwild.data import dataset, formats, synthetic, transforms
from hogwild.errors import UserError
from hogwild.experiments.plan.datasets import matrix
from hogwild.families import linear, mf_family, mf_options
from hogwild.kernels.compiler.cache_folders import user_cache
from hogwild.kernels.losses import Hinge, Logistic
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import default_rates, preflight
from hogwild.training.loop import train
from hogwild.training.record import Report

RULES = {"sgd": SGD(), "adagrad": AdaGrad()}
ENTRIES = 10  # features of a row of the data for lost updates
STATUS = "VmRSS", "RssAnon", "RssFile"


@dataclass
class MeasurementOptions:
    """Options of all measurements."""

    record: Path | None = None
    """File to which the JSON lines are appended."""
    workers: int = 2
    """Threads."""
    epochs: int = 3
    """Passes over the data."""
    rows: int = 200_000
    """Rows of the synthetic data."""
    seed: int = 0
    """Seed of the data and of their order."""


@dataclass
class Copies(MeasurementOptions):
    """Independent trainings, each alone on its share of the rows, all at the same time."""

    data: Positional[Path | None] = None
    """Data file, as of `hogwild train linear`; nothing: synthetic data of RCV1's shape."""
    transform: str = "none"
    """Row transforms."""
    rule: str = "adagrad"
    """sgd, adagrad."""


@dataclass
class Factorizations(MeasurementOptions):
    """Independent factorizations of the same ratings, all at the same time."""

    data: Positional[Path | None] = None
    """File of ratings, as of `hogwild train mf`; nothing: synthetic ratings."""
    rule: str = "sgd"
    """A rule of `hogwild train mf`."""
    loss: str = "squared"
    """A loss of `hogwild train mf`."""


@dataclass
class Lost(MeasurementOptions):
    """Updates that wild workers lose on shared parameters, on rows of 10 ones at random places."""

    density: float = 0.01
    """10 over the number of features."""


@dataclass
class Memory(MeasurementOptions):
    """Resident memory over that of data and model, on synthetic data."""

    rule: str = "adagrad"
    """sgd, adagrad."""


@dataclass
class Counted(MeasurementOptions):
    """Extra time of plain stores with the shadow counters (hogwild/training/lost_updates.py), on synthetic data."""

    rule: str = "adagrad"
    """sgd, adagrad."""
    pairs: int = 7
    """Runs with and without, in turn."""


@dataclass
class Wide(Counted):
    """Seconds of workers that share their parameters, with replicas of the hottest rows and with none, over those of one, on
    synthetic data whose features are spread over many more.
    """

    features: int = 20_000_000
    """Number of features of the data."""


def rule_of(options):
    """The optimizer rule, and the schedule that `hogwild train` has for it."""
    if options.rule not in RULES:
        raise UserError(f"--rule must be one of {', '.join(RULES)}, got '{options.rule}'")
    rule = RULES[options.rule]
    return rule, Constant(default_rates.UNIT[type(rule)])


def copies(options, report):
    """The sum of the speeds of independent trainings, recorded as one epoch."""
    rule, schedule = rule_of(options)
    if options.data:
        whole, names = dataset.read(options.data), transforms.parse(options.transform)
        whole = transforms.apply(names, transforms.fit(names, whole), whole)
    else:
        whole, _ = synthetic.rcv1_like(options.rows * 10 // 9, options.seed)
    order, held = np.random.default_rng(options.seed).permutation(whole.rows), whole.rows // 10
    data_set, test = dataset.select(whole, np.sort(order[held:])), dataset.select(whole, np.sort(order[:held]))
    classes = np.unique(whole.labels)
    _alone(data_set.subset(0, 2000), test, classes, rule, schedule, 1, 1, 0)  # compiles
    report.start(workers=options.workers, rule=str(rule), data={"rows": data_set.rows, "nonzeros": data_set.nnz})
    examples, speed = _alone(data_set, test, classes, rule, schedule, options.workers, options.epochs, options.seed)
    report.event("epoch", epoch=1, examples=examples, seconds=examples / speed, examples_per_s=speed, metrics={})
    return {}


def factorizations(options, report):
    """The sum of the speeds of independent factorizations, recorded as one epoch."""
    training = mf_options.MFTraining(rule=options.rule, epochs=options.epochs, workers=1, seed=options.seed)
    data = mf_options.RatingFiles(data=options.data, rows=options.rows)
    asked = mf_options.TrainMF(data, mf_options.MFModelOptions(loss=options.loss), training)
    jobs = [mf_family.FAMILY.prepare(asked) for _ in range(options.workers)]
    rule, schedule, problems = jobs[0].rule, jobs[0].schedule, [job.problem for job in jobs]
    train(problems[0], rule, schedule, epochs=1)  # compiles
    report.start(workers=options.workers, rule=str(rule), data={"rows": problems[0].examples})
    examples, speed = at_once(problems, rule, schedule, options.epochs, options.seed)
    report.event("epoch", epoch=1, examples=examples, seconds=examples / speed, examples_per_s=speed, metrics={})
    return {}


class InStep(Report):
    """Starts the next epoch of every training when all have been evaluated, as that of workers of one training."""

    def __init__(self, gate):
        super().__init__(quiet=True)
        self.gate = gate

    def epoch(self, epoch, epochs):
        self.gate.wait()


def _alone(data_set, test, classes, rule, schedule, workers, epochs, seed):
    """(examples, examples/s) of all copies together."""
    problems = [linear.Linear(data_set, test, Logistic(), rule, rows=np.arange(k, data_set.rows, workers),
                              classes=classes) for k in range(workers)]
    return at_once(problems, rule, schedule, epochs, seed)


def at_once(problems, rule, schedule, epochs, seed):
    """(examples, examples/s) of one worker on each problem, all at the same time."""
    gate = threading.Barrier(len(problems))

    def copy(k):
        try:
            gate.wait()
            return train(problems[k], rule, schedule, epochs=epochs, workers=1, seed=seed, report=InStep(gate))
        except threading.BrokenBarrierError:  # another has failed
            return []
        except BaseException:
            gate.abort()  # releases those that wait for the failed one
            raise

    with ThreadPoolExecutor(len(problems)) as pool:
        histories = list(pool.map(copy, range(len(problems))))  # raises what a copy has raised
    done = [sum(epoch.examples for epoch in history) for history in histories]
    return sum(done), sum(n / sum(epoch.seconds for epoch in history) for n, history in zip(done, histories))


def uniform(rows, density, seed=0):
    """Rows of ENTRIES ones, the s-th anywhere in the s-th of ENTRIES equal stretches of the features; all labels +1."""
    stretch = round(1 / density)
    place = np.random.default_rng(seed).integers(0, stretch, (rows, ENTRIES), np.uint32)
    place += np.arange(ENTRIES, dtype=np.uint32) * np.uint32(stretch)
    return dataset.Dataset(np.arange(rows + 1) * ENTRIES, place.ravel(), np.ones(place.size, np.float32),
                        np.ones(rows, np.float32), ENTRIES * stretch, "uniform")


def share_lost(data_set, workers, epochs, seed):
    """Share of the updates that are missing in the weights.

    A hinge far inside its slack gives every update of a weight the same size, a power of two: without a loss the weights
    are exactly that times the number of updates.
    """
    degree = np.bincount(data_set.indices, minlength=data_set.n_features)
    lr = 2.0 ** np.floor(np.log2(0.5 / (ENTRIES * degree.max() * epochs)))
    problem = linear.Linear(data_set, None, Hinge(), SGD(), intercept=False, workers=workers,
                            replicas="none", classes=np.array([-1.0, 1.0]))
    train(problem, SGD(), Constant(lr), epochs=epochs, workers=workers, seed=seed)
    made = np.asarray(problem.w, np.float64)[:-1].sum() / lr
    return 1 - made / (epochs * data_set.nnz)


def lost(options, report):
    """Measured, and as `hogwild train` would predict it."""
    if not 0 < options.density <= 1:
        raise UserError(f"--density must lie in (0, 1], got {options.density:g}")
    data_set = uniform(options.rows, options.density, options.seed)
    share_lost(uniform(2000, 1.0), options.workers, 1, 0)  # compiles
    facts = preflight.examine(data_set, options.workers, options.seed)
    report.start(workers=options.workers, density=options.density, preflight=asdict(facts))
    found = share_lost(data_set, options.workers, options.epochs, options.seed)
    return {"lost": found, "predicted": facts.lost}


def counted(options, report):
    """Median relative extra time of runs with the shadow counters, and the lost updates that these estimate."""
    rule, schedule = rule_of(options)
    if options.workers < 2:
        raise UserError(f"--workers must be at least 2, for one loses no updates, got {options.workers}")
    data_set, _ = synthetic.rcv1_like(options.rows, options.seed)
    report.start(workers=options.workers, rule=str(rule), data={"rows": data_set.rows})

    def run(counts):
        problem = linear.Linear(data_set, None, Logistic(), rule, workers=options.workers, replicas="none")
        problem.shadow = problem.shadow if counts else None
        history = train(problem, rule, schedule, epochs=options.epochs, workers=options.workers, seed=options.seed)
        return sum(epoch.seconds for epoch in history), history[-1].exchange.get("lost_updates")
    run(True), run(False)  # compiles
    pairs = [(run(True), run(False)) for _ in range(options.pairs)]
    ratios = [counting[0] / plain[0] for counting, plain in pairs]
    return {"cost": float(np.median(ratios)) - 1, "least": min(ratios) - 1, "most": max(ratios) - 1,
            "seconds": float(np.median([plain[0] for _, plain in pairs])), "lost_updates": pairs[-1][0][1]}


def wide(options, report):
    """Medians of the ratios, with the least and the most."""
    rule, schedule = rule_of(options)
    if options.workers < 2:
        raise UserError(f"--workers must be at least 2, for one shares with nobody, got {options.workers}")
    near, _ = synthetic.rcv1_like(options.rows, options.seed)
    step = options.features // near.n_features
    if not 1 <= step < 2**32 // near.n_features:
        raise UserError(f"--features must lie in [{near.n_features:,}, 2^32), got {options.features:,}")
    data_set = dataset.Dataset(near.indptr, near.indices * np.uint32(step), near.values, near.labels, step * near.n_features,
                           "spread " + near.source)
    report.start(workers=options.workers, rule=str(rule), data={"rows": data_set.rows, "features": data_set.n_features})

    def run(workers, replicas="auto"):
        problem = linear.Linear(data_set, None, Logistic(), rule, workers=workers, replicas=replicas)
        history = train(problem, rule, schedule, epochs=options.epochs, workers=workers, seed=options.seed)
        return sum(epoch.seconds for epoch in history)
    kinds = {"one": (1,), "none": (options.workers, "none"), "hot": (options.workers, "hot")}
    seconds = np.array([[run(*kind) for kind in kinds.values()] for _ in range(options.pairs + 1)])[1:]  # one compiles
    ratios = seconds / seconds[:, :1]
    return {f"{name}_{what.__name__}": float(what(ratios[:, k])) for k, name in enumerate(kinds) if k
            for what in (np.median, np.min, np.max)} | {"seconds": float(np.median(seconds[:, 0]))}


def status():
    """Resident kB of this process: in all, anonymous, and mapped from files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0][:-1]: int(words[1]) for words in lines if words and words[0][:-1] in STATUS}
    return np.array([found.get(name, 0) for name in STATUS])


def memory(options, report):
    """Bytes of data and model, and how much each number of `status` has grown at its highest."""
    rule, schedule = rule_of(options)
    small = synthetic.rcv1_like(2000)[0]
    for count in {1, options.workers}:
        train(linear.Linear(small, None, Logistic(), rule, workers=count), rule, schedule, epochs=1, workers=count)
    with tempfile.TemporaryDirectory() as room:
        os.environ["NUMBA_CACHE_DIR"] = os.environ.get("NUMBA_CACHE_DIR") or str(user_cache() / "kernels")
        os.environ["XDG_CACHE_HOME"] = room
        path = Path(room) / "synthetic.npz"
        subprocess.run([sys.executable, "-c", "import sys; from hogwild.experiments.programs.shared_memory import prepare; "
                        "prepare(*sys.argv[1:])", str(path), str(options.rows), str(options.seed)], check=True)
        report.start(workers=options.workers, rule=str(rule), data={"rows": options.rows})
        before, top, done = status(), status(), threading.Event()

        def watch():
            while not done.wait(0.002):
                np.maximum(top, status(), out=top)

        with ThreadPoolExecutor(1) as pool:
            watched = pool.submit(watch)
            try:
                data_set = dataset.read(path)
                problem = linear.Linear(data_set, None, Logistic(), rule, workers=options.workers)
                train(problem, rule, schedule, epochs=options.epochs, workers=options.workers)
            finally:
                done.set()  # else the pool would wait for the thread for ever
            watched.result()
    grown = dict(zip(("grown", "anonymous", "mapped"), ((top - before) * 1024).tolist()))
    size = {"data": sum(getattr(data_set, name).nbytes for name in dataset.ARRAYS), "model": problem.flat.nbytes}
    return {**size, **grown, "share": grown["grown"] / sum(size.values())}


def prepare(path, rows, seed):
    """Write synthetic data and fill the data cache, in a process whose memory is not measured."""
    data_set, _ = synthetic.rcv1_like(int(rows), int(seed))
    formats.save_npz(path, matrix(data_set), data_set.labels)
    dataset.read(path)


COMMANDS = {"copies": (copies, Copies), "factorizations": (factorizations, Factorizations), "lost": (lost, Lost),
            "memory": (memory, Memory), "shadow": (counted, Counted), "wide": (wide, Wide)}


def main(arguments=None) -> int:
    """Measure, record, and print the numbers; the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] not in COMMANDS:
            raise UserError(f"name a measurement: {', '.join(COMMANDS)}")
        measure, cls = COMMANDS[arguments[0]]
        options = parsed(f"hogwild.experiments.programs.shared_memory {arguments[0]}", cls, arguments[1:])
        for name in ("workers", "epochs", "rows", "pairs", "features"):
            if getattr(options, name, 1) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
        report = Report(options.record)
        found = measure(options, report)
        report.close(metrics=found)
    except UserError as error:
        print(f"hogwild: {error}", file=sys.stderr)
        return 2
    print("  ".join(f"{name} {value:.6g}" for name, value in found.items() if value is not None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
