"""Compressors by name, as people type them: "threshold", "low-rank:rank=4", "my_compressors.TopOne:k=3"."""

import functools

from hogwild.training.registry import build
from sparsecomm.compress.chunk_topk import ChunkTopK
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.low_rank import LowRank
from sparsecomm.compress.sign import Sign
from sparsecomm.compress.threshold import Threshold

COMPRESSORS = {"threshold": Threshold, "chunk-top-k": ChunkTopK, "low-rank": LowRank, "sign": Sign, "none": KeepEverything}


@functools.cache
def compressor(text):
    """The options that `text` names, or the NamedTuple itself. Raises UserError with what is known."""
    return build(text, COMPRESSORS, "compressor", tried=_tried) if isinstance(text, str) else text


def options_of(config):
    """The compressor's options of a configuration whose exchange is named.

    A dense exchange moves what a threshold would drop at the same cost: nothing is dropped.
    """
    options = compressor(config.compressor)
    return KeepEverything() if config.exchange == "dense" and isinstance(options, Threshold) else options


def _tried(value, name, what):
    from sparsecomm.compress.user_compressors import tried
    return tried(value, name, what)
