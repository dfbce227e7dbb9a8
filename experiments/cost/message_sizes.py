"""Bytes that a rank sends at each step with each compressor, headers included, with value code float32.

    none         8 n (P - 1) / P: a ring sums n numbers
    threshold    (P - 1) (k e + h) of k entries of e bytes; among more than four ranks, balanced, 2 (k e + P h) (P - 1) / P
    chunk-top-k  as that, of entries that have 1.5 bytes of index, and 2 bytes for each chunk of 4096
    low-rank     8 r (rows + columns) (P - 1) / P of a matrix, 8 (P - 1) / P for each other element
    sign         2 (n / 8 + P (h + 8)) (P - 1) / P: to each rank its part, and the sums' signs to all

h: a message's header and its length. The bytes of threshold and of what is balanced are approximate, the others exact.
"""

import functools
import math

from hogwild.experiments.cost.cost_model import entry_bytes
from sparsecomm.compress.chunk_topk import ChunkTopK, message_bytes
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.low_rank import LowRank, elements
from sparsecomm.compress.sign import Sign
from sparsecomm.compress.threshold import Threshold
from sparsecomm.exchange.sparse import sparse
from sparsecomm.wire.message import HEADER

HEAD = HEADER.size + 8
MEANS = 8  # bytes of the two means that stand before signs


@functools.singledispatch
def bytes_per_step(options, shapes, ranks, keep=0.01) -> float:
    """Of a compressor's options, for one bucket with tensors of these shapes; keep: the share that a threshold sends."""
    raise TypeError(f"no formula for {options}")


@bytes_per_step.register
def _(options: KeepEverything, shapes, ranks, keep=0.01):
    return 8 * _n(shapes) * (ranks - 1) / ranks


@bytes_per_step.register
def _(options: Threshold, shapes, ranks, keep=0.01):
    return _sparse(keep * _n(shapes) * entry_bytes(keep, "float32"), ranks)


@bytes_per_step.register
def _(options: ChunkTopK, shapes, ranks, keep=0.01):
    return _sparse(message_bytes(round(options.k), [math.prod(shape) for shape in shapes]), ranks)


@bytes_per_step.register
def _(options: LowRank, shapes, ranks, keep=0.01):
    return 8 * elements(shapes, round(options.rank)) * (ranks - 1) / ranks


@bytes_per_step.register
def _(options: Sign, shapes, ranks, keep=0.01):
    return 2 * (_n(shapes) / 8 + ranks * (HEAD + MEANS)) * (ranks - 1) / ranks


def _n(shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _sparse(payload, ranks) -> float:
    """Of a sparse message with a payload of so many bytes, by the exchange that so many ranks have."""
    if sparse(ranks) == "allgather":
        return (ranks - 1) * (payload + HEAD)
    return 2 * (payload + ranks * HEAD) * (ranks - 1) / ranks
