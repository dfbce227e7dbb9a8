"""`sparsecomm evaluate`: saved models, measured on other data."""

from hogwild.errors import UserError, sound
from hogwild.training import model_files
from sparsecomm.tasks import registry
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
    known = [name for name, task in registry.TASKS.items() if task.evaluated_by == "sparsecomm"]
    if isinstance(family, str) and family in registry.TASKS and family not in known:
        raise UserError(f"{path}: is a {family} model, which {registry.TASKS[family].evaluated_by} evaluate measures")
    if family not in known:
        raise UserError(f"{path}: is a model of family {family!r}, this command knows {', '.join(known)}")
    cls = registry.task_class(family)
    with sound(path, f"model of family {family}", "train again, or restore the file"):
        task, source = cls.from_model(tensors, header, data, labels)
        task.rank, task.size = (comm.rank, comm.size) if comm else (0, 1)
    return source, task.evaluate(comm)
