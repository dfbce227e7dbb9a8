"""One bucket of tensors: memory -> compressor -> exchange -> compressor -> the sum over the ranks, the same bits on all."""

import time
from collections import Counter
from contextlib import contextmanager

import numpy as np

from sparsecomm.compress.memory import memory
from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Bucket
from sparsecomm.compress.registry import options_of
from sparsecomm.exchange.protocol import Payload, Sum


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
        its sum is 0. Where elements are not finite, there is no sum.
        """
        self.before = {name: x.copy() for name, x in self.compressor.state().items()}
        with self._clock("select"):
            compensated, bad = self.memory.compensate(gradients)
        rounds, answer = self.compressor.rounds(step, compensated), None
        while True:
            try:
                with self._clock("select"):
                    payload = rounds.send(answer)
            except StopIteration as end:
                self._put(end.value)
                return 0
            answer = self._sum(step, payload, bad)
            if answer.bad:
                rounds.close()
                return answer.bad

    def _sum(self, step, payload, bad) -> Sum:
        """The sum of the ranks' payloads, its arrays where the gradients are."""
        if payload.indices is not None:
            self.memory.sent(payload.indices)
        to = self.operations
        indices = None if payload.indices is None else to.host(payload.indices).astype(np.uint32, copy=False)
        total = self.exchange.sum(step, self.bucket.n, payload._replace(indices=indices, values=to.host(payload.values)), bad)
        self.counts.update(kept=payload.values.shape[0], sent=total.sent, received=total.received)
        with self._clock("decode"):
            return total._replace(**self._here(total), unsent=total.unsent and Payload(**self._here(total.unsent)))

    def _here(self, sparse) -> dict:
        to = self.operations
        return {"indices": None if sparse.indices is None else to.index(sparse.indices), "values": to.here(sparse.values)}

    def _put(self, total):
        """Let `total` be what the compressor has returned."""
        with self._clock("decode"):
            if total.indices is None:
                self.total, self.touched = total.values, None
                return
            self.operations.scatter(self.sums, self.touched, total.indices, total.values)
            self.total = self.sums
            self.touched = self.operations.host(total.indices).astype(np.uint32, copy=False)

    def commit(self):
        """With combine local, the own gradient is added, less what was sent of it.

        The residual grew by that: over the steps these additions sum to the residual.
        """
        if self.config.combine == "local":
            self.total += np.float32(self.exchange.size) * self.memory.growth()
            self.touched = None

    def undo(self):
        """To the bit as before the last `reduce`; again, or after `load`: nothing."""
        if self.before is not None:
            self.memory.undo()
            self.compressor.load(self.before)
            self.before = None

    def state(self) -> dict[str, np.ndarray]:
        """What the next step of this rank depends on, by "TENSOR.kind"; what belongs to the bucket, by its first tensor."""
        own = {f"{self.bucket.names[0]}.{kind}": x for kind, x in self.exchange.state().items()}
        return {**self.memory.state(), **self.compressor.state(), **own}

    def load(self, state):
        """Continue from a `state`; what it does not name stays as it is."""
        self.before = None
        self.memory.load(state)
        self.compressor.load(state)
        prefix = f"{self.bucket.names[0]}."
        self.exchange.load({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})

    @contextmanager
    def _clock(self, phase):
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start
