"""Ranks in one process: compressors whose rounds are summed in turn, by NumPy alone."""

import numpy as np
import torch

from hogwild.kernels.compression.value_codes import VALUES
from sparsecomm.compress.protocol import Bucket, Gradients
from sparsecomm.config import Config
from sparsecomm.exchange.protocol import Payload, Sum


def buckets(shapes, size, device=None, **config):
    """Those of `size` ranks; tensors a, b, …"""
    names = tuple("abcdefgh"[:len(shapes)])
    return [Bucket(names, tuple(shapes), Config(**config), 7, device, rank, size) for rank in range(size)]


def views(bucket, flat, left_alone=()):
    """The Gradients of a flat array or tensor."""
    parts = zip(bucket.names, bucket.parts, bucket.shapes)
    return Gradients(flat, [None if name in left_alone else flat[part].reshape(shape) for name, part, shape in parts])


def step(compressors, gradients, k, n):
    """(the sum over the ranks, float64[n]; the payloads of the ranks, by round) of step k."""
    rounds = [each.rounds(k, g) for each, g in zip(compressors, gradients)]
    payloads, sent = [next(each) for each in rounds], []
    while True:
        sent.append([Payload(p.indices, p.values.copy() if isinstance(p.values, np.ndarray) else p.values.clone(),
                             *p[2:]) for p in payloads])
        sums = summed(payloads, n)
        ended = [_sent_back(each, s) for each, s in zip(rounds, sums)]
        payloads = [payload for payload, _ in ended]
        if payloads[0] is None:
            results = [_dense(result, n) for _, result in ended]
            assert all(np.array_equal(result, results[0]) for result in results)
            return results[0], sent


def _sent_back(rounds, s):
    try:
        return rounds.send(s), None
    except StopIteration as end:
        return None, end.value


def _host(x):
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def _dense(result, n):
    if result.indices is None:
        return _host(result.values).astype(np.float64)
    out = np.zeros(n)
    out[_host(result.indices)] = _host(result.values)
    return out


def summed(payloads, n) -> list[Sum]:
    """Of each rank: sums without indices are rounded as the payloads' code says, and rank 0 has what that loses."""
    torched = isinstance(payloads[0].values, torch.Tensor)
    arrays = [(p.indices if p.indices is None else _host(p.indices).astype(np.int64), _host(p.values)) for p in payloads]
    if arrays[0][0] is None:
        values = np.sum([values for _, values in arrays], axis=0, dtype=np.float32)
        code = payloads[0].value_code or "float32"
        lost = values.copy()
        VALUES[code].put(lost, np.empty(VALUES[code].nbytes(values.size), np.uint8))
        values, indices = values - lost, None
        unsent = [lost, *[np.zeros_like(lost)] * (len(payloads) - 1)]
    else:
        indices, unsent = np.unique(np.concatenate([at for at, _ in arrays])), None
        total = np.zeros(n, np.float32)
        for at, each in arrays:
            assert np.all(np.diff(at) > 0) and at[-1] < n
            total[at] += each
        values = total[indices]
    out = (lambda x: torch.from_numpy(x.copy()).to(payloads[0].values.device)) if torched else (lambda x: x.copy())
    return [Sum(None if indices is None else out(indices), out(values),
                None if unsent is None else Payload(None, out(unsent[rank])), 0, 0, 0) for rank in range(len(payloads))]
