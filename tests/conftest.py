"""Settings that every test shares."""

import os
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import settings

KERNELS, RANKS = (Path(__file__).resolve().parent / folder for folder in ("kernels", "sparsecomm"))

# Files that take longest, a minute and more: at the end one process would run such a file while the other has nothing to do.
LONG = "test_readme.py", "test_loop.py", "test_optimizer.py", "test_hook.py", "test_estimators.py", "test_resume.py"

# The first example of a test may compile a kernel, which takes longer than any deadline.
settings.register_profile("kernels", deadline=None)
settings.load_profile("kernels")


def pytest_report_header():
    checks = os.environ.get("NUMBA_BOUNDSCHECK", "unset")
    return f"numba {numba.__version__}, numpy {np.__version__}, NUMBA_BOUNDSCHECK {checks}"


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    for item in items:
        if KERNELS in item.path.parents and not item.get_closest_marker("unchecked"):
            item.add_marker("checked")
    if hasattr(config, "workerinput"):  # one of several processes, which get whole files in this order
        order = mixed(list(dict.fromkeys(item.path for item in items)))
        items.sort(key=lambda item: order[item.path])


def mixed(files) -> dict:
    """A number for each file, by which those that start ranks are spread evenly among the others (two processes that both
    start ranks wait for each other's), the longest first."""
    order = {}
    for starts_ranks in True, False:
        some = [file for file in files if (RANKS in file.parents or file.name == "test_readme.py") == starts_ranks]
        some.sort(key=lambda file: LONG.index(file.name) if file.name in LONG else len(LONG))
        order |= {file: k / len(some) for k, file in enumerate(some)}
    return order


@pytest.fixture(scope="session")
def data_set():
    """A function: name of a published data set -> its folder; the test is skipped where it is missing."""
    from hogwild.experiments.plan import published

    def of(name):
        if reason := published.missing(name):
            pytest.skip(reason)
        return published.folder() / name
    return of


@pytest.fixture(scope="session", autouse=True)
def own_data_cache(tmp_path_factory):
    """Keep the tests, and what they start, out of the user's cache of data; that of kernels stays in use. Data sets are
    those of HOGWILD_DATA, else those that lie beside the repository.
    """
    from hogwild.kernels.compiler.cache_folders import user_cache
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    with pytest.MonkeyPatch.context() as patch:
        if beside.is_dir() and not os.environ.get("HOGWILD_DATA"):
            patch.setenv("HOGWILD_DATA", str(beside))
        patch.setenv("NUMBA_CACHE_DIR", os.environ.get("NUMBA_CACHE_DIR") or str(user_cache() / "kernels"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """torch computes in one thread: on what tests compute, more would mostly wait for each other."""
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
