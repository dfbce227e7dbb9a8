"""A foreign package named `kernels` must be named, not crash somewhere inside; the version comes from the metadata."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hogwild
import sparsecomm

ROOT = Path(hogwild.__file__).parents[1]


def run(code, *folders, cwd):
    """Without site-packages (-S), where an installed copy of ours would hide the foreign one."""
    path = os.pathsep.join(map(str, folders))
    return subprocess.run([sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=cwd,
                          capture_output=True, text=True)


@pytest.mark.parametrize("package", ["hogwild", "sparsecomm"])
@pytest.mark.parametrize("init", [True, False])
def test_foreign_kernels(tmp_path, package, init):
    foreign = tmp_path / "kernels"
    foreign.mkdir()
    if init:
        (foreign / "__init__.py").touch()
    for own in ("hogwild", "sparsecomm"):  # linked, because a folder without __init__.py comes after every package
        (tmp_path / own).symlink_to(ROOT / own)
    result = run(f"import {package}", tmp_path, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and str(foreign) in last and "pip uninstall kernels" in last


def test_own_kernels(tmp_path):
    assert run("import hogwild, sparsecomm", ROOT, cwd=tmp_path).returncode == 0


def test_import_is_light(tmp_path):
    code = "import sys, hogwild, sparsecomm; sys.exit('numpy' in sys.modules or 'numba' in sys.modules)"
    assert run(code, ROOT, cwd=tmp_path).returncode == 0


def test_version(tmp_path):
    installed = tmp_path / "hogwild_sparsecomm-9.8.7.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: hogwild-sparsecomm\nVersion: 9.8.7\n")
    code = "import hogwild, sparsecomm; print(hogwild.__version__, sparsecomm.__version__)"
    assert run(code, tmp_path, ROOT, cwd=tmp_path).stdout.split() == ["9.8.7", "9.8.7"]
    for package in (hogwild, sparsecomm):
        assert not hasattr(package, "nothing_of_this_name")
