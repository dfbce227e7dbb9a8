"""A server rank: it answers requests about its shard until every worker has ended."""

import time

from sparsecomm.replica.rules import decay_of, rule_of, schedule_of
from sparsecomm.server.filters import Filters
from sparsecomm.server.link import PATIENCE, Link, stderr
from sparsecomm.server.options import ServerOptions, whole_tensors
from sparsecomm.server.shard import Shard

LOOK = 0.25  # seconds between two looks for workers that others wait for


class Server:
    """One of the last `servers` ranks of `comm`: it has part of the tensors and their slots, and steps them with pushes.

        if sparsecomm.is_server(servers=1):
            sparsecomm.Server(tensors, "adam", 1e-3, servers=1, consistency="ssp", staleness=4).serve()

    Made on all servers while all workers make their `Client`. tensors: flat float32 arrays by name, or only their sizes; the
    values are worker 0's. rule, schedule: as of `DistributedOptimizer`; a number is a constant learning rate. options: the
    fields of `ServerOptions`. say: called with each line for the user. Raises UserError on all ranks where they do not agree.
    """

    def __init__(self, tensors, rule, schedule=None, *, servers=1, comm=None, say=stderr, **options):
        rule, self.say, self.stop = rule_of(rule), say, False
        whole_tensors(rule, servers)
        schedule = schedule_of(schedule, rule)
        self.options = ServerOptions(**{**options, "decay": decay_of(options.get("decay"), rule)})
        sizes = {name: x if isinstance(x, int) else len(x) for name, x in tensors.items()}
        self.link = Link(sizes, servers, comm, repr((rule, schedule, self.options)))
        self.shard = Shard(self.link.layout, self.link.number, self.link.workers, self.link.run, rule, schedule, self.options)
        self.named = set()  # workers that a line has named since they were slow

    def serve(self) -> bool:
        """Answer until all workers have paused (True: call it again after the pause) or ended (False), or `stop` is set.

        Raises UserError, which names the worker, for a request that cannot be used.
        """
        shard, post, look = self.shard, self.link.post, time.monotonic() + LOOK
        shard.paused.clear()
        while not self.stop and shard.live - shard.paused:
            for sender, raw in post.receive():
                for to, reply in shard.receive(sender, raw):
                    post.send(to, reply)
            post.nap()
            if (now := time.monotonic()) > look:
                look = now + LOOK
                self._name_slow(now)
        post.finish()
        if not shard.live:
            self.link.free()
        return bool(shard.live)

    def _name_slow(self, now):
        """Say, once, which worker the others have waited for longer than PATIENCE."""
        shard = self.shard
        late = [each for each in shard.waiting if now - each.since > PATIENCE]
        slow = {worker for worker in shard.live if late and shard.clocks[worker] == shard.slowest}
        if slow - self.named:
            names = ", ".join(str(self.link.names[worker]) for worker in sorted(slow))
            self.say(f"server rank {self.link.names[shard.rank]}: {len(late)} pulls have waited {PATIENCE:.0f} s for rank "
                     f"{names}, which has made {shard.slowest} pushes")
        self.named = slow

    def record(self) -> dict:
        """What the server has done, for a record: numbers, and the histogram of the pushes' staleness by steps."""
        shard, slots = self.shard, sum(x.nbytes for x in self.shard.replica.slots.values())
        rest = sum(x.nbytes for x in (*shard.replica.last.values(), *shard.applied.values(), shard.updates.sum))
        views = 4 * shard.n * self.link.workers if shard.views else 0  # also of those that have ended
        sift = shard.views.filters if shard.views else Filters()
        return {"server": self.link.number, "parameters": shard.n, "steps": shard.replica.t, "pushes": shard.pushes,
                "repeated": shard.repeated, "skipped": shard.skipped, "most clocks ahead": shard.ahead,
                "staleness": {str(k): v for k, v in sorted(shard.staleness.items())},
                "bytes sent": self.link.post.sent, "bytes received": self.link.post.received,
                "filters": {name: [sift.held[name], seen] for name, seen in sift.seen.items()},
                "bytes a parameter": round((shard.values.nbytes + slots + rest + views) / shard.n, 2)}

    def state(self):
        """As `Shard.state`: arrays by name; during a pause."""
        return self.shard.state()

    def load(self, state):
        """Continue from a `state` of this server among as many."""
        self.shard.load(state)
