"""Distributions on PyPI are named `kernels` and `experiments`: ours run beside them. What packages show, their version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hogwild
import sparsecomm

ROOT = Path(hogwild.__file__).parents[1]


def run(*arguments, folders=(), cwd):
    path = os.pathsep.join(map(str, folders))
    return subprocess.run([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path}, cwd=cwd, capture_output=True,
                          text=True, timeout=120)


@pytest.fixture
def foreign(tmp_path):
    """A folder that holds packages named `kernels` and `experiments`, found before all others."""
    for name in "kernels", "experiments":
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('the foreign {name}')")
    return tmp_path


@pytest.mark.parametrize("arguments", [
    ("-c", "import hogwild.kernels.families.linear, hogwild.experiments.plan.grid"),
    ("-m", "hogwild", "train", "linear", "--help"), ("-m", "sparsecomm", "--help"), ("-m", "hogwild.experiments", "list"),
    ("-c", "from sparsecomm.exchange import sparse")])
def test_foreign_packages_of_the_same_name_do_no_harm(foreign, arguments):
    result = run(*arguments, folders=[foreign], cwd=foreign)
    assert result.returncode == 0, result.stderr


def test_import_is_light(tmp_path):
    code = "import sys, hogwild, sparsecomm; sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert run("-c", code, cwd=tmp_path).returncode == 0
    code = ("import sys, hogwild.kernels.families.linear; "
            "sys.exit(any(x in sys.modules for x in ('torch', 'sklearn', 'mpi4py')))")
    assert run("-c", code, cwd=tmp_path).returncode == 0


def test_version(tmp_path):
    installed = tmp_path / "hogwild_sparsecomm-9.8.7.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: hogwild-sparsecomm\nVersion: 9.8.7\n")
    code = "import hogwild, sparsecomm; print(hogwild.__version__, sparsecomm.__version__)"
    assert run("-S", "-c", code, folders=[tmp_path, ROOT], cwd=tmp_path).stdout.split() == ["9.8.7", "9.8.7"]
    for package in (hogwild, sparsecomm):
        assert not hasattr(package, "nothing_of_this_name")


def test_what_is_public_is_shown():
    for package in hogwild, sparsecomm:
        assert all(getattr(package, name) is not None for name in dir(package)) and "__version__" in dir(package)


def test_every_folder_of_code_is_installed():
    """setup.cfg lists the packages one by one."""
    listed = (ROOT / "setup.cfg").read_text().partition("packages =\n")[2].partition("\ninstall_requires")[0].split()
    folders = [path.parent.relative_to(ROOT) for top in ("hogwild", "kernels", "sparsecomm", "experiments")
               for path in (ROOT / top).rglob("*.py")]
    names = {".".join(path.parts if path.parts[0] in ("hogwild", "sparsecomm") else ("hogwild", *path.parts))
             for path in folders}
    assert sorted(names) == sorted(listed)
