"""hogwild.plot: what records of runs hold, as curves."""

import math
import os

from hogwild.errors import UserError, sound
from hogwild.training.record_files import runs

COLUMNS = 3  # of panels
SIZE = 4.0, 2.8  # of a panel, in inches
DOTS = 30  # epochs up to which each is marked
TITLES = {"loss": "training loss", "lr": "learning rate"}


def plot(record):
    """A matplotlib Figure of runs by epoch: a panel each for the training loss, every metric of the held-out data and the
    learning rate, a line a run.

    record: path of a file that --record wrote, or a list of them; a file with several runs gives a line for each. The figure
    is one of pyplot: matplotlib.pyplot.show() shows it, figure.savefig("run.png") saves it. Raises hogwild.errors.UserError
    for what is no record or has no epoch, ImportError where there is no matplotlib.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(f"hogwild.plot needs matplotlib: pip install matplotlib ({error})") from None
    curves = _curves([record] if isinstance(record, (str, os.PathLike)) else list(record))
    names = dict.fromkeys(name for _, series in curves for name in series if name not in TITLES)
    names = ["loss", *names, "lr"]
    columns = min(len(names), COLUMNS)
    lines = math.ceil(len(names) / columns)
    figure, axes = pyplot.subplots(lines, columns, squeeze=False, layout="constrained",
                                   figsize=(SIZE[0] * columns, SIZE[1] * lines))
    for axis, name in zip(axes.flat, names):
        for label, series in curves:
            epochs, values = series.get(name, ((), ()))
            axis.plot(epochs, values, marker="." if len(epochs) <= DOTS else "", label=label)
        axis.set(title=TITLES.get(name, f"held-out {name}"), xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes.flat[len(names):]:
        axis.set_axis_off()
    if len(curves) > 1:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure


def _curves(paths):
    """(label, {name: (epochs, values)}) of each run; a value that is no number is NaN."""
    twins = len({os.path.basename(path) for path in paths}) < len(paths)
    found = []
    for path in paths:
        with sound(path, "record of a run", "record the run again"):
            for label, events in runs(path, str(path) if twins else os.path.basename(path)):
                series = {}
                for event in events:
                    if event["event"] == "epoch":
                        for name, value in {"loss": event["loss"], "lr": event["lr"], **event["metrics"]}.items():
                            epochs, values = series.setdefault(name, ([], []))
                            epochs.append(int(event["epoch"]))
                            values.append(math.nan if value is None else float(value))
                found.append((label, series))
    if not any(series for _, series in found):
        raise UserError(f"{', '.join(map(str, paths)) or 'hogwild.plot'}: no run with an epoch to draw; needed the file of a "
                        "run with --record")
    return found
