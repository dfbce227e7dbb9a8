"""Compressors of a user's own: tried on a few numbers, as if on two ranks, before anything long begins."""

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress.memory import NoMemory
from sparsecomm.compress.protocol import Bucket, Payload
from sparsecomm.exchange.protocol import Sum

NEEDED = ("needed: a NamedTuple of numbers with sparse = True or False and compressor(bucket), whose result has lossless, "
          "decay, rounds(step, gradients), state() and load(state); see sparsecomm/compress/protocol.py")
SHAPES, RANKS, STEPS = ((6, 5), (7,)), 2, 3
ROUNDING = 1e-4  # of the largest number: what sums of float32 may lose


class _Wrong(Exception):
    """A broken law of `protocol.Compressor`."""


def tried(options, name, what, config):
    """`options`, after a few steps in which their compressors obey the laws of `protocol.Compressor`. Raises UserError.

    config: the configuration of their buckets.
    """
    try:
        _demand(isinstance(getattr(options, "sparse", None), bool), "sparse is not True or False")
        buckets = [Bucket(("w", "b"), SHAPES, config, 0, None, rank, RANKS) for rank in range(RANKS)]
        ranks = [options.compressor(bucket) for bucket in buckets]
        flats = [np.zeros(bucket.n, np.float32) for bucket in buckets]
        for step in range(STEPS):
            flats = _step(step, ranks, flats, buckets, options.sparse)
        states = [rank.state() for rank in ranks]
        _demand(all(isinstance(state, dict) for state in states), "state() is no dict of arrays by name")
        ranks[0].load(states[0])
    except _Wrong as error:
        raise UserError(f"{what} {name}: {error}; {NEEDED}") from None
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{what} {name}: {type(error).__name__}: {text}; {NEEDED}") from None
    return options


def _step(step, ranks, flats, buckets, sparse):
    """One step of all ranks in turn; the unsent gradient of each."""
    random = np.random.default_rng(step)
    memories = [NoMemory(bucket) for bucket in buckets]
    given = []
    for memory, rank, flat, bucket in zip(memories, ranks, flats, buckets):
        g = (0 if rank.lossless else rank.decay) * flat + random.standard_normal(bucket.n).astype(np.float32)
        given.append(memory.compensate([g[part] for part in bucket.parts])[0])
    before = sum(each.flat.astype(np.float64) for each in given)
    rounds, answers, totals = [rank.rounds(step, each) for rank, each in zip(ranks, given)], [None] * RANKS, []
    while not totals:
        payloads = []
        for each, answer in zip(rounds, answers):
            try:
                payloads.append(each.send(answer))
            except StopIteration as end:
                totals.append(end.value)
        _demand(not (totals and payloads), "yields not as many payloads on all ranks")
        if payloads:
            answers = _sums(payloads, buckets[0].n, sparse)
    _demand(answers[0] is not None, "yields no payload")
    dense = [_dense(total, buckets[0].n, "the returned sum") for total in totals]
    _demand(all(np.array_equal(x, dense[0]) for x in dense), "returns sums that differ between the ranks")
    lost = before - dense[0] - sum(each.flat.astype(np.float64) for each in given)
    if ranks[0].decay and not ranks[0].lossless:
        largest = int(np.argmax(np.abs(lost)))
        _demand(abs(lost[largest]) <= ROUNDING * np.abs(before).max(),
                f"what is sent and what is left in gradients.flat is not what was there: {before[largest]:g} in all, but "
                f"{lost[largest]:g} is missing at element {largest}")
    return [each.flat.copy() for each in given]


def _sums(payloads, n, sparse) -> list[Sum]:
    """The sum of the payloads, for each rank."""
    for payload in payloads:
        _demand(isinstance(payload, Payload), f"yields {type(payload).__name__}, not Payload")
        _demand((payload.indices is not None) == sparse, f"yields payloads {'without' if sparse else 'with'} indices, but "
                                                         f"sparse is {sparse}")
    if sparse:
        values = sum(_dense(payload, n, "a payload") for payload in payloads)
        indices = np.unique(np.concatenate([payload.indices for payload in payloads])).astype(np.uint32)
        return [Sum(indices, values[indices].copy(), None, 0, 0, 0) for _ in payloads]
    arrays = [_checked(payload.values, "the values of a payload") for payload in payloads]
    _demand(len({x.size for x in arrays}) == 1, "yields values of different numbers on different ranks")
    return [Sum(None, sum(arrays), None, 0, 0, 0) for _ in payloads]


def _dense(payload, n, what) -> np.ndarray:
    """float32[n]: the values of a payload or sum in their places."""
    _demand(hasattr(payload, "indices") and hasattr(payload, "values"), f"{what} is {type(payload).__name__}, not a Payload")
    values, indices = _checked(payload.values, f"the values of {what}"), payload.indices
    if indices is None:
        _demand(values.size == n, f"{what} has {values.size} values, needed {n}")
        return values
    good = isinstance(indices, np.ndarray) and indices.dtype == np.uint32 and indices.shape == values.shape
    _demand(good, f"the indices of {what} are not uint32[{values.size}]")
    _demand(not indices.size or (np.all(np.diff(indices.astype(np.int64)) > 0) and indices[-1] < n),
            f"the indices of {what} do not ascend strictly, or are not below {n}")
    out = np.zeros(n, np.float32)
    out[indices] = values
    return out


def _checked(values, what) -> np.ndarray:
    good = isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim == 1 and np.isfinite(values).all()
    _demand(good, f"{what} are no flat array of finite float32")
    return values


def _demand(good, message):
    if not good:
        raise _Wrong(message)
