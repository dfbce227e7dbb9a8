"""A made-up experiment for tests of the report: its declaration, its results as the runner writes them, its model."""

import json
import types

from hogwild.experiments.report import figures
from hogwild.experiments.run import results

HOSTILE = '99 % <img src=x onerror="hacked=1"> & </script>'
MODEL = "hogwild.experiments.made_up_model"  # a module that only sys.modules knows
TOML = f"""
title = "Made up"
question = "Is <b>this</b> a question?"
command = "trainer {{method}} --seed {{seed}} --record {{record}}"
model = "{MODEL}"
[[grid]]
method = ["dense", "drop", "broken"]
ranks = [2, 4]
[[grid]]
method = ["once", "away"]
ranks = [2]
[values.method.drop]
text = "--keep 0.01"
label = {json.dumps(HOSTILE)}
[metrics.loss]
label = "test loss"
unit = "nats"
better = "lower"
path = "loss"
[metrics.late]
path = "late"
[[figure]]
name = "loss"
title = "Loss against ranks"
x = "ranks"
y = "loss"
series = "method"
log = ["x"]
formula = [{{label = "2 P", y = "2 * ranks", where = {{method = "dense"}}, series = "dense"}}]
[[figure]]
name = "phases"
kind = "bar"
x = "method"
y = ["phase_compute_ms", "phase_exchange_ms"]
facet = "ranks"
[[figure]]
name = "both"
kind = "scatter"
x = "step_ms"
y = "loss"
series = "method"
log = ["y"]
[[figure]]
name = "course"
kind = "curve"
x = "seconds"
y = "metrics.loss"
series = "method"
x_label = "training (s)"
y_label = "loss"
where = {{ranks = 2}}
[[table]]
name = "numbers"
title = "Numbers"
rows = ["method", "ranks"]
columns = ["loss", "late"]
baseline = {{method = "dense"}}
[[reference]]
text = "A paper"
url = "https://example.org/paper"
claim = "half the loss"
metric = "loss"
where = {{method = "drop", ranks = 2}}
baseline = {{method = "dense"}}
figure = "loss"
[[reference]]
text = "Another"
url = "javascript:hacked=1"
[quick]
seeds = 1
"""
LOSS = {("dense", 2): [4, 5, 9], ("dense", 4): [3, 3.5, 8], ("drop", 2): [2, 4, 4.5], ("drop", 4): [1, 2, 7],
        ("once", 2): [6]}


def write_cell(experiment, point, folder):
    """Write a cell as the runner leaves it behind."""
    who = point.axes["method"], point.axes["ranks"]
    first = {"event": "cell", "experiment": experiment.name, "quick": experiment.quick, "axes": point.axes,
             "seed": point.seed, "command": point.shown, "versions": {"numpy": "9.9"}, "commit": "c0ffee",
             "machine": "a machine; 2026-01-02", "date": "2026-01-02"}
    end = {"event": "cell_end", "exit": 0, "seconds": 1.0, "metrics": {}, "network": None}
    own = []
    if who[0] == "away":
        first["skipped"], end["exit"] = "needs <root>", None
    elif who[0] == "broken":
        end |= {"exit": 3, "error": "Traceback:\nRuntimeError: it <broke>"}
    elif point.seed < len(LOSS[who]):
        loss, steps = LOSS[who][point.seed], 10
        own = [{"event": "epoch", "seconds": 2.0 + point.seed, "metrics": {"loss": loss + k}} for k in (2, 1, 0)]
        own += [{"event": "end", "steps": steps, "loss": loss, "late": loss if who == ("drop", 2) and point.seed else None,
                 "phases": {"compute": [1.0, 3.0], "exchange": [2.0, 2.0]}}]
        end["metrics"] = results.extracted(experiment.metrics, own)
    else:
        return
    place = results.folder(folder, experiment.name, experiment.quick)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{point.slug}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (first, *own, end)))


def model():
    """Figures and tables that do not come from the file: as a cost model's."""
    points = [figures.Point(p, 3 * p) for p in (2, 1024)]
    panel = figures.Panel("", [figures.Series("dense", [figures.Point(2, 6, 5, 7, 3)]),
                               figures.Series("dense", points, predicted=True, like="dense")])
    return types.SimpleNamespace(
        figures=lambda cells: [figures.Figure("model", "A model", "line", [panel], "ranks", "step time (ms)", ("x", "y"))],
        tables=lambda cells: [figures.Table("model-table", "Modelled", ["who", "ms"],
                                            [["x", figures.Stat(7.5, 7.5, 7.5, 0)]])])
