"""--help of every sub-command of the three commands, and --version."""

import contextlib
import io
import re
import subprocess
import sys

import numba
import pytest
import tyro

from hogwild.cli import main
from hogwild.cli.arguments import CONFIG
from hogwild.cli.declared import options_of, view
from hogwild.cli.options import Predict
from hogwild.experiments import __main__ as experiments
from hogwild.families import registry
from hogwild.families.linear_options import TrainLinear
from sparsecomm import cli

COMMANDS = main, cli, experiments


@pytest.mark.parametrize("columns", [50, 80, 200])
def test_every_page_fits_the_terminal(columns):
    for name, page in ((name, page) for module in COMMANDS for name, page in module.help_pages(columns).items()):
        lines = page.splitlines()
        assert page.startswith("usage: ") and max(map(len, lines)) <= min(columns, 100), (name, max(lines, key=len))
        assert not re.search(r"\{None\}|default: None|STR\b|PATH\b", page), name
        # A shell takes an example as it stands, whatever its lines.
        assert not re.search(r"\\\s*\n\s*\n|\\ +\n", page), name


def test_every_sub_command_has_a_page():
    names = [name for module in COMMANDS for name in module.help_pages()]
    words = *(f"train {name}" for name in registry.FAMILIES), *main.COMMANDS
    ours = ["hogwild", *(f"hogwild {each}" for each in words)]
    assert names[:len(ours)] == ours
    assert {"sparsecomm train lm", "sparsecomm evaluate", "python -m hogwild.experiments advise"} <= set(names)
    for module in COMMANDS:
        overview, *others = module.help_pages().items()
        assert all(f"  {name.removeprefix(experiments.PROGRAM + ' ')}" in overview[1] for name, _ in others)


@pytest.mark.parametrize("options", [TrainLinear, Predict, *map(cli.command_options, cli.TASKS)])
def test_options_of_the_page_are_those_that_tyro_parses(options):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        tyro.cli(view(options), prog="x", args=["--help"], config=CONFIG)
    flags = set(re.findall(r"^\W{2,4}(--[a-z][a-z0-9-]+)", said.getvalue(), re.MULTILINE))
    assert len(flags) > 3 and flags == {option.shown for option in options_of(options) if not option.positional}


def test_a_page_says_what_is_the_default_and_what_is_needed():
    pages = {name: " ".join(page.split()) for module in COMMANDS for name, page in module.help_pages().items()}
    assert "usage: hogwild evaluate [OPTION …] MODEL DATA" in pages["hogwild evaluate"]
    assert "usage: hogwild train linear [OPTION …] [DATA]" in pages["hogwild train linear"]
    assert "--holdout FLOAT Share of DATA held out" in pages["hogwild train linear"]
    assert "0 trains on everything. (default: 0.1)" in pages["hogwild train linear"]
    assert "--ranks INT Processes that train together. (required)" in pages["python -m hogwild.experiments advise"]
    groups = re.findall(r"(\w+): --", pages["sparsecomm train linear"])
    assert groups == ["data", "model", "training", "stopping", "exchange", "output", "failures", "server"]


def test_version(capsys):
    for run in (main.main, lambda words: pytest.raises(SystemExit, cli.parse, words), experiments.main):
        run(["--version"])
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("hogwild-sparsecomm ") and f"numba {numba.__version__}" in out
        assert out[1] == "Python " + sys.version.split()[0]


@pytest.mark.parametrize("module", ["hogwild", "sparsecomm", "hogwild.experiments"])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_module_prints_help_in_characters_that_there_are(module, encoding):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, timeout=120,
                          env={"PYTHONIOENCODING": encoding, "COLUMNS": "80"})
    assert done.returncode == 0 and b"COMMAND ..." in done.stdout and not done.stderr
