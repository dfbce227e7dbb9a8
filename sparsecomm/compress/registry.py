"""Compressors by name, as people type them: "threshold", "low-rank:rank=4", "my_compressors.TopOne:k=3"."""

import functools

from hogwild.training.registry import build
from sparsecomm.compress.chunk_topk import ChunkTopK
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.low_rank import LowRank
from sparsecomm.compress.sign import Sign
from sparsecomm.compress.threshold import Threshold

COMPRESSORS = {"threshold": Threshold, "chunk-top-k": ChunkTopK, "low-rank": LowRank, "sign": Sign, "none": KeepEverything}


def compressor(config):
    """The CompressorOptions of a configuration, whose `compressor` is their text or they themselves.

    Raises UserError, with the known names.
    """
    return _named(config.compressor, type(config)) if isinstance(config.compressor, str) else config.compressor


@functools.cache  # of texts alone: NamedTuples of different classes are equal where their numbers are
def _named(text, configuration):
    def tried(value, name, what):
        from sparsecomm.compress import user_compressors
        return user_compressors.tried(value, name, what, configuration())
    return build(text, COMPRESSORS, "compressor", tried=tried)


def options_of(config):
    """The compressor's options of a configuration whose exchange is named.

    A dense exchange moves what a threshold would drop at the same cost: nothing is dropped.
    """
    options = compressor(config)
    return KeepEverything() if config.exchange == "dense" and isinstance(options, Threshold) else options
