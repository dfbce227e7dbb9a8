"""How a process becomes a rank: its parent that watches it, its MPI, its threads.

mpi4py is imported late: a process that has initialised MPI must not fork.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import warnings

from hogwild.errors import UserError

SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # where launchers put the number of ranks …
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")  # … and a process's own
SEGMENTS = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.", "/dev/shm/ucx_shm_")  # MPICH's, Open MPI's
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_SECONDS = 1.0  # between two looks whether the launcher is still there
FLUSH_SECONDS = 0.3  # mpiexec loses lines that were written just before the end
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def size() -> int:
    """The number of ranks, as the launcher says; 1 without a launcher."""
    return _told(SIZES, 1)


def rank() -> int:
    """This process's rank, as the launcher says; 0 without a launcher."""
    return _told(RANKS, 0)


def _told(names, default) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)


def say(text):
    """Write `text` to standard error in one piece, and not fail where nobody reads it."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def world():
    """COMM_WORLD of MPI, whose shared memory has no names any more, and so leaves no files. Collective.

    Raises UserError where there is no MPI, or another one than mpiexec's.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of another MPI's launcher: see below
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"MPI is needed: pip install 'hogwild-sparsecomm[mpich]' ({reason})") from None
    comm, expected = MPI.COMM_WORLD, size()
    if comm.size == 1 < expected:
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        raise UserError(f"{expected} processes were started, but MPI ({library}) shows each one itself alone: the "
                        f"launcher is another MPI's; use {os.path.dirname(sys.executable)}/mpiexec, or srun --mpi=pmi2")
    comm.Barrier()  # now every rank of this host has mapped what it needs
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for path in {line.rstrip("\n").split(None, 5)[-1] for line in maps}:
            if path.startswith(SEGMENTS) and not path.endswith(" (deleted)"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
    return comm


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

    The parent forwards signals, tells when the child was killed, and ends in the same way, which ends the job. When the
    launcher is gone, so are both.
    """
    parent, launcher = os.getpid(), os.getppid()
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setpgid(0, 0)  # a launcher that signals the whole group would reach the child twice
        return
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
    if code < 0:
        _killed(child, signal.Signals(-code), told=-code not in forwarded)
    os._exit(code)


def _killed(child, number, told):
    """Say which signal killed the child, unless its sender knows (`told`: false), and be killed by the same."""
    if told:
        why = " (by someone, or by the system for want of memory)" if number == signal.SIGKILL else ""
        say(f"sparsecomm: rank {rank()}: process {child} was killed by {number.name}{why}\n")
        time.sleep(FLUSH_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
