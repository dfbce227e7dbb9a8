"""What the tests of the synchronizer run on each rank: `python synchronizer_ranks.py [CHECK …]`. Rank 0 prints "passed"."""

import sys

import checks
import numpy as np
from mpi4py import MPI
from rank_helpers import configured, raises

from hogwild.kernels.optim.rules import SGD, Adam, Momentum
from hogwild.kernels.optim.schedules import Constant, Step
from hogwild.kernels.optim.steps import Clip, Decay, array_step
from sparsecomm.config import Config
from sparsecomm.replica.replica import Group
from sparsecomm.replica.state import reshared
from sparsecomm.replica.synchronizer import Synchronizer

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
SIZES = {"first": 700, "scalar": 1, "large": 3000, "bias": 40, "last": 900}
SMALL = 2000 * 4 / 2**20  # MB: several buckets of these


def gradient(step, name, rank=RANK):
    """float32, of many magnitudes, never 0."""
    rng = np.random.default_rng([step, rank, SIZES[name]])
    return (rng.standard_normal(SIZES[name]) * np.exp(2 * rng.standard_normal(SIZES[name]))).astype(np.float32)


def gradients(step, rank=RANK):
    return {name: gradient(step, name, rank) for name in SIZES}


def start(seed=0):
    return {name: np.random.default_rng([seed, n]).standard_normal(n).astype(np.float32) for name, n in SIZES.items()}


def make(rule=SGD(), lr=1.0, tensors=None, said=None, **options):  # noqa: B008
    config, options = configured(options, keep=0.05, exchange="allgather", bucket_mb=SMALL)
    tensors = {name: np.zeros(n, np.float32) for name, n in SIZES.items()} if tensors is None else tensors
    return Synchronizer(tensors, rule, Constant(lr), COMM, config, say=([] if said is None else said).append, **options)


def feed(sync, step, given=None, **options):
    """One step with `gradients(step)`."""
    for name, g in reversed((given or gradients(step)).items()):
        sync.ready(name, g)
    return sync.step(**options)


def flat(arrays):
    return np.concatenate([np.asarray(arrays[name]).ravel() for name in SIZES])


def residual(sync):
    """This rank's, in the order of SIZES, float64."""
    own = sync.own()
    return flat({name: own.get(f"{name}.residual", np.zeros(n, np.float32)).astype(np.float64) for name, n in SIZES.items()})


def summed(steps, rank=RANK):
    return sum(flat(gradients(step, rank)).astype(np.float64) for step in steps)


def everyone(array):
    return COMM.allreduce(array)


def same_everywhere(sync):
    texts = COMM.allgather(flat(sync.tensors).tobytes())
    assert all(text == texts[0] for text in texts), "the ranks differ"


def check_broadcast():
    sync = make(tensors=start(seed=RANK))
    assert np.array_equal(flat(sync.tensors), flat(start(seed=0)))


def mean(step):
    return {name: sum(gradient(step, name, r).astype(np.float64) for r in range(SIZE)) / SIZE for name in SIZES}


def twin(rule, theirs, steps, lr, decay=None, own=None, clip=lambda g: 1.0, **options):
    """Weights after `rule` has stepped on whole arrays with the mean gradients: as `theirs`, torch's optimizer of that name.

    own: decay, and factor of the rate, of tensors that differ; clip(all gradients): a factor, or an array of them. One rank
    alone asks torch itself: to import it, and to make one of its optimizers, takes each process seconds.
    """
    weights = start()
    slots = {name: [np.full_like(w, x) for x in rule.start()] for name, w in weights.items()}
    settings = {name: (own or {}).get(name, (decay, 1.0)) for name in SIZES}
    step_torch = torch_steps(theirs, weights, settings, lr, options) if SIZE == 1 else None
    for step in range(steps):
        whole = flat(mean(step)).astype(np.float32)
        parts = np.split((clip(whole) * whole).astype(np.float32), np.cumsum(list(SIZES.values()))[:-1])
        gradients = dict(zip(SIZES, parts))
        if step_torch:
            step_torch(gradients)
        else:
            for name, (d, factor) in settings.items():
                array_step(rule, weights[name], gradients[name], slots[name], lr * factor, step, d)
    return flat(weights)


def torch_steps(theirs, weights, settings, lr, options):
    """A step of torch's optimizer on `weights`, in place, as a function of the gradients."""
    import torch
    params = {name: torch.nn.Parameter(torch.from_numpy(w)) for name, w in weights.items()}
    optimizer = getattr(torch.optim, theirs)([{"params": [params[name]], "weight_decay": d.l2 if d else 0.0,
                                               "lr": lr * factor} for name, (d, factor) in settings.items()], **options)

    def step(gradients):
        for name, g in gradients.items():
            params[name].grad = torch.from_numpy(g)
        optimizer.step()
    return step


def check_trajectory():
    """Nothing dropped: the steps of torch's optimizers on the mean gradient, and the same bits on all ranks."""
    for exchange in "dense", "allgather", "balanced":
        for rule, theirs in (SGD(), "SGD"), (Adam(), "Adam"):
            sync = make(rule, 1e-3, start(), keep=1.0, exchange=exchange)
            assert all(feed(sync, step) for step in range(20)) and sync.t == 20
            expected = twin(rule, theirs, 20, 1e-3)
            assert np.abs(flat(sync.tensors) - expected).max() < 3e-6, (exchange, rule)
            same_everywhere(sync)
    dense, everything = (make(SGD(), 1e-3, start(), **way) for way in ({"exchange": "dense"}, {"compressor": "none"}))
    for sync in dense, everything:
        assert all(feed(sync, step) for step in range(3))
    assert np.array_equal(flat(dense.tensors), flat(everything.tensors))


def check_settings():
    """Groups with rules and decays of their own, factors of the rate, clipping, a schedule: as torch has them."""
    own = {"bias": (None, 1.0), "large": (Decay(l2=0.1), 2.0)}
    groups = [Group(("bias",), Adam(), Constant(1e-3), None)]
    sync = make(Adam(), 1e-3, start(), keep=1.0, decay=Decay(l2=0.1), groups=groups)
    factors = {**dict.fromkeys(SIZES, 1.0), "large": 2.0}
    for step in range(5):
        feed(sync, step, lr_factor=factors)
    expected = twin(Adam(), "Adam", 5, 1e-3, Decay(l2=0.1), own)
    assert np.abs(flat(sync.tensors) - expected).max() < 3e-6
    for clip, factor in ((Clip(norm=2.0), lambda g: min(1.0, 2.0 / np.linalg.norm(g))),
                         (Clip(value=0.3), lambda g: np.minimum(1.0, 0.3 / abs(g))), (Clip(norm=1e9), lambda g: 1.0)):
        for exchange in "allgather", "dense":
            sync = make(Momentum(), 0.1, start(), keep=1.0, exchange=exchange, clip=clip)
            for step in range(5):
                feed(sync, step)
            expected = twin(Momentum(), "SGD", 5, 0.1, clip=factor, momentum=0.9)
            assert np.abs(flat(sync.tensors) - expected).max() < 1e-6 * np.abs(expected).max() + 2e-5, (clip, exchange)
    sync = Synchronizer(start(), SGD(), Step(0.1, 0.5, 2), COMM, Config(keep=1.0, exchange="allgather"), say=id)
    for step in range(4):
        feed(sync, step)
    expected = flat(start()) - sum(0.1 * 0.5 ** (step // 2) * flat(mean(step)) for step in range(4))
    assert np.abs(flat(sync.tensors) - expected).max() < 1e-6 * np.abs(expected).max()


def check_conservation():
    """What was applied and all residuals are all gradients, whatever is rounded, re-selected, or sent ahead."""
    cases = [("allgather", code, {}) for code in ("float32", "bfloat16", "float16", "int8", "1bit")]
    cases += [("balanced", code, {"scope": scope}) for code in ("float32", "int8") for scope in ("local", "global")]
    cases += [("dense", "bfloat16", {}), ("balanced", "float16", {"overlap": False, "threshold": "histogram"})]
    cases += [("allgather", "float32", {"drop_warmup": 6, "index_code": "bitmap", "bucket_mb": 4.0})]
    for exchange, code, options in cases:
        sync = make(exchange=exchange, value_code=code, **options)
        for step in range(10):
            assert feed(sync, step)
        applied = -SIZE * flat(sync.tensors).astype(np.float64)
        given, room = everyone(summed(range(10))), everyone(sum(abs(flat(gradients(k))).astype(float) for k in range(10)))
        lost = applied + everyone(residual(sync)) - given
        assert np.all(np.abs(lost) <= 1e-5 * (room.max() if code in ("int8", "1bit") else room)), (exchange, code, options)
        assert exchange == "dense" or everyone(np.abs(residual(sync)).sum()) > 0.1 * np.abs(given).sum(), "nothing dropped"
        same_everywhere(sync)
        assert sync.counts["sent"] > 0 or SIZE == 1


def check_overlap():
    """Sent ahead or not, and ready in whatever order: the same bits."""
    runs = {}
    for overlap, order in (True, 1), (True, -1), (False, 1):
        sync = make(Adam(), 1e-3, exchange="balanced", overlap=overlap)
        assert bool(sync.thread) == (overlap and SIZE > 1) and len(sync.buckets) > 2
        for step in range(8):
            for name in list(SIZES)[::order]:
                sync.ready(name, gradient(step, name))
            sync.step()
        runs[overlap, order] = flat(sync.tensors)
        sync.close()
    assert len({w.tobytes() for w in runs.values()}) == 1


def check_local():
    """Sparse global and dense local: each rank is off the common path by its own residual, until they average."""
    for options in {}, {"value_code": "int8"}, {"momentum": 0.5}, {"exchange": "balanced"}:
        sync = make(lr=0.5, combine="local", average_every=6, **options)
        for step in range(5):
            feed(sync, step)
        common = flat(sync.tensors).astype(np.float64) + 0.5 * residual(sync)
        apart = COMM.allgather(common)
        scale = max(np.abs(x).max() for x in apart)
        assert all(np.abs(x - apart[0]).max() < 1e-5 * scale for x in apart), options
        if "momentum" not in options:
            sums = everyone(summed(range(5))) - everyone(residual(sync))
            assert np.abs(apart[0] + 0.5 / SIZE * sums).max() < 1e-5 * scale, options
        assert SIZE == 1 or np.abs(residual(sync)).max() > 1e-3 * scale
        feed(sync, 5)
        same_everywhere(sync)


def check_average():
    """The mean over the ranks of what they had."""
    sync = make(combine="local", average_every=10)
    feed(sync, 0)
    before = everyone(flat(sync.tensors).astype(np.float64)) / SIZE
    sync.average_parameters()
    same_everywhere(sync)
    assert np.abs(flat(sync.tensors) - before).max() <= 1e-6 * np.abs(before).max()


def check_warmup():
    """The kept share of each step is the one that is due."""
    sync, before = make(keep=0.001, drop_warmup=8, threshold="exact"), 0
    for step, share in enumerate([0.25, 0.25, 0.25 * 0.004**0.25, 0.25 * 0.004**0.25, 0.25 * 0.004**0.5,
                                  0.25 * 0.004**0.5, 0.25 * 0.004**0.75, 0.25 * 0.004**0.75, 0.001, 0.001]):
        feed(sync, step)
        kept, before = sync.counts["kept"] - before, sync.counts["kept"]
        assert kept == sum(max(1, round(share * n)) for n in SIZES.values()), (step, kept)


def dgc(steps, m, share, masking, clip=None):
    """(weights, residuals by rank) after Lin et al. 2018, algorithm 1 and section 3, transcribed; learning rate 1."""
    w = {name: np.zeros(n) for name, n in SIZES.items()}
    u, v = ([{name: np.zeros(n) for name, n in SIZES.items()} for _ in range(SIZE)] for _ in range(2))
    for step in range(steps):
        total = {name: np.zeros(n) for name, n in SIZES.items()}
        for k in range(SIZE):
            own = {name: g.astype(np.float64) / SIZE for name, g in gradients(step, k).items()}
            norm = np.sqrt(sum((g**2).sum() for g in own.values()))
            factor = min(1, clip * SIZE**-0.5 / norm) if clip else 1
            assert clip is None or factor < 1
            for name, n in SIZES.items():
                u[k][name] = m * u[k][name] + factor * own[name]
                v[k][name] += u[k][name]
                mask = abs(v[k][name]) >= np.sort(abs(v[k][name]))[-max(1, round(share * n))]
                total[name][mask] += v[k][name][mask]
                v[k][name][mask] = 0
                if masking:
                    u[k][name][mask] = 0
        for name in SIZES:
            w[name] -= total[name]
    return flat(w), SIZE * flat(v[RANK])


def check_dgc():
    for masking, clip in (True, None), (False, None), (True, 20.0):
        sync = make(momentum=0.9, masking=masking, clip_local=clip, threshold="exact")
        for step in range(8):
            feed(sync, step)
        w, v = dgc(8, 0.9, 0.05, masking, clip)
        assert np.abs(flat(sync.tensors) - w).max() < 1e-4 * np.abs(w).max()
        assert np.abs(residual(sync) - v).max() < 1e-4 * np.abs(w).max()


def check_nothing_kept():
    """Without a residual, a step tells nothing of those before."""
    sync, fresh = make(residual=False), make(residual=False)
    for step in range(3):
        before = flat(sync.tensors).copy()
        feed(sync, step)
    fresh.round = 2
    feed(fresh, 2)
    assert np.abs(flat(sync.tensors) - before - flat(fresh.tensors)).max() < 1e-5 * np.abs(before).max()


def check_not_finite():
    """NaN on one rank: nothing changes anywhere; so many times in a row, or at once where that is asked for, an error."""
    last = SIZE - 1
    for options in {}, {"momentum": 0.9}, {"exchange": "balanced", "value_code": "float16"}, {"exchange": "dense"}:
        said = []
        sync = make(Adam(), 1e-3, said=said, **options)
        feed(sync, 0)
        before, state = flat(sync.tensors).copy(), {k: x.copy() for k, x in sync.own().items()}
        bad = gradients(1)
        if RANK == last:
            bad["large"][[5, 900]] = np.nan, np.inf
            bad["bias"][3] = -np.inf
        assert not feed(sync, 1, bad) and sync.t == 1 and sync.skipped == 1
        assert np.array_equal(flat(sync.tensors), before)
        for name, x in sync.own().items():
            if name.endswith(("residual", "velocity")):
                assert np.abs(x - state[name]).max() <= 1e-6 * np.abs(flat(gradients(1))).max(), (options, name)
        assert RANK or any(f"3 on rank {last}" in line for line in said), said
        assert feed(sync, 2) and sync.t == 2 and sync.skipped == 0 and np.isfinite(flat(sync.tensors)).all()
        same_everywhere(sync)
        for _ in range(19):
            feed(sync, 1, bad)
        raises([f"3 on rank {last}", "smaller learning rate"], lambda: feed(sync, 1, bad))  # noqa: B023
        stopping = make(nonfinite="stop", **options)
        raises(["step 0", f"3 on rank {last}"], lambda: feed(stopping, 1, bad))  # noqa: B023


def check_checksum():
    sync = make(check_every=3)
    feed(sync, 0)
    if RANK == SIZE - 1 and SIZE > 1:
        sync.tensors["bias"][7] += 1
    feed(sync, 1)
    if SIZE > 1:
        raises(["step 3", f"rank {SIZE - 1} differ"], lambda: feed(sync, 2))
    else:
        feed(sync, 2)


def check_touched():
    """Only what something arrived for moves, with dense steps everything that ever did."""
    moved = {}
    for stepping in "touched", "catch-up", "dense":
        sync = make(Adam(), 1e-3, stepping=stepping, check_every=1)
        feed(sync, 0)
        before = flat(sync.tensors).copy()
        feed(sync, 1)
        moved[stepping] = np.count_nonzero(flat(sync.tensors) != before)
        arrived = np.concatenate([np.zeros(0, np.uint32), *(b.pipeline.touched for b in sync.buckets)]).size
        assert moved[stepping] > 1.3 * arrived if stepping == "dense" else moved[stepping] == arrived
    assert moved["touched"] == moved["catch-up"] < moved["dense"]


def rare(step):
    """Gradients of which those of one tensor are 0 but for a few, others on each rank and at each step."""
    given = gradients(step)
    given["large"][np.random.default_rng([step, RANK]).random(SIZES["large"]) < 0.97] = 0
    return given


def check_rare_features():
    """A tensor most of whose gradient is 0 steps as with stepping dense, to the bit; so do those that load its state."""
    said, names = [], SIZES.keys() - {"large"}
    auto, dense = make(Adam(), 1e-3, said=said), make(Adam(), 1e-3, stepping="dense")
    for step in range(4):
        feed(auto, step, rare(step))
        feed(dense, step, rare(step))
        assert np.array_equal(auto.tensors["large"], dense.tensors["large"]) and auto.last.keys() == names
    assert RANK or said[1:] == ["stepping dense, since most of their gradient is 0: large"]
    assert not np.array_equal(auto.tensors["first"], dense.tensors["first"])
    late, asked = make(Adam(), 1e-3), make(Adam(), 1e-3, stepping="catch-up")
    for sync in late, asked:
        feed(sync, 0)
        assert sync.last.keys() == SIZES.keys()
    for name, w in auto.tensors.items():
        late.tensors[name][:] = w
    common, own = ({k: x.copy() for k, x in part.items()} for part in (auto.common(), auto.own()))
    raises(["last.large"], lambda: asked.load(common, own))
    late.load(common, own)
    for sync in auto, late:
        feed(sync, 5)
    assert late.last.keys() == names and np.array_equal(flat(auto.tensors), flat(late.tensors))
    before = make(Adam(), 1e-3)
    late.load(before.common(), before.own())
    assert late.last.keys() == SIZES.keys()
    feed(late, 0, {name: 0 * g for name, g in gradients(0).items()})  # tells nothing
    assert late.last.keys() == SIZES.keys()
    feed(late, 1, rare(1))
    assert late.last.keys() == names


def check_resumed():
    """From its state, parameters and the ranges of the exchange, a run goes on to the same bits."""
    rounded = {"exchange": "balanced", "value_code": "1bit"}, {"exchange": "dense", "value_code": "int8"}
    for options in {"momentum": 0.5}, *rounded:
        sync = make(Adam(), 1e-3, **options)
        for step in range(4):
            feed(sync, step)
        tensors = {name: w.copy() for name, w in sync.tensors.items()}
        common, own = ({k: x.copy() for k, x in part.items()} for part in (sync.common(), sync.own()))
        other = make(Adam(), 1e-3, tensors=tensors, **options)
        other.load(common, own)
        for step in range(4, 7):
            feed(sync, step)
            feed(other, step)
        assert np.array_equal(flat(sync.tensors), flat(other.tensors)) and other.t == 7
        for name, x in sync.own().items():
            assert np.array_equal(x, other.own()[name]), name
        name = next(name for name in own if name.endswith("residual"))
        raises([name], lambda: other.load(common, own | {name: own[name][1:]}))  # noqa: B023
        raises([name], lambda: other.load(common, {k: x for k, x in own.items() if k != name}))  # noqa: B023
        raises(["slots.bias"], lambda: other.load(common | {"slots.bias": common["slots.bias"][:1]}, own))  # noqa: B023


def check_reshared():
    """Fewer or more ranks: sums of residuals and velocities stay, and the new states fit."""
    sync = make(momentum=0.9, exchange="balanced")
    for step in range(3):
        feed(sync, step)
    states = COMM.allgather(sync.own())
    for size in 1, 2, 3, SIZE, 7:
        new = reshared(states, size)
        assert len(new) == size
        for kind in "residual", "velocity":
            sums = [sum(flat({name: state[f"{name}.{kind}"] for name in SIZES}).astype(np.float64) for state in part)
                    for part in (states, new)]
            assert np.abs(sums[0]).max() > 0 and np.abs(sums[0] - sums[1]).max() < 1e-5 * np.abs(sums[0]).max()
        sync.load(sync.common(), new[RANK % size])


def check_mistakes():
    raises(["no gradient for"], lambda: make().step())
    raises(["momentum correction", "drops elements"], lambda: make(momentum=0.9, exchange="dense"))
    assert make(momentum=0.9, exchange="auto").config.exchange != "dense"
    assert SIZE > 1 or make(exchange="auto").config.exchange == "dense"
    raises([f"rank {RANK}", "no parameters"], lambda: make(tensors={}))
    for wrong in np.zeros(3), np.zeros((3, 3), np.float32), np.zeros(6, np.float32)[::2], np.zeros(0, np.float32), [1.0]:
        raises([f"rank {RANK}", "weights", "float32"], lambda: make(tensors={"weights": wrong}))  # noqa: B023
    if SIZE > 1:
        raises(["configuration", f"rank {SIZE - 1}"], lambda: make(keep=0.05 if RANK < SIZE - 1 else 0.1))
        raises(["rank"], lambda: make(tensors={"a": np.zeros(10 + (RANK == 1), np.float32)}))


def check_pairs():
    """Two in one process, their exchanges under way at once."""
    one, two, alone = make(), make(Adam(), 1e-3, exchange="balanced"), make(Adam(), 1e-3, exchange="balanced")
    for step in range(5):
        for name, g in gradients(step).items():
            one.ready(name, g)
            two.ready(name, g)
        two.step()
        one.step()
        feed(alone, step)
    assert np.array_equal(flat(two.tensors), flat(alone.tensors)) and one.t == two.t == 5
    assert np.abs(flat(one.tensors)).max() > 0


if __name__ == "__main__":
    import catch_up_ranks  # which imports this file
    checks.run(globals() | vars(catch_up_ranks), checks.mpi(COMM), RANK, sys.argv[1:])
