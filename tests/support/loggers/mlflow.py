"""In place of MLflow: the functions that are used, with the signatures and limits of its documentation (mlflow.org, 3.17);
each call becomes a JSON line of the file $LOGGED."""

import json
import os
import re
from types import SimpleNamespace

NAME = re.compile(r"[\w\-. /]{1,250}")  # of metrics and parameters


def note(call, **arguments):
    with open(os.environ["LOGGED"], "a") as file:
        file.write(json.dumps({"call": call, **arguments}) + "\n")
    if call == os.environ.get("BREAKS"):
        raise OSError("the server\nhas gone")


def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None, description=None,
              log_system_metrics=None):
    note("start_run")
    return SimpleNamespace(info=SimpleNamespace(run_id="0f"))


def get_tracking_uri():
    return "sqlite:///here.db"


def log_params(params, synchronous=None, run_id=None):
    assert len(params) <= 100 and all(NAME.fullmatch(name) and len(str(value)) <= 500 for name, value in params.items())
    note("log_params", params={name: str(value) for name, value in params.items()})


def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None):
    assert len(metrics) <= 1000 and all(NAME.fullmatch(name) and type(value) is float for name, value in metrics.items())
    note("log_metrics", metrics=metrics, step=step)


def end_run(status="FINISHED"):
    assert status in ("FINISHED", "FAILED", "KILLED")
    note("end_run", status=status)
