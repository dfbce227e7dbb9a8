"""Chunk-wise top-k, low rank and sign between ranks of one process, on NumPy arrays and on torch tensors."""

import lockstep
import numpy as np
import pytest
import torch
from mpi import SUPPORT, mpirun

from sparsecomm.compress import chunk_topk, low_rank
from sparsecomm.compress.chunk_topk import ChunkTopK
from sparsecomm.compress.low_rank import LowRank
from sparsecomm.compress.sign import Sign

SHAPES = (64, 90), (5,), (3, 4, 50), (4096, 2), (1,)
N = sum(int(np.prod(shape)) for shape in SHAPES)
ALL = [ChunkTopK(k=7), ChunkTopK(k=4096), LowRank(rank=3), LowRank(rank=1), LowRank(rank=4096), Sign(), Sign(feedback=1.0)]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOTH = pytest.mark.parametrize("device", [None, DEVICE], ids=["host", "device"])


def gradients(seed, size, n=N):
    return [np.random.default_rng([seed, rank]).standard_normal(n).astype(np.float32) for rank in range(size)]


def there(x, device):
    """A copy of the array x, on a device as a tensor."""
    return x.copy() if device is None else torch.tensor(x, device=device)


def here(x):
    """float64 of an array or tensor."""
    return torch.as_tensor(x).cpu().numpy().astype(np.float64)


def made(options, size, shapes=SHAPES, device=None):
    buckets = lockstep.buckets(shapes, size, device)
    return buckets, [options.compressor(bucket) for bucket in buckets]


def run(options, flats, steps=1, device=None, shapes=SHAPES):
    """(compressors, what is left on each rank, the sum, its payloads) after some steps of the same gradients."""
    buckets, compressors = made(options, len(flats), shapes, device)
    left = [there(np.zeros_like(flat), device) for flat in flats]
    for k in range(steps):
        left = [rest * compressors[0].decay + there(flat, device) for rest, flat in zip(left, flats)]
        total, payloads = lockstep.step(compressors, [lockstep.views(*each) for each in zip(buckets, left)], k, len(flats[0]))
    return compressors, [here(rest) for rest in left], total, payloads


@BOTH
@pytest.mark.parametrize("options", ALL, ids=str)
def test_sent_and_left_is_all_there_was(options, device):
    """Also of what steps before have left, decayed where the compressor does that, and with a tensor left alone."""
    buckets, compressors = made(options, 3, device=device)
    left = [there(np.zeros(N, np.float32), device) for _ in buckets]
    for k in range(4):
        alone = ("c",) if k == 2 else ()
        for rest, g in zip(left, gradients(k, 3)):
            for name, part in zip(buckets[0].names, buckets[0].parts):
                if name not in alone:
                    rest[part] = rest[part] * compressors[0].decay + there(g[part], device)
        before = [here(rest) for rest in left]
        views = [lockstep.views(bucket, flat, alone) for bucket, flat in zip(buckets, left)]
        total, _ = lockstep.step(compressors, views, k, N)
        after = [here(rest) for rest in left]
        assert np.allclose(total + sum(after), sum(before), rtol=0, atol=1e-6 if isinstance(options, ChunkTopK) else 2e-5)
        if alone:
            part = buckets[0].parts[2]
            assert not total[part].any() and all(np.array_equal(x[part], y[part]) for x, y in zip(before, after))


@pytest.mark.parametrize("options", ALL, ids=str)
def test_arrays_and_tensors_give_the_same(options):
    flats = gradients(1, 2)
    _, left, total, _ = run(options, flats, 3)
    _, left_there, total_there, _ = run(options, flats, 3, DEVICE)
    assert np.allclose(total, total_there, atol=1e-4) and np.allclose(left, left_there, atol=1e-4)


@pytest.mark.parametrize("options", ALL, ids=str)
def test_a_state_continues_to_the_same_bits(options):
    flats = gradients(2, 2)
    compressors, _, _, _ = run(options, flats, 3)
    buckets, others = made(options, 2)
    for one, other in zip(compressors, others):
        other.load({name: x.copy() for name, x in one.state().items()} | {"a.residual": np.ones(3)})
    results = []
    for each in compressors, others:
        views = [lockstep.views(bucket, flat.copy()) for bucket, flat in zip(buckets, flats)]
        results.append(lockstep.step(each, views, 3, N)[0])
    assert np.array_equal(*results)
    assert all(x.dtype == np.float32 and isinstance(x, np.ndarray) for x in compressors[0].state().values())


def largest(x, k):
    """Places of the k largest of every 4096, of equal ones the first, by sorting."""
    at = [start + np.argsort(-np.abs(x[start:start + 4096]), kind="stable")[:k] for start in range(0, len(x), 4096)]
    return np.sort(np.concatenate(at))


@pytest.mark.parametrize("k", [1, 41, 2048, 4096])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros"])
def test_chunk_topk_is_the_plain_one(k, kind):
    rng = np.random.default_rng(k)
    shapes = (100, 100), (3,), (2, 4096), (4095,)
    flat = rng.standard_normal(sum(int(np.prod(shape)) for shape in shapes)).astype(np.float32)
    flat = {"normal": flat, "ties": np.round(flat), "zeros": flat * (rng.random(flat.size) < 0.003)}[kind].astype(np.float32)
    _, [left], total, [[payload]] = run(ChunkTopK(k=k), [flat], shapes=shapes)
    parts = lockstep.buckets(shapes, 1)[0].parts
    expected = np.concatenate([part.start + largest(flat[part], k) for part in parts])
    assert payload.indices.dtype == np.uint32 and np.array_equal(payload.indices, expected)
    assert np.array_equal(payload.values, flat[expected]) and payload.index_code == "local"
    assert len(expected) == chunk_topk.entries(k, [part.stop - part.start for part in parts])
    assert not left[expected].any() and np.array_equal(total + left, flat)


def best(matrix, rank):
    """The best approximation of a rank (Eckart and Young 1936)."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize("rank", [1, 4])
def test_warm_started_low_rank_converges_to_the_best_approximation(rank):
    """Of the sum of all ranks' gradients; a tensor of three dimensions is a matrix of its first by the others."""
    shapes = (20, 30), (5,), (10, 4, 5)
    n = sum(int(np.prod(shape)) for shape in shapes)
    flats, errors = gradients(3, 2, n), []
    buckets, compressors = made(LowRank(rank=rank), 2, shapes)
    for k in range(120):  # without residual: the same matrix at every step
        total, _ = lockstep.step(compressors, [lockstep.views(b, f.copy()) for b, f in zip(buckets, flats)], k, n)
        parts = zip(buckets[0].parts, shapes)
        summed = [x[part].reshape(shape[0], -1) for part, shape in parts for x in (total, sum(flats))]
        errors.append([np.linalg.norm(summed[i] - best(summed[i + 1], rank)) / np.linalg.norm(summed[i + 1]) for i in (0, 4)])
    assert max(errors[-1]) < 0.03 and max(errors[-1]) < 0.1 * max(errors[0])
    assert np.allclose(summed[2], summed[3], rtol=1e-6)  # the vector, exactly


def test_a_matrix_of_that_rank_is_sent_whole_in_one_step():
    rng = np.random.default_rng(0)
    flats = [(rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))).astype(np.float32).ravel() for _ in range(2)]
    _, left, total, _ = run(LowRank(rank=4), flats, shapes=((40, 30),))
    assert np.allclose(total, sum(flats), atol=1e-4) and np.allclose(left, 0, atol=1e-4)


def test_low_rank_gets_over_zeros_and_over_matrices_of_smaller_rank():
    buckets, [compressor] = made(LowRank(rank=3), 1, ((20, 30),))
    one = np.outer(np.arange(20), np.ones(30)).astype(np.float32).ravel()
    for flat in np.zeros(600, np.float32), one, np.zeros(600, np.float32), one:
        total, _ = lockstep.step([compressor], [lockstep.views(buckets[0], flat.copy())], 0, 600)
        assert np.allclose(total, flat, atol=1e-4)


def test_low_rank_sends_the_factors_of_what_they_make_smaller():
    shapes = (64, 90), (5,), (3, 4, 50), (4096, 2), (1,), (2, 2)
    _, _, _, payloads = run(LowRank(rank=2), gradients(0, 1, sum(int(np.prod(s)) for s in shapes)), shapes=shapes)
    numbers = sum(each.values.size for [each] in payloads)
    assert numbers == low_rank.elements(shapes, 2) == 2 * (64 + 90) + 5 + 2 * (3 + 200) + 4096 * 2 + 1 + 4
    assert payloads[0][0].value_code is None is payloads[0][0].indices


class TorchBucket:
    """As much of DistributedDataParallel's GradBucket as a hook asks for."""

    def __init__(self, flat, shapes):
        self.flat, self.shapes = flat, shapes

    def buffer(self):
        return self.flat

    def gradients(self):
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        return [x.view(shape) for x, shape in zip(self.flat.split(sizes), self.shapes)]

    def index(self):
        return 0

    def is_last(self):
        return True


@pytest.mark.parametrize("rank", [2, 5])
def test_steps_and_residuals_are_those_of_torch(rank, tmp_path):
    """Its PowerSGD hook on one process: from the first Q that it draws on, with error feedback and warm start."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as theirs
    shapes = (50, 30), (50,), (20, 50), (6, 10, 3, 3)
    [bucket], [compressor] = made(LowRank(rank=rank), 1, shapes)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        state = theirs.PowerSGDState(None, rank, start_powerSGD_iter=2, min_compression_rate=1)
        for k in range(6):
            [flat] = gradients(k, 1, bucket.n)
            had = k > 2
            if k == 3:
                left = state.error_dict[0].numpy().copy()
                qs = state.q_memory_dict[0].split([rank * 30, rank * 50, rank * 90])
                compressor.load({f"{name}.q": q.view(-1, rank).numpy() for name, q in zip("acd", qs)})
            expected = theirs.powerSGD_hook(state, TorchBucket(torch.tensor(flat), shapes)).wait().numpy()
            if had:
                left += flat
                total, _ = lockstep.step([compressor], [lockstep.views(bucket, left)], k, bucket.n)
                assert np.allclose(total, expected, atol=1e-4) and np.allclose(left, state.error_dict[0].numpy(), atol=1e-4)
        assert had and np.linalg.norm(left) > 1
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_majority_decides_and_of_even_votes_each_rank_in_turn(size):
    flats = gradients(5, size)
    buckets, compressors = made(Sign(), size)
    signs = np.sign(flats)
    for k in range(size):
        total, payloads = lockstep.step(compressors, [lockstep.views(b, f.copy()) for b, f in zip(buckets, flats)], k, N)
        count = np.count_nonzero(signs > 0, axis=0) - np.count_nonzero(signs < 0, axis=0)
        assert np.array_equal(total, size * np.where(count, np.sign(count), signs[k % size]))
        assert all(p.value_code == "1bit" for p in payloads[0]) and len(payloads) == 1


def test_zeros_move_nothing_over_two_steps():
    buckets, compressors = made(Sign(), 2)
    sums = [lockstep.step(compressors, [lockstep.views(b, np.zeros(N, np.float32)) for b in buckets], k, N)[0]
            for k in range(2)]
    assert abs(sums[0]).min() == 2 and not sum(sums).any()


def test_signs_with_feedback_are_scaled_by_the_mean_magnitude():
    """Karimireddy et al. 2019, algorithm 2, by hand, of one rank; its sums add up to those of the gradients."""
    [flat] = gradients(6, 1)
    buckets, [compressor] = made(Sign(feedback=1.0), 1)
    error, totals = np.zeros(N), np.zeros(N)
    left = np.zeros(N, np.float32)
    for k in range(30):
        left += flat
        total, _ = lockstep.step([compressor], [lockstep.views(buckets[0], left)], k, N)
        p, expected = error + flat, np.zeros(N)
        for part in buckets[0].parts:
            expected[part] = np.abs(p[part]).mean() * np.sign(p[part])
        assert np.allclose(total, expected, rtol=1e-4, atol=1e-5)
        error, totals = left.astype(np.float64), totals + total
    assert np.abs(totals / 30 - flat).mean() < 0.2 * np.abs(flat).mean()


def test_between_ranks():
    ended = mpirun(3, SUPPORT / "compressor_ranks.py", timeout=300)
    assert ended.code == 0 and ended.out.endswith("passed\n") and not ended.left, ended.err[-6000:]
