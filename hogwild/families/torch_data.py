"""Examples for torch models: what a user's function gives, cut into batches that workers divide among them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset, default_collate

from hogwild.errors import UserError

NEEDED = ("make_data must return training data, or a pair (training, held-out): each a tuple of tensors, a Dataset, or a "
          "DataLoader")


class Source(NamedTuple):
    """Examples, and how batches are made of them."""

    tensors: tuple | None  # of equal length, where the examples are these
    dataset: Any
    batch: int  # examples of a batch
    collate: Any = default_collate
    drop_last: bool = False
    loader: dict = {}  # options of a DataLoader with workers of its own

    @property
    def examples(self) -> int:
        return len(self.tensors[0]) if self.tensors else len(self.dataset)

    @property
    def batches(self) -> int:
        whole, rest = divmod(self.examples, self.batch)
        return whole + bool(rest and not self.drop_last)

    @property
    def used(self) -> int:
        """Examples of an epoch."""
        return min(self.batches * self.batch, self.examples)

    def rows(self, order, number) -> np.ndarray:
        """The examples of batch `number` of an order of all."""
        return order[number * self.batch:(number + 1) * self.batch]


def sources(made, batch) -> tuple[Source, Source | None]:
    """(training, held-out or None) of what make_data has returned. Raises UserError."""
    if isinstance(made, (tuple, list)) and not _is_tensors(made):
        if len(made) != 2:
            raise UserError(f"{NEEDED}; got {len(made)} items, of types {', '.join(type(x).__name__ for x in made)}")
        train, test = _source(made[0], batch), _source(made[1], batch) if made[1] is not None else None
    else:
        train, test = _source(made, batch), None
    for what, source in ("training", train), ("held-out", test):
        if source and not source.batches:
            raise UserError(f"make_data: there are no {what} examples")
    return train, test


def _is_tensors(made):
    return isinstance(made, (tuple, list)) and bool(made) and all(isinstance(x, (torch.Tensor, np.ndarray)) for x in made)


def _source(made, batch) -> Source:
    if isinstance(made, TensorDataset):
        made = made.tensors
    if _is_tensors(made):
        tensors = tuple(_tensor(x) for x in made)
        if len({len(x) if x.ndim else 0 for x in tensors}) > 1:
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
            raise UserError(f"make_data: tensors of one length are needed, got shapes {shapes}")
        return Source(tensors, None, batch)
    if isinstance(made, DataLoader):
        return _of_loader(made)
    if isinstance(made, IterableDataset) or not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise UserError(f"{NEEDED}, of a known length and with examples by number; got {type(made).__name__}")
    return Source(None, made, batch)


def _tensor(x) -> torch.Tensor:
    try:
        x = torch.as_tensor(x).detach()
        x.numpy()
    except (TypeError, RuntimeError):
        kind = f"{x.layout} on {x.device}, of {x.dtype}" if isinstance(x, torch.Tensor) else f"an array of {x.dtype}"
        raise UserError("make_data: tensors must be dense, on the CPU, of a dtype that both NumPy and torch have, got "
                        f"{kind}") from None
    return x


def _of_loader(loader) -> Source:
    """A DataLoader's own batches; the order is the training's."""
    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)) or loader.batch_size is None:
        raise UserError("make_data: the order of the examples is the training's, so a DataLoader must have a batch_size and "
                        f"no sampler of its own, got {type(loader.sampler).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(f"{NEEDED}, of a known length and with examples by number; got an IterableDataset")
    names = "num_workers", "worker_init_fn", "prefetch_factor", "multiprocessing_context", "timeout"
    options = {name: getattr(loader, name) for name in names} if loader.num_workers else {}
    tensors = tuple(map(_tensor, loader.dataset.tensors)) if isinstance(loader.dataset, TensorDataset) and not options and (
        loader.collate_fn is default_collate) else None
    return Source(tensors, loader.dataset, loader.batch_size, loader.collate_fn, loader.drop_last, options)


class Batches:
    """Gives the batches of lists of rows, with the processes of a DataLoader where the source has some."""

    def __init__(self, source):
        self.source, self.wanted = source, []
        self.loader = DataLoader(source.dataset, batch_sampler=_Wanted(self.wanted), collate_fn=source.collate,
                                 persistent_workers=True, **source.loader) if source.loader else None

    def of(self, lists):
        """Yield a batch for each list of rows (int64 arrays)."""
        source = self.source
        if source.tensors:
            for rows in lists:
                at = torch.from_numpy(rows)
                yield tuple(x[at] for x in source.tensors)
        elif self.loader:
            self.wanted[:] = [rows.tolist() for rows in lists]
            yield from self.loader
        else:
            together = getattr(source.dataset, "__getitems__", None)
            for rows in lists:
                rows = rows.tolist()
                yield source.collate(together(rows) if together else [source.dataset[i] for i in rows])


class _Wanted:
    """A batch sampler over a list that changes."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(list(self.batches))

    def __len__(self):
        return len(self.batches)
