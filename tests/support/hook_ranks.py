"""What the tests of the DDP hook run on each process: see gloo_ranks.py."""

import io

import numpy as np
import torch
import torch.distributed as dist
from rank_helpers import flat, raises
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsecomm import Config
from sparsecomm.hook import GradientDropping, gradient_dropping

if not dist.is_initialized():
    dist.init_process_group("gloo")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
BATCH = 24
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OnDevice(GradientDropping):
    """The way that a GPU takes, on the CPU too."""

    def _where(self, device):
        return DEVICE


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 300), nn.Tanh(), nn.Linear(300, 5))


def loss(net, step, parts=SIZE, part=RANK):
    random = torch.Generator().manual_seed(step)
    x, y = torch.randn(BATCH, 12, generator=random), torch.randint(5, (BATCH,), generator=random)
    device = next(net.parameters()).device
    return nn.functional.cross_entropy(net(x[part::parts].to(device)), y[part::parts].to(device))


OTHERS = "chunk-top-k:k=20", "low-rank:rank=2", "sign:feedback=1"  # compressors


def make(net, cls=GradientDropping, said=None, **options):
    """(DDP with several buckets, state of the hook, what each bucket held before the hook changed it)."""
    config = Config(**{"keep": 0.05, "exchange": "allgather", "threshold": "exact", **options})
    state = cls(net.named_parameters(), config, say=([] if said is None else said).append)
    ddp, given = DistributedDataParallel(net, bucket_cap_mb=0.02), []

    def hook(state, bucket):
        given.append((tuple(state.names[p] for p in bucket.parameters()), [g.clone() for g in bucket.gradients()]))
        return gradient_dropping(state, bucket)
    ddp.register_comm_hook(state, hook)
    return ddp, state, given


def train(ddp, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss(ddp, step).backward()
        optimizer.step()
    return flat(ddp)


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr)


def everyone(x):
    x = torch.from_numpy(np.ascontiguousarray(x, np.float64))
    dist.all_reduce(x)
    return x.numpy()


def same_everywhere(*arrays):
    text = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
    texts = [None] * SIZE
    dist.all_gather_object(texts, text)
    assert all(other == text for other in texts), "the ranks differ"


def check_trajectory():
    """Nothing dropped: a single process with the global batch."""
    for options in {}, {"exchange": "balanced"}, {"exchange": "dense"}, {"overlap": False}:
        for optimizer in torch.optim.SGD, torch.optim.Adam:
            net, alone = model(), model()
            ddp, state, given = make(net, keep=1.0, **options)
            theirs = optimizer(alone.parameters(), lr=0.01)
            train(ddp, optimizer(net.parameters(), lr=0.01), range(15))
            for step in range(15):
                theirs.zero_grad()
                loss(alone, step, 1, 0).backward()
                theirs.step()
            assert np.abs(flat(net) - flat(alone)).max() < 3e-5, (options, optimizer)  # of steps of 0.01
            same_everywhere(flat(net))
            assert state.steps == dict.fromkeys(state.sizes, 15) and len(state.buckets) > 1


def check_conservation():
    """What was delivered and all residuals are all gradients, also while torch builds its buckets anew."""
    cases = [("allgather", code) for code in ("float32", "bfloat16", "float16", "int8", "1bit")]
    cases = [(*case, "threshold") for case in [*cases, ("balanced", "float32"), ("balanced", "int8"), ("dense", "float16")]]
    for exchange, code, compressor in [*cases, *(("sparse", "float32", other) for other in OTHERS)]:
        for cls in GradientDropping, OnDevice:
            net = model()
            ddp, state, given = make(net, cls, exchange=exchange, value_code=code, compressor=compressor)
            optimizer, delivered = sgd(net), {name: 0.0 for name, p in net.named_parameters()}
            for step in range(6):
                train(ddp, optimizer, [step])
                for name, p in net.named_parameters():
                    delivered[name] = delivered[name] + SIZE * p.grad.double().numpy().ravel()
            assert given[0][0] != given[-1][0], "torch has not built its buckets anew"
            own = {name: np.zeros(size) for name, size in state.sizes.items()}
            for names, gradients in given:
                for name, g in zip(names, gradients):
                    own[name] += g.double().numpy().ravel()
            kept = {name: kinds["residual"].double().numpy() for name, kinds in state.state_dict()["held"].items()}
            for name in own:
                all_given, all_kept = everyone(own[name]), everyone(kept[name])
                room = 1e-4 * SIZE * max(np.abs(g).max() for _, gs in given for g in map(np.asarray, gs))
                assert np.abs(delivered[name] + all_kept - all_given).max() < room, (exchange, code, compressor, name)
            assert exchange == "dense" or max(np.abs(x).max() for x in kept.values()) > 1e-3
            same_everywhere(flat(net))


def check_device():
    """The operations of torch select and deliver what the kernels do."""
    for options in ({}, {"value_code": "bfloat16", "drop_warmup": 4}, {"residual": False}, {"exchange": "dense"},
                    *({"exchange": "sparse", "compressor": other} for other in OTHERS)):
        runs = []
        for cls in GradientDropping, OnDevice:
            net = model() if cls is GradientDropping else model().to(DEVICE)
            runs.append(train(make(net, cls, **options)[0], sgd(net), range(6)))
        # A GPU rounds otherwise, and what is at the threshold may go a step later.
        share, room = (0.98, 1e-5) if DEVICE.type == "cuda" or "compressor" in options else (1, 0)
        assert np.quantile(np.abs(runs[0] - runs[1]), share) <= room, options


def check_momentum():
    """Momentum correction: Lin et al. 2018, transcribed for what the hook was given."""
    net = model()
    ddp, state, given = make(net, momentum=0.8)
    u, v = ({name: np.zeros((SIZE, size)) for name, size in state.sizes.items()} for _ in range(2))
    for step in range(6):
        net.zero_grad()
        loss(ddp, step).backward()
        own = {name: g.double().numpy().ravel() for names, gs in given for name, g in zip(names, gs)}
        given.clear()
        for name, p in net.named_parameters():
            rows = np.zeros((SIZE, p.numel()))
            rows[RANK] = own[name]
            u[name] = 0.8 * u[name] + everyone(rows)
            v[name] += u[name]
            k = max(1, round(0.05 * p.numel()))
            mask = abs(v[name]) >= np.sort(abs(v[name]), axis=1)[:, -k][:, None]
            assert np.abs(p.grad.numpy().ravel() - (v[name] * mask).sum(0) / SIZE).max() < 1e-5 * np.abs(v[name]).max(), step
            v[name][mask] = u[name][mask] = 0


def check_not_finite():
    """NaN on one rank: that bucket delivers NaN on all of them, residuals stay to the bit, and it is said where."""
    last = SIZE - 1
    for options in {}, {"exchange": "dense"}, {"momentum": 0.9, "value_code": "int8"}:
        said, net = [], model()
        ddp, state, given = make(net, said=said, **options)
        train(ddp, sgd(net), range(3))
        held = state.state_dict()["held"]
        net.zero_grad()
        x = torch.randn(4, 12)
        spoil = net[4].weight.register_hook(lambda g: g * float("nan") if RANK == last else g)
        ddp(x).sum().backward()
        spoil.remove()
        bucket = next(names for names, _ in given[-len(state.buckets):] if "4.weight" in names)
        for name, p in net.named_parameters():
            assert torch.isnan(p.grad).all() if name in bucket else torch.isfinite(p.grad).all(), name
        assert state.skipped == 1 and (RANK or f"1,500 on rank {last}" in said[-1])
        for name, kinds in held.items():
            for kind, before in kinds.items():
                assert torch.equal(before, state.state_dict()["held"][name][kind])
        train(ddp, sgd(net), range(3, 5))
        assert state.in_a_row == 0
        same_everywhere(flat(net))
    for overlap in True, False:
        net = model()
        ddp, state, given = make(net, nonfinite="stop", overlap=overlap)
        net[4].bias.register_hook(lambda g: g * float("inf") if RANK == last else g)
        raises(["step 0", f"on rank {last}"], lambda: loss(ddp, 0).backward())  # noqa: B023


def check_state():
    """Saved and loaded, through torch.save, a run goes on to the same bits; what does not fit is refused."""
    whole = {"exchange": "dense", "value_code": "int8"}, {"exchange": "sparse", "compressor": "low-rank:rank=2"}
    for options in {}, {"momentum": 0.9, "value_code": "bfloat16"}, *whole:
        net = model()
        ddp, state, given = make(net, **options)
        train(ddp, sgd(net), range(3))
        file = io.BytesIO()
        torch.save({"model": net.state_dict(), "state": state.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        after = train(ddp, sgd(net), range(3, 6))
        for first in False, True:
            other = model(seed=1)
            again, state, _ = make(other, **options)
            if first:  # load into a state that has already worked
                train(again, sgd(other), range(2))
            other.load_state_dict(saved["model"])
            state.load_state_dict(saved["state"])
            if options in whole:  # which are summed and rounded by bucket
                assert np.abs(train(again, sgd(other), range(3, 6)) - after).max() < 1e-3
            else:
                assert np.array_equal(train(again, sgd(other), range(3, 6)), after), (options, first)
        raises(["rank"], lambda: state.load_state_dict({**saved["state"], "size": SIZE + 1}))  # noqa: B023
        _, small, _ = make(nn.Linear(12, 60))
        raises(["does not fit"], lambda: small.load_state_dict(saved["state"]))  # noqa: B023


def check_two_at_once():
    """Two models with states of their own, and two that share one."""
    alone, nets = model(seed=1), [model(), model(seed=1)]
    ddps = [make(net)[0] for net in nets]
    for step in range(4):
        for net, ddp in zip(nets, ddps):
            train(ddp, sgd(net), [step])
    assert np.array_equal(flat(nets[1]), train(make(alone)[0], sgd(alone), range(4)))
    both = nn.ModuleDict({"a": model(), "b": model(seed=1)})
    state = GradientDropping(both.named_parameters(), Config(keep=0.05, exchange="allgather", threshold="exact"), say=id)
    for part in both.values():
        ddp = DistributedDataParallel(part, bucket_cap_mb=0.02)
        ddp.register_comm_hook(state, gradient_dropping)
        train(ddp, sgd(part), range(4))
    assert np.array_equal(flat(both["b"]), flat(alone))
    assert {name[0] for names in state.buckets for name in names} == {"a", "b"}


def check_mistakes():
    net = model()
    for option in {"scope": "global"}, {"clip_local": 1.0}, {"stepping": "catch-up"}, {"average_every": 5}:
        raises([next(iter(option)), "DistributedOptimizer"], lambda: make(net, **option))  # noqa: B023
    raises(["weight", "float64"], lambda: make(nn.Linear(2, 2).double()))
    state = GradientDropping(net[:2].named_parameters(), Config(exchange="allgather", overlap=False), say=id)
    ddp = DistributedDataParallel(net)
    ddp.register_comm_hook(state, gradient_dropping)
    raises(["(300, 60)", "not among"], lambda: loss(ddp, 0).backward())
    if SIZE > 1:
        raises(["configuration", "do not agree"], lambda: make(net, keep=0.1 * (1 + RANK)))
        net = model()
        ddp, state, given = make(net, check_every=2, overlap=False)
        train(ddp, sgd(net), [0])
        with torch.no_grad():
            net[0].weight[3, 3] += RANK == SIZE - 1
        train(ddp, sgd(net), [1])
        raises(["step 2", f"rank {SIZE - 1} differ"], lambda: train(ddp, sgd(net), [2]))


def check_accounts():
    """Bytes, kept elements and seconds by phase are counted, those of buckets that are no more too."""
    net = model()
    ddp, state, given = make(net, value_code="float16")
    train(ddp, sgd(net), range(4))
    kept = 4 * sum(max(1, round(0.05 * size)) for size in state.sizes.values())
    counts, ready = state.counts, {"select", "encode", "exchange", "decode"}
    assert counts["kept"] == kept and ready <= state.phases.keys() and min(state.phases.values()) > 0
    assert 2 * kept * (SIZE - 1) < counts["sent"] < (4 * kept + 800) * (SIZE - 1) or SIZE == 1 and counts["sent"] == 0
    assert everyone([counts["sent"]]) == everyone([counts["received"]])
