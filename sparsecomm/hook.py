"""Gradient dropping as a communication hook of torch's DistributedDataParallel: over gloo, without MPI.

    state = GradientDropping(model.named_parameters(), Config(keep=0.01))
    ddp = DistributedDataParallel(model)
    ddp.register_comm_hook(state, gradient_dropping)
"""

import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from hogwild.errors import UserError
from hogwild.kernels.compiler.cache import announce
from sparsecomm.compress.device import flat
from sparsecomm.compress.memory import SUMMED
from sparsecomm.compress.operations import host
from sparsecomm.compress.registry import options_of
from sparsecomm.config import Config
from sparsecomm.exchange.bucketed import Pipelines
from sparsecomm.exchange.choice import make_exchange
from sparsecomm.faults.nonfinite import SKIPS_SCALED, demand_skippable, where
from sparsecomm.wire.checksums import all_alike, check_equal
from sparsecomm.wire.handshake import handshake
from sparsecomm.wire.process_group import TorchWire

TWICE = ("the hook has run twice without a step in between. A gradient that the script throws away, as a GAN's of its "
         "discriminator in the generator's step, must not be exchanged, or what was not sent of it comes later: compute it "
         "within `with state.paused():`. Several passes that add up need ddp.no_sync() for all but the last")
UNFIT = "scope", "clip_local", "combine", "average_every", "stepping"  # need all gradients at once, or are the optimizer's


class Pass:
    """One backward pass and the buckets that it has exchanged so far."""

    def __init__(self, parameters):
        self.names, self.committed, self.bad, self.some = set(), [], False, False
        self.parameters, self.versions = parameters, [p._version for p in parameters]

    def undo(self):
        """Undo the exchange of its finite buckets, where another bucket was not finite: their step was skipped."""
        for pipeline in self.committed if self.bad else ():
            pipeline.undo()
        self.committed = []

    def unused(self) -> bool:
        """Whether no step has changed the parameters since."""
        return self.versions == [p._version for p in self.parameters]


class GradientDropping:
    """State of the hook: residual (unsent gradient) of each parameter on this rank. Construct it on all ranks alike.

    A bucket with NaN or infinity on any rank delivers NaN on all of them, as DistributedDataParallel alone would: a
    GradScaler skips the step, and what the pass has taken from residuals returns to them. Of a parameter whose gradient is
    zero on a rank that rank sends nothing: DistributedDataParallel throws away what is delivered for one that no rank has
    used.

    Where nothing of an element was sent, `.grad` is 0, and a torch optimizer steps with that. For SGD it makes no difference;
    Adam and its relatives, which divide by the root of the mean square, move an element that is sent once in 100 steps about
    a tenth as far as without dropping. `sparsecomm.CatchUpOptimizer` steps as `DistributedOptimizer` does: an element whose
    sum of n gradients arrives takes n steps. Raises UserError.

    Parameters
    ----------
    named_parameters
        Pairs of name and parameter, float32 and contiguous, all that the model trains.
    config
        `sparsecomm.Config`, all but `scope`, `clip_local`, `combine`, `average_every` and `stepping`;
        DistributedDataParallel sizes the buckets (bucket_cap_mb). The exchange is not measured: allgather up to 4 ranks,
        else balanced.
    process_group
        None for the default one; a gloo group of the same ranks is made of it, now or, where there is none yet, with the
        first gradient.
    seed
        Of the samples by which thresholds are found; the same on all ranks.
    say
        Called with each line for the user, on rank 0.
    scaler
        The script's GradScaler, whose scale a residual follows; it may be set later.
    """

    def __init__(self, named_parameters, config=None, process_group=None, seed=0, say=print, scaler=None):
        self.config, self.seed, self.said, self.scaler = config or Config(), seed, say, scaler
        for option in UNFIT:
            value = getattr(self.config, option)
            if value != getattr(Config, option):
                step = "step with sparsecomm.CatchUpOptimizer, or " if option == "stepping" else ""
                raise UserError(f"{option} = {value} is not for the hook, which sees one bucket at a time and no optimizer; "
                                f"{step}use sparsecomm.DistributedOptimizer")
        self.names = {p: name for name, p in named_parameters if p.requires_grad}
        self.sizes = {name: flat(name, p).numel() for p, name in self.names.items()}
        self.shapes = {name: tuple(p.shape) for p, name in self.names.items()}
        self.steps, self.skipped, self.in_a_row = dict.fromkeys(self.sizes, 0), 0, 0
        self.buckets = {}  # pipelines by the names in a bucket
        self.passes, self.scale, self.warned = [], None, False
        self.wire, self.waiting, self.suspended, self.failed = None, process_group, False, None
        if dist.is_initialized():
            self.start()

    def start(self):
        """Make the process group of the exchange and compare the ranks. Collective; a second call has no effect."""
        if self.wire:
            return
        ranks = dist.get_process_group_ranks(self.waiting or dist.group.WORLD)
        self.wire = TorchWire(dist.new_group(ranks, backend="gloo", use_local_synchronization=True))
        handshake(self.wire, {"tensors": zlib.crc32(repr(self.sizes).encode()), "configuration": repr(self.config)})
        exchange, self.config, line = make_exchange(self.wire, self.config, sum(self.sizes.values()))
        self.say = self.said if self.wire.rank == 0 else lambda line: None
        if self.wire.rank == 0:
            announce()
        self.say(line)
        ahead = self.config.overlap is not False and self.wire.size > 1 and all(p.device.type == "cpu" for p in self.names)
        self.exchanged = Pipelines(exchange, self.config, self.shapes, ahead=ahead)

    @contextmanager
    def paused(self):
        """A context in which backward exchanges no gradients, on all ranks: for those that the script discards."""
        self.suspended = True
        try:
            yield
        finally:
            self.suspended = False

    def mean(self, parameters, gradients, first=False):
        """Replace the gradients of a bucket by their mean over the ranks. first: it is the first one of a backward pass."""
        if first:
            self._begin(parameters)
        pipeline = self._pipeline(parameters)
        names, flats = pipeline.bucket.names, [g.view(-1) for g in gradients]
        flats = [g.numpy() for g in flats] if pipeline.bucket.device is None else flats
        now, step = self.passes[-1], self.steps[names[0]]
        used = [len(g) > 0 and (bool(g[0]) or bool(g.any())) for g in flats]
        now.some |= any(used)
        if not step and first and all_alike(self.wire, map(host, flats)) and self.wire.rank == 0:
            warnings.warn("the first gradients of all ranks are identical: do they read the same data?", stacklevel=2)
        if self.config.check_every and step and step % self.config.check_every == 0:
            # A rank without a gradient, such as one that waits in ddp.join() for the others, is not compared.
            check_equal(self.wire, step, (host(p.detach()).reshape(-1) for p in parameters if any(used)))
        given = self._given(flats, used, pipeline.compressor.lossless)
        bad = pipeline.reduce(step, given) if given else 0
        self.steps.update(dict.fromkeys(names, step + 1))
        now.names.update(names)
        if bad:
            pipeline.undo()
            self._skip(step, flats, names, now, bad)
        elif given:
            pipeline.commit()
            now.committed.append(pipeline)
        for g, part in zip(flats, pipeline.bucket.parts):
            g[:] = pipeline.total[part] * (1 / self.wire.size) if not bad and given else np.nan * bool(bad)

    def _given(self, flats, used, lossless) -> list:
        """The gradients, None for those that are left alone; nothing where that is all of them, on all ranks.

        A rank decides for itself, with two exceptions: a velocity changes without a gradient too, and of values without
        indices all ranks must send as many.
        """
        sparse = options_of(self.config).sparse
        if self.config.momentum or not (sparse or lossless):
            used = self.wire.numbers(np.array(used, np.int64)).any(0)
            return [g if some else None for g, some in zip(flats, used)] if used.any() else []
        return [g if some else None for g, some in zip(flats, used)] if sparse else flats

    def _begin(self, parameters):
        """Begin a backward pass: close the earlier one of the same parameters, and undo it where it was skipped."""
        names = {self.names[p] for p in parameters if p in self.names}
        scale = self.scaler.get_scale() if self.scaler is not None and self.scaler.is_enabled() else None
        for old in [old for old in self.passes if old.names & names or scale != self.scale]:
            if not old.bad and old.names & names:
                self.in_a_row = 0
                if old.some and old.unused() and not self.warned and self.wire.rank == 0:
                    self.warned = True
                    warnings.warn(TWICE, stacklevel=2)
            old.undo()
            if old.names & names:
                self.passes.remove(old)
        self._rescale(scale)
        self.passes.append(Pass(parameters))

    def _rescale(self, scale):
        """Multiply residuals to the scale of the gradients from now on."""
        if scale is not None and self.scale is not None and scale != self.scale:
            self.exchanged.scale(np.float32(scale / self.scale))
        self.scale = self.scale if scale is None else scale

    def _pipeline(self, parameters):
        """The pipeline of the bucket. After the first step torch builds other buckets, which get pipelines of their own."""
        names = tuple(self.names[p] for p in parameters)
        if names not in self.buckets:
            for other in [other for other in self.buckets if set(other) & set(names)]:
                self.exchanged.release(self.buckets.pop(other))
            seed = self.seed + zlib.crc32(repr(names).encode())
            self.buckets[names] = self.exchanged.make(names, seed, self._where(parameters[0].device))
        return self.buckets[names]

    def _where(self, device):
        """The device of a pipeline for gradients that lie on `device`; None: it uses NumPy arrays of the same memory."""
        return None if device.type == "cpu" else device

    def _skip(self, step, flats, names, now, bad):
        if not now.bad:
            now.bad, self.skipped, self.in_a_row = True, self.skipped + 1, self.in_a_row + 1
        line = (f"step {step}: gradient elements of {names[0]} … {names[-1]} that are not finite "
                f"({where(self.wire, flats, bad)})")
        demand_skippable(line, self.config, self.in_a_row, SKIPS_SCALED)
        hint = "" if self.scaler else "; if the script has a GradScaler, give it to GradientDropping: scaler=…"
        self.say(f"{line}: all ranks get NaN for them, by which a GradScaler skips the step{hint}")

    @property
    def counts(self) -> dict[str, int]:
        """Elements kept, and bytes meant to be sent and received, of this rank."""
        return self.exchanged.counts

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of this rank by phase; they may overlap with the backward pass."""
        return self.exchanged.phases

    def state_dict(self) -> dict:
        """Residuals and velocities of this rank, by parameter, for torch.save; every rank has its own."""
        self.start()
        for old in self.passes:
            old.undo()
        held = {name: {} for name in self.sizes}
        for key, x in self.exchanged.own().items():
            name, _, kind = key.rpartition(".")
            held[name][kind] = torch.from_numpy(x.copy())
        return {"rank": self.wire.rank, "size": self.wire.size, "steps": dict(self.steps), "scale": self.scale, "held": held}

    def load_state_dict(self, state):
        """Continue from this rank's `state_dict`. Collective. Raises UserError where it does not fit."""
        self.start()
        if (state["rank"], state["size"]) != (self.wire.rank, self.wire.size):
            raise UserError(f"rank {self.wire.rank} of {self.wire.size} got the state of rank {state['rank']} of "
                            f"{state['size']}; give each rank its own")
        sizes = {name: len(x) for name, kept in state["held"].items()
                 for kind, x in kept.items() if kind in SUMMED}
        for name in state["steps"].keys() | self.sizes.keys():
            if name not in self.sizes or sizes.get(name, self.sizes[name]) != self.sizes[name]:
                raise UserError(f"the state does not fit: needed {self.sizes.get(name, 'no')} elements of {name}, got "
                                f"{sizes.get(name, 'none')}")
        for names in list(self.buckets):
            self.exchanged.release(self.buckets.pop(names))
        self.steps, self.scale, self.passes = dict(state["steps"]), state["scale"], []
        self.exchanged.held.clear()
        self.exchanged.load_own({f"{name}.{kind}": x.numpy() for name, kept in state["held"].items()
                                 for kind, x in kept.items()})


def gradient_dropping(state, bucket) -> torch.futures.Future[torch.Tensor]:
    """The hook: `ddp.register_comm_hook(state, gradient_dropping)` with a `GradientDropping`.

    On the CPU a thread selects and exchanges while backward goes on (`config.overlap`); elsewhere all work is in the
    stream of backward. What goes wrong is raised by backward.
    """
    buffer, parameters, first = bucket.buffer(), bucket.parameters(), bucket.index() == 0
    future = torch.futures.Future(devices=None if buffer.device.type == "cpu" else [buffer.device])
    if state.suspended:
        future.set_result(buffer)
        return future
    state.start()
    _demand(state, parameters, buffer)
    gradients = bucket.gradients()
    ahead = state.exchanged.thread is not None and (not first or _await_at_end(state))

    def work():
        try:
            if state.failed is None:
                state.mean(parameters, gradients, first)
        except BaseException as error:
            state.failed = error
        future.set_result(buffer)
    if ahead:
        state.exchanged.thread.submit(work)
    else:  # in the thread where there is one: buckets keep their order
        state.exchanged.thread.submit(work).result() if state.exchanged.thread else work()
        _raise(state)
    return future


def _await_at_end(state) -> bool:
    """Let the end of this backward pass wait for the thread and raise what went wrong there; False: this is no backward pass.

    A future with an exception would not do: DistributedDataParallel takes it for the tensor.
    """
    def end():
        state.exchanged.thread.submit(int).result()
        _raise(state)
    try:
        torch.autograd.Variable._execution_engine.queue_callback(end)
    except RuntimeError:  # a rank in ddp.join(), which answers the others
        return False
    return True


def _raise(state):
    error, state.failed = state.failed, None
    if error is not None:
        raise error


def _demand(state, parameters, buffer):
    """Raise UserError where the bucket's gradients are none that can be exchanged."""
    for p in parameters:
        if p not in state.names:
            raise UserError(f"a parameter of shape {tuple(p.shape)} is not among those that GradientDropping was given")
    if buffer.is_sparse or buffer.dtype != torch.float32:
        kind = "sparse" if buffer.is_sparse else str(buffer.dtype)
        raise UserError(f"the gradient of {state.names[parameters[0]]} is {kind}, needed dense float32"
                        f"{'; make the embedding with sparse=False' if buffer.is_sparse else ''}")
