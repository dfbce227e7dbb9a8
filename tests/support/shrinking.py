"""Least squares by gradient descent on ranks some of which die: `shrinking.py HOW [RANK:STEP …]`.

The ranks named die before that step, or for STEP "late" when they hear of another's death. HOW: the signal, or "enable" only
to try that, or "plain": with nothing done about deaths.
"""

import os
import signal
import sys

import numpy as np

from sparsecomm import guard
from sparsecomm.wire.launch import TIME_SCALE

STEPS, RATE = 100, 1e-3


def problem():
    """Matrix float64[600, 8] and right side."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(600, 8)), rng.normal(size=600)


def solved():
    """The weights after all steps, without ranks."""
    a, b = problem()
    w = np.zeros(8)
    for _ in range(STEPS):
        w -= RATE * (a.T @ (a @ w - b))
    return w


class Job:
    """The weights and the step of this rank, and its communicator for both."""

    def __init__(self, when, number):
        self.when, self.number = when, number
        self.w, self.t = np.zeros(8), 0

    def die(self, now):
        if self.when == now:
            os.kill(os.getpid(), self.number)

    def train(self, comm, data):
        from mpi4py import MPI
        state = np.append(self.w, self.t)
        comm.Bcast(state)
        self.w, self.t = state[:-1], int(state[-1])
        a, b = (x[comm.rank::comm.size] for x in problem())
        while self.t < STEPS:
            self.die(str(self.t))
            gradient = a.T @ (a @ self.w - b)
            data.Allreduce(MPI.IN_PLACE, gradient)
            self.w -= RATE * gradient
            self.t += 1


def main():
    from mpi4py import MPI

    from sparsecomm.faults import shrink
    how, *deaths = sys.argv[1:]
    guard.patience(5 * TIME_SCALE)
    if how != "plain":
        shrink.enable()
    if how == "enable":
        return
    comm, lost = MPI.COMM_WORLD, []
    data = comm.Dup()
    name = comm.rank
    job = Job(dict(death.split(":") for death in deaths).get(str(name)), getattr(signal, how, signal.SIGKILL))
    while True:
        try:
            job.train(comm, data)
            comm.Agree(1)
            break
        except MPI.Exception as error:
            if how == "plain" or not shrink.is_failure(error):
                raise
            job.die("late")
            comm, dead, names = shrink.recover(comm, [data])
            data = comm.Dup()
            lost += [f"{names[k]}={dead[k]}" for k in range(len(dead))]
    print(name, comm.size, ",".join(lost) or "none", job.w.tobytes().hex(), flush=True)


if __name__ == "__main__":
    guard.run(main)
