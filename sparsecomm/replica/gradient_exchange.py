"""The exchange of a torch script's gradients between `backward` and `step`: when each is sent, what may edit it."""

import contextlib
import math
import warnings
import weakref
import zlib
from collections import Counter

import numpy as np
import torch

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.faults.nonfinite import SKIPS_SCALED
from sparsecomm.replica.gradient_edits import LINE, Edits
from sparsecomm.replica.join import Join
from sparsecomm.replica.master_weights import fits
from sparsecomm.wire.agreement import agree

FIXES = ("clip with clip=… or optimizer.clip_grad_norm_(…), give accumulate=… for several backward passes, or use "
         "Config(overlap=False)")
AFTER = ("between synchronize() and step all ranks must do the same to .grad, which is the mean, and call neither backward "
         "nor model.zero_grad()")
DISCARDED = "another backward pass, or zero_grad, without a step"


class GradientExchange:
    """Mixin of `DistributedOptimizer` that passes gradients to its synchronizer.

    The class that inherits it provides `named` (parameters by name), `synchronizer`, `masters`, `buffers`, `device`,
    `accumulate`; `_wake(names)`, `_follow_settings()` and `_options()`.
    """

    def _begin_exchange(self):
        self.addresses = {name: p.data_ptr() for name, p in self.named.items()}
        self.hooks, self.joined = {}, None
        self._end_step()
        self._listen()
        alone = self.synchronizer.thread or self.synchronizer.size == 1
        self.edits = Edits([] if alone else self.named.values())

    def _end_step(self):
        self.passes = Counter()  # backward passes by name, where gradients are sent ahead
        self.sent = {}  # copies of gradients that were sent, by name
        self.averaged = None  # after `synchronize`: the names of parameters without a gradient on any rank
        self.bound = math.inf  # of the norm of the mean gradient
        self.loss_scale = None  # a GradScaler's, by which gradients that are not float32 are divided when they are read

    def _listen(self):
        """Send the gradients of new parameters as soon as they are complete, where they are sent ahead."""
        me = weakref.ref(self)  # a hook must not outlive an optimizer that was thrown away
        for name, p in self.named.items() if self.synchronizer.thread else ():
            if name not in self.hooks and p.requires_grad:
                self.hooks[name] = p.register_post_accumulate_grad_hook(_hook(me, name))

    def _arrived(self, name):
        """A backward pass has added to the gradient of `name`."""
        if name in self.sent or self.averaged is not None:  # the exchanged gradient was used by no step, and has changed
            self._discard()
        self.passes[name] += 1
        if self.passes[name] == self.accumulate and name in self.synchronizer.place:
            self._snapshot(name)
            self.synchronizer.ready(name, self._numbers(self.sent[name]))

    def _gradient(self, name):
        """The gradient of `name`, flat float32, or None."""
        grad = self.named[name].grad
        if grad is None:
            return None
        g = (grad.to_dense() if grad.is_sparse else grad).detach().reshape(-1).float()
        return g / self.loss_scale if self.loss_scale is not None and grad.dtype != torch.float32 else g

    def _snapshot(self, name):
        """Copy a gradient that is sent, so that `step` detects a later change by the script."""
        g = self._gradient(name)
        self.sent[name] = None if g is None else g.clone()

    def _discard(self):
        """Undo the exchange of gradients that no step has used. Collective."""
        if self.passes or self.sent or self.averaged is not None:
            self.sent.clear()
            self._cancel(DISCARDED)

    def _cancel(self, call):
        with guard.together(self.synchronizer.names, call):
            agreed = self._agree(call)
            self._complete(agreed)
            self.synchronizer.cancel(agreed.most)
        self._end_step()

    def join(self):
        """A context for ranks with different numbers of batches, entered by all of them before their first step:

            with optimizer.join():
                for x, y in loader:
                    …
                    optimizer.step()

        Ranks at its end step with the others, with gradients of zero, until all ranks are there: then all have the same
        parameters. The mean is over all ranks, those at the end included. Inside it, step, zero_grad and clip_grad_norm_
        are the only collective calls allowed.
        """
        return Join(self)

    def zero_grad(self, set_to_none=True):
        """As in torch's optimizers; the exchange of gradients that no step has used is undone on all ranks."""
        self._discard()
        super().zero_grad(set_to_none)

    def synchronize(self):
        """Exchange now: `.grad` becomes the mean over the ranks (dense), in the parameter's dtype. On all ranks alike.

        The script may then read it, or change it on all ranks alike, with torch.nn.utils.clip_grad_norm_, say; `step`
        exchanges nothing and uses `.grad` as it is. NaN everywhere where a gradient of some rank is not finite: `step` then
        changes nothing. With a GradScaler call scaler.unscale_(optimizer) before. Raises UserError within `join`.
        """
        if self.joined:
            raise UserError("synchronize() within join(): the ranks that have ended cannot do to .grad what the others then "
                            "do; use optimizer.clip_grad_norm_(…)")
        if self.averaged is not None:
            return
        self._warn_of_edits()
        with guard.together(self.synchronizer.names, "synchronize"):
            idle = self._reduce("synchronize")
            fine = self.synchronizer.commit(idle)
            for name, p in self.named.items():
                if name not in idle:
                    deliver(p, self._tensor(self.synchronizer.mean(name)) if fine else torch.full_like(p, math.nan))
        self.passes.clear()
        self.sent.clear()
        self.averaged = idle

    @contextlib.contextmanager
    def skip_synchronize(self):
        """Context of a `step` after `synchronize`, for scripts of Horovod; here such a step exchanges nothing anyway.

        Raises UserError where `synchronize` was not called.
        """
        if self.averaged is None:
            raise UserError("skip_synchronize() needs optimizer.synchronize() before")
        yield

    def clip_grad_norm_(self, max_norm, norm_type=2.0):
        """Bound the norm of the mean gradient of all ranks, over all parameters, at the next `step`. On all ranks alike.

        The norm before that, as torch.nn.utils.clip_grad_norm_ returns it. It ends the exchange: `.grad`, which stays the
        rank's own (after `synchronize`: the mean, which is clipped), may not be changed from here to `step`.
        """
        if norm_type != 2 or not max_norm >= 0:
            raise UserError(f"clip_grad_norm_ takes a norm, not negative, and norm_type 2, got {max_norm} and {norm_type}")
        if self.averaged is not None:
            return torch.nn.utils.clip_grad_norm_(list(self.named.values()), max_norm)
        with guard.together(self.synchronizer.names, "clip_grad_norm_"):
            self._reduce("clip_grad_norm_")
        for name in self.named:
            self._snapshot(name)
        norm = self.synchronizer.norm()
        total, self.bound = min(norm, self.bound), min(self.bound, float(max_norm))
        return torch.tensor(total if norm == norm else norm)

    def step(self, closure=None):
        """Wait for the gradients of all ranks and step; on all ranks alike. The closure's value, or None.

        A gradient with NaN or infinity on any rank changes nothing on any: `synchronizer.skipped` then counts up. Raises
        UserError, also after 20 such steps in a row; after 50 with a GradScaler, which needs some to find its scale.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        if self.averaged is None:
            self._warn_of_edits()
        if hasattr(self, "grad_scale"):  # set by a GradScaler, to None where it has unscaled already
            self.synchronizer.most_skips = SKIPS_SCALED
        if getattr(self, "grad_scale", None) is not None:
            self._unscale(float(self.grad_scale))
        with guard.together(self.synchronizer.names, f"step {self.synchronizer.round + 1}"):
            idle = self._reduce("step") if self.averaged is None else self._edited()
            self.masters.pull()
            if self.synchronizer.step(self._rates(), idle, self.bound):
                self.masters.push(None if self.config.average_every else self.named.keys() - idle)
            self.buffers.equalize()
        # The kernels write behind autograd's back.
        torch.autograd.graph.increment_version([p for name, p in self.named.items() if name not in idle])
        self._end_step()
        return value

    def _warn_of_edits(self):
        if self.edits.found(self.named.values()) and self.synchronizer.rank == 0:
            warnings.warn(LINE, stacklevel=4)

    def _unscale(self, scale):
        """Divide by a GradScaler's scale: float32 gradients in place, others when they are read, in float32."""
        if self.averaged is not None:
            raise UserError("synchronize() has exchanged gradients that a GradScaler has scaled, with residuals of other "
                            "scales: call scaler.unscale_(optimizer) before optimizer.synchronize()")
        if self.passes or self.sent:
            raise UserError("a GradScaler changes gradients that were already sent: use Config(overlap=False), and call "
                            "scaler.unscale_(optimizer) before optimizer.clip_grad_norm_")
        self.loss_scale = scale
        for p in self.named.values():
            if p.grad is not None and p.grad.dtype == torch.float32:
                p.grad.div_(scale)

    def _reduce(self, call) -> set:
        """Finish the exchange of all gradients. The names of those that no rank has."""
        agreed = self._agree(call)
        present = {name for name, some in zip(self.named, agreed.present) if some}
        self._wake([name for name in self.named if name in present])
        self._listen()
        self._complete(agreed)
        for name in present:
            self._offer(name)
        idle = self.named.keys() - present  # of a bucket that was sent ahead the rank that sent it has all
        self.synchronizer.reduce(idle)
        return idle

    def _edited(self) -> set:
        """Pass the mean gradients, as the script has edited them, to the synchronizer. The names of tensors left alone."""
        changed, own = {}, 0
        for name, p in self.named.items():
            g = self._gradient(name)
            if name in self.averaged:
                own = own if g is None else zlib.crc32(name.encode(), own)
            elif g is None:
                own = zlib.crc32(name.encode(), own)
            elif not self.synchronizer.bad:
                mean = self._tensor(self.synchronizer.mean(name)).to(p.dtype).float()
                if not _same(mean, g):
                    changed[name], own = g, zlib.crc32(g.cpu().numpy(), own)
        if not self._agree("step after synchronize", own).same:
            raise UserError(f"the gradients of the ranks differ since synchronize(): {AFTER}")
        for name in self.averaged:
            if self.named[name].grad is not None:
                raise UserError(f"parameter {name} got a gradient since synchronize(): {AFTER}")
        for name, g in changed.items():
            self.synchronizer.replace(name, self._numbers(g))
        return {name for name, p in self.named.items() if p.grad is None}

    def _complete(self, agreed):
        """Pass the missing gradients of buckets that another rank has already sent."""
        for bucket in self.synchronizer.buckets[len(self.synchronizer.launched):agreed.most]:
            for name in bucket.names:
                self._offer(name)

    def _offer(self, name):
        """Pass the gradient of `name`, zeros where there is none, unless it was passed before."""
        b, k = self.synchronizer.place[name]
        if self.synchronizer.gradients[b][k] is None:
            g = self._gradient(name)
            p = self.named[name]
            self.synchronizer.ready(name, self._numbers(torch.zeros(p.numel(), device=p.device) if g is None else g))

    def _agree(self, call, own=0):
        """`Agreed` of all ranks; raises on all of them where one makes another call or has other settings. Collective.

        own: a number of this rank, compared over the ranks in `Agreed.same`.
        """
        if self.joined:
            self.joined.roll(call)
        wrong, sync = "", self.synchronizer
        try:
            for name, p in self.named.items():
                self._check(name, p)
            self._follow_settings()
        except UserError as error:
            wrong = str(error)
        facts = {"the call": call, "the step": sync.round, "its tensors": len(self.named), "the error": wrong or "none",
                 "the size of all buffers": self.buffers.size()}
        for k, options in enumerate(self._options()):
            facts |= {f"{option} of parameter group {k}": x for option, x in options.items()}
        first = sync.size > 1 and not sync.round and not self.bound < math.inf and self.averaged is None
        own = self._fingerprint() if first else own
        present = np.array([p.grad is not None or name in self.sent for name, p in self.named.items()], bool)
        agreed = agree(sync.comm, facts, present, len(sync.launched), len(sync.buckets), own)
        if wrong:
            raise UserError(wrong)
        if first and own and agreed.same and sync.rank == 0:
            warnings.warn("the first gradients of all ranks are identical: do they read the same data? Give each its own "
                          "part, by optimizer.synchronizer.rank and size", stacklevel=5)
        return agreed

    def _fingerprint(self) -> int:
        """A number for this rank's gradient; 0 where all of it is 0."""
        own = 0
        for name in self.named:
            g = self._gradient(name)
            if g is not None and g.any():
                own = zlib.crc32(g.cpu().numpy(), own)
        return own

    def _check(self, name, p):
        """Raise UserError where the parameter or a gradient that was sent is no longer what it was."""
        if p.data_ptr() != self.addresses[name]:
            raise UserError(f"parameter {name} was moved after the optimizer was made; call model.to(…) first")
        if p.grad is not None and name not in self.synchronizer.tensors and not (fits(p) and p.device == self.device):
            raise UserError(f"parameter {name} must be float32, float16 or bfloat16 on {self.device} to be trained with the "
                            f"others, got {p.dtype} on {p.device}")
        if name in self.sent and not _same(self.sent[name], self._gradient(name)):
            raise UserError(f"the gradient of {name} was changed after it was complete and sent: {FIXES}")

    def close(self):
        """Remove the hooks: no gradient is sent any more. Collective."""
        self.edits.end()
        for hook in self.hooks.values():
            hook.remove()
        self.synchronizer.close()


@torch.no_grad()
def deliver(p, mean):
    """Set the gradient of p to `mean`, of any shape with as many elements, in p's dtype; dense, in place where it is that."""
    mean = mean.reshape(p.shape).to(p.dtype)
    if p.grad is None or p.grad.layout != torch.strided:
        p.grad = mean
    else:
        p.grad.copy_(mean)


def _hook(reference, name):
    def arrived(p):
        optimizer = reference()
        if optimizer is not None:
            optimizer._arrived(name)
    return arrived


def _same(one, other) -> bool:
    """Whether two flat float32 gradients, or None, have the same bits."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
