"""One server's ranges: parameters and slots, the workers' clocks, and what each request does. No transfer happens here."""

import time
from collections import Counter, OrderedDict
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.proximal import soft_threshold
from hogwild.kernels.optim.schedules import rate
from hogwild.kernels.optim.steps import aligned
from sparsecomm.exchange.protocol import Payload
from sparsecomm.replica.replica import Group, Replica
from sparsecomm.server import requests as r
from sparsecomm.server.together import Push

KEY_LISTS = 64  # that a server keeps of each worker, the latest


class Alone:
    """The communicator of one rank, without MPI: servers share no collective call."""

    def Get_rank(self):
        return 0

    def Get_size(self):
        return 1

    def Bcast(self, values, root=0):
        """Nobody else has values."""

    def gather(self, array, most):
        return [array]


class Waiting(NamedTuple):
    """A pull that is answered when the slowest worker's clock allows it."""

    request: r.Request
    keys: np.ndarray | None
    since: float


class Shard:
    """Server number `server` of `layout`, with the workers 0 … workers - 1. run: the id in every request.

    `receive` does all: a request gives replies. Counters: pushes (applied once each), repeated, skipped (steps not made for
    a gradient that is not finite), staleness (pushes by it), ahead (the most clocks that a push was ahead of the slowest).
    """

    def __init__(self, layout, server, workers, run, rule, schedule, options):
        self.layout, self.server, self.run, self.options, self.rank = layout, server, run, options, workers + server
        self.n, self.parts = layout.counts[server], layout.parts[server]
        self.values = aligned((self.n,))
        self.replica = Replica(Alone(), [self.rank], Group((), rule, schedule, options.decay), ())
        self.replica.adopt({name: self.values[part] for name, part in self.parts.items()}, options.groups)
        self.replica.start(self.parts, catching_up=options.stepping == "catch-up")
        for rule in (self.replica.groups[name].rule for name in self.parts):
            if options.stepping != "dense" and getattr(rule, "unfit", ""):
                raise UserError(f"stepping must be dense for {type(rule).__name__}, {rule.unfit}, got {options.stepping}")
        self.l1 = {name: l1 for name in self.parts if (l1 := options.l1_of(name))}
        self.applied = {name: np.zeros(self.replica.tensors[name].size) for name in self.l1}
        self.rates = dict.fromkeys(self.l1, 0.0)  # sums of learning rates
        self.order, self.updates = options.new_order(), options.updates(self.n)
        self.views = options.views and options.views(self.replica.tensors)
        self.live, self.paused = set(range(workers)), set()
        self.clocks, self.last = [0] * workers, [0] * workers  # pushes, and the sequence of the last one, of each worker
        self.lists = [OrderedDict() for _ in range(workers)]
        self.waiting, self.started = [], False
        self.pushes, self.repeated, self.skipped, self.ahead, self.staleness = 0, 0, 0, 0, Counter()
        self.does = {r.START: self._start, r.PUSH: self._push, r.PULL: self._pull, r.PAUSE: self._pause, r.BYE: self._bye}

    @property
    def slowest(self) -> int:
        """The least clock of a worker that may still push; of all, where none may."""
        return min((self.clocks[worker] for worker in self.live), default=max(self.clocks))

    def receive(self, sender, raw) -> list[tuple[int, np.ndarray]]:
        """The replies (rank, uint8[…]) that are due now that `raw` is there. Raises UserError, which names the sender."""
        request, body = r.unpacked(raw, self.run, sender)
        if request.kind not in self.does or request.worker != sender or sender not in self.live:
            raise r.refused(sender, f"a request of worker {sender}, which has not said BYE",
                            f"{r.NAMES[request.kind]} of worker {request.worker}")
        return self.does[request.kind](request, body) + self._released()

    def leave(self, worker) -> list[tuple[int, np.ndarray]]:
        """The worker has ended: nobody waits for it any more. The replies that are now due."""
        self.live.discard(worker)
        self.paused.discard(worker)
        self.lists[worker].clear()
        if self.views:
            self.views.forget(worker)
        self.waiting = [each for each in self.waiting if each.request.worker != worker]
        for group in self.order.left(self.live):
            self._update(group)
        return self._released()

    def _start(self, request, body):
        if not self.started:
            self.values[:] = r.unpack_body(body, self.n, request.worker, dense=True).values
        self.started = True
        return [self._reply(request, r.DONE)]

    def _push(self, request, body):
        worker = request.worker
        if request.sequence <= self.last[worker]:
            self.repeated += 1
            return [self._reply(request, r.DONE)]
        if request.clock != self.clocks[worker] or request.version > self.replica.t:
            raise r.refused(worker, f"push {self.clocks[worker]} on version {self.replica.t} or before",
                            f"push {request.clock} on version {request.version}")
        keys = None
        if request.keys:
            keys = self.lists[worker].get(request.keys)
            if keys is None:
                raise r.refused(worker, "a push at keys that it has pulled", "the checksum of others")
        message = r.unpack_body(body, self.n if keys is None else keys.size, worker, dense=None if keys is None else True)
        indices = message.indices if keys is None else keys
        push = Push(worker, request.clock, self.replica.t - request.version, indices, message.values, message.bad)
        self.ahead = max(self.ahead, request.clock - self.slowest)
        self.last[worker], self.clocks[worker] = request.sequence, request.clock + 1
        self.pushes += 1
        self.staleness[push.staleness] += 1
        for group in self.order.pushed(push, self.live):
            self._update(group)
        return [self._reply(request, r.DONE)]

    def _pull(self, request, body):
        keys, lists = None, self.lists[request.worker]
        if request.keys and self.views:
            raise r.refused(request.worker, "a pull of everything, since views of what changed are kept", "a list of keys")
        if request.keys and body.size:
            keys = lists[request.keys] = r.unpack_body(body, self.n, request.worker, dense=False).indices
            while len(lists) > KEY_LISTS:
                lists.popitem(last=False)
        elif request.keys:
            keys = lists.get(request.keys)
            if keys is None or keys.size != request.count:
                return [self._reply(request, r.UNKNOWN)]
            lists.move_to_end(request.keys)
        self.waiting.append(Waiting(request, keys, time.monotonic()))
        return []

    def _pause(self, request, body):
        self.waiting = [each for each in self.waiting if each.request.worker != request.worker]
        self.paused.add(request.worker)
        return [self._reply(request, r.DONE)]

    def _bye(self, request, body):
        return [self._reply(request, r.DONE), *self.leave(request.worker)]

    def _released(self):
        """The answers to the pulls that the slowest worker's clock now allows."""
        least = self.slowest if self.live else np.inf
        due = [each for each in self.waiting if least >= each.request.clock - self.options.bound]
        if due:
            self.waiting = [each for each in self.waiting if least < each.request.clock - self.options.bound]
        return [self._answer(*each[:2]) for each in due]

    def _answer(self, request, keys):
        self._pay(keys)
        worker = request.worker
        if self.views and worker in self.views.views and not request.count:
            return self._reply(request, r.CHANGES, self.views.answer(worker, request.clock))
        if self.views:
            self.views.whole(worker)
        values = self.values.copy() if keys is None else self.values[keys]
        code = "float32" if self.views or (keys is None and request.count) else self.options.value_code
        return self._reply(request, r.VALUES, r.pack_values(Payload(None, values), values.size, code))

    def _reply(self, request, kind, body=r.NOTHING):
        return request.worker, r.packed(request._replace(kind=kind, clock=self.slowest, version=self.replica.t), body)

    def _update(self, group):
        """Add up pushes, and make the step that is then due; none where a gradient is not finite."""
        if any(push.bad for push in group):
            self.skipped += 1
            return
        for push in group:
            step = self.updates.add(push.indices, push.values, push.staleness)
        step = step if self.options.bound else self.updates.due()
        if step is not None:
            self._step(step)
            self.updates.clear()

    def _step(self, step):
        touched = None if self.options.stepping == "dense" else step.touched
        for name, part in self.parts.items():
            some = None if touched is None else _within(touched, part)
            if name in self.l1:
                self._shrink(name, some)  # for the steps before this one
            if some is None or some.size:
                self.replica.move(name, step.gradient[part], some, step.scale, step.lr_factor, self.options.clip)
            if name in self.l1:
                self.rates[name] += float(rate(self.replica.groups[name].schedule, self.replica.t)) * step.lr_factor
                self._shrink(name, some)
        self.replica.t += 1

    def _pay(self, keys):
        """Have the elements that a worker is to get pay the L1 penalty for the steps that did not touch them."""
        for name in self.l1:
            self._shrink(name, None if keys is None else _within(keys, self.parts[name]))

    def _shrink(self, name, some):
        replica = self.replica
        rule, t = checked(replica.groups[name].rule), max(replica.t - replica.missed[name], 0)
        soft_threshold(rule, replica.tensors[name], tuple(replica.slots[name]), self.applied[name], some, self.l1[name],
                       self.rates[name], t)

    def state(self) -> dict[str, np.ndarray]:
        """All that the next request depends on: arrays by name. Called while the workers are paused."""
        numbers = [self.replica.t, self.pushes, self.skipped, self.ahead]
        return {"values": self.values, "numbers": np.array(numbers, np.int64), "clocks": np.array(self.clocks, np.int64),
                "staleness": np.array(sorted(self.staleness.items()), np.int64).reshape(-1, 2),
                "rates": np.array(list(self.rates.values()), np.float64),
                **{f"applied.{name}": x for name, x in self.applied.items()}, **self.replica.common(),
                **{f"{kind}.{name}": x for kind, part in self._held().items() for name, x in part.state().items()}}

    def load(self, state):
        """Continue from a `state`; the initial values of worker 0 are then ignored."""
        self.values[:], self.started = state["values"], True
        self.replica.t, self.pushes, self.skipped, self.ahead = state["numbers"].tolist()
        self.clocks = state["clocks"].tolist()
        self.staleness = Counter(dict(state["staleness"].tolist()))
        self.rates = dict(zip(self.rates, state["rates"].tolist()))
        for name, x in self.applied.items():
            x[:] = state[f"applied.{name}"]
        self.replica.load_common(state)
        for kind, part in self._held().items():
            part.load({key.removeprefix(f"{kind}."): x for key, x in state.items() if key.startswith(f"{kind}.")})

    def _held(self):
        return {"order": self.order, "updates": self.updates, **({"views": self.views} if self.views else {})}


def _within(indices, part) -> np.ndarray:
    """The ascending `indices` that lie in the slice `part`, counted from its start."""
    first, last = np.searchsorted(indices, (part.start, part.stop))
    return indices[first:last] - np.uint32(part.start)
