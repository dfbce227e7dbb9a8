"""Rules, losses and schedules of a user's own that have a mistake: one line says which, and what is needed."""


import numpy as np
import pytest

from hogwild.errors import UserError
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.rules import RULES, SGD
from hogwild.kernels.optim.schedules import SCHEDULES
from hogwild.kernels.optim.steps import dense_step, new_slots
from hogwild.training.registry import build

TABLES = {"rule": RULES, "loss": LOSSES, "schedule": SCHEDULES}
HEAD = "from typing import NamedTuple\nimport numpy as np\n"
RULE = HEAD + """class Own(NamedTuple):
    b: float = 0.5
    default_lr = 0.1
    def start(hp): return (0.0,)
    def prepare(hp, lr, t): return (lr, hp.b)
    @staticmethod
    def update(c, g, slots):
        m = c[1] * slots[0] + g
        return c[0] * m, (m,)
"""
LOSS = HEAD + """class Own(NamedTuple):
    task = "regression"
    def evaluate(self, z, y): return 1.0 * abs(z - y) + 0.0 * z, 1.0 if z > y else -1.0
"""
SCHEDULE = HEAD + """class Own(NamedTuple):
    lr: float = 1.0
    def rate(self, t): return self.lr / (t + 1)
"""
SOURCES = {"rule": RULE, "loss": LOSS, "schedule": SCHEDULE}


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A function of the source of a module: what `build` makes of the class Own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{abs(hash(request.node.name))}"

    def make(source, what="rule", module=name):
        (tmp_path / f"{module}.py").write_text(source)
        return build(f"{module}.Own", TABLES[what], what)
    return make


@pytest.mark.parametrize("what", SOURCES)
def test_without_a_mistake(own, what):
    made = own(SOURCES[what], what)
    assert type(made).__qualname__ == "Own" and all(isinstance(x, float) for x in made)


@pytest.mark.parametrize("what, old, new, words", [
    ("rule", "    def start(hp): return (0.0,)\n", "", ["has no start()"]),
    ("rule", "    def prepare(hp, lr, t): return (lr, hp.b)\n", "", ["has no prepare()"]),
    ("rule", "update(", "updated(", ["has no update()"]),
    ("rule", "return (0.0,)", "return 0.0", ["start() gives 0.0, not a tuple of numbers"]),
    ("rule", "return (0.0,)", "return (0.0, 0.0)", ["update() gives 1 slots, start() has 2"]),
    ("rule", "return (0.0,)", "return ()", ["IndexError: tuple index out of range", "line 10)"]),
    ("rule", "return (lr, hp.b)", "return (lr,)", ["IndexError: tuple index out of range", "line 10)"]),
    ("rule", "return (lr, hp.b)", "return (lr, hp.b) if t else (lr, hp.b, 1)", ["prepare() gives 2 and 3 numbers"]),
    ("rule", "return (lr, hp.b)", "return lr / 0", ["ZeroDivisionError"]),
    ("rule", "return c[0] * m, (m,)", "return c[0] * m", ["update() gives ndarray, not (delta, slots)"]),
    ("rule", "return c[0] * m, (m,)", "return m[:1], (m,)", ["does not work element by element"]),
    ("rule", "return c[0] * m, (m,)", "return c[0] * m, (eval('m'),)", ["Numba cannot compile", "'eval'", "line 11)"]),
    ("rule", "default_lr = 0.1", "default_lr = 'much'", ["default_lr is 'much'"]),
    ("rule", "b: float = 0.5", "b: str = 'half'", ["b must be a number", "'half'"]),
    ("rule", "b: float = 0.5", "b: float", ["missing 1 required positional argument: 'b'"]),
    ("rule", "default_lr = 0.1", "ranges = {'b': 'all'}", ["ValueError", "ranges"]),
    ("rule", "class Own(NamedTuple)", "class Own", ["is no NamedTuple"]),
    ("rule", "class Own(NamedTuple)", "class Other(NamedTuple)", ["cannot import it from here", "Own"]),
    ("rule", HEAD, HEAD + "import nothing_of_that_name\n", ["cannot import it from here", "nothing_of_that_name"]),
    ("rule", HEAD, HEAD + "1 / 0\n", ["cannot be imported: ZeroDivisionError", "line 3)"]),
    ("rule", HEAD, HEAD + "raise SystemExit(3)\n", ["cannot be imported: SystemExit: 3"]),
    ("rule", HEAD, HEAD + "def f(:\n", ["cannot be imported: SyntaxError"]),
    ("loss", 'task = "regression"', "task = 'guess'", ["task is 'guess'"]),
    ("loss", "def evaluate", "def evaluated", ["has no evaluate()"]),
    ("loss", ", 1.0 if z > y else -1.0", "", ["evaluate() gives 0.5, not two numbers"]),
    ("loss", "1.0 * abs(z - y)", "eval('z')", ["Numba cannot compile", "'eval'", "line 5)"]),
    ("schedule", "def rate", "def rates", ["has no rate()"]),
    ("schedule", "self.lr / (t + 1)", "-self.lr", ["rate(0) gives -1.0"]),
    ("schedule", "self.lr / (t + 1)", "eval('0.5')", ["Numba cannot compile"]),
])
def test_a_mistake_is_one_line(own, what, old, new, words):
    assert old in SOURCES[what]
    with pytest.raises(UserError) as caught:
        own(SOURCES[what].replace(old, new), what)
    said = str(caught.value)
    assert "\n" not in said and "\x1b" not in said and said.startswith(what) and all(word in said for word in words), said


@pytest.mark.parametrize("what", TABLES)
@pytest.mark.parametrize("name", [".x", "x.", "..", ".", "a..b", "my_rules/Lion.x", "1.5"])
def test_what_is_no_name_is_told_how_one_looks(what, name):
    with pytest.raises(UserError, match=f"needs MODULE.NAME, such as my_{what}s."):
        build(name, TABLES[what], what)


def test_rules_of_one_name_do_not_run_each_others_code(own):
    """As after an edit in a notebook, or with a name that is taken; Numba itself goes by the name alone."""
    moved = []
    for k, name in (1, "Own"), (2, "Own"), (3, "SGD"), (4, "SGD"):
        source = RULE.replace("return c[0] * m", f"return {k} * c[0] * m").replace("class Own", f"class {name}")
        rule, w = own(source + f"Own = {name}\n", module=f"twin_{k}"), np.zeros(2, np.float32)
        dense_step(rule, w, np.ones(2, np.float32), new_slots(rule, 2), 1.0, 0)
        moved.append(w.tolist())
    assert moved == [[-k, -k] for k in (1, 2, 3, 4)] and SGD.__name__ == "SGD"


def test_a_factory_is_as_good_as_a_class(own):
    made = own(RULE.replace("class Own", "class Mine") + "import functools\nOwn = functools.partial(Mine, b=0.25)\n")
    assert made == (0.25,)
