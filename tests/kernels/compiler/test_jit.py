"""The disk cache of kernels, in processes of their own, on a copy of kernels/."""

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
PROGRAM = """
import json, sys
import numpy as np
from hogwild import kernels
from hogwild.kernels.compiler import cache
from hogwild.kernels.optim import rules, steps
{rule}
def run(rule, lr, t):
    w = np.zeros(8, np.float32)
    steps.dense_step(rule, w, np.ones(8, np.float32), steps.new_slots(rule, 8), lr, t)
    return float(w[0])
first = run(Rule(), 0.5, 0)
compiled = len(steps.step.signatures)
for lr, t in (0.25, 7), (1, 8):
    run(Rule({other}), lr, t)
stats = steps.step.stats
print(json.dumps(dict(
    first=first, hits=sum(stats.cache_hits.values()), misses=sum(stats.cache_misses.values()), compiled=compiled,
    compiled_later=len(steps.step.signatures) - compiled, cache=str(cache.cache_root()), file=kernels.__file__)))
"""
GIVEN = "from hogwild.kernels.optim.rules import Momentum as Rule"
MINE = """
from typing import NamedTuple
class Rule(NamedTuple):
    a: float = 1.0
    def start(hp): return ()
    def prepare(hp, lr, t): return (lr * hp.a,)
    @staticmethod
    def update(c, g, slots): return c[0] * g, slots
"""


NESTED = """
from hogwild.kernels.compiler.jit import kernel
@kernel
def leaf(x, out):
    if x < 0: raise ValueError("negative", x)
    out[0] += x
@kernel
def middle(x, hp, out):
    leaf(x, out)
    leaf(hp.a * x, out)
@kernel
def top(x, hp, out): middle(x, hp, out)
@kernel
def another(x, hp, out):
    middle(x, hp, out)
    out[0] += 0.0
"""
CALL = """
import json, sys
from typing import NamedTuple
import numpy as np
import nested
class Two(NamedTuple):
    a: float = 2.0
out = np.zeros(1)
call = getattr(nested, sys.argv[1])
call(1.0, Two(), out)
try:
    call(-1.0, Two(), out)
except ValueError as error:
    assert error.args == ("negative", -1.0)
    out += 1
counts = [[sum(c.values()) for c in (k.called.stats.cache_hits, k.called.stats.cache_misses)]
          for k in (nested.middle, nested.leaf)]
nested.leaf(0.5, out)
print(json.dumps([out[0], *counts]))
"""


STAMPS = """
import importlib, json, pathlib, sys
module = importlib.import_module("hogwild.kernels." + sys.argv[1])
from hogwild.kernels.compiler import sources
loaded = [name for name in sys.modules if f"{name}.".startswith("hogwild.kernels.")]
def stamp():
    sources._source.cache_clear()
    return sources.source_stamp.__wrapped__(module.__file__, module.__name__)
noticed, before = [], stamp()
for path in pathlib.Path("hogwild/kernels").rglob("*.py"):
    path.write_text(path.read_text() + "\\n# edited\\n")
    if (after := stamp()) != before:
        noticed.append(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    before = after
print(json.dumps([loaded, noticed]))
"""


@pytest.fixture
def run(tmp_path):
    """`run(rule)` runs PROGRAM on the copy in tmp_path, with its cache in tmp_path, and returns what it printed."""
    shutil.copytree(KERNELS, tmp_path / "hogwild" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hogwild" / "__init__.py").touch()

    def run(rule=GIVEN, other="0.5", **env):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(rule=rule, other=other))
        inherited = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
        env = inherited | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"} | env
        result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path, env=env)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert Path(report["file"]).parent == tmp_path / "hogwild" / "kernels"
        return report
    return run


def counts(report):
    return report["hits"], report["misses"]


def test_second_process_and_other_numbers_compile_nothing(run):
    first, second = run(), run()
    assert counts(first) == (0, 1) and counts(second) == (1, 0)
    assert first["compiled"] == second["compiled"] == 1
    assert first["compiled_later"] == second["compiled_later"] == 0


def test_parts_of_kernels_are_cached_for_other_kernels(tmp_path):
    """What a kernel calls is compiled for those that call it, kept for the next, and can also be called itself.

    It raises what is made as it runs, and takes a class of the main program, in whichever process it was compiled.
    """
    (tmp_path / "nested.py").write_text(NESTED)
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    env.pop("NUMBA_CACHE_DIR", None)
    (tmp_path / "program.py").write_text(CALL)
    for name, hits, inner in (("top", [0, 1], [0, 1]), ("another", [1, 0], [0, 0]), ("top", [0, 0], [0, 0]),
                              ("another", [0, 0], [0, 0])):
        result = subprocess.run([sys.executable, tmp_path / "program.py", name], capture_output=True, text=True, env=env)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == [4.5, hits, inner]


def test_of_processes_that_start_together_one_compiles(run):
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda _: run(), range(3)))
    assert sorted(map(counts, together)) == [(0, 1), (1, 0), (1, 0)]
    assert len({report["first"] for report in together}) == 1


def test_only_an_edit_of_what_the_kernel_imports_compiles_it_anew(run, tmp_path):
    """Directly (hyperparameters) or through two other modules (cache_folders); `step` calls nothing of linear.py."""
    def edited(name):
        with open(tmp_path / "hogwild" / "kernels" / name, "a") as file:
            file.write("\n# edited\n")
        return counts(run())
    assert counts(run()) == (0, 1)
    assert edited("families/linear.py") == (1, 0)
    assert edited("optim/hyperparameters.py") == edited("compiler/cache_folders.py") == (0, 1)


@pytest.mark.parametrize("name", ["families.linear", "compression.value_codes"])
def test_a_stamp_changes_with_each_file_that_python_loads_for_the_module(tmp_path, name):
    shutil.copytree(KERNELS, tmp_path / "hogwild" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hogwild" / "__init__.py").touch()
    result = subprocess.run([sys.executable, "-c", STAMPS, name], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    loaded, noticed = map(set, json.loads(result.stdout))
    assert noticed == loaded and f"hogwild.kernels.{name}" in loaded and "hogwild.kernels.data.conflicts" not in loaded


def test_edit_to_a_users_rule_and_to_what_it_imports_is_noticed(run, tmp_path):
    """Through modules and packages of the user's own, whichever way they are imported: their constants are in the code."""
    (tmp_path / "own").mkdir()
    mine = "from own.middle import FACTOR\n" + MINE.replace("c[0] * g", "FACTOR * c[0] * g")
    edits = [("own/__init__.py", "THREE = 3.0\n", None), ("own/end.py", "TWO = 2.0\n", None),
             ("own/middle.py", "from . import end\nFACTOR = end.TWO\n", None), ("own/other.py", "unused = 1\n", None),
             ("mine.py", mine, (-1.0, 0, 1)),
             ("own/other.py", "unused = 2\n", (-1.0, 1, 0)),  # not by the rule
             ("own/end.py", "import own\nTWO = own.THREE\n", (-1.5, 0, 1)),
             ("own/__init__.py", "THREE = 4.0\n", (-2.0, 0, 1)),
             ("mine.py", mine.replace("c[0] * g", "2 * c[0] * g"), (-4.0, 0, 1))]
    for name, text, expected in edits:
        (tmp_path / name).write_text(text)
        if expected:
            result = run("import own.other\nfrom mine import Rule")
            assert (result["first"], *counts(result)) == expected


def test_a_users_rule_does_not_disturb_other_programs(run, tmp_path):
    """All programs share one index of the cache, also those that cannot import the rule of another."""
    (tmp_path / "mine.py").write_text(MINE)
    run(), run("from mine import Rule")
    (tmp_path / "mine.py").unlink()
    assert counts(run()) == (1, 0)


def test_rule_of_the_main_program_is_cached(run):
    first, second = run(MINE), run(MINE)
    assert (counts(first), counts(second)) == ((0, 1), (1, 0)) and first["compiled_later"] == second["compiled_later"] == 0


def test_nothing_is_written_below_a_read_only_package(run, tmp_path):
    package = tmp_path / "hogwild" / "kernels"
    files = {path: path.read_bytes() for path in package.rglob("*.py")}
    package.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        report = run()
        assert {path: path.read_bytes() for path in package.rglob("*.py")} == files
        assert Path(report["cache"]).is_relative_to(tmp_path / "cache") and list(Path(report["cache"]).rglob("*.nbc"))
    finally:
        package.chmod(stat.S_IRWXU)


def test_no_writable_cache_falls_back_to_a_temporary_folder(run, tmp_path):
    (tmp_path / "plain").write_text("a file, not a folder")
    (tmp_path / "temporary").mkdir()
    below = str(tmp_path / "plain" / "cache")
    report = run(XDG_CACHE_HOME=below, HOME=str(tmp_path / "plain"), TMPDIR=str(tmp_path / "temporary"))
    assert Path(report["cache"]).is_relative_to(tmp_path / "temporary") and list(Path(report["cache"]).rglob("*.nbc"))
