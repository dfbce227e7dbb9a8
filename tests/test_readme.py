"""README.md and docs/: every command and every piece of Python that is not marked as not run does what the page says."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import NOT_RUN, PAGES, ROOT, RUN, SHOWN, blocks, furnish, is_run, same_words, sessions, shell

from hogwild import HogwildClassifier
from hogwild.data import dataset
from hogwild.families import linear
from hogwild.kernels.losses import Logistic
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.loop import train

RANKS = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"
PORTED = "torchrun --standalone --nproc-per-node 2 train_ddp.py", "mpiexec -n 2 python train_mpi.py"
sys.path.insert(0, str(ROOT / "docs" / "hooks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run, one page after another."""
    made = tmp_path_factory.mktemp("reader")
    furnish(made)
    return made


@pytest.fixture(scope="module")
def ran():
    """What the commands that have run printed."""
    return {}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_commands_of(page, folder, ran):
    found = [block for block in blocks(page) if is_run(block)]
    titled = [block for block in found if block.language == "python" and block.title]
    for block in titled:
        (folder / block.title).write_text(block.text)
    commands = [block for block in found if block.language in ("bash", "console")]
    for block in commands:
        for command, said in sessions(block.text) if block.language == "console" else [(block.text, None)]:
            if _lacks_data(command, folder):
                continue
            if command not in ran:
                ran[command] = shell(command, folder)
            assert said is None or same_words(said, ran[command]), f"{block.where}: {command} prints\n{ran[command]}"
    alone = [block.title for block in titled if not any(Path(block.title).stem in other.text for other in commands)]
    if alone:
        shell(f"mpiexec -n 2 python -c '{RANKS}' {' '.join(alone)}", folder)


def _lacks_data(text, folder) -> bool:
    return "imdb-bow" in text and not (folder / "imdb-bow.train.svm.xz").exists()


def test_the_ported_scripts_learn(folder, ran):
    learnt = [ran.get(command) or shell(command, folder) for command in PORTED]
    for printed in learnt:
        first, last = (float(line.split()[-1]) for line in printed.splitlines()[-3::2])
        assert last < 0.5 * first


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_each_block_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block.where}: language '{block.language}'"
        if block.language in RUN and block.text.startswith("# not run"):
            assert block.text.startswith(NOT_RUN), block.where


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.M)) <= targets


@pytest.mark.parametrize("ported", ["train_ddp.py", "train_mpi.py"])
def test_the_differences_are_those_of_the_scripts_that_run(ported):
    pages = pytest.importorskip("pages", reason="MkDocs is not installed")
    shown = [block.text.rstrip("\n") for block in blocks(ROOT / "README.md") if block.language == "diff"]
    assert pages.diff("train.py", ported) in shown


@pytest.fixture
def defined(tmp_path, monkeypatch, request):
    """What is defined once the block with this text has run, as a module that kernels can be compiled from."""
    block, = (block.text for page in PAGES for block in blocks(page) if block.language == "python" and not block.title
              and request.param in block.text and is_run(block))
    (tmp_path / "readme.py").write_text("from readme_given import *\n" + block)
    x = np.random.default_rng(0).standard_normal((600, 20))
    given = type(sys)("readme_given")
    given.X, given.y = x, np.sign(x @ np.arange(20.0))
    monkeypatch.setitem(sys.modules, "readme_given", given)
    monkeypatch.syspath_prepend(tmp_path)
    import readme
    yield readme
    del sys.modules["readme"]


PIECES = ["load_digits", "HogwildClassifier               #", "linear.Linear", "class Toy", "class Lion"]


def test_each_piece_of_python_is_one_of_those_below():
    for block in (block for page in PAGES for block in blocks(page) if block.language == "python"):
        assert block.title or not is_run(block) or any(piece in block.text for piece in PIECES), block.where


@pytest.mark.parametrize("defined", PIECES[:2], indirect=True)
def test_estimator(defined):
    assert isinstance(defined.model, HogwildClassifier)
    assert defined.model.score(defined.X / (16 if hasattr(defined, "load_digits") else 1), defined.y) > 0.9


@pytest.mark.parametrize("defined", ["linear.Linear"], indirect=True)
def test_piece_by_piece(defined):
    assert np.mean(np.sign(defined.scores) == defined.y) > 0.9


@pytest.mark.parametrize("defined", ["class Toy"], indirect=True)
def test_a_family_of_ones_own(defined):
    toy = defined.Toy()
    train(toy, defined.SGD(), Constant(1.0), epochs=1, workers=2)
    assert toy.evaluate() == {"error": 0}


@pytest.mark.parametrize("defined", ["class Lion"], indirect=True)
def test_a_rule_of_ones_own(defined):
    x = np.random.default_rng(0).standard_normal((600, 20))
    rows = dataset.from_arrays(x, np.sign(x[:, 0]))
    made = linear.Linear(rows, None, Logistic(), defined.Lion())
    assert train(made, defined.Lion(), Constant(defined.Lion.default_lr), epochs=3)[-1].loss < 0.69
    assert np.abs(made.w[:-1]).max() == pytest.approx(3 * 600 * 1e-4, rel=0.1)  # each step's size is the rate
