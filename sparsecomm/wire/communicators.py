"""Communicators of this package alone: its messages cannot match those of the calling program."""

from sparsecomm.wire import launch

_keys = []  # the attribute under which a communicator keeps its duplicate


def shared(comm=None):
    """The duplicate of `comm` (None: of all ranks) that everything in the main thread uses. Collective on its first call.

    One for all: MPI has room for some 2,000 communicators, and a program may make more optimizers. Raises UserError as
    `launch.mpi` does.
    """
    mpi = launch.mpi()
    comm = mpi.COMM_WORLD if comm is None else comm
    if not _keys:
        _keys.append(mpi.Comm.Create_keyval())
    duplicate = comm.Get_attr(_keys[0])
    if duplicate is None:
        duplicate = comm.Dup()
        comm.Set_attr(_keys[0], duplicate)
    return duplicate
