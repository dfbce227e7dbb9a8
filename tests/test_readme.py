"""The README's Python for linear models, as it stands there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hogwild import HogwildClassifier
from hogwild.data import dataset
from hogwild.families import linear
from hogwild.kernels.losses import Logistic
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.loop import train

TEXT = Path(__file__).resolve().parents[1].joinpath("README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT[TEXT.index("\n## Python\n"):TEXT.index("\n## Measured\n")], re.S)


@pytest.fixture
def ran(tmp_path, monkeypatch, request):
    """What is defined once the block with this text has run, as a module that kernels can be compiled from."""
    block, = (block for block in BLOCKS if request.param in block)
    (tmp_path / "readme.py").write_text("from readme_given import *\n" + block)
    x = np.random.default_rng(0).standard_normal((600, 20))
    given = type(sys)("readme_given")
    given.X, given.y = x, np.sign(x @ np.arange(20.0))
    monkeypatch.setitem(sys.modules, "readme_given", given)
    monkeypatch.syspath_prepend(tmp_path)
    import readme
    yield readme
    del sys.modules["readme"]


@pytest.mark.parametrize("ran", ["HogwildClassifier"], indirect=True)
def test_estimator(ran):
    assert isinstance(ran.model, HogwildClassifier) and ran.model.score(ran.X, ran.y) > 0.9


@pytest.mark.parametrize("ran", ["linear.Linear"], indirect=True)
def test_piece_by_piece(ran):
    assert np.mean(np.sign(ran.scores) == ran.y) > 0.9


@pytest.mark.parametrize("ran", ["class Toy"], indirect=True)
def test_a_family_of_ones_own(ran):
    toy = ran.Toy()
    train(toy, ran.SGD(), Constant(1.0), epochs=1, workers=2)
    assert toy.evaluate() == {"error": 0}


@pytest.mark.parametrize("ran", ["class Lion"], indirect=True)
def test_a_rule_of_ones_own(ran):
    x = np.random.default_rng(0).standard_normal((600, 20))
    rows = dataset.from_arrays(x, np.sign(x[:, 0]))
    made = linear.Linear(rows, None, Logistic(), ran.Lion())
    assert train(made, ran.Lion(), Constant(ran.Lion.default_lr), epochs=3)[-1].loss < 0.69
    assert np.abs(made.w[:-1]).max() == pytest.approx(3 * 600 * 1e-4, rel=0.1)  # each step's size is the rate
