"""Loggers beside the record, for --logger: a run's events become series and parameters of TensorBoard, MLflow or Weights &
Biases. Their packages are imported when a run is logged, never before."""

import importlib.util
import math
import os
from numbers import Real

from hogwild.errors import UserError
from hogwild.training import console

LONGEST = 500  # letters of a parameter that MLflow stores, in all its versions
PARAMETERS = 100  # of one request to MLflow


class TensorBoard:
    """SummaryWriter of torch, in the folder that it chooses, runs/TIME_HOST."""

    packages = ("torch", "tensorboard")

    def __init__(self):
        from torch.utils.tensorboard import SummaryWriter
        self.writer, self.given, self.at = SummaryWriter(), {}, 0
        self.place = f"in {self.writer.log_dir}; to see it: tensorboard --logdir {self.writer.log_dir}"

    def parameters(self, values):
        self.given = values

    def scalars(self, axis, at, values):
        self.at = at
        for name, value in values.items():
            self.writer.add_scalar(name, value, at)
        self.writer.flush()  # else a run that is killed loses two minutes

    def close(self, last, status):
        # A table of runs shows these parameters beside these metrics.
        self.writer.add_hparams(self.given, last, run_name=".", global_step=self.at)
        self.writer.close()


class MLflow:
    """The active run of MLFLOW_RUN_ID, or a new one at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

    packages = ("mlflow",)

    def __init__(self):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # by default it waits for a dead server for minutes
        import mlflow
        self.api, self.at = mlflow, 0
        self.place = f"as run {mlflow.start_run().info.run_id} at {mlflow.get_tracking_uri()}"

    def parameters(self, values):
        pairs = list(values.items())
        for start in range(0, len(pairs), PARAMETERS):
            self.api.log_params(dict(pairs[start:start + PARAMETERS]))

    def scalars(self, axis, at, values):
        self.at = at
        self.api.log_metrics(values, step=at)

    def close(self, last, status):
        if last:
            self.api.log_metrics(last, step=self.at)
        self.api.end_run({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[status])


class WandB:
    """A new run of wandb, set up by its variables WANDB_PROJECT, WANDB_MODE, …"""

    packages = ("wandb",)

    def __init__(self):
        import wandb
        self.run = wandb.init()
        for series, axis in ("*", "epoch"), ("evaluation/*", "step"):  # its own step must not fall, and ours are two axes
            self.run.define_metric(series, step_metric=axis)
        self.place = f"as run {self.run.id} of wandb"

    def parameters(self, values):
        self.run.config.update(values)

    def scalars(self, axis, at, values):
        self.run.log({axis: at, **values})

    def close(self, last, status):
        self.run.summary.update(last)
        self.run.finish(exit_code=int(status != "finished"))


BACKENDS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def check(name):
    """Raise UserError unless `name` is of BACKENDS and what it needs is installed; nothing is imported."""
    if name not in BACKENDS:
        raise UserError(f"--logger must be one of {', '.join(BACKENDS)}, got '{name}'")
    packages = BACKENDS[name].packages
    # A folder of that name, as wandb makes one, is found too, but as a package without a file.
    missing = [package for package in packages if getattr(importlib.util.find_spec(package), "origin", None) is None]
    if missing:
        raise UserError(f"--logger {name} needs {' and '.join(packages)}: pip install {' '.join(missing)}")


class Logger:
    """What a Report sends its events to. A backend that fails while the run goes on is named once, and then left alone."""

    def __init__(self, name):
        """Raises UserError where `check` does, or the backend cannot start: no login, no server, no room."""
        check(name)
        self.name = name
        try:
            self.backend = BACKENDS[name]()
        except Exception as error:  # whatever a foreign package may raise
            raise UserError(f"--logger {name} cannot start: {_line(error)}") from None

    def event(self, name, fields):
        """One event of the record, see hogwild/training/record.py: its numbers by epoch or step; of `start` all values."""
        axis = {"epoch": "epoch", "evaluation": "step"}.get(name)
        if name == "start":
            self._try(lambda: self.backend.parameters(dict(_values(fields))))
        elif axis:
            series = _numbers({key: value for key, value in fields.items() if key != axis}, "" if name == "epoch" else name)
            self._try(lambda: self.backend.scalars(axis, fields[axis], series))

    def close(self, status, fields=None):
        """status: finished, interrupted or failed; fields: of the event `end`."""
        self._try(lambda: self.backend.close(_numbers(fields or {}, "end"), status))
        self.backend = None

    def _try(self, call):
        if self.backend is None:
            return
        try:
            call()
        except Exception as error:  # as above; what is trained is worth more than its log
            console.note(f"warning: --logger {self.name} has failed, the run goes on without it: {_line(error)}")
            self.backend = None


def _line(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]


def _leaves(fields, prefix, joint):
    """Yield (name, value) of nested dicts."""
    for key, value in fields.items():
        name = f"{prefix}{joint}{key}" if prefix else str(key)
        if isinstance(value, dict):
            yield from _leaves(value, name, joint)
        else:
            yield name, value


def _numbers(fields, prefix) -> dict[str, float]:
    """The finite numbers among nested fields, named as metrics/accuracy."""
    return {name: float(value) for name, value in _leaves(fields, prefix, "/")
            if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)}


def _values(fields):
    """Yield (name, value) of what is set among nested fields, as options.epochs: bool, number or text."""
    for name, value in _leaves(fields, "", "."):
        if value is not None:
            yield name, value if isinstance(value, (bool, int, float)) else str(value)[:LONGEST]
