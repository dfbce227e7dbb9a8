"""--logger: what the record holds arrives at the logger, whatever that does; nothing of it is imported unasked."""

import json
import math
import sys
from pathlib import Path

import pytest
from command import fails, own_cache, run, svm  # noqa: F401
from mpi import mpirun

import hogwild
from hogwild.errors import UserError
from hogwild.training import loggers
from hogwild.training.record import Report

STUBS = Path(__file__).parents[2] / "support" / "loggers"
SHORT = ["--epochs", 3, "--workers", 1, "--record", "r"]


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """The calls so far of stub packages mlflow and wandb."""
    monkeypatch.syspath_prepend(STUBS)
    for name in "mlflow", "wandb":
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("LOGGED", str(tmp_path / "logged"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    yield lambda: lines(tmp_path / "logged")
    for name in "mlflow", "wandb":
        sys.modules.pop(name, None)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def recorded(path="r"):
    """(start event, {epoch: its numbers by name}, end event's numbers) of a record."""
    def numbers(fields, before=""):
        for key, value in fields.items():
            if isinstance(value, dict):
                yield from numbers(value, f"{before}{key}/")
            elif type(value) in (int, float) and key not in ("time", "epoch"):
                yield before + key, value
    events = lines(path)
    return (next(event for event in events if event["event"] == "start"),
            {event["epoch"]: dict(numbers(event)) for event in events if event["event"] == "epoch"},
            dict(numbers(events[-1], "end/")))


def test_mlflow(tmp_path, capsys, stubs):
    assert run("train", "linear", svm(tmp_path / "a.svm"), *SHORT, "--patience", 7, "--logger", "mlflow") == 0
    start, epochs, end = recorded()
    calls = stubs()
    given = {name: value for call in calls if call["call"] == "log_params" for name, value in call["params"].items()}
    assert given["options.patience"] == "7" and given["rule"] == start["rule"] and given["data.rows"] == "360"
    assert "options.model" not in given  # not set
    assert [call for call in calls if call["call"] == "log_metrics"] == [
        *({"call": "log_metrics", "metrics": epochs[k], "step": k} for k in (1, 2, 3)),
        {"call": "log_metrics", "metrics": pytest.approx(end), "step": 3}]
    assert (calls[0]["call"], calls[-1]) == ("start_run", {"call": "end_run", "status": "FINISHED"})
    out = capsys.readouterr()
    assert "logged to mlflow, as run 0f at sqlite:///here.db" in out.out and "warning" not in out.err


def test_wandb_with_two_axes(stubs):
    with Report(quiet=True) as report:
        report.open(None, "wandb")
        report.start(options={"keep": 0.01, "deep": {"width": 3, "none": None}}, hosts=["a", "b"], long="x" * 900)
        report.evaluation(50, 0.5, {"accuracy": 0.25, "log_loss": math.nan})
        report.logger.event("epoch", {"epoch": 1, "loss": 0.5, "lr": math.inf, "partial": True, "metrics": {"auc": 0.75}})
        report.event("warning", text="nothing to draw")
        report.close(interrupted=True, metrics={"auc": 0.75}, sent=[1, 2])
    calls = stubs()
    assert {"call": "define_metric", "name": "evaluation/*", "step_metric": "step"} in calls
    given, = (call["values"] for call in calls if call["call"] == "config")
    assert given["options.keep"] == 0.01 and given["options.deep.width"] == 3 and given["hosts"] == "['a', 'b']"
    assert "options.deep.none" not in given and len(given["long"]) == 500 and "numpy" in str(given)
    assert [call["data"] for call in calls if call["call"] == "log"] == [
        {"step": 50, "evaluation/seconds": 0.5, "evaluation/metrics/accuracy": 0.25},
        {"epoch": 1, "loss": 0.5, "metrics/auc": 0.75}]
    summary, = (call["values"] for call in calls if call["call"] == "summary")
    assert summary == {"end/seconds": pytest.approx(0, abs=60), "end/metrics/auc": 0.75}
    assert calls[-1] == {"call": "finish", "exit_code": 1}


def test_tensorboard_itself_reads_what_was_written(tmp_path):
    for package in loggers.TensorBoard.packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    assert run("train", "linear", svm(tmp_path / "a.svm"), *SHORT, "--logger", "tensorboard") == 0
    folder, = (tmp_path / "runs").iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    start, epochs, end = recorded()
    assert set(found.Tags()["scalars"]) == {*epochs[1], *end}
    for name in epochs[1]:  # TensorBoard keeps float32
        assert [(point.step, point.value) for point in found.Scalars(name)] == [
            (k, pytest.approx(epoch[name], rel=1e-6)) for k, epoch in epochs.items()]
    assert [(point.step, point.value) for point in found.Scalars("end/metrics/accuracy")] == [
        (3, pytest.approx(end["end/metrics/accuracy"]))]
    written = HParamsPluginData.FromString(found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    given = written.session_start_info.hparams
    assert given["options.epochs"].number_value == 3 and given["rule"].string_value == start["rule"]


@pytest.mark.parametrize("name, says", [
    ("mlflow", "--logger mlflow needs mlflow: pip install mlflow"),
    ("wandb", "--logger wandb needs wandb: pip install wandb"),
    ("tensorboard", "--logger tensorboard needs torch and tensorboard: pip install tensorboard"),
    ("neptune", "--logger must be one of tensorboard, mlflow, wandb, got 'neptune'")])
def test_a_missing_package_is_said_before_the_data_are_read(tmp_path, capsys, monkeypatch, name, says):
    (tmp_path / "wandb").mkdir()  # as an earlier run of wandb leaves it
    monkeypatch.syspath_prepend(tmp_path)
    absent = loggers.importlib.util.find_spec
    monkeypatch.setattr(loggers.importlib.util, "find_spec",
                        lambda package: None if package in ("mlflow", "tensorboard") else absent(package))
    assert fails(capsys, "train", "linear", "no-such-file", "--logger", name) == f"hogwild: {says}"


def test_a_logger_that_cannot_start_is_one_line_and_nothing_is_trained(tmp_path, capsys, monkeypatch, stubs):
    monkeypatch.setenv("BREAKS", "init")
    data = svm(tmp_path / "a.svm")
    assert "--logger wandb cannot start: RuntimeError: No API key configured. Use `wandb login` to log in." in fails(
        capsys, "train", "linear", data, "--logger", "wandb", "--model", "m", "--record", "r")
    assert not (tmp_path / "m").exists() and not (tmp_path / "r").exists()


@pytest.mark.parametrize("breaks, calls", [("log_params", 1), ("log_metrics", 1), ("end_run", 4)])
def test_a_logger_that_fails_later_does_not_end_the_run(tmp_path, capsys, monkeypatch, stubs, breaks, calls):
    monkeypatch.setenv("BREAKS", breaks)
    assert run("train", "linear", svm(tmp_path / "a.svm"), *SHORT, "--logger", "mlflow", "--model", "m") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "--logger" in line]
    assert warnings == ["warning: --logger mlflow has failed, the run goes on without it: OSError: the server has gone"]
    assert (tmp_path / "m").exists() and len(recorded()[1]) == 3
    assert sum(call["call"] in ("log_metrics", breaks) for call in stubs()) == calls + (breaks == "end_run")


def test_the_logger_hears_how_a_run_ended(stubs):
    for error, fields, status in ((None, {}, "FINISHED"), (None, {"interrupted": True}, "KILLED"), (UserError, {}, "FAILED")):
        try:
            with Report(quiet=True) as report:
                report.open(None, "mlflow")
                if error:
                    raise error("the loss is no longer finite")
                report.close(**fields)
        except UserError:
            pass
        assert stubs()[-1] == {"call": "end_run", "status": status}


def test_nothing_is_imported_unasked(tmp_path, stubs):
    assert run("train", "linear", svm(tmp_path / "a.svm"), *SHORT) == 0
    assert not {"mlflow", "wandb"} & set(sys.modules) and not stubs()


def test_of_several_ranks_one_logs_and_saves_what_load_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOGGED", str(tmp_path / "logged"))
    data = svm(tmp_path / "a.svm")
    code = (f"import sys; sys.path.insert(0, {str(STUBS)!r}); from sparsecomm.cli import command; "
            "sys.argv[0] = 'sparsecomm'; command()")
    ended = mpirun(2, "-c", code, "train", "linear", data, "--epochs", "2", "--evaluate-every", "5", "--record",
                   tmp_path / "r", "--logger", "mlflow", "--batch", "32", "--model", tmp_path / "m")
    assert ended.code == 0, ended.err
    _, epochs, end = recorded(tmp_path / "r")
    calls, events = lines(tmp_path / "logged"), lines(tmp_path / "r")
    assert [call["call"] for call in calls if call["call"] in ("start_run", "end_run")] == ["start_run", "end_run"]
    metrics = [(call["step"], call["metrics"]) for call in calls if call["call"] == "log_metrics"]
    within = [(event["step"], event["metrics"]["accuracy"]) for event in events if event["event"] == "evaluation"]
    assert within and [(k, found["evaluation/metrics/accuracy"]) for k, found in metrics
                       if "evaluation/metrics/accuracy" in found] == within
    assert [found for _, found in metrics if "loss" in found] == list(epochs.values())
    assert metrics[-1][1] == pytest.approx(end) and end["end/kept"] > 0
    assert any("options.exchange.keep" in call["params"] for call in calls if call["call"] == "log_params")
    capsys.readouterr()
    assert run("predict", tmp_path / "m", data) == 0
    names, likely = zip(*(map(float, line.split()) for line in capsys.readouterr().out.splitlines()))
    model = hogwild.load(tmp_path / "m")
    assert model.predict(data).tolist() == list(names) and model.predict_proba(data).max(axis=1).tolist() == list(likely)
