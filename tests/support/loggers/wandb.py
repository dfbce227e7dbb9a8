"""In place of Weights & Biases: what is used of it, with the signatures of its documentation (docs.wandb.ai, 0.31); each call
becomes a JSON line of the file $LOGGED."""

import json
import os


def note(call, **arguments):
    with open(os.environ["LOGGED"], "a") as file:
        file.write(json.dumps({"call": call, **arguments}) + "\n")
    if call == os.environ.get("BREAKS"):
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")


class Values:
    def __init__(self, name):
        self.name = name

    def update(self, d):
        note(self.name, values=d)


class Run:
    id = "x1"

    def __init__(self):
        self.config, self.summary = Values("config"), Values("summary")

    def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None):
        assert "*" not in name[:-1]
        note("define_metric", name=name, step_metric=step_metric)

    def log(self, data, step=None, commit=None):
        note("log", data=data)

    def finish(self, exit_code=None):
        note("finish", exit_code=exit_code)


def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, mode=None):
    note("init")
    return Run()
