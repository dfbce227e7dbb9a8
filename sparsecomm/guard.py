"""Failure handling of every command: one line for each cause, all ranks end, no process and no shared memory stays.

    sparsecomm.guard.run(main)                        # as a command does
    mpiexec -n 4 python -m sparsecomm.guard script.py # around a script of one's own, or -m module

There a rank is two processes: one that trains, and its parent, which waits and reports that the first one was killed or has
exited in the middle of its work (see `launch`). In a script that is started without it, `install`, which
DistributedOptimizer calls, starts the same guard without that parent: mpiexec then reports that a process was killed.

SPARSECOMM_PATIENCE: seconds after which a rank that neither answers nor computes is given up; default: see `watch`.
"""

import atexit
import contextlib
import functools
import importlib.util
import os
import runpy
import signal
import sys
import time
import traceback

from hogwild.errors import Terminated, UserError
from sparsecomm.faults import leftovers, watch
from sparsecomm.faults.watch import COLLECT_SECONDS, Failure, Guard
from sparsecomm.wire import launch
from sparsecomm.wire.launch import say

active = None  # the Guard of all ranks of this process's job
others = []  # the Guards of subsets of these ranks
USAGE = "usage: mpiexec -n N python -m sparsecomm.guard SCRIPT|-m MODULE [ARGUMENT …]"


def run(main, alone=None):
    """Call `main()` and end the process with its exit code; under mpiexec all ranks end when one fails.

    0; 2 for a UserError, its line printed once where all ranks raise it alike; 130 or 143 for Ctrl-C and SIGTERM; 1 for any
    other exception, with its traceback. Returns where `main` does and no rank has failed.
    alone: called with the UserError, in place of `main`, where the launcher's processes do not see each other.
    """
    global active
    if launch.size() > 1 and "mpi4py.MPI" not in sys.modules and sys.platform == "linux":
        launch.supervise()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminate)

    def start():
        nonlocal main
        try:
            _start()
        except launch.Apart as error:
            if alone is None:
                raise
            main = functools.partial(alone, error)

    failure = _outcome(start) or _outcome(main) or _outcome(_finish)
    if failure and active:
        active.fail(failure)
    if failure:
        _quit(failure)
    launch.goodbye()
    if active and active.bereaved:
        sys.stdout.flush()
        os._exit(0)  # Open MPI 5.0.11's Finalize may wait for ever once two ranks have died at the same moment


def install(comm) -> list[int]:
    """Guard the ranks of `comm` unless they have a guard, as under `run`; returns their ranks in COMM_WORLD. Collective.

    An uncaught exception on any rank then ends all of them, as under `run`; at its exit each rank waits for the others.
    """
    global active
    from mpi4py import MPI
    names = world_ranks(comm)
    whole = len(names) == MPI.COMM_WORLD.Get_size()
    if len(names) == 1 or _watching(names):
        return names
    if whole:
        comm.Barrier()
        leftovers.unlink_mapped()
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return names
    if not _guards():
        atexit.register(_finish)
    if whole:
        active = Guard(comm)
    else:
        others.append(Guard(comm))
    return names


def world_ranks(comm) -> list[int]:
    """The ranks of `comm` as COMM_WORLD has them: their names in all messages."""
    from mpi4py import MPI
    own, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
    names = own.Translate_ranks(list(range(own.size)), world)
    own.Free()
    world.Free()
    return list(names)


@contextlib.contextmanager
def together(names, what):
    """A context of the collective call `what` ("step 8") of all ranks `names` (see `world_ranks`), which call in one order.

    A line on stderr names a rank that ends without the call, or for which the others wait long.
    """
    group, guard = " ".join(map(str, names)), _watching(names)
    if guard is None or group in guard.open_calls:
        yield
        return
    guard.begin_call(group, what)
    try:
        yield
    finally:
        guard.end_call(group)


def collective(what):
    """Decorator of a method that is called by all ranks of `self.names`: `together` with what(self)."""
    def decorator(method):
        @functools.wraps(method)
        def call(self, *args, **options):
            with together(self.names, what(self)):
                return method(self, *args, **options)
        return call
    return decorator


def patience(seconds):
    """Set the seconds without an answer after which a rank that does not compute is given up. Raises UserError below 5 s."""
    watch.patience(seconds)
    for guard in _guards():
        guard.set_patience(seconds)


def uncaught(error):
    """End all ranks for an uncaught exception of this one. Returns where there are no other ranks."""
    failure = _failure(error)
    for guard in _guards():
        guard.fail(failure)
    if failure and (launch.mpi_is_on() or launch.has_launcher()):
        _say(failure, f"rank {launch.rank()}: ")
        launch.abort(failure.code)


def restart(comm):
    """Replace the guard, of whose ranks some are dead, by one of the ranks of `comm`. Collective over `comm`."""
    global active
    if active:
        active.abandon()
        given, active = (active.patience, active.hung), Guard(comm, active.tolerant)
        active.patience, active.hung = given
        active.bereaved = True


def _guards():
    return [*filter(None, [active]), *others]


def _watching(names) -> Guard | None:
    """The guard of all of `names`, or None; the same on all of them, for its construction is collective."""
    return next((guard for guard in _guards() if guard.members.issuperset(names)), None)


def _finish():
    for guard in _guards():
        guard.finish()


def _in_child():
    """A process that this one has forked, such as a worker of a Pool, is no rank."""
    global active
    active, launch.parent = None, None
    others.clear()
    if signal.getsignal(signal.SIGTERM) is _terminate:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)


def _start():
    """Start the guard of this process, where it is one of several ranks."""
    global active
    if launch.size() > 1:
        comm = launch.world()
        launch.limit_threads(comm)
        from mpi4py import MPI
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            active = Guard(comm)
        else:
            raise UserError("this MPI cannot be called from several threads (MPI_THREAD_MULTIPLE), which the watch over the "
                            "ranks needs; use the one of '.[mpich]")


def _terminate(number, frame):
    raise Terminated


def _outcome(function) -> Failure | None:
    """Call `function()`; the Failure that its exception means, or None."""
    try:
        function()
    except BaseException as error:
        return _failure(error.with_traceback(error.__traceback__.tb_next))
    return None


def _failure(error) -> Failure | None:
    """The Failure that an exception means for this rank; None: exit code 0."""
    if isinstance(error, UserError):
        return Failure(2, _line(error), named=getattr(error, "names_its_rank", False))
    if isinstance(error, MemoryError):
        return Failure(2, _line(f"not enough memory: {error}"))
    if isinstance(error, KeyboardInterrupt):
        return Failure(143, "terminated") if isinstance(error, Terminated) else Failure(130, "interrupted")
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as head, has gone
        return Failure(1)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return Failure(code, _line(error.code) if isinstance(error.code, str) else "") if code else None
    return Failure(1, _line(f"{type(error).__name__}: {error}"), "".join(traceback.format_exception(error))[-8000:])


def _line(message) -> str:
    return " ".join(str(message).split("\n"))[:4000]


def _say(failure, who=""):
    say((f"sparsecomm: {who}{failure.cause}\n" if failure.cause else "") + failure.trace)


def _quit(failure):
    """End this process, which is alone or has no guard yet, and the other ranks; of these only rank 0 prints at once."""
    if not launch.rank():
        _say(failure)
        time.sleep(launch.FLUSH_SECONDS if launch.size() > 1 else 0)
    elif launch.has_launcher():
        time.sleep(COLLECT_SECONDS)
        _say(failure, f"rank {launch.rank()}: ")
    launch.goodbye()
    launch.abort_launcher(failure.code)
    sys.exit(failure.code)


def _script():
    """Run the script or module of the command line as python does."""
    del sys.argv[0]
    if sys.argv in ([], ["-m"]):
        raise UserError(USAGE)
    if sys.argv[0] == "-m":
        name = sys.argv[1]
        del sys.argv[0]
        sys.path[0] = os.getcwd()
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise UserError(f"there is no module {name}; {USAGE}")
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    if not os.path.exists(sys.argv[0]):
        raise UserError(f"there is no script {sys.argv[0]}; {USAGE}")
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    from sparsecomm import guard  # this file is imported under its own name too: `active` must be that one's
    guard.run(_script)
