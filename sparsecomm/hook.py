"""Gradient dropping as a communication hook of torch's DistributedDataParallel: over gloo, without MPI.

    state = GradientDropping(model.named_parameters(), Config(keep=0.01))
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gradient_dropping)
"""

import json
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist

from hogwild.errors import UserError
from sparsecomm.config import Config
from sparsecomm.device import DeviceDense, DeviceSparse, flat
from sparsecomm.exchange import EXCHANGES, sparse
from sparsecomm.handshake import MOST, compare, minority, own_facts
from sparsecomm.reducer import Dense, Sparse
from sparsecomm.wire import demand_possible

SKIPS = 20  # so many skipped buckets in a row are no accident
UNFIT = "scope", "clip_local", "combine", "average_every", "lazy"  # need all gradients at once, or are the optimizer's
KEPT = "residual", "velocity"  # arrays that a reducer has for every element


class TorchWire:
    """As `wire.Wire`, over a process group of torch that can move tensors of the CPU (gloo)."""

    def __init__(self, group):
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.received = 0, 0

    def taken(self) -> tuple[int, int]:
        """(sent, received) since the last call."""
        counts, self.sent, self.received = (self.sent, self.received), 0, 0
        return counts

    def numbers(self, row) -> np.ndarray:
        """int64[P, len(row)]: the row of int64 of every rank."""
        row = torch.from_numpy(np.ascontiguousarray(row, np.int64))
        table = torch.empty(self.size * len(row), dtype=torch.int64)
        self._swap(table, row.repeat(self.size), [len(row)] * self.size, [len(row)] * self.size)
        return table.numpy().reshape(self.size, -1)

    def gather(self, mine, most) -> list[np.ndarray]:
        """The uint8 array of every rank, whatever their sizes, but `most`."""
        return self.exchange([mine] * self.size, most)

    def exchange(self, pieces, most) -> list[np.ndarray]:
        """What every rank has for this one, of its uint8 pieces for each rank."""
        sizes = [piece.size for piece in pieces]
        came = torch.empty(self.size, dtype=torch.int64)
        self._swap(came, torch.tensor(sizes), [1] * self.size, [1] * self.size)
        demand_possible(came.tolist(), most)
        every = torch.empty(int(came.sum()), dtype=torch.uint8)
        self._swap(every, torch.from_numpy(np.concatenate(pieces)), came.tolist(), sizes)
        return np.split(every.numpy(), np.cumsum(came.numpy())[:-1])

    def add(self, x):
        """Sum x (float32) over the ranks, in place."""
        dist.all_reduce(torch.from_numpy(x), group=self.group)
        moved = 2 * x.nbytes * (self.size - 1) // self.size
        self.sent, self.received = self.sent + moved, self.received + moved

    def _swap(self, out, mine, received, sent):
        dist.all_to_all_single(out, mine, received, sent, group=self.group)
        for name, sizes, item in (("received", received, out), ("sent", sent, mine)):
            total = getattr(self, name) + (sum(sizes) - sizes[self.rank]) * item.element_size()
            setattr(self, name, total)


class GradientDropping:
    """State of the hook: what this rank has not sent of each parameter's gradient. Construct it on all ranks alike.

    named_parameters: pairs of name and parameter, float32 and contiguous, all that the model trains. config: all of it
    but `scope`, `clip_local`, `combine` and `lazy`; DistributedDataParallel sizes the buckets (bucket_cap_mb). Exchange
    auto is not measured: allgather up to 4 ranks, else balanced. process_group: None for the default one; a gloo group of
    the same ranks is made of it. A bucket with NaN or infinity on any rank delivers zeros on all of them, and counts as
    `skipped`. Raises UserError.
    """

    def __init__(self, named_parameters, config=None, process_group=None, seed=0, say=print):
        self.config, self.seed = config or Config(), seed
        for option in UNFIT:
            value = getattr(self.config, option)
            if value != getattr(Config, option):
                raise UserError(f"{option} = {value} is not for the hook, which sees one bucket at a time and no optimizer; "
                                "use sparsecomm.DistributedOptimizer")
        self.names = {p: name for name, p in named_parameters if p.requires_grad}
        self.sizes = {name: flat(name, p).numel() for p, name in self.names.items()}
        ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
        self.wire = TorchWire(dist.new_group(ranks, backend="gloo", use_local_synchronization=True))
        facts = {**own_facts(), "tensors": zlib.crc32(repr(self.sizes).encode()), "configuration": repr(self.config)}
        compare(self.wire.gather(np.frombuffer(json.dumps(facts).encode(), np.uint8), MOST))
        kind = self.config.exchange
        if kind in ("auto", "sparse"):
            kind = sparse(self.wire.size)
        self.say = say if self.wire.rank == 0 else lambda line: None
        self.say(f"exchange {kind} between {self.wire.size} ranks")
        self.exchange = EXCHANGES[kind](self.wire, self.config)
        self.steps, self.skipped, self.in_a_row = dict.fromkeys(self.sizes, 0), 0, 0
        self.reducers, self.held = {}, defaultdict(dict)  # by the names in a bucket; by name, while it is in no bucket
        self.past = Counter(), Counter()
        ahead = self.config.overlap is not False and self.wire.size > 1 and all(p.device.type == "cpu" for p in self.names)
        self.thread = ThreadPoolExecutor(1, "exchange") if ahead else None

    def mean(self, parameters, gradients):
        """Replace the gradients of a bucket by their mean over the ranks."""
        reducer, names = self._reducer(parameters)
        host = isinstance(reducer, (Sparse, Dense)) and not isinstance(reducer, DeviceDense)
        flats = [g.view(-1).numpy() if host else g.view(-1) for g in gradients]
        step = self.steps[names[0]]
        if self.config.check_every and step and step % self.config.check_every == 0:
            self._check(step, parameters)
        bad = reducer.reduce(step, flats)
        self.steps.update(dict.fromkeys(names, step + 1))
        if bad:
            reducer.undo()
            self._skip(step, flats, names)
        else:
            reducer.commit()
            self.in_a_row = 0
        start = 0
        for g in flats:
            part = reducer.total[start:start + len(g)]
            g[:] = part * (1 / self.wire.size) if not bad else 0
            start += len(g)

    def _reducer(self, parameters):
        """(the bucket's reducer, its names). After the first step torch builds its buckets anew, and others take over."""
        strange = [tuple(p.shape) for p in parameters if p not in self.names]
        if strange:
            raise UserError(f"a parameter of shape {strange[0]} is not among those that GradientDropping was given")
        names = tuple(self.names[p] for p in parameters)
        if names not in self.reducers:
            for other in [other for other in self.reducers if set(other) & set(names)]:
                self._release(other)
            self.reducers[names] = self._made(names, parameters[0].device)
        return self.reducers[names], names

    def _made(self, names, device):
        sizes, exchange = [self.sizes[name] for name in names], self.exchange.bucket()
        seed = self.seed + zlib.crc32(repr(names).encode())
        if device.type == "cpu":
            reducer = Dense(sizes, exchange, self.config) if exchange.dense else Sparse(sizes, exchange, self.config, seed)
        else:
            reducer = DeviceDense(sizes, exchange, self.config, device) if exchange.dense else DeviceSparse(
                sizes, exchange, self.config, device, seed)
        state = reducer.state()
        for kind in KEPT:
            if kind in state:
                state[kind] = np.concatenate([self._kept(name, kind) for name in names])
        reducer.load(state)
        return reducer

    def _kept(self, name, kind):
        return self.held[name].get(kind, np.zeros(self.sizes[name], np.float32))

    def _release(self, names):
        """Keep what the bucket's reducer remembers, by parameter."""
        reducer = self.reducers.pop(names)
        for past, now in zip(self.past, (reducer.counts, reducer.seconds)):
            past.update(now)
        self.held.update(self._split(names, reducer))

    def _split(self, names, reducer):
        cuts = np.cumsum([self.sizes[name] for name in names])[:-1]
        parts = {kind: np.split(x.copy(), cuts) for kind, x in reducer.state().items() if kind in KEPT}
        return {name: {kind: part[k] for kind, part in parts.items()} for k, name in enumerate(names)}

    def _skip(self, step, flats, names):
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        counts = self.wire.numbers([sum(int((~(abs(g) < np.inf)).sum()) for g in flats)])[:, 0]
        where = ", ".join(f"{k:,} on rank {r}" for r, k in enumerate(counts) if k) or "in the sums"
        line = f"step {step}: gradient elements of {names[0]} … {names[-1]} that are not finite ({where})"
        if self.config.nonfinite == "stop" or self.in_a_row >= SKIPS:
            raise UserError(f"{line}; use a smaller learning rate, or clip the gradient")
        self.say(f"{line}: all ranks take zeros")

    def _check(self, step, parameters):
        own = 0
        for p in parameters:
            own = zlib.crc32(p.detach().cpu().numpy().reshape(-1), own)
        odd = minority(self.wire.numbers([own])[:, 0])
        if odd:
            raise UserError(f"step {step}: the parameters of rank {', '.join(map(str, odd))} differ from those of the others")

    @property
    def counts(self) -> dict[str, int]:
        """Elements kept, and bytes meant to be sent and received, of this rank."""
        total = Counter(self.past[0])
        for reducer in self.reducers.values():
            total.update(reducer.counts)
        return dict(total)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of this rank by phase; they may have passed beside the backward pass."""
        return dict(sum((reducer.seconds for reducer in self.reducers.values()), self.past[1]) + self.exchange.seconds)

    def state_dict(self) -> dict:
        """What this rank has not sent, by parameter; each rank has its own. For torch.save."""
        held = dict(self.held)
        for names, reducer in self.reducers.items():
            held.update(self._split(names, reducer))
        return {"rank": self.wire.rank, "size": self.wire.size, "steps": dict(self.steps),
                "held": {name: {kind: torch.from_numpy(x) for kind, x in held[name].items()} for name in held}}

    def load_state_dict(self, state):
        """Go on from this rank's `state_dict`. Raises UserError where it does not fit."""
        if (state["rank"], state["size"]) != (self.wire.rank, self.wire.size):
            raise UserError(f"rank {self.wire.rank} of {self.wire.size} got the state of rank {state['rank']} of "
                            f"{state['size']}; give each rank its own")
        sizes = {name: len(x) for name, kept in state["held"].items() for x in kept.values()}
        for name in state["steps"].keys() | self.sizes.keys():
            if name not in self.sizes or sizes.get(name, self.sizes[name]) != self.sizes[name]:
                raise UserError(f"the state does not fit: needed {self.sizes.get(name, 'no')} elements of {name}, got "
                                f"{sizes.get(name, 'none')}")
        for names in list(self.reducers):
            self._release(names)
        self.steps = dict(state["steps"])
        self.held = defaultdict(dict, {name: {kind: x.numpy().copy() for kind, x in kept.items()}
                                       for name, kept in state["held"].items()})


def gradient_dropping(state, bucket) -> torch.futures.Future[torch.Tensor]:
    """The hook: `ddp.register_comm_hook(state, gradient_dropping)` with a `GradientDropping`.

    On the CPU a thread selects and exchanges while backward goes on (`config.overlap`); elsewhere all work is in the
    stream of backward. What goes wrong is raised by backward.
    """
    parameters, gradients, buffer = bucket.parameters(), bucket.gradients(), bucket.buffer()
    future = torch.futures.Future(devices=None if buffer.device.type == "cpu" else [buffer.device])

    def work():
        try:
            state.mean(parameters, gradients)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(buffer)
    if state.thread:
        state.thread.submit(work)
    else:
        work()
    return future
