"""What the tests of compressors run on each rank, through the synchronizer: laws, skipped steps, states, bytes."""

import sys

import checks
import numpy as np
from synchronizer_ranks import COMM, RANK, SIZE, everyone, feed, flat, gradients, make, residual, same_everywhere

from hogwild.experiments.cost.message_sizes import bytes_per_step
from hogwild.kernels.optim.rules import Adam
from sparsecomm.compress.registry import compressor
from sparsecomm.config import Config

SHAPES = {"first": (20, 35), "scalar": (), "large": (10, 15, 20), "bias": (40,), "last": (30, 30)}
COMPRESSORS = {"chunk-top-k:k=50": 1.0, "low-rank:rank=2": 1.0, "sign": 0.0, "sign:feedback=1": 1.0, "sign:feedback=0.5": 0.5}


def made(compressor, rule=None, lr=1.0, **options):
    return make(*([] if rule is None else [rule]), lr=lr, compressor=compressor, shapes=SHAPES, exchange="sparse", **options)


def check_conservation():
    """At each step: P times the step + all residuals = all gradients + what the residuals before have decayed to."""
    for text, decay in COMPRESSORS.items():
        for code in ("float32", "bfloat16") if decay else ("float32",):
            sync = made(text, value_code=code)
            for step in range(6):
                before, w = everyone(residual(sync)), flat(sync.tensors).astype(np.float64)
                assert feed(sync, step)
                given = everyone(flat(gradients(step)).astype(np.float64))
                applied, rest = SIZE * (w - flat(sync.tensors)), everyone(residual(sync))
                lost = applied + rest - given - decay * before
                assert not decay or np.abs(lost).max() <= 3e-5 * np.abs(given).max(), (text, code, step)
                assert decay or not rest.any() and set(np.abs(applied)) <= {SIZE}
            assert not decay or np.abs(rest).max() > 0, "nothing is left out"
            same_everywhere(sync)


def check_skipped_steps_and_states():
    """A step with a NaN on one rank leaves no trace, and from a state a run continues to the same bits."""
    for text in COMPRESSORS:
        sync, other = (made(text, Adam(), 1e-3) for _ in range(2))
        for step in range(3):
            for each in sync, other:
                assert feed(each, step)
        spoilt = gradients(9)
        spoilt["large"][7] = np.nan if RANK == SIZE - 1 else 1e3
        assert not feed(sync, 3, spoilt)
        third = made(text, Adam(), 1e-3, tensors={name: w.copy() for name, w in sync.tensors.items()})
        third.load(*({key: x.copy() for key, x in part.items()} for part in (sync.common(), sync.own())))
        for _ in range(2):
            for each in sync, other, third:
                each.round = 4  # the skipped one has been counted
                assert feed(each, 5)
        assert np.array_equal(flat(sync.tensors), flat(third.tensors))
        assert np.array_equal(flat(sync.tensors), flat(other.tensors)), text
        assert any(key.endswith("large.q") for key in sync.own()) == text.startswith("low-rank")


def check_bytes():
    """What is meant to be sent, all ranks together, is what the formulas of `advise` say."""
    for text in "none", "threshold", "chunk-top-k:k=50", "low-rank:rank=2", "sign":
        sync = made(text, bucket_mb=4.0, keep=0.1)
        for step in range(3):
            feed(sync, step)
        sent = everyone(sync.counts["sent"]) / 3
        expected = SIZE * bytes_per_step(compressor(Config(compressor=text)), SHAPES.values(), SIZE, 0.1)
        room = {"threshold": 0.2 * expected, "sign": SIZE * SIZE}.get(text, 2 * SIZE)  # signs may fill a byte in part
        assert abs(sent - expected) <= room, (text, sent, expected)


if __name__ == "__main__":
    checks.run(globals(), checks.mpi(COMM), RANK, sys.argv[1:])
