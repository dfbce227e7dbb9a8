"""What clients and servers share: a communicator of their own, the run's id, and transfers that are only ever polled."""

import secrets
import time
import zlib

import numpy as np

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.server import requests as r
from sparsecomm.server.ranges import Layout
from sparsecomm.wire import launch
from sparsecomm.wire.handshake import handshake
from sparsecomm.wire.mpi import BYTE, LIMIT

PATIENCE = 20.0 * launch.TIME_SCALE  # seconds of waiting after which a line names whom this rank waits for
LONGEST = 600.0  # seconds of waiting after which it is an error
SPINS = 50  # looks before the first nap
NAPS = 50e-6, 1e-3  # seconds of the first nap, and of the longest


class Post:
    """Requests and replies between ranks of `comm`, without a blocking call. most: the most bytes of one that arrives."""

    def __init__(self, comm, most):
        self.comm, self.most, self.mpi = comm, most, launch.mpi()
        self.leaving, self.arriving, self.looks = [], [], 0
        self.sent, self.received = 0, 0  # bytes
        self.status = self.mpi.Status()

    def send(self, to, raw):
        """Send uint8[…] to a rank; the array must not change any more."""
        self.leaving.append((self.comm.Isend([raw, BYTE], to), raw))
        self.sent += raw.size

    def receive(self) -> list[tuple[int, np.ndarray]]:
        """(sender, uint8[…]) of all that is there, in the order in which each sender sent it.

        Raises RequestError, before memory is allocated, for one of an impossible size.
        """
        while self.comm.Iprobe(self.mpi.ANY_SOURCE, 0, self.status):
            size, sender = self.status.Get_count(self.mpi.BYTE), self.status.Get_source()
            if not 0 <= size <= self.most:
                raise r.refused(sender, f"at most {self.most} bytes", size)
            raw = np.empty(size, np.uint8)
            self.arriving.append((self.comm.Irecv([raw, BYTE], sender), sender, raw))
        here, behind = [], []
        for each in self.arriving:
            late = any(each[1] == other[1] for other in behind)  # after one of the same sender that is not whole yet
            (behind if late or not each[0].Test() else here).append(each)
        self.arriving = behind
        self.leaving = [each for each in self.leaving if not each[0].Test()]
        self.received += sum(raw.size for _, _, raw in here)
        self.looks = 0 if here else self.looks + 1
        return [each[1:] for each in here]

    def nap(self):
        """Leave the core to others for a moment, longer the longer nothing has come."""
        if self.looks > SPINS:
            time.sleep(min(NAPS[0] * (self.looks - SPINS), NAPS[1]))

    def finish(self):
        """Have all that was sent leave. Raises UserError after LONGEST."""
        end = time.monotonic() + LONGEST
        while self.leaving:
            self.leaving = [each for each in self.leaving if not each[0].Test()]
            if time.monotonic() > end:
                raise UserError(f"rank {self.comm.Get_rank()}: what it sent has not been received within {LONGEST:.0f} s")
            self.looks += 1
            self.nap()


class Link:
    """What all ranks of a parameter server agree on. The last `servers` ranks are the servers. Collective.

    sizes: elements by tensor, the same on all ranks; own: a text that must be the same on all servers, or on all workers.
    Raises UserError on all ranks where there are too few ranks or they do not agree.
    """

    def __init__(self, sizes, servers, comm, own=""):
        world = launch.mpi().COMM_WORLD if comm is None else comm
        size, rank = world.Get_size(), world.Get_rank()
        if isinstance(servers, bool) or not isinstance(servers, int) or not 1 <= servers < size:
            raise UserError(f"needed 1 to {size - 1} servers of {size} ranks, so that there is a worker, got {servers!r}; "
                            "start more ranks or name another number")
        self.layout = Layout(sizes, servers)
        if (most := r.most(max(self.layout.counts))) > LIMIT:
            raise UserError(f"a server has room for {LIMIT // 8:,} parameters, needed {max(self.layout.counts):,}; name more "
                            "servers")
        self.names = guard.install(world)
        with guard.together(self.names, "the making of a parameter server"):
            shapes = zlib.crc32(repr(list(sizes.items())).encode())
            handshake(world, {"servers": servers, "parameters": self.layout.n, "tensors": f"{shapes:08x}"})
            self.comm, self.workers = world.Dup(), size - servers
            self.is_server = rank >= self.workers
            self.group = world.Split(self.is_server, rank)  # of the servers, or of the workers
            handshake(self.group, {"options": own})
            run = np.array([secrets.randbits(64)], np.uint64)
            self.comm.Bcast(run, 0)
        self.run, self.rank, self.number = int(run[0]), rank, rank - self.workers if self.is_server else rank
        self.post = Post(self.comm, most)

    def free(self):
        """Free the communicators. Called by all ranks."""
        self.comm.Free()
        self.group.Free()


def stderr(line):
    """Write a line for the user."""
    launch.say(f"sparsecomm: {line}\n")


def is_server(servers=1, comm=None) -> bool:
    """Whether this rank is one of the last `servers` of `comm` (None: of all ranks)."""
    comm = launch.mpi().COMM_WORLD if comm is None else comm
    return comm.Get_rank() >= comm.Get_size() - servers
