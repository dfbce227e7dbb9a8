"""What `hogwild inspect` prints of a data file for the family "linear"."""

import numpy as np

from hogwild.data import dataset
from hogwild.data.class_names import number_text
from hogwild.families import predictions
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.rules import RULES
from hogwild.training import preflight
from hogwild.training.registry import build
from hogwild.training.replicated import Sharing
from hogwild.training.replication import choose, columns_of


def describe(options, default) -> tuple[list[str], list[str]]:
    """(lines on how the file was read, lines on what it holds) for a hogwild.cli.options.Inspect; default: the TrainLinear
    whose workers are advised."""
    data = dataset.read(options.data, **options.reading.reading())
    labels, number = np.unique(data.labels, return_counts=True)
    names = [number_text(label) if data.names is None else data.names[int(label)] for label in labels[:6]]
    shown = ", ".join(f"{name}: {k:,}" for name, k in zip(names, number[:6], strict=True))
    more = f", … ({len(labels):,} values)" if len(labels) > 6 else ""
    lengths = np.diff(data.indptr)
    size = _size(len(labels), default)
    sharing = Sharing(options.workers or preflight.usable_cores()[0])
    whole = choose(sharing, size, (data.n_features + 1, data.nnz + data.rows)) == "all"
    flight = preflight.examine(data, options.workers, loses=not whole, size=None if whole else size)
    return list(data.notes), [
        data.source,
        f"rows        {data.rows:,} ({int((lengths == 0).sum()):,} without features)",
        f"features    {data.width:,} ({flight.occurring:,} occur)",
        f"non-zeros   {data.nnz:,} ({data.nnz / max(data.rows, 1):.1f} a row, at most {int(lengths.max(initial=0)):,})",
        f"values      {data.values.min() if data.nnz else 0:g} to {data.values.max() if data.nnz else 0:g}",
        f"labels      {shown}{more}", *flight.lines(whole)]


def _size(labels, default):
    """float32 a feature that `hogwild train linear` trains by default; labels: how many there are."""
    outputs = predictions.outputs_of(build(default.model.loss, LOSSES, "loss"),
                                     labels if labels <= predictions.MOST_CLASSES else 0)
    return outputs * columns_of(build(default.training.rule, RULES, "rule"))
