"""`sparsecomm evaluate`: saved models of the torch tasks, measured on other data."""

from pathlib import Path

import numpy as np
import torch

from hogwild.data.formats import place
from hogwild.errors import UserError, demand, sound
from hogwild.training import model_files
from sparsecomm.data import images, text
from sparsecomm.tasks import models
from sparsecomm.tasks.torch_tasks import ImageTask, LanguageTask
from sparsecomm.wire import launch


def evaluate(options):
    """Print the metrics of options.model on options.data; under mpiexec each rank measures a part."""
    comm = launch.world() if launch.size() > 1 else None
    source, metrics = measured(options.model, options.data, options.labels, comm)
    print(source)
    for name, value in metrics.items():
        print(f"{name:<10} {value:.6f}")


def measured(path, data, labels=None, comm=None) -> tuple[str, dict[str, float]]:
    """(what it was measured on, metrics) of the model at `path` on `data`, shared among the ranks of `comm`.

    data: as for training: images, whose test part is taken where there are two, or a text. Raises UserError.
    """
    tensors, header = model_files.load(path)
    family = header.get("family")
    if family == "linear":
        raise UserError(f"{path}: is a linear model, which hogwild evaluate measures")
    if family not in ("mlp", "cnn", "lm"):
        raise UserError(f"{path}: is a model of family {family!r}, this command knows mlp, cnn and lm")
    with sound(path, f"model of family {family}", "train again, or restore the file"):
        task, source = (_reader if family == "lm" else _viewer)(tensors, header, data, labels)
        task.rank, task.size = (comm.rank, comm.size) if comm else (0, 1)
        with torch.no_grad():
            for name, p in task.model.named_parameters():
                demand(tensors[name].shape == tuple(p.shape), f"{name} is of another form")
                p.copy_(torch.from_numpy(tensors[name]))
    return source, task.evaluate(comm)


def _viewer(tensors, header, data, labels):
    """(a task that can evaluate images, what it has of them)."""
    shape, classes = [header[key] for key in ("height", "width", "channels")], header["classes"]
    held = images.read_test(data, labels)
    images.check_like(held, shape, classes)
    task, (height, width, channels) = ImageTask.__new__(ImageTask), shape
    task.split = images.Split(held, np.zeros(0, np.int64), held, np.arange(len(held.y)), classes)
    task.mean, task.deviation = tensors["pixel_mean"], tensors["pixel_deviation"]
    task.model = models.mlp(height * width * channels, header["layers"], classes, header["layer_norm"]) \
        if header["family"] == "mlp" else models.cnn(channels, height, width, header["planes"], classes)
    return task, f"{held.source}: {len(held.y):,} images"


def _reader(tensors, header, data, labels):
    """(a task that can evaluate a text, what it has of it)."""
    if labels:
        raise UserError("--labels is for images; a text has none")
    words, task = header["vocabulary"], LanguageTask.__new__(LanguageTask)
    held = text.numbered(Path(data), {word.encode(): k for k, word in enumerate(words)})
    task.corpus, task.options = text.Corpus(held, held, words, place(data)), Reading()
    task.model = models.LanguageModel(len(words), header["hidden"], tied=header["tied"])
    return task, f"{place(data)}: {len(held):,} words"


class Reading:
    """What of a text's options evaluation looks at."""

    bptt = 35
