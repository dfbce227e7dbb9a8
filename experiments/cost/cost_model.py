"""The cost model: what a step of each exchange takes on a link, with any number of ranks, measured or not.

The formulas are those of sparsecomm/exchange/alpha_beta.py. α and β come from messages that two ranks send at once over
each link (experiments/lab/pingpong.py), what a rank computes from runs on this machine without a network between the
ranks (the cells that have no axis `link`), which do not overlap exchange and backward pass, so that their phases add up.
With that, the cells on links are predicted, and the error is shown.

A step takes compute + wait + exchange + apply + rest. wait: what a rank waits for the slower ones, the time that local runs
spend in the exchange beyond what the link takes; rest: what they take outside their phases, as to fetch a batch. Where the
exchange overlaps the backward pass, of B buckets all but the last to be ready can hide behind it: (1 - 1/B) min(time on the
network, time of the backward pass); nothing where ranks have only a core each, which MPI's waiting (it asks again and again)
takes from the backward pass.
"""

import math
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares, nnls

from hogwild.experiments.run.machine import cores_of
from hogwild.kernels.compression.value_codes import VALUES
from sparsecomm.exchange.alpha_beta import Link, Work, predict

BACKWARD = 2 / 3  # share of the backward pass in computing: two products for each of the forward pass's
BUCKET_MB = 4.0  # sparsecomm's default
SMALL, LARGE = 1 << 6, 1 << 16  # bytes; a token bucket lets what is between pass early, and TCP begins slowly
# One-way latencies are assumptions: of TCP through the kernel and a switch; at 100 Gbit/s, of RDMA.
PRESETS = {"1 Gbit/s": Link(50e-6, 8e-9), "10 Gbit/s": Link(30e-6, 8e-10), "25 Gbit/s": Link(20e-6, 3.2e-10),
           "100 Gbit/s": Link(5e-6, 8e-11)}


class Way(NamedTuple):
    """A way to communicate: exchange, kept share and value code."""

    exchange: str  # dense, allgather, balanced
    keep: float = 1.0  # share that is sent; of dense 1
    code: str = "float32"

    def __str__(self):
        sent = "dense" if self.exchange == "dense" else f"{self.exchange}, {100 * (1 - self.keep):g}% dropped"
        return f"{sent}, {self.code}"


class Measured(NamedTuple):
    """What a cell has measured; seconds are those of a step."""

    task: str
    way: Way
    ranks: int
    link: str  # "": none, the ranks are on one machine
    n: int  # parameters
    buckets: int
    overlap: bool
    spare: bool  # a second core for each rank
    seconds: float
    phases: dict[str, float]  # mean over the ranks
    bytes: float  # of a rank

    @property
    def k(self) -> int:
        """Entries that a rank sends."""
        return max(int(self.way.keep * self.n), 1)


class Machine(NamedTuple):
    """Times of this machine's computations."""

    select: float  # seconds an element
    add: float  # an element
    message: float  # a message
    encode: dict[str, float]  # an entry, by value code
    decode: dict[str, float]
    code: dict[str, float]  # an element of a dense array
    entries: dict[tuple, float]  # bytes, by kept share and value code
    compute: dict[tuple, float]  # seconds of a step, by task and ranks
    wait: dict[tuple, float]
    apply: dict[tuple, float]
    rest: dict[tuple, float]

    def other(self, task, ranks) -> float:
        """Seconds of a step besides computing and exchange."""
        return self.wait.get((task, ranks), 0.0) + self.apply[task, ranks] + self.rest[task, ranks]

    def work(self, way) -> Work:
        """The Work of the α-β model."""
        encode, decode, code = (_of(table, way.code) for table in (self.encode, self.decode, self.code))
        entry = self.entries[way[1:]] if way[1:] in self.entries else entry_bytes(way.keep, way.code)
        return Work(self.select, encode, decode, self.add, code if way.code != "float32" else 0.0, entry, self.message)


def _of(table, code) -> float:
    """The seconds of a value code; of one that was not measured, the median of those that were."""
    return table[code] if code in table else median(table.values()) if table else 0.0


def entry_bytes(keep, code) -> float:
    """Bytes of an entry: index at 1.4% above the entropy of random positions (a Rice code's), and value."""
    bits = -math.log2(keep) - (1 - keep) / keep * math.log2(1 - keep) if keep < 1 else 0.0
    return 1.014 * bits / 8 + VALUES[code].nbytes(1 << 20) / (1 << 20)


def fit(points) -> Link:
    """α and β, not negative, of (bytes, seconds) of single messages, such that the ratios of fitted to measured are small.

    Ratios, so that small and large messages weigh alike; with a loss that outliers bend little (soft L1). At least two
    sizes. Raises ValueError.
    """
    x, seconds = np.array(points, float).reshape(-1, 2).T
    if len(set(x)) < 2 or not (np.isfinite(seconds) & (seconds > 0)).all():
        raise ValueError("a link is fitted to at least two sizes of messages whose times are positive")
    start = np.log([seconds[x.argmin()], max(seconds[x.argmax()] - seconds[x.argmin()], 1e-12) / x.max()])
    found = least_squares(lambda at: np.log(np.exp(at[0]) + np.exp(at[1]) * x) - np.log(seconds), start, loss="soft_l1",
                          f_scale=0.1, x_scale=1.0)
    return Link(*np.exp(found.x).tolist())


def buckets_of(n, megabytes=BUCKET_MB) -> int:
    """Buckets of the default size, as `--exchange auto` counts them."""
    return max(math.ceil(n * 4 / (megabytes * 2**20)), 1)


def step_seconds(way, link, work, ranks, n, buckets, compute=0.0, other=0.0, overlap=False) -> float:
    """Seconds of a step. other: what it takes besides computing and exchange."""
    k = max(int(way.keep * n), 1)
    whole = predict(link, work, ranks, n, k, buckets, way.code)[way.exchange]
    hidden = 0.0
    if overlap:
        network = predict(link, Work(entry=work.entry), ranks, n, k, buckets, way.code)[way.exchange]
        hidden = (1 - 1 / buckets) * min(network, BACKWARD * compute)
    return compute + other + whole - hidden


def links_of(cells) -> dict[tuple[str, int], tuple[Link, float]]:
    """{(link, ranks): (fit, its median relative error)} of what ping-pongs went over; "": between ranks of one machine.

    From messages of up to SMALL bytes, and from LARGE on.
    """
    points = {}
    for cell in cells:
        for event in cell.events:
            if cell.finished and event["event"] == "pingpong" and not SMALL < event["bytes"] < LARGE:
                found = points.setdefault((cell.axes.get("link", ""), cell.axes["ranks"]), [])
                found.append((event["bytes"], event.get("both", event["seconds"])))
    links = {}
    for key, each in points.items():
        link = fit(each)
        links[key] = link, median(abs((link.alpha + link.beta * x) / seconds - 1) for x, seconds in each)
    return links


def runs_of(cells) -> list[Measured]:
    """Measurements of the finished cells of `sparsecomm train` with the task's own rule: medians over their seeds."""
    found = {}
    for cell in cells:
        run = _run(cell) if cell.finished else None
        if run:
            found.setdefault((*run[:8],), []).append(run)
    return [Measured(*key, median(run.seconds for run in each),
                     {name: median(run.phases.get(name, 0.0) for run in each) for name in each[0].phases},
                     median(run.bytes for run in each)) for key, each in found.items()]


def _run(cell):
    start = next((event for event in cell.events if event["event"] == "start"), {})
    end = next((event for event in cell.events if event["event"] == "end"), {})
    config, steps = start.get("options", {}).get("exchange"), end.get("steps")
    spent = [event["seconds"] for event in cell.events if event["event"] == "epoch"]
    if not config or not steps or not spent or start["options"].get("training", {}).get("rule"):
        return None
    dense, n = end["exchange"] == "dense", end["parameters"]
    way = Way(end["exchange"], 1.0 if dense else config["keep"], config["value_code"])
    phases = {name: sum(ranks) / len(ranks) / steps for name, ranks in end["phases"].items()}
    buckets = end.get("buckets") or buckets_of(n, config["bucket_mb"])
    return Measured(start["task"], way, end["ranks"], cell.axes.get("link", ""), n, buckets, config["overlap"],
                    cores_of(cell.machine) >= 2 * end["ranks"], sum(spent) / steps, phases, end["bytes_per_step"])


def calibrated(runs, local) -> Machine | None:
    """The machine, fitted to the runs without link and overlap; None where none of these has a sparse exchange.

    local(ranks): the Link between so many ranks of one machine.
    """
    here = [run for run in runs if not run.link and not run.overlap and run.ranks > 1]
    sparse = [run for run in here if run.way.exchange != "dense"]
    if not sparse:
        return None
    dense = [run for run in here if run.way == Way("dense")]
    message, encode, decode = _coding(sparse)
    add = median(run.phases["select"] / run.n for run in dense) if dense else 0.0
    code = {}
    for run in here:
        if run.way.exchange == "dense" and run.way.code != "float32":
            fixed = run.buckets * (3 * run.ranks - 1) / 2 * message
            taken = run.phases["encode"] + run.phases["decode"] - fixed
            code.setdefault(run.way.code, []).append(max(taken, 0.0) / (2 * run.n * (run.ranks - 1) / run.ranks))
    machine = Machine(
        median(run.phases["select"] / run.n for run in sparse), add, message, encode, decode,
        {name: median(each) for name, each in code.items()}, _entries(sparse),
        compute=_medians(here, lambda run: run.phases["compute"]), wait={},
        apply=_medians(here, lambda run: run.phases["apply"]),
        rest=_medians(here, lambda run: max(run.seconds - sum(run.phases.values()), 0.0)))

    def waited(run):
        bare = Work(entry=machine.work(run.way).entry)
        network = predict(local(run.ranks), bare, run.ranks, run.n, run.k, run.buckets, run.way.code)[run.way.exchange]
        return max(run.phases["exchange"] - network, 0.0)
    return machine._replace(wait=_medians(sparse, waited))


def _medians(runs, seconds):
    """{(task, ranks): median of seconds(run)}."""
    found = {}
    for run in runs:
        found.setdefault((run.task, run.ranks), []).append(seconds(run))
    return {key: median(each) for key, each in found.items()}


def _entries(runs):
    """{(keep, code): bytes of an entry}, from what was sent."""
    found = {}
    for run in runs:
        times = run.ranks - 1 if run.way.exchange == "allgather" else 2 * (run.ranks - 1) / run.ranks
        found.setdefault(run.way[1:], []).append(run.bytes / (run.k * times))
    return {key: median(each) for key, each in found.items()}


def _coding(runs):
    """(seconds a message, {code: seconds to encode an entry}, {code: to decode one}), by least squares of relative errors."""
    codes = sorted({run.way.code for run in runs})
    rows, ones = [], []
    for run in runs:
        gather, at = run.way.exchange == "allgather", codes.index(run.way.code)
        P, k, B = run.ranks, run.k, run.buckets
        packs, unpacks = (B, B * P) if gather else (B * P, B * (2 * P - 1))
        for phase, messages, entries, column in (("encode", packs, k if gather else k * (1 + 1 / P), 1 + at),
                                                 ("decode", unpacks, k * P if gather else 2 * k, 1 + len(codes) + at)):
            taken = run.phases[phase]
            if taken > 0:
                row = np.zeros(1 + 2 * len(codes))
                row[0], row[column] = messages / 2 / taken, entries / taken
                rows.append(row)
                ones.append(1.0)
    if not rows:
        return 0.0, {}, {}
    table = np.array(rows)
    scale = np.where(table.max(0) > 0, table.max(0), 1.0)
    found = (nnls(table / scale, np.array(ones))[0] / scale).tolist()
    return found[0], dict(zip(codes, found[1:])), dict(zip(codes, found[1 + len(codes):]))


def predicted(run, machine, link) -> float | None:
    """Predicted seconds of a step of the run on its link; None where the machine was not measured for its task and ranks."""
    key = run.task, run.ranks
    if key not in machine.compute:
        return None
    return step_seconds(run.way, link, machine.work(run.way), run.ranks, run.n, run.buckets, machine.compute[key],
                        machine.other(*key), run.overlap and run.spare)


class Model(NamedTuple):
    """Links and machine, fitted to the cells of an experiment."""

    runs: list[Measured]
    links: dict[tuple[str, int], tuple[Link, float]]
    machine: Machine | None

    def link(self, name, ranks=2) -> Link | None:
        """The link of that name, fitted with so many ranks, else with the fewest; None: not measured.

        Ranks that share a machine's cores take longer the more they are.
        """
        found = {count: link for (each, count), (link, _) in self.links.items() if each == name}
        return found.get(ranks, found[min(found)]) if found else None

    def check(self):
        """[(run on a link, predicted seconds of a step)], where a prediction is possible."""
        found = []
        for run in self.runs:
            link = self.link(run.link, run.ranks)
            if run.link and link and self.machine:
                seconds = predicted(run, self.machine, link)
                found += [(run, seconds)] if seconds is not None else []
        return found


def model_of(cells) -> Model:
    """The links and the machine, fitted to the cells."""
    model = Model(runs_of(cells), links_of(cells), None)
    return model._replace(machine=calibrated(model.runs, lambda ranks: model.link("", ranks) or Link(0.0, 0.0)))
