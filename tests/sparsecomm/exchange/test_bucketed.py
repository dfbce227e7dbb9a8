"""What a rank has not sent follows its tensor from bucket to bucket; buckets of one step are committed or undone together."""

import warnings

import numpy as np
import pytest
import torch

from hogwild.errors import UserError
from sparsecomm.compress.operations import host
from sparsecomm.config import Config
from sparsecomm.exchange.bucketed import BucketedExchange, Pipelines, bucket_names
from sparsecomm.exchange.sparse import EXCHANGES, Allgather

SHAPES = {"a": (20, 30), "b": (7,), "c": (40, 10), "d": (300,)}
ROOM = 700 * 4 / 2**20  # MB of a bucket


class Alone:
    """A wire of one rank."""

    rank, size = 0, 1

    def numbers(self, row):
        return np.asarray(row, np.int64)[None]

    def gather(self, mine, most):
        return [mine]

    def exchange(self, pieces, most):
        return pieces

    def traffic(self):
        return 0, 0

    def add(self, x):
        pass


def gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(int(np.prod(shape))).astype(np.float32) for name, shape in SHAPES.items()}


def make(kind=BucketedExchange, **options):
    config = Config(keep=0.1, exchange="allgather", bucket_mb=ROOM, **options)
    return kind(Allgather(Alone(), config), config, dict(SHAPES))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"compressor": "low-rank:rank=2"}])
def test_the_state_follows_tensors_into_other_buckets(options):
    pipelines = make(Pipelines, **options)
    made = [pipelines.make(names, seed=3) for names in (("a", "b"), ("c", "d"))]
    for pipeline in made:
        assert pipeline.reduce(0, [gradients(0)[name] for name in pipeline.bucket.names]) == 0
        pipeline.commit()
    before, counts = {key: x.copy() for key, x in pipelines.own().items()}, pipelines.counts
    assert {"a.residual", "d.residual"} <= before.keys() and counts["kept"] > 0 and pipelines.residual_norm() > 0
    for pipeline in made:
        pipelines.release(pipeline)
    for now in pipelines, pipelines:  # while in no bucket, and then in others
        assert now.own().keys() == before.keys() and now.counts == counts
        assert all(np.array_equal(x, before[key]) for key, x in now.own().items())
        if not pipelines.pipelines:
            pipelines.make(("d", "b"), seed=4), pipelines.make(("c", "a"), seed=5)
    pipelines.scale(np.float32(2))
    assert np.array_equal(pipelines.own()["c.residual"], 2 * before["c.residual"])
    other = make(Pipelines, **options)
    other.load_own(before)
    other.make(("a", "b", "c", "d"), seed=6)
    assert all(np.array_equal(x, before[key]) for key, x in other.own().items())


def test_buckets_fill_from_the_last_tensor_on():
    config = Config(bucket_mb=ROOM)
    assert bucket_names(list(SHAPES), SHAPES, config) == [["d", "c"], ["b", "a"]]
    assert bucket_names(list(SHAPES), SHAPES, Config(scope="global", bucket_mb=ROOM)) == [["d", "c", "b", "a"]]
    assert bucket_names([], SHAPES, config) == []


def test_a_step_is_committed_or_undone_as_a_whole():
    one, other = make(), make()
    for bucketed in one, other:
        bucketed.fill(bucket_names(list(SHAPES), SHAPES, bucketed.config), seed=0)
    for step in range(4):
        if step == 2:  # one of both also has a step that is cancelled, and one without all gradients
            for name, g in gradients(9).items():
                one.ready(name, g)
            assert one.reduce() == 0 and one.commit()
            one.cancel(0)
            one.ready("a", gradients(9)["a"])
            with pytest.raises(UserError, match="no gradient for"):
                one.reduce()
            one.cancel(0)
        for bucketed in one, other:
            for name, g in gradients(step).items():
                if name != "b":
                    bucketed.ready(name, g)
            assert bucketed.commit(idle={"b"}) and not bucketed.mean("b").any()
            assert np.isclose(bucketed.norm(), np.linalg.norm(np.concatenate([bucketed.mean(name) for name in SHAPES])))
            touched = bucketed.touched("c")
            assert np.array_equal(np.flatnonzero(bucketed.total("c")), touched) and 10 < touched.size < 100
            bucketed.empty()
            bucketed.round += 1
        assert all(np.array_equal(x, other.own()[key]) for key, x in one.own().items())


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["host", "device"])
@pytest.mark.parametrize("compressor", ["threshold", "chunk-top-k", "low-rank", "sign", "sign:feedback=1", "none"])
def test_tensors_without_elements_are_left_alone(compressor, device):
    """Among others, or alone in their bucket; a tensor beside them is exchanged as without them."""
    config = Config(keep=0.1, compressor=compressor, exchange="allgather" if compressor[0] in "tc" else "dense",
                    threshold="exact")
    sums = []
    for shapes in {"a": (20, 30)}, {"x": (0, 4), "a": (20, 30), "y": (3, 0)}, {"x": (0, 4), "z": (0,)}:
        pipeline = Pipelines(EXCHANGES[config.exchange](Alone(), config), config, shapes, device).make(list(shapes), 3)
        for step in range(3):
            given = [np.random.default_rng(step).standard_normal(np.prod(shape, dtype=int)).astype(np.float32)
                     for shape in shapes.values()]
            with warnings.catch_warnings(action="error"):  # of a mean of nothing
                assert pipeline.reduce(step, given if device is None else [torch.tensor(g) for g in given]) == 0
            pipeline.commit()
        sums.append(host(pipeline.total).copy())
    assert sums[0].any() and np.array_equal(sums[0], sums[1]) and sums[2].shape == (0,)


def test_a_bucket_of_which_this_rank_has_nothing():
    """A rank may leave all tensors alone where payloads have indices."""
    for compressor in "threshold", "chunk-top-k":
        pipeline = make(Pipelines, compressor=compressor).make(["a", "b"], 3)
        assert pipeline.reduce(0, [None, None]) == 0 and not pipeline.total.any()


def test_every_bucket_has_a_seed_of_its_own():
    """Also those that are filled later, in other numbers."""
    for seed in 0, 1, 5:
        bucketed = make()
        for names in (["a"], ["b"]), (["c"],), (["d"],):
            bucketed.fill(names, seed)
        seeds = [bucket.pipeline.bucket.seed for bucket in bucketed.buckets]
        assert seeds[:2] == [2 * seed, 2 * seed + 1] and len(set(seeds)) == 4
