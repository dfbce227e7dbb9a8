"""What one process of a job runs on, as `sparsecomm doctor` compares it over the ranks: numbers and texts that JSON has."""

import contextlib
import hashlib
import importlib.util
import io
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path

import hogwild
import hogwild.kernels
import sparsecomm
from hogwild.kernels.compiler import cache, cache_folders
from hogwild.training import machine
from sparsecomm.wire import nic_counters
from sparsecomm.wire.handshake import own_facts

LEVELS = ("single", "funneled", "serialized", "multiple")
# Settings with which users say over what messages go; the prefixes of Open MPI, UCX, libfabric and MPICH.
TRANSPORT = ("OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mtl", "UCX_TLS", "UCX_NET_DEVICES", "FI_PROVIDER", "MPIR_CVAR_CH4",
             "MPIR_CVAR_OFI", "MPIR_CVAR_NOLOCAL")
ROUTES = Path("/proc/net/route")


def facts() -> dict:
    """All facts of this process. Imports torch where it is installed."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    torch, torch_threads = _torch()
    versions = {**mpi(), "mpi4py": _version("mpi4py"), "python": platform.python_version(), **own_facts(), "torch": torch,
                "sources": sources()}
    return {"host": socket.gethostname(), "place": nic_counters.host(), "cores": cores, "usable": machine.usable_cores()[0],
            "omp": os.environ.get("OMP_NUM_THREADS", ""), "torch threads": torch_threads, "versions": versions,
            "transport": {name: value for name, value in sorted(os.environ.items()) if name.startswith(TRANSPORT)},
            "free": free_memory(), "cache": _cache()}


def mpi() -> dict:
    """Name of the MPI that this process has loaded, and the thread level if it was started; nothing where there is none."""
    mpi = sys.modules.get("mpi4py.MPI")
    if not hasattr(mpi, "Get_library_version"):
        return {}
    library = " ".join(mpi.Get_library_version().split("\n")[0].strip("\0").split())
    name = {"MPI": library.replace("MPICH Version: ", "MPICH ").split(", package")[0]}
    if not mpi.Is_initialized():
        return name
    return {**name,
            "thread level": LEVELS[(mpi.THREAD_SINGLE, mpi.THREAD_FUNNELED, mpi.THREAD_SERIALIZED,
                                    mpi.THREAD_MULTIPLE).index(mpi.Query_thread())]}


def sources() -> str:
    """A hash of the Python files of this installation, which a version does not tell apart in a checkout."""
    digest = hashlib.sha256()
    for package in (hogwild, hogwild.kernels, sparsecomm):
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package.__name__} {path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def free_memory() -> int:
    """Bytes of memory that processes of this machine, or of this process's cgroup if it has less, can still be given."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return min(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]), machine.memory())
    return machine.memory()


def route(host) -> str:
    """The interface to which this host's IPv4 routes lead for `host`, or why that is not known."""
    try:
        to = int.from_bytes(socket.inet_aton(socket.gethostbyname(host)), "little")  # as /proc has the addresses
        rows = [line.split() for line in ROUTES.read_text().splitlines()[1:]]
        fit = [row for row in rows if to & int(row[7], 16) == int(row[1], 16)]
        return max(fit, key=lambda row: int(row[7], 16).bit_count())[0]
    except OSError as error:
        return f"an unknown one ({host}: {error.strerror or error})"
    except (ValueError, IndexError):
        return f"an unknown one (no route to {host})"


def _version(package) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> tuple[str, int]:
    """(version of torch, or why there is none; its number of threads, or 0)"""
    if importlib.util.find_spec("torch") is None:
        return "not installed", 0
    try:
        import torch
    except Exception as error:  # of a library that it links to, say
        return "cannot be imported: " + " ".join(str(error).split())[:200], 0
    return torch.__version__, torch.get_num_threads()


def _cache() -> tuple[str, bool]:
    """(folder of the compiled kernels, whether they stay there); it is made where there is none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the table says it
            folder = cache.cache_root()
    except OSError as error:
        return str(error), False
    return str(folder.parent), not cache_folders.is_temporary(folder)
