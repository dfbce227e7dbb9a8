"""Matrix factorization in the training loop: resume, recovery from divergence, and going on from a model."""

import json

import numpy as np
from log import Log

from hogwild.families.mf_problem import Factorization, MatrixFactorization, Ratings, decay_of, default_l2
from hogwild.kernels.families.mf_negatives import BPR
from hogwild.kernels.losses import Squared
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.loop import train
from hogwild.training.replicated import Sharing, Steps


def planted(users=60, items=50, n=1800, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:n]
    u, i = (pairs // items).astype(np.uint32), (pairs % items).astype(np.uint32)
    values = (rng.standard_normal((users, 2))[u] * rng.standard_normal((items, 2))[i]).sum(1)
    return Ratings(u, i, ((values + 3) * scale).astype(np.float32), users, items)


def made(ratings, loss=None, **sharing):
    loss = Squared() if loss is None else loss
    return MatrixFactorization(ratings, Factorization(loss, 5), Steps(SGD(), decay_of(default_l2(ratings, loss))),
                               Sharing(**sharing), side=4)


class Kept:
    """Checkpoints, one whenever the run asks, as a file would hold them."""

    def __init__(self):
        self.all = []

    def due(self, epoch_end=False):
        return True

    def save(self, tensors, state):
        self.all.append(({name: x.copy() for name, x in tensors.items()}, json.dumps(state)))


def test_resumed_within_an_epoch_the_result_is_that_of_an_unbroken_run():
    for loss in Squared(), BPR():
        whole, kept = made(planted(), loss, mode="deterministic"), Kept()
        train(whole, SGD(), Constant(0.1), epochs=4, checkpoint=kept)
        within = [(tensors, state) for tensors, state in kept.all if json.loads(state)["at"] > 0]
        assert len(within) >= 4
        tensors, state = within[len(within) // 2]
        resumed = made(planted(), loss, mode="deterministic", workers=2)
        train(resumed, SGD(), Constant(0.1), epochs=4, workers=2, resume=(tensors, json.loads(state)))
        assert resumed.shared.tobytes() == whole.shared.tobytes()


def test_from_too_large_a_rate_back_and_on_to_a_good_end():
    for workers, mode in ((1, "wild"), (2, "deterministic")):
        problem, log = made(planted(), workers=workers, mode=mode), Log()
        history = train(problem, SGD(), Constant(20.0), epochs=40, workers=workers, report=log, retries=12)
        assert {name for name, _ in log.events} == {"rollback"} and "rating of user" in log.events[0][1]["text"]
        assert history[-1].loss < problem.reference().start / 4


def test_the_unit_of_the_ratings_changes_nothing_but_the_unit():
    """Ratings times 1000 with the default penalty: the same model, times that."""
    a, b = made(planted()), made(planted(scale=1000.0))
    losses = [train(problem, SGD(), Constant(0.05), epochs=5)[-1].loss for problem in (a, b)]
    np.testing.assert_allclose(b.user_factors, a.user_factors * 1000**0.5, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(b.item_biases, a.item_biases * 1000, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(losses[1], losses[0] * 1e6, rtol=1e-4)


def test_going_on_from_a_model():
    old, ratings = made(planted()), planted(70, 55)
    train(old, SGD(), Constant(0.1), epochs=20)
    new = made(ratings)
    new.begin_at(old.user_factors, old.item_factors, old.user_biases, old.item_biases)
    np.testing.assert_allclose(new.user_factors[:60], old.user_factors, rtol=1e-5)
    np.testing.assert_allclose(new.item_biases[:50], old.item_biases, rtol=1e-5)
    assert new.user_factors[60:].any() and not new.item_biases[50:].any()
