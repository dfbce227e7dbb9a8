"""How a process becomes a rank (its supervising parent, MPI, threads), and how a rank ends all of them.

mpi4py is imported late: a process that has initialised MPI must not fork.
"""

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import resource
import signal
import socket
import struct
import sys
import time
import warnings

from hogwild.errors import UserError
from sparsecomm.faults import leftovers

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "WORLD_SIZE")  # where launchers,
# torchrun the last of them, put the number of ranks …
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID", "RANK")  # … and a process's own
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TIME_SCALE = float(os.environ.get("SPARSECOMM_TIME_SCALE", 1))  # factor of all times of the guard; below 1 in tests of faults
LOOK_SECONDS = 1.0 * TIME_SCALE  # between two looks whether the launcher is still there
FORCE_SECONDS = 5.0  # an abort that has no effect within this becomes an exit
FLUSH_SECONDS = 0.3  # mpiexec loses lines that were written just before the end
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

parent = None  # file descriptor to the supervising parent, see `supervise`


class Apart(UserError):
    """A launcher has started several processes, but MPI shows each one itself alone."""


def size() -> int:
    """The number of ranks, as the launcher says; 1 without a launcher."""
    return _told(SIZES, 1)


def rank() -> int:
    """This process's rank, as the launcher says; 0 without a launcher."""
    return _told(RANKS, 0)


def _told(names, default) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def say(text):
    """Write `text` to standard error in one piece; errors, as of a closed pipe, are ignored."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def mpi():
    """The module mpi4py.MPI; its first import makes this process a rank.

    Raises UserError where there is no MPI, another one than mpiexec's, or where this process must not become a rank.
    """
    if multiprocessing.parent_process() is not None and "mpi4py.MPI" not in sys.modules:
        raise UserError("a worker process, as of a DataLoader, is no rank: make the optimizer below "
                        "if __name__ == '__main__', which workers do not run")
    foreign = _mpich_under_open_mpi()
    try:
        import mpi4py
        mpi4py.rc.initialize = mpi4py.rc.initialize and not foreign  # otherwise MPI_Init ends the process
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of another MPI's launcher: see below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"MPI is needed: pip install '.[mpich]' ({reason})") from None
    if foreign or MPI.COMM_WORLD.size == 1 < size():
        library = " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split())
        started = "torchrun starts no ranks of MPI; use" if "TORCHELASTIC_RUN_ID" in os.environ else \
            "the launcher is another MPI's; use"
        raise Apart(f"{size()} processes were started, but MPI ({library}) shows each one itself alone: {started} "
                    f"{os.path.dirname(sys.executable)}/mpiexec -n {size()} python …, or srun --mpi=pmi2")
    return MPI


def _mpich_under_open_mpi() -> bool:
    """Whether MPI_Init is still to be called and would end this process: MPICH's does under Open MPI's launcher."""
    if "OMPI_COMM_WORLD_SIZE" not in os.environ or mpi_is_on() or importlib.util.find_spec("mpi4py") is None:
        return False
    file = getattr(importlib.util.find_spec("mpi4py.MPI"), "origin", None) or ""
    return os.path.basename(file).startswith("MPI.mpich.")  # in wheels; others do not tell their MPI without its start


def world():
    """COMM_WORLD; the names of its shared memory are removed, so that a killed job leaves no files. Collective.

    Raises UserError as `mpi` does.
    """
    first = "mpi4py.MPI" not in sys.modules
    if first:
        leftovers.sweep_old()
    cleaner = leftovers.fork_cleaner() if first and parent is not None else None
    comm = mpi().COMM_WORLD
    comm.Barrier()  # now every rank of this host has mapped what it needs
    leftovers.unlink_mapped()
    if cleaner is not None:
        os.write(cleaner, b"1")
        os.close(cleaner)
    return comm


def abort(code):
    """End all ranks, also those that have not started MPI yet. Does not return."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    time.sleep(FLUSH_SECONDS)
    goodbye()
    if mpi_is_on():
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(code)
    abort_launcher(code)
    os._exit(code)


def mpi_is_on() -> bool:
    """Whether this process has started MPI, and not ended it."""
    mpi = sys.modules.get("mpi4py.MPI")
    return hasattr(mpi, "Is_initialized") and mpi.Is_initialized() and not mpi.Is_finalized()


def abort_launcher(code):
    """Have MPICH's launcher end all ranks: it would otherwise wait for ranks that wait in MPI_Init for this one.

    Returns where there is no such launcher: others end the job themselves when a process fails.
    """
    if link := _launcher():
        with contextlib.suppress(OSError), link:
            link.sendall(f"cmd=abort exitcode={code}\n".encode())
            time.sleep(FORCE_SECONDS)


def has_launcher() -> bool:
    """Whether MPICH's launcher listens."""
    link = _launcher()
    return link is not None and not link.close()


def _launcher() -> socket.socket | None:
    """A socket to MPICH's launcher, or None. In a child of a rank, PMI_FD may be the number of another file."""
    try:
        link = socket.socket(fileno=os.dup(int(os.environ.get("PMI_FD", ""))))
        pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        with open(f"/proc/{pid}/comm") as name:
            return link if name.read().startswith("hydra") else None
    except (OSError, ValueError):
        return None


def limit_threads(comm) -> int:
    """This rank's share of its cores, at least 1, which becomes the number of threads of what computes. Collective.

    A core that several ranks may use counts in parts. The user's OMP_NUM_THREADS goes first. Libraries that are imported
    later take the number from the environment; torch takes it also when it is there.
    """
    from mpi4py import MPI
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    users = (ctypes.c_int * 4096)()
    for core in own:
        users[core % 4096] = 1
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    node.Allreduce(MPI.IN_PLACE, [users, MPI.INT])
    node.Free()
    share = max(1, int(sum(1 / users[core % 4096] for core in own) + 1e-6))
    if "OMP_NUM_THREADS" not in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(share)
    for pool in POOLS:
        os.environ.setdefault(pool, str(share))
    return share


def supervise():
    """Fork. The child returns, to become the rank; the parent never does.

    The parent forwards signals, prints a line where the child was killed or has exited without `goodbye`, and exits as the
    child did, which ends the job. Both end with the launcher.
    """
    global parent
    own, launcher = os.getpid(), os.getppid()
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != own:
            os._exit(1)
        os.setpgid(0, 0)  # a launcher that signals the whole group would reach the child twice
        os.close(heard)
        parent = told
        return
    os.close(told)
    os.set_blocking(heard, False)
    forwarded = set()

    def forward(number, frame):
        forwarded.add(number)
        os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if os.getppid() != launcher:
            os._exit(1)
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_SECONDS)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    code = os.waitstatus_to_exitcode(ended[1])
    if code:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that it has started
    if code < 0:
        _killed(child, signal.Signals(-code), told=-code not in forwarded)
    os._exit(code if _heard(heard) or forwarded else _ended(child, code))


def goodbye():
    """Tell the supervising parent that this process ends by itself, and has printed why if it failed."""
    if parent is not None:
        os.write(parent, b"1")


def _heard(pipe) -> bool:
    try:
        return bool(os.read(pipe, 1))
    except BlockingIOError:  # a process that the child has started could still write
        return False


def _ended(child, code) -> int:
    """Print that the child has exited without `goodbye`; the exit code for the parent."""
    say(f"sparsecomm: rank {rank()}: process {child} has ended with exit code {code} in the middle of its work (os._exit, or "
        "a library that calls exit)\n")
    time.sleep(FLUSH_SECONDS)
    abort_launcher(code or 1)
    return code or 1


def _killed(child, number, told):
    """Print which signal killed the child, unless this process has forwarded it (`told`: false); die of the same signal."""
    if told:
        why = " (by someone, or by the system for want of memory)" if number == signal.SIGKILL else ""
        say(f"sparsecomm: rank {rank()}: process {child} was killed by {number.name}{why}\n")
        time.sleep(FLUSH_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
