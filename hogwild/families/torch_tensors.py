"""A torch model's tensors in memory that processes share, and steps on them by our kernels."""

import math
from typing import NamedTuple

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.kernels.optim.steps import Clip
from hogwild.kernels.sharing.modes import Atomic, Wild
from hogwild.kernels.sharing.tensors import Claimed, Step, Tensor, block_of, step_tensor

MODES = {
    "wild": "plain loads and stores, no lock: an update of a shared weight may be lost",
    "locked": "a block of rows of a tensor, with the rule's state, changes under a lock",
    "atomic": "compare-and-swap additions: no update is lost",
}


class Block(NamedTuple):
    """Where a trained tensor's parts are."""

    name: str
    rows: int
    width: int  # coordinates of a row
    size: int  # coordinates of a block that is locked together
    lock: int  # number of its first lock


def has_sparse(model) -> bool:
    """Whether some gradient will be sparse, as far as the modules say so."""
    return any(getattr(module, "sparse", False) is True for module in model.modules())


def check_mode(mode):
    """Raise UserError for a mode that torch models cannot be trained in."""
    if mode not in MODES:
        raise UserError(f"mode must be one of {', '.join(MODES)} for torch models, got '{mode}'")


def trained(model) -> dict[str, torch.nn.Parameter]:
    """The parameters that are stepped, by name. Raises UserError for a model that cannot be trained in shared memory."""
    found, at = {}, {}
    for name, p in model.named_parameters():
        if p.device.type != "cpu" or p.layout != torch.strided:
            raise UserError(f"parameter {name} must be a dense tensor on the CPU, got {p.layout} on {p.device}")
        if p.requires_grad and p.dtype not in (torch.float32, torch.float64):
            raise UserError(f"parameter {name} must be float32 or float64 to be trained, got {p.dtype}; use model.float()")
        if p.numel() and at.setdefault(p.data_ptr(), name) != name:
            raise UserError(f"parameters {at[p.data_ptr()]} and {name} are two over the same memory; tie them by one "
                            "Parameter: b.weight = a.weight")
        if p.requires_grad:
            found[name] = p
    if not any(p.numel() for p in found.values()):
        raise UserError("the model has no parameter to train: none that requires a gradient")
    return found


def tensors_of(model) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name, each once."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, x in found.items():
        if x.dtype == torch.bfloat16 or x.is_quantized or x.layout != torch.strided or x.device.type != "cpu":
            raise UserError(f"{name} must be dense, on the CPU, of a dtype that NumPy has, got {x.dtype} on {x.device}")
    return found


def blocks_of(parameters, rule) -> list[Block]:
    """Of trained parameters, {name: tensor}."""
    blocks, locks = [], 0
    for name, p in parameters.items():
        rows = p.shape[0] if p.ndim > 1 else p.numel()
        width = p.numel() // rows if rows else 1
        size = block_of(rule, p.numel(), width)
        blocks.append(Block(name, rows, max(width, 1), size, locks))
        locks += -(-p.numel() // size)
    return blocks


def state_shapes(parameters, rule) -> dict:
    """What the optimizer shares, as an Arena wants it: slots.S.NAME, updates, locks, halt."""
    blocks = blocks_of(parameters, rule)
    locks = blocks[-1].lock + -(-parameters[blocks[-1].name].numel() // blocks[-1].size) if blocks else 0
    numbers = range(len(rule.start()))
    slots = {f"slots.{s}.{name}": ((p.numel(),), p.detach().numpy().dtype) for name, p in parameters.items() for s in numbers}
    return {**slots, "updates": ((len(parameters),), np.int64), "locks": ((locks,), np.uint32), "halt": ((8,), np.int64)}


def start_slots(arrays, parameters, rule):
    """Give the slots the rule's initial values."""
    for name in parameters:
        for s, value in enumerate(rule.start()):
            arrays[f"slots.{s}.{name}"][...] = value


class Stepper:
    """Steps trained tensors with their gradients; each process has its own, of the same arrays.

    arrays: of `state_shapes`; weights: {name: flat array}, see `blocks_of`; worker: this one's number, from 0.
    """

    def __init__(self, arrays, parameters, weights, rule, mode="wild", worker=0):
        check_mode(mode)
        modes = {"wild": Wild(), "atomic": Atomic(), "locked": Claimed(arrays["locks"], worker + 1, arrays["halt"])}
        self.mode, self.tensors, self.rows = modes[mode], {}, {}
        for k, block in enumerate(blocks_of(parameters, rule)):
            slots = tuple(arrays[f"slots.{s}.{block.name}"] for s in range(len(rule.start())))
            self.tensors[block.name] = Tensor(weights[block.name], slots, arrays["updates"][k:k + 1], block.width, block.size,
                                              block.lock)
        self.whole = hasattr(rule, "terms")

    def compile(self, rule, decay, clip, sparse=False):
        """Compile the dense step, and the sparse one, which takes seconds where they are not cached."""
        first = next(iter(self.tensors.values()))
        none = first._replace(w=first.w[:0], slots=tuple(slot[:0] for slot in first.slots), updates=np.zeros(1, np.int64))
        for rows in (None, np.zeros(0, np.int64))[:1 + sparse]:
            step_tensor(self.mode, Step(rule, 0.0, 1.0, decay, _by_value(clip)), none, rows, none.w)

    def step(self, gradients, rule, lr, decay=None, clip=None):
        """One step: gradients {name: tensor, dense or sparse}, clipped by their common norm, as torch does."""
        step = Step(rule, float(lr), _factor(gradients.values(), clip), decay, _by_value(clip))
        for name, g in gradients.items():
            tensor = self.tensors[name]
            if not tensor.w.size:
                continue
            if not g.is_sparse:
                step_tensor(self.mode, step, tensor, None, g.contiguous().view(-1).numpy())
                continue
            if self.whole or g.sparse_dim() != 1:
                raise UserError(f"the gradient of {name} is sparse, and {type(rule).__name__} needs whole tensors: use "
                                "another rule, or a dense gradient (sparse=False)")
            g = g.coalesce()  # each row once, in rising order
            step_tensor(self.mode, step, tensor, g.indices()[0].numpy(), g.values().contiguous().view(-1).numpy())


def _by_value(clip):
    return Clip(value=clip.value) if clip is not None and clip.value < math.inf else None


def _factor(gradients, clip):
    """What brings the norm of all gradients together to where clip.norm allows."""
    if clip is None or clip.norm == math.inf:
        return 1.0
    values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    total = math.sqrt(sum(float(torch.linalg.vector_norm(x)) ** 2 for x in values))
    return min(1.0, clip.norm / (total + 1e-6))
