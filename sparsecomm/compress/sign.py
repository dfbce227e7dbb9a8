"""Signs: one bit an element.

feedback 0: signSGD with majority vote (Bernstein et al. 2018 and 2019). The sum is P times the sign that most of the P ranks
have: the mean gradient is 1 or -1 everywhere, however small the gradients are, and needs a learning rate about a hundred
times smaller than theirs. Where the votes are even, that of one rank counts more, of another one at each step. A zero is
sent as 1 and as -1 in turn.

feedback above 0: signSGD with error feedback (Karimireddy et al. 2019; with many ranks Zheng et al. 2019). A tensor's signs
are scaled by the mean magnitude of its elements, over all ranks. A rank's gradient less its scaled signs stays in its
residual, times `feedback` at the next step; so does the rounding error of the sums, of which the signs are sent.
"""

from typing import NamedTuple

import numpy as np

from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Payload, rounded_away

DECISIVE = 1.5  # weight of the vote that breaks ties: below 2, so that it overturns no majority


class Sign(NamedTuple):
    """Options of compressor sign."""

    feedback: float = 0.0  # factor of the residual from step to step; 0: majority vote, without residual and scale
    ranges = {"feedback": "[0, 1]"}
    sparse = False

    def compressor(self, bucket):
        return _Sign(self.feedback, bucket)


class _Sign:
    """Without state: unsent gradient stays in the residual."""

    lossless = False

    def __init__(self, feedback, bucket):
        self.decay, self.rank, self.size = feedback, bucket.rank, bucket.size
        self.parts, self.operations = bucket.parts, operations(bucket.device)

    def rounds(self, step, gradients):
        live = [part for part, x in zip(self.parts, gradients.tensors) if x is not None]
        return (yield from (self._scaled if self.decay else self._vote)(step, gradients.flat, live))

    def _vote(self, step, flat, live):
        votes = self._signs_of(live, flat, step)
        if step % self.size == self.rank:
            votes *= DECISIVE
        answer = yield Payload(None, votes, "1bit")
        total = self._spread(_signs(answer.values, 0), live, flat)
        flat -= total
        return Payload(None, total * self.size)

    def _scaled(self, step, flat, live):
        to = self.operations
        means = [float(abs(flat[part]).mean()) / self.size for part in live]
        scales = (yield Payload(None, to.here(np.array(means, np.float32)), "float32")).values
        own = self._signs_of(live, flat, step)
        answer = yield Payload(None, own * 1, "1bit")
        total, sent = (self._spread(x, live, flat) for x in (answer.values, own - rounded_away(answer)))
        for part, scale in zip(live, scales):
            total[part] *= scale
            flat[part] -= scale * sent[part]
        return Payload(None, total)

    def _signs_of(self, live, flat, step):
        """The signs of the live parts, end to end."""
        signs = _signs(flat, step)
        return self.operations.concatenate([signs[part] for part in live])

    def _spread(self, values, live, flat):
        """The values of the live parts in their places, 0 elsewhere."""
        total, start = self.operations.zeros(flat.shape), 0
        for part in live:
            size = part.stop - part.start
            total[part] = values[start:start + size]
            start += size
        return total

    def state(self):
        return {}

    def load(self, state):
        pass


def _signs(x, step):
    """1 and -1 for every number of x; for zeros both by turns, among neighbours and from step to step."""
    turn = x == 0
    turn[step % 2::2] = False
    signs = x * 0 + 1
    signs -= 2 * ((x < 0) | turn)
    return signs
