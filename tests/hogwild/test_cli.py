"""The `hogwild` command as a person uses it: good runs, and every mistake as one line with exit code 2."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from command import ROOT, ROWS, fails, fresh, own_cache, run, svm  # noqa: F401

from hogwild.training.model_files import load
from hogwild.training.replication import MODES


def test_train_evaluate_predict_agree(tmp_path, capsys):
    data, test, model = svm(tmp_path / "a.svm"), svm(tmp_path / "b.svm", seed=1), tmp_path / "m.safetensors"
    record = tmp_path / "r.jsonl"
    assert run("train", "linear", data, "--test", test, "--transform", "log,tfidf,l2", "--model", model, "--epochs", 8,
               "--record", record, "--workers", 2) == 0
    out = capsys.readouterr().out
    assert "epoch 8/8" in out and "2 workers, mode wild" in out and "M non-zeros/s" in out
    events = [json.loads(line) for line in record.read_text().splitlines()]
    accuracy = events[-1]["metrics"]["accuracy"]
    assert accuracy > 0.9 and [e["event"] for e in events] == ["start"] + ["epoch"] * 8 + ["end"]
    assert run("evaluate", model, test) == 0
    assert f"accuracy   {accuracy:.6f}" in capsys.readouterr().out
    assert run("predict", model, test) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    truth = [float(line.split()[0]) for line in test.read_text().splitlines()]
    assert np.mean([float(r[0]) == t for r, t in zip(rows, truth, strict=True)]) == pytest.approx(accuracy)
    assert all(float(p) >= 0.5 for label, p in rows)
    assert run("predict", model, test, "--probabilities") == 0
    header, *table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["-1", "1"] and all(float(pair[label == "1"]) == float(p) for pair, (label, p) in zip(table, rows))


def test_synthetic_default_names_itself_and_the_best_achievable(capsys):
    assert run("train", "linear", "--rows", 3000, "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "synthetic" in out and "best achievable" in out and "47,236 features" in out


def test_regression_on_csv_and_another_rule(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 4))
    y = x @ [1, -2, 3, 0.5] + 4
    path = tmp_path / "prices.csv"
    np.savetxt(path, np.column_stack([y, x]), delimiter=",", header="price,a,b,c,d", comments="")
    assert run("train", "linear", path, "--label", "price", "--loss", "squared", "--rule", "adam:b1=0.8", "--lr", 0.05,
               "--schedule", "cosine", "--epochs", 30, "--workers", 1, "--model", tmp_path / "m") == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "m", path, "--label", "price") == 0
    rmse = float(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rmse")).split()[1])
    assert rmse < 0.05


def test_toml_below_the_command_line(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('epochs = 3\nrule = "sgd"\nlr = 1\nworkers = 1\n')
    assert run("train", "linear", svm(tmp_path / "a.svm"), "--config", tmp_path / "run.toml", "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "epoch 2/2" in out and "SGD()" in out and "lr=1)" in out


@pytest.mark.parametrize("text,message", [
    ("epochz = 3", "unknown option 'epochz'"), ("epochs = 'many'", "epochs must be of type int"),
    ("epochs = ", "not valid TOML"),
])
def test_toml_mistakes(tmp_path, capsys, text, message):
    (tmp_path / "run.toml").write_text(text)
    assert message in fails(capsys, "train", "linear", "--config", "run.toml")


def test_a_rule_of_the_users_own(tmp_path, capsys):
    (tmp_path / "my_rules.py").write_text(
        "from typing import NamedTuple\n"
        "class SignSGD(NamedTuple):\n"
        "    floor: float = 1e-3\n"
        "    default_lr = 0.01\n"
        "    def start(hp): return ()\n"
        "    def prepare(hp, lr, t): return (lr, hp.floor)\n"
        "    @staticmethod\n"
        "    def update(c, g, slots): return c[0] * g / (abs(g) + c[1]), slots\n")
    assert run("train", "linear", svm(tmp_path / "a.svm"), "--rule", "my_rules.SignSGD:floor=0.01",
               "--workers", 1) == 0
    assert "SignSGD(floor=0.01)" in capsys.readouterr().out
    assert "cannot import" in fails(capsys, "train", "linear", "--rule", "my_rules.Nothing")


def test_inspect(tmp_path, capsys):
    assert run("inspect", svm(tmp_path / "a.svm")) == 0
    out = capsys.readouterr().out
    assert "rows        400 (0 without features)" in out and "non-zeros   2,395" in out
    assert all(f"\n{name} " in out for name in ("Ω", "Δ", "ρ", "lost", "workers", "cores"))
    assert "(exact)" in out and "1 advised" in out


@pytest.mark.parametrize("d,whole", [(1.3, True), (0.7, False)])
def test_inspect_and_training_decide_alike_on_replicas(tmp_path, capsys, d, whole):
    """AdaGrad's replicas take two float32 a feature. d: non-zeros for each of those of 2 workers."""
    data, nnz = svm(tmp_path / "a.svm"), 2395
    with open(data, "a") as file:
        file.write(f"+1 {int(nnz / d / 4)}:1\n")
    assert run("inspect", data, "--workers", 2) == 0
    out = capsys.readouterr().out
    assert "predicted for 2 workers" in out and ("with replicas of all" in out) == whole
    predicted = re.search(r"lost +(\S+) of the updates.* stores to (?:all but (\d+)|shared)", out)
    assert run("train", "linear", data, "--workers", 2, "--holdout", 0, "--epochs", 1) == 0
    out = capsys.readouterr().out
    assert ("replicas all (" in out) == whole != ("replicas hot (" in out)
    if not whole:
        assert f"predicted: {predicted[1]} of the updates lost with 2 workers" in out
        assert f"replicas hot ({int(predicted[2]) + 1} rows" in out and int(predicted[2]) > 1  # and the intercept's
    record = tmp_path / "r.jsonl"
    assert run("train", "linear", data, "--workers", 2, "--holdout", 0.3, "--epochs", 1, "--record", record) == 0
    start = json.loads(record.read_text().splitlines()[0])
    hot = start["preflight"]["hot"]
    assert start["replicas"] == ("all" if whole else "hot")
    assert hot == 0 if whole else f"replicas hot ({hot + 1} rows" in capsys.readouterr().out


@pytest.mark.parametrize("cores", [1, 2])
def test_inspect_counts_cores_as_training_does(tmp_path, capsys, monkeypatch, cores):
    """A cgroup may allow fewer than the affinity: one worker has no replica."""
    monkeypatch.setattr("hogwild.training.preflight.usable_cores", lambda: (cores, f"{cores} of them"))
    monkeypatch.setattr("hogwild.training.workers.cores", lambda: 3 - cores)
    assert run("inspect", svm(tmp_path / "a.svm")) == 0
    out = capsys.readouterr().out
    assert f"cores       {cores} of them" in out and ("with replicas of all" in out) == (cores == 2)


def test_inspect_for_many_workers(tmp_path, capsys):
    data = svm(tmp_path / "a.svm")
    lost = []
    for workers in (2, 500):
        assert run("inspect", data, "--workers", workers) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("lost"))
        lost.append(float(line.split()[1].rstrip("%")))
        assert f"for {workers} workers" in line
    assert 0 < lost[0] < lost[1] < 100
    assert "--workers must be at least 1, got 0" in fails(capsys, "inspect", data, "--workers", 0)


def test_the_first_line_is_on_the_rows_that_are_trained_on(tmp_path, capsys):
    data, record = tmp_path / "a.svm", tmp_path / "r.jsonl"
    data.write_text("".join(f"{i % 2} " + " ".join(f"{5 * (i % 40) + j}:1" for j in range(1, 6)) + "\n" for i in range(300)))
    assert run("train", "linear", data, "--epochs", 1, "--record", record) == 0
    assert "270 rows, 200 features, 1,350 non-zeros; Ω 5" in capsys.readouterr().out
    start = json.loads(record.read_text().splitlines()[0])
    assert start["data"]["nonzeros"] == start["preflight"]["nonzeros"] == 1350


@pytest.mark.parametrize("mode", MODES)
def test_warnings_of_each_mode(tmp_path, capsys, monkeypatch, mode):
    monkeypatch.setattr("hogwild.training.preflight.usable_cores", lambda: (2, "2 cores"))
    data = svm(tmp_path / "a.svm")  # 20% dense, small enough for copies
    assert run("train", "linear", data, "--rule", "sgd", "--mode", mode, "--workers", 3, "--epochs", 1) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warned[-1] == "warning: 3 workers on 2 cores: the surplus only takes turns"
    assert [line.split()[1] for line in warned[:-1]] == ["dense"] * (mode in ("atomic", "locked"))


@pytest.mark.parametrize("content,line,what", [
    (b"+1 1:1\n-1 x:2\n", 2, "x"), (b"+1 1:1\n-1 2:b\n", 2, "b"), (b"+1 1:1\n-1 0:1\n", 2, "zero-based"),
    (b"+1 -3:1\n", 1, "-3"), (b"+1 1:1\n+1 5000000000:1\n", 2, "5000000000"), (b"+1 2:1 2:1\n", 1, "2"),
    (b"+1 3:1 2:1\n", 1, "2"), (b"+1 1:nan\n", 1, "nan"), (b"+1 1:1\n\n-1 1:inf\n", 3, "inf"),
    (b"+1 1:1e400\n", 1, "1e400"),
    (b"+1 1:1\n-1 1:\n", 2, "1:"), (b"+1 1:1\n-1 1:\x001\n", 2, "1"), (b"nan 1:1\n", 1, "nan"),
])
def test_bad_lines_are_named(tmp_path, capsys, content, line, what):
    path = tmp_path / "bad.svm"
    path.write_bytes(content)
    message = fails(capsys, "train", "linear", path, "--model", tmp_path / "m")
    assert f"bad.svm:{line}" in message.replace(", line ", ":").replace(" line ", ":") and what in message
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.svm", "cache"}  # no model, and nothing half-written


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_crlf_and_a_missing_last_newline_are_legal(tmp_path, capsys, end):
    assert run("train", "linear", svm(tmp_path / "a.svm", end=end), "--epochs", 1) == 0


def test_files_that_are_not_there_or_empty(tmp_path, capsys):
    assert "none.svm" in fails(capsys, "train", "linear", tmp_path / "none.svm")
    (tmp_path / "empty.svm").write_bytes(b"")
    assert "empty.svm" in fails(capsys, "train", "linear", tmp_path / "empty.svm")


def test_one_class_only(tmp_path, capsys):
    (tmp_path / "one.svm").write_text("+1 1:1\n+1 2:1\n" * 10)
    assert "two classes, got 1" in fails(capsys, "train", "linear", tmp_path / "one.svm")


def test_a_damaged_model(tmp_path, capsys):
    data, model = svm(tmp_path / "a.svm"), tmp_path / "m"
    assert run("train", "linear", data, "--model", model) == 0
    capsys.readouterr()
    whole = model.read_bytes()
    for damaged in (whole[:-3], whole[:20], b"", whole[:-8] + bytes([whole[-8] ^ 4]) + whole[-7:]):
        model.write_bytes(damaged)
        assert "m:" in fails(capsys, "evaluate", model, data)


@pytest.mark.parametrize("arguments,message", [
    (["--rule", "adamm"], "did you mean adam"), (["--rule", "adam:b1=1.5"], "b1 must be a number in [0, 1)"),
    (["--rule", "adam:beta=1"], "one of b1, b2"), (["--rule", "adam:b1=x"], "must be a number"),
    (["--schedule", "cosin"], "unknown schedule"), (["--loss", "log"], "unknown loss"), (["--transform", "sqrt"], "sqrt"),
    (["--epochs", "0"], "--epochs must be at least 1"), (["--workers", "-1"], "--workers"), (["--lr", "nan"], "--lr"),
    (["--l2", "-1"], "l2"), (["--weight-decay", "-1"], "wd"), (["--clip-norm", "0"], "norm"),
    (["--holdout", "1.5"], "--holdout"),
    (["--model", "/no/such/folder/m"], "/no/such/folder/m: cannot be written: there is no folder /no/such/folder; make it"),
    (["--record", "/no/such/folder/r"], "there is no folder /no/such/folder; make it, or choose another --record"),
    (["/no/such/folder/a.svm"], "there is no folder /no/such/folder"),
    (["--config", "/no/such/folder/c.toml"], "there is no folder /no/such/folder"),
    (["--seed", "-1"], "--seed"), (["--test", "x.svm"], "--test needs DATA"),
])
def test_options_out_of_range(capsys, arguments, message):
    assert message in fails(capsys, "train", "linear", *arguments)


@pytest.mark.parametrize("arguments,message", [
    (["train", "linear", "--epohcs", "3"], "unknown option --epohcs; did you mean --epochs? (see hogwild"),
    (["train", "linear", "a", "b"], "surplus argument 'b'"), (["train", "linear", "--epochs"], "--epochs needs a value"),
    (["train", "linear", "--epochs", "1e5"], "--epochs needs a whole number, got '1e5' (see hogwild train linear --help)"),
    (["train", "linear", "--workers", "two"], "--workers needs a whole number, got 'two'"),
    (["train", "linear", "--max-seconds", "1 int"], "--max-seconds needs a number, got '1 int'"),
    (["train", "linear", "--l1", "x'y"], "--l1 needs a number, got \"x'y\""),
    (["inspect", "a", "--workers", "none"], "--workers needs a whole number, got 'none'"),
    (["evaluate"], "missing: MODEL, DATA (see hogwild evaluate --help)"), (["predict", "m"], "missing: DATA"),
    (["predict", "--x"], "missing: MODEL"),
])
def test_unknown_and_missing_options(capsys, arguments, message):
    assert message in fails(capsys, *arguments)


def test_unknown_command_and_family(capsys):
    message = fails(capsys, "trian")
    assert "unknown command 'trian'" in message and "did you mean train?" in message
    message = fails(capsys, "train", "lineal")
    assert "family" in message and "did you mean linear?" in message


def test_a_diverging_run_leaves_no_model(tmp_path, capsys):
    data = svm(tmp_path / "a.svm")
    message = fails(capsys, "train", "linear", data, "--loss", "squared", "--rule", "sgd", "--lr", "1e30",
                    "--workers", 1, "--model", tmp_path / "m")
    assert "no longer finite" in message and not (tmp_path / "m").exists()


def test_a_full_disk_keeps_the_old_model(tmp_path):
    data, model = svm(tmp_path / "a.svm"), tmp_path / "m"
    model.write_bytes(b"old")
    code = ("import resource, sys; from hogwild.cli import main; from hogwild.training import model_files;"
            "check = model_files.check_writable;"
            "model_files.check_writable = lambda p: (check(p), resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)));"
            f"main.main(['train', 'linear', {str(data)!r}, '--no-cache', '--model', {str(model)!r}])")
    done = fresh(code)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert model.read_bytes() == b"old" and not [f for f in os.listdir(tmp_path) if "tmp" in f]


FULL = """
import errno, sys, tempfile
from hogwild.cli import main
from hogwild.training import model_files
replace = model_files._replace

def full(path, write):
    with model_files.user_errors(path):
        if str(path) == sys.argv[1]:
            raise OSError(errno.ENOSPC, "full")
    replace(path, write)

model_files._replace, tempfile.tempdir = full, sys.argv[2]
sys.exit(main.main(sys.argv[3:]))
"""


def test_where_the_model_cannot_be_written_it_is_saved_elsewhere(tmp_path):
    """The disk is full after hours of training."""
    data, path, other = svm(tmp_path / "a.svm"), tmp_path / "m.safetensors", tmp_path / "other"
    other.mkdir()
    command = ["train", "linear", data, "--no-cache", "--epochs", 1, "--model", path, "--record", tmp_path / "r"]
    done = subprocess.run([sys.executable, "-c", FULL, *map(str, (path, other, *command))], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    (saved,) = other.iterdir()
    assert f"{path}: cannot be written: full" in done.stderr and f"the model was saved as {saved} instead" in done.stderr
    assert saved.suffix == ".safetensors" and f"model saved: {saved}" in done.stdout
    assert '"end"' in (tmp_path / "r").read_text() and load(saved)[1]["family"] == "linear"


def test_ctrl_c_saves_what_was_learnt_and_exits_with_130(tmp_path):
    data, model = svm(tmp_path / "a.svm"), tmp_path / "m"
    # A shell that runs the tests in the background has SIGINT ignored, and children inherit that.
    code = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hogwild.cli import main;"
            f"main.main(['train', 'linear', {str(data)!r}, '--epochs', '1000000', '--model', {str(model)!r}])")
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    while "10/1000000" not in (line := run.stdout.readline()):
        assert line, run.stderr.read()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said.strip() == "hogwild: interrupted"
    assert load(model)[0]["weights"].any()


def test_help_can_be_read(capsys):
    assert run("train", "linear", "--help") == 0
    out = capsys.readouterr().out
    for word in ("--rule", "--transform", "svmlight", "adagrad", "onecycle", "Examples", "130", "143", "A second one"):
        assert word in out
    assert all(f"\n{' ' * 24}{mode}: " in out for mode in MODES)
    assert run("--help") == 0 and "hogwild inspect DATA" in (out := capsys.readouterr().out) and "143" in out
    assert run("inspect", "--help") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("Ω, Δ and ρ", "lost updates", "advised number", "cores", "--workers"))


def test_a_first_run_says_that_it_compiles(tmp_path, monkeypatch):
    data = svm(tmp_path / "a.svm")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    code = f"import sys; from hogwild.cli import main; sys.argv[1:] = ['inspect', {str(data)!r}]; main.command()"
    first, second = fresh(code), fresh(code)
    assert first.stderr.count("\n") == 1 and "compiling" in first.stderr and str(tmp_path / "kernels") in first.stderr
    assert second.stderr == "" and first.stdout == second.stdout and "rows" in first.stdout


def test_the_command_imports_nothing_heavy(tmp_path):
    data = svm(tmp_path / "a.svm")
    code = (f"import sys; from hogwild.cli import main; sys.argv[1:] = ['train', 'linear', {str(data)!r}, '--epochs', '1'];"
            "main.command();"
            "print('heavy', [m for m in ('torch', 'sklearn', 'scipy.linalg', 'mpi4py', 'matplotlib') if m in sys.modules])")
    done = fresh(code)
    assert done.returncode == 0 and "heavy []" in done.stdout, done.stderr
