"""Compressors by name: those of the registry, and a user's own, which are tried before anything long begins."""

import sys
from textwrap import dedent

import pytest

from hogwild.errors import UserError
from sparsecomm.compress import registry
from sparsecomm.compress.chunk_topk import ChunkTopK
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.low_rank import LowRank
from sparsecomm.compress.registry import COMPRESSORS, compressor, options_of
from sparsecomm.compress.threshold import Threshold
from sparsecomm.compress.user_compressors import tried
from sparsecomm.config import Config

OWN = '''
from typing import NamedTuple
import numpy as np
from sparsecomm.compress.protocol import Payload, put_back

class Largest(NamedTuple):
    """The k largest elements of each tensor."""
    k: float = 2
    ranges = {"k": "[1, 1e6]"}
    sparse = True
    def compressor(self, bucket):
        return _Largest(int(self.k), bucket)

class _Largest:
    lossless, decay = False, 1.0
    def __init__(self, k, bucket):
        self.k, self.parts = k, bucket.parts
    def rounds(self, step, gradients):
        found = [part.start + np.sort(np.argsort(-abs(g.ravel()))[:self.k])
                 for part, g in zip(self.parts, gradients.tensors) if g is not None]
        indices = np.concatenate(found).astype(np.uint32)
        values = gradients.flat[indices]
        gradients.flat[indices] = 0
        total = yield Payload(indices, values)
        put_back(gradients.flat, total.unsent)
        return total
    def state(self):
        return {}
    def load(self, state):
        pass
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of a user's own, the example with (old, new) replaced in it."""
    def write(*replaced):
        text = OWN
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "own_compressors.py").write_text(dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registry._named.cache_clear()
    yield write
    sys.modules.pop("own_compressors", None)
    registry._named.cache_clear()


def test_each_configuration_has_its_compressor():
    assert options_of(Config()) == options_of(Config(exchange="allgather")) == Threshold()
    assert isinstance(options_of(Config()), Threshold) and isinstance(options_of(Config(compressor="none")), KeepEverything)
    assert isinstance(options_of(Config(exchange="dense")), KeepEverything)
    for options in LowRank(rank=7.0), ChunkTopK(k=7.0):  # equal tuples
        assert type(options_of(Config(compressor=options))) is type(options)
    assert compressor(Config(compressor="low-rank:rank=2")) == LowRank(rank=2.0)
    with pytest.raises(UserError, match="unknown compressor 'treshold'.*did you mean threshold"):
        Config(compressor="treshold")
    for more in {"compressor": "none"}, {"compressor": KeepEverything()}, {"compressor": Threshold(), "exchange": "dense"}:
        with pytest.raises(UserError, match="leaves nothing"):
            Config(momentum=0.5, **more)
    for name, options in ("none", KeepEverything()), ("threshold", Threshold()):
        assert Config(compressor=options) == Config(compressor=name)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_ours_keep_the_laws_that_a_users_own_must_keep(name):
    assert tried(COMPRESSORS[name](), name, "compressor", Config()) == COMPRESSORS[name]()


def test_a_compressor_of_a_users_own(own):
    own()
    assert Config(compressor="own_compressors.Largest:k=3").compressor == "own_compressors.Largest:k=3"
    assert compressor(Config(compressor="own_compressors.Largest:k=3")).k == 3
    with pytest.raises(UserError, match="k must be a number in"):
        Config(compressor="own_compressors.Largest:k=0")


@pytest.mark.parametrize("old, new, said", [
    ("gradients.flat[indices] = 0", "pass", "is not what was there"),
    (".astype(np.uint32)", "", "are not uint32"),
    ("np.sort(", "np.flip(", "do not ascend"),
    ("Payload(indices, values)", "Payload(indices, values * np.nan)", "no flat array of finite float32"),
    ("    sparse = True", "    sparse = False", "with indices, but sparse is False"),
    ("return total", "return None", "the returned sum is NoneType"),
    ("        total = yield Payload(indices, values)", "        return 1", "needed: a NamedTuple of numbers"),
    ("self.k, self.parts = k, bucket.parts", "self.parts = bucket.parts", "AttributeError"),
    ("lossless, decay", "exact, decay", "AttributeError"),
])
def test_mistakes_are_told_in_a_line(own, old, new, said):
    own((old, new))
    with pytest.raises(UserError, match=said) as error:
        Config(compressor="own_compressors.Largest")
    assert "compressor own_compressors.Largest" in str(error.value) and "\n" not in str(error.value)
