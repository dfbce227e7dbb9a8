"""Standard output, records and checkpoints that cannot be written: the run is worth more than what is said of it."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hogwild.cli import main
from hogwild.errors import UserError
from hogwild.training import checkpoint, console
from hogwild.training.model_files import load
from hogwild.training.record import Report

ROOT = Path(__file__).parents[3]
HOGWILD, SPARSECOMM = ("import sys; from hogwild.cli.main import command; command()",
                       "import sys; from sparsecomm.cli import command; command()")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "a.svm"
    rng = np.random.default_rng(0)
    path.write_text("".join(f"{rng.choice([-1, 1])} {rng.integers(1, 9)}:1\n" for _ in range(60)))
    return path


def train(*paths):
    return [str(each) for each in ("train", "linear", *paths, "--epochs", "2")]


def process(program, arguments, stdout=None, closed=(), **environment):
    """(exit code, stderr) of a process of its own."""
    def close():
        for number in closed:
            os.close(number)
    done = subprocess.run([sys.executable, "-c", program, *arguments], stdout=stdout, stderr=subprocess.PIPE, timeout=300,
                          preexec_fn=close if closed else None,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", **environment})
    said = done.stderr.decode()
    return done.returncode, [line for line in said.splitlines() if not line.startswith("compiling")]


def broken():
    """The writing end of a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("program, kind", [
    *((HOGWILD, kind) for kind in ("full", "broken", "closed", "all closed", "latin-1")), (SPARSECOMM, "full")])
def test_a_run_survives_its_console(tmp_path, data, program, kind):
    model, record = tmp_path / "m", tmp_path / "r.jsonl"
    arguments = train(data, "--model", model, "--record", record)
    arguments += ["--batch", "8"] if program is SPARSECOMM else ["--workers", "1"]
    if kind == "latin-1":
        code, said = process(program, arguments, subprocess.DEVNULL, PYTHONIOENCODING=kind)
        assert said == []
    elif "closed" in kind:
        code, said = process(program, arguments, closed=(0, 1, 2) if "all" in kind else (1,))
        assert len(said) == ("all" not in kind)
    else:
        out = broken() if kind == "broken" else os.open("/dev/full", os.O_WRONLY)
        code, said = process(program, arguments, out)
        os.close(out)
        assert len(said) == 1 and "standard output cannot be written" in said[0] and "goes on" in said[0]
    assert code == 0 and load(model)[0]["weights"].shape == (9,)
    assert json.loads(record.read_text().splitlines()[-1])["event"] == "end"


@pytest.mark.parametrize("program", [HOGWILD, SPARSECOMM])
def test_quiet_is_silent_and_changes_no_file(tmp_path, data, program):
    written = []
    for name, more in ("loud", []), ("quiet", ["--quiet"]):
        arguments = train(data, "--model", tmp_path / name, "--record", tmp_path / f"{name}.jsonl", *more)
        with open(tmp_path / "out", "wb") as out:
            code, said = process(program, arguments + ["--workers", "1"] * (program is HOGWILD), out)
        assert code == 0 and said == [] and (not (tmp_path / "out").stat().st_size) == bool(more)
        events = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        written.append([(event["event"], event.get("metrics"), event.get("loss")) for event in events])
    assert written[0] == written[1] and [event for event, *_ in written[0]] == ["start", "epoch", "epoch", "end"]
    assert np.array_equal(*(load(tmp_path / name)[0]["weights"] for name in ("loud", "quiet")))


def test_quiet_says_warnings_and_mistakes(tmp_path, data):
    code, said = process(HOGWILD, train(data, "--quiet", "--mode", "atomic", "--workers", 2))
    assert code == 0 and said and all(line.startswith("warning: ") for line in said)
    code, said = process(HOGWILD, train(tmp_path / "none", "--quiet"))
    assert code == 2 and len(said) == 1 and said[0].startswith(f"hogwild: {tmp_path}/none: ")


def test_lines_end_where_the_terminal_does(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setenv("COLUMNS", "40")
    fields = "epoch 1/2  loss 0.6257  accuracy 0.8070  1,519 k examples/s  ETA 0 s"
    text = f"{fields}\nshort\n  {'words of a sentence ' * 5}"
    assert console.fitted(text, io.StringIO()) == text
    lines = console.fitted(text, Terminal()).split("\n")
    assert max(map(len, lines)) <= 40 and " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert lines[:3] == ["epoch 1/2  loss 0.6257  accuracy 0.8070", "  1,519 k examples/s  ETA 0 s", "short"]
    assert lines[3].startswith("  words") and all(line.startswith("    ") for line in lines[4:])


def test_a_mistake_is_one_line_on_a_terminal_too(tmp_path):
    """Where standard output is a terminal, the parser colours its messages."""
    reader, terminal = pty.openpty()
    done = subprocess.run([sys.executable, "-c", HOGWILD, "train", "linear", "--epohcs", "3"], stdout=terminal,
                          stderr=subprocess.PIPE, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"})
    os.close(reader), os.close(terminal)
    assert done.stderr == "hogwild: unknown option --epohcs; did you mean --epochs? (see hogwild train linear --help)\n"


def test_a_run_survives_its_record_and_its_checkpoint(tmp_path, data, capsys, monkeypatch):
    def full(*_):
        raise UserError("a full disk")
    monkeypatch.setattr(checkpoint, "save", full)
    model = tmp_path / "m"
    with pytest.raises(SystemExit) as stop:
        main.main(train(data, "--model", model, "--record", "/dev/full", "--checkpoint", tmp_path / "c",
                       "--checkpoint-seconds", 0, "--workers", 1))
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and err.splitlines() == [
        "warning: /dev/full: the record ends here, it cannot be written: No space left on device", "hogwild: a full disk"]
    assert out.count("warning: no checkpoint: a full disk; the run goes on") >= 2 and "model saved" in out
    assert load(model)[0]["weights"].shape == (9,)


def test_a_record_has_no_half_lines(tmp_path):
    program = ("import resource, sys; from hogwild.training.record import Report; "
               "resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150)); report = Report(sys.argv[1]); "
               "[report.event('epoch', number=k) for k in range(9)]; report.close(metrics={})")
    code, said = process(program, [tmp_path / "r"])
    assert code == 0 and len(said) == 1 and "the record ends here" in said[0]
    events = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert [event["number"] for event in events] == list(range(len(events))) and events


@pytest.mark.parametrize("kind", ["full", "closed", "broken"])
def test_what_is_only_printed_and_cannot_be_is_an_error(tmp_path, data, capsys, monkeypatch, kind):
    model = tmp_path / "m"
    main.main(train(data, "--model", model, "--workers", 1))
    capsys.readouterr()
    for arguments in (["predict", model, data], ["evaluate", model, data], ["inspect", data], ["train", "linear", "--help"],
                      ["--help"]):
        out = None if kind == "closed" else open("/dev/full", "w") if kind == "full" else open(broken(), "w")
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as stop:
            main.main([str(each) for each in arguments])
        said = capsys.readouterr().err.splitlines()
        if kind == "broken":  # as by `head`, which is no mistake
            assert stop.value.code == 1 and said == []
        else:
            assert stop.value.code == 2 and len(said) == 1 and "standard output cannot be written" in said[0]


@pytest.mark.parametrize("encoding, said", [("ascii", "Omega \\u65e5 x"), ("latin-1", "Omega \\u65e5 ×"),
                                            ("utf-8", "Ω 日 ×")])
def test_what_an_encoding_lacks_is_said_otherwise(monkeypatch, encoding, said):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    Report().say("Ω 日 ×")
    assert out.buffer.getvalue().decode(encoding) == said + "\n"


def test_a_record_has_nothing_that_json_has_not(tmp_path):
    report = Report(tmp_path / "r", quiet=True)
    report.event("x", a=[np.nan, (1.0, np.inf)], b=np.array([[1, np.nan]]), c=np.float32("inf"), d=np.int64(3),
                 e={"f": -np.inf}, g=np.bool_(True))

    def refuse(name):
        raise AssertionError(name)
    event = json.loads((tmp_path / "r").read_text(), parse_constant=refuse)
    assert [event[name] for name in "abcdeg"] == [[None, [1.0, None]], [[1.0, None]], None, 3, {"f": None}, True]
