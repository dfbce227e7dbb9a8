"""Lock-free workers: threads, of which the caller's is one, that run a problem's nogil kernel on chunk after chunk."""

import contextlib
import math
import os
import threading
import time
import weakref
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.parking import (
    AT,
    BELL,
    DOOR,
    EXPECTED,
    FINISHED,
    HEARD,
    OVER,
    OWN,
    PATIENCE,
    at_rest,
    summon,
    wait_at,
)
from hogwild.kernels.sharing.work_queue import BEGUN, CALLS, NEXT, ORDER, STOP, WORKERS
from hogwild.training.signals import Flag, Postponed

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
WATCH_SECONDS = 0.05  # between two looks at how far all are
LOOKS = 1 << 16  # for a call that was said to come soon: 1 to 4 ms
TALLIES = 8  # float64 a worker: one cache line each: loss, examples, non-zeros (or what the work is counted in), …
BAD = 3  # … and an example whose loss was not finite, its number + 1


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Order(NamedTuple):
    """What all workers are to do."""

    number: int
    rule: tuple
    schedule: tuple
    examples: np.ndarray


class Helper:
    """A thread that works on each order that all are called to, and waits for it in the kernel itself where the problem does.

    It refers to its Workers weakly: their end ends it.
    """

    def __init__(self, team, k):
        self.k, self.order, self.most, self.door = k, None, team.chunk[k], team.doors.reshape(-1, DOOR)[k]
        self.door[OWN], self.door[BELL] = os.pipe()
        self.door[HEARD] = self.door[FINISHED] = team.queue[CALLS]
        self.door[PATIENCE] = LOOKS if team.count <= cores() else 0
        args = team.problem, team.own[k], team.doors, team.queue, team.tally[k], weakref.ref(team)
        self.thread = threading.Thread(target=self._until_over, args=args, name=f"worker {k}", daemon=True)
        try:
            _start(self.thread)
        except BaseException:
            self._close()
            raise

    def _close(self):
        for end in (OWN, BELL):
            with contextlib.suppress(OSError):  # whoever closes all of a process's files has closed these too
                os.close(int(self.door[end]))

    def _until_over(self, *args):
        try:
            self._serve(*args)
        except BaseException as error:  # a thread has no caller to raise to
            if workers := args[-1]():
                workers.give_up(error)

    def _serve(self, problem, own, doors, queue, tally, team):
        door = self.door
        while True:
            order, over, error = self.order, None, None
            door[AT], door[EXPECTED] = 1, order.number if order else OVER
            if order and problem.waits:
                try:
                    over = problem.work(order.rule, order.schedule, own, order.examples, 0, queue, self.most, True, tally)
                except BaseException as raised:  # a thread has no caller to raise to
                    error = raised
            if door[AT] == 1:  # the problem did not wait
                wait_at(doors, self.k, queue, 0)
            door[AT] = 0
            if (called := door[EXPECTED]) == OVER:
                return self._close()
            if workers := team():
                workers.helped(self, over if order and called == order.number else None, error)
            del workers, order
            door[FINISHED] = door[HEARD]


def _dismiss(helpers, doors, queue, process):
    """End the threads; not those of another process, of whose pipes a fork has copies."""
    if helpers and os.getpid() == process:
        queue[ORDER] = OVER
        summon(doors, queue, 1)


def _start(thread):
    try:
        thread.start()
    except RuntimeError as error:
        raise UserError(f"{thread.name} cannot be started ({error}): use fewer workers, or allow this process more threads "
                        "(ulimit -u)") from None


class Workers:
    """Runs chunks of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    Each takes the next chunk from a queue when it has done one, so that a worker that the system let start late, or on a
    slower core, keeps none of the others waiting, and does so in the kernel (kernels/sharing/work_queue.py): a thread
    that asks for Python's lock waits for 50 to 100 µs for it, and 16 of them for each other. Worker 0 is the caller: a
    thread more than cores that only waits has the system put one worker behind another for milliseconds, which is as long
    as a short epoch takes. A problem that says `lockstep` has its workers call the kernel together: worker k on every
    count-th example of a chunk from its k-th, or, where it says `whole`, each on all of it.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.doors = problem.doors = aligned((DOOR * count,), np.int64)
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count  # examples of a call
        self.queue = aligned((16,), np.int64)
        self.queue[WORKERS] = count
        self.stop, self.failure = Flag(self.queue, STOP), None
        self.halt = Flag(np.zeros(1, np.int64) if problem.halt is None else problem.halt, 0)
        self.signals = Postponed(self.stop)
        self.look = 0.0  # when `watch` is next to be called
        self.helpers, self.order, self.paying = [], None, True
        weakref.finalize(self, _dismiss, self.helpers, self.doors, self.queue, os.getpid()).atexit = False

    @property
    def done(self) -> int:
        """Examples that were taken; all of them are done when `run` returns."""
        return int(self.queue[NEXT])

    def compile(self, rule, schedule, t):
        """Call the kernel, on no examples and into a tally that nobody reads, and start the threads; t: steps done before."""
        wait_at(np.zeros(DOOR, np.int64), 0, self.queue, 0)  # before the threads come to it
        self._hire()
        summon(self.doors, self.queue, 0)
        none, tally = np.zeros(0, np.int64), np.zeros(TALLIES)
        self.problem.begin(t)
        if self.problem.lockstep:
            self.problem.run(rule, schedule, self.own[0], none, t, self.count, tally)
        else:
            self.problem.work(rule, schedule, self.own[0], none, t, np.zeros_like(self.queue), 1, True, tally)
        self.problem.end()

    def ready(self):
        """Soon there will be an order: have the helpers wake up, which takes as long as a short epoch."""
        if self.problem.waits and self.count <= cores():
            summon(self.doors, self.queue, 0)

    def rest(self):
        """Wait for those who were still leaving when all was done, before another order: of it, nothing is done yet."""
        self.watch = None
        self._rest()
        self.queue[NEXT] = 0

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`, whose example i is step t + i; `watch` is called every WATCH_SECONDS, and true ends the run.

        t: steps done before. Afterwards the first `done` examples are done. An exception in a worker stops all and is
        raised here; so is KeyboardInterrupt, within `signals`. No worker changes anything more when this returns or raises.
        """
        self.rest()
        self.stop.clear()
        self.halt.clear()
        self.failure, self.watch = None, watch
        self.queue[BEGUN], self.began = t, time.perf_counter()
        self._say(rule, schedule, np.ascontiguousarray(order))
        self.problem.begin(t)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        self.signals.held = True
        try:
            self._all()
            self.together = self.watch = None
            self.problem.end()
        finally:
            self.signals.let_go()
        if self.failure:
            raise self.failure

    def _hire(self):
        while len(self.helpers) < self.count - 1:
            self.helpers.append(Helper(self, len(self.helpers) + 1))

    def _say(self, rule, schedule, examples):
        """What the order is; the same as the one before where nothing but what its array holds is new, so that who waits for
        it in the kernel need not leave it."""
        last, paid, self.paying = self.order, self.paying, self.problem.pays()
        same = last and last.rule is rule and last.schedule is schedule and last.examples is examples
        if not same or paid != self.paying:
            self.queue[ORDER] += 1
            self.order = Order(int(self.queue[ORDER]), rule, schedule, examples)

    def _all(self):
        try:
            self._hire()
        except BaseException as error:  # a thread that could not be started
            self.give_up(error)
        for helper in self.helpers:
            helper.order = self.order
        summon(self.doors, self.queue, 1)
        self._work(0)
        self._look()
        # What a helper still does when all examples are done and brought together does not matter to anyone, unless it may
        # set `stop` again.
        if self.stop.is_set() or not self.problem.ended():
            self._rest()

    def _rest(self):
        """Until no helper is at work."""
        pause = 1e-5
        while not at_rest(self.doors, self.queue, len(self.helpers)):
            self._look()
            for helper in self.helpers:
                if not helper.thread.is_alive():  # of a fork, or one that was ended from outside
                    raise self.failure or RuntimeError(f"the thread of worker {helper.k} has ended before its work")
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)

    def _look(self):
        """Ask whether to go on, every WATCH_SECONDS."""
        if self.watch and time.monotonic() >= self.look:
            self.look = time.monotonic() + WATCH_SECONDS
            try:
                if self.watch():
                    self.stop.set()
            except BaseException as error:  # first all end their chunks, and bring them together
                self._fail(error)

    def _fail(self, error):
        """Stop all, when they have done what they have begun."""
        self.failure = self.failure or error
        self.stop.set()

    def give_up(self, error):
        """Stop all, after a failure of a worker that others may wait for: for its turn, for what it has locked."""
        self._fail(error)
        self.halt.set()
        if self.together is not None:
            self.together.abort()

    def _work(self, k, over=None):
        """over: what a first call of the kernel has said."""
        try:
            if self.together is None:
                self._by_itself(k, over)
            else:
                self._in_step(k)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # a thread has no caller to raise to
            self.give_up(error)

    def helped(self, helper, over, error):
        """A helper has left its door; over, error: what the kernel has said there, None if it was not for this order."""
        k = helper.k
        if error:
            return self.give_up(error)
        if over is not None:  # it has done as many as it was to, and there are more
            self._called(k, helper.most, self.began)
        self._work(k, over)
        helper.most = self.chunk[k] * bool(self.paying)  # another answer makes another order

    def _by_itself(self, k, over):
        """Chunks from the queue until it is empty, or until others do better without this worker."""
        own, tally, first, (_, rule, schedule, examples) = self.own[k], self.tally[k], over is None, self.order
        while not over:
            if k and not self.problem.pays():
                return self.problem.leave(rule, schedule, own)
            done, begun = tally[1], time.perf_counter()
            over = self.problem.work(rule, schedule, own, examples, int(self.queue[BEGUN]), self.queue, self.chunk[k], first,
                                     tally)
            if not over:
                self._called(k, tally[1] - done, begun)
            first = False

    def _in_step(self, k):
        """Every count-th example of chunks that all agree on, or all of them."""
        (_, rule, schedule, examples), t = self.order, int(self.queue[BEGUN])
        first, stride = (0, 1) if self.problem.whole else (k, self.count)
        self.problem.enter(self.own[k])
        while bounds := self._next():
            start, stop = bounds
            part, begun = np.ascontiguousarray(examples[start + first:stop:stride]), time.perf_counter()
            self.problem.run(rule, schedule, self.own[k], part, t + start + first, stride, self.tally[k])
            self._called(k, len(part), begun)
        self.problem.leave(rule, schedule, self.own[k])

    def _next(self):
        self.together.wait()
        return self.agreed

    def _agree(self):
        """One decision for all, on whether to stop and what to do next."""
        multiple, n, start = getattr(self.problem, "block", 1), len(self.order.examples), self.done
        wanted = min(self.chunk) * (1 if self.problem.whole else self.count)
        self.agreed = None
        if start < n and not self.stop.is_set():
            self.queue[NEXT] = min(start + -(-wanted // multiple) * multiple, n)
            self.agreed = start, self.done

    def _called(self, k, done, begun):
        """After a call of the kernel for `done` examples: the next is to take CHUNK_SECONDS."""
        if self.tally[k, BAD]:
            self.stop.set()
        if done:
            speed = CHUNK_SECONDS / max(time.perf_counter() - begun, 1e-6)
            # Rounded up: after a last chunk of 1, where a call takes half of it whatever it does, 1 would follow for ever.
            self.chunk[k] = min(math.ceil(done * min(speed, 8.0)), 1 << 20)
        if k == 0:
            self._look()


def spread(function, n: int, count: int, step=None):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared.

    step: the most that a call gets; None: a thread's whole part. What a call raises is raised here; after that, or Ctrl-C,
    the threads begin no further call.
    """
    bounds, over, errors = np.linspace(0, n, count + 1).astype(np.int64), threading.Event(), []

    def part(first, last):
        for start in range(first, last, step or max(last - first, 1)):
            if not over.is_set():
                function(start, min(start + (step or last), last))

    def helped(first, last):
        try:
            part(first, last)
        except BaseException as error:  # a thread has no caller to raise to
            errors.append(error)
            over.set()
    threads = [threading.Thread(target=helped, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    try:
        for thread in threads:
            _start(thread)
        part(bounds[0], bounds[1])
        for thread in threads:
            thread.join()
    except BaseException:
        over.set()
        raise
    if errors:
        raise errors[0]
