"""One bucket of tensors: memory -> compressor -> exchange -> compressor -> the sum over the ranks, the same bits on all."""

import time
from collections import Counter

import numpy as np

from sparsecomm.compress.memory import memory
from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Bucket
from sparsecomm.compress.registry import options_of
from sparsecomm.exchange.protocol import Sum


class Pipeline:
    """Sums over the ranks what each sends of its gradients of one bucket.

    `reduce` is called by all ranks in one order, and followed by `commit`, or by `undo` where the step is skipped, which may
    also follow `commit` until the next `reduce`.
    total: float32[n], the sum; touched: uint32[m] on the host, where it may differ from 0, None: anywhere. Both are valid
    until the next `reduce`.
    """

    def __init__(self, bucket: Bucket, exchange):
        bucket = bucket._replace(rank=exchange.rank, size=exchange.size)
        self.bucket, self.exchange, self.config = bucket, exchange, bucket.config
        self.operations = operations(bucket.device)
        self.compressor = options_of(bucket.config).compressor(bucket)
        self.memory = memory(bucket, 0.0 if self.compressor.lossless else self.compressor.decay)
        self.sums = self.total = self.operations.zeros((bucket.n,))
        self.touched, self.before = np.zeros(0, np.uint32), None  # the compressor's state before the step that can be undone
        self.seconds, self.counts = Counter(), Counter()

    def reduce(self, step, gradients) -> int:
        """Sum over the ranks at step `step` of the gradients, a flat float32 array a tensor; elements not finite, of all.

        A gradient None, on all ranks alike unless the compressor is sparse: its tensor is left alone, with its residual, and
        its sum is 0. So is one without elements. Where elements are not finite, there is no sum.
        """
        if not self.bucket.n:
            return 0
        gradients = [g if size else None for g, size in zip(gradients, self.bucket.sizes)]
        start = time.perf_counter()
        self.before = {name: x.copy() for name, x in self.compressor.state().items()}
        compensated, bad = self.memory.compensate(gradients)
        rounds, answer = self.compressor.rounds(step, compensated), None
        while True:
            try:
                payload = rounds.send(answer)
            except StopIteration as end:
                self.seconds["select"] += time.perf_counter() - start
                self._put(end.value)
                return 0
            self.seconds["select"] += time.perf_counter() - start
            answer = self._sum(step, payload, bad)
            if answer.bad:
                rounds.close()
                return answer.bad
            start = time.perf_counter()

    def _sum(self, step, payload, bad) -> Sum:
        """The sum of the ranks' payloads, its arrays where the gradients are."""
        if payload.indices is not None:
            self.memory.sent(payload.indices)
        total = self.exchange.sum(step, self.bucket.n, self.operations.outgoing(payload), bad)
        self.counts.update(kept=payload.values.shape[0], sent=total.sent, received=total.received)
        start = time.perf_counter()
        total = self.operations.incoming(total)
        self.seconds["decode"] += time.perf_counter() - start
        return total

    def _put(self, total):
        """Store the sum that the compressor has returned."""
        if total.indices is None:
            self.total, self.touched = total.values, None
            return
        start = time.perf_counter()
        self.operations.scatter(self.sums, self.touched, total.indices, total.values)
        self.total, self.touched = self.sums, self.operations.host(total.indices).astype(np.uint32, copy=False)
        self.seconds["decode"] += time.perf_counter() - start

    def commit(self):
        """With combine local, add the unsent gradient of this rank, times P, to the sum.

        The residual grew by it: over the steps these additions sum to the residual.
        """
        if self.config.combine == "local":
            self.total += np.float32(self.exchange.size) * self.memory.growth()
            self.touched = None

    def undo(self):
        """Restore the state before the last `reduce`, to the bit; a second call, or one after `load`, has no effect."""
        if self.before is not None:
            self.memory.undo()
            self.compressor.load(self.before)
            self.before = None

    def state(self) -> dict[str, np.ndarray]:
        """State of this rank: host arrays by "TENSOR.kind"; those of the whole bucket have the name of its first tensor."""
        own = {f"{self.bucket.names[0]}.{kind}": x for kind, x in self.exchange.state().items()}
        return {**self.memory.state(), **self.compressor.state(), **own}

    def load(self, state):
        """Continue from a `state`; what it does not name stays as it is."""
        self.before = None
        self.memory.load(state)
        self.compressor.load(state)
        prefix = f"{self.bucket.names[0]}."
        self.exchange.load({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
