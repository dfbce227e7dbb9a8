"""The options of the `sparsecomm` command: what a person reads, and every mistake as one line."""

import re

import pytest
from jobs import pictures
from mpi import mpirun
from turns import in_turn

from hogwild.errors import UserError
from sparsecomm import cli
from sparsecomm.config import Config

COMMAND = "-c", "from sparsecomm.cli import command; command()"


def mistake(*arguments):
    with pytest.raises(UserError) as error:
        cli.parse([str(a) for a in arguments])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("task", cli.TASKS)
def test_help_can_be_read(capsys, task):
    with pytest.raises(SystemExit) as stop:
        cli.parse(["train", task, "--help"])
    out = capsys.readouterr().out
    assert not stop.value.code and re.search(rf"^\s*mpiexec -n \d sparsecomm train {task}", out, re.MULTILINE)
    for word in ("Examples:", "--batch", "--rule", "adagrad", "--keep", "--value-code", "--momentum-correction",
                 "--drop-warmup", "--no-residual", "--checkpoint", "--on-failure", "\ndata:\n", "\nexchange:\n"):
        assert word in out
    assert "--momentum " not in out


def test_overview(capsys):
    for arguments, code in ((["--help"], 0), ([], 2), (["train", "--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            cli.parse(arguments)
        out = capsys.readouterr().out
        assert (stop.value.code or 0) == code and "mpiexec" in out and "srun" in out and "sparsecomm train lm" in out


def test_what_cannot_be_parsed():
    assert "unknown command 'trian'" in mistake("trian")
    assert "one of linear, mlp, cnn, lm, tagger, got 'mpl'" in mistake("train", "mpl")
    assert "one of linear, mlp, cnn, lm, tagger, got ''" in mistake("train")
    assert "did you mean --width?" in mistake("train", "mlp", "--widht", 3)
    assert "--keep needs a number, got 'some'" in mistake("train", "mlp", "--keep", "some")
    assert "--width" in mistake("train", "linear", "--width", 3)


def test_toml_below_the_command_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('width = 7\nlr = 1\nrule = "sgd"\nkeep = 0.5\nmomentum-correction = 0.9\ndrop_warmup = 2\nwarmup = 3\n'
                    'residual = false\nmodel = "m"\n')
    name, options = cli.parse(["train", "mlp", "--config", str(path), "--lr", "2", "--epochs", "9"])
    assert name == "mlp" and options.task.width == 7 and options.training.rule == "sgd" and options.training.lr == 2
    assert options.training.epochs == 9 and options.training.warmup == "3" and options.running.model.name == "m"
    assert options.exchange == cli.Exchange(keep=0.5, momentum=0.9, drop_warmup="2", residual=False)
    for text, message in (("widht = 3", "unknown option 'widht'; known: data"), ("momentum = 1", "unknown option 'momentum'"),
                          ("epochs = 1.5", "epochs must be of type int"), ("keep = ", "not valid TOML")):
        path.write_text(text)
        assert message in mistake("train", "mlp", f"--config={path}")


def test_options_stand_for_the_fields_of_config():
    """What the command line does not name has Config's own default; its gradients are its own, and so are sent ahead."""
    assert Config(**{**vars(cli.Exchange()), "drop_warmup": 0}) == Config(overlap=True)


def test_mistakes_are_alike_on_all_ranks(tmp_path):
    data = pictures(tmp_path / "a.npz")
    cases = [
        (["--rule", "adagard"], "did you mean adagrad"), (["--rule", "adam:b1=2"], "b1"), (["--lr", "nan"], "lr"),
        (["--schedule", "cosin"], "unknown schedule"), (["--l2", "-1"], "l2"), (["--clip-norm", "0"], "norm"),
        (["--epochs", "0"], "--epochs"),
        (["--warmup", "-1"], "--warmup"), (["--patience", "0"], "patience"), (["--target", "1"], "target"),
        (["--keep", "0"], "keep must be a number in (0, 1]"), (["--exchange", "gossip"], "exchange must be one of auto"),
        (["--value-code", "float8"], "value_code"), (["--momentum-correction", "1"], "momentum"),
        (["--drop-warmup", "nan"], "--drop-warmup"), (["--drop-warmup", "5min"], "got '5min'"),
        (["--combine", "local"], "average_every"), (["--batch", "0"], "--batch"),
        (["--holdout", "1"], "--holdout"), (["--width", "0"], "--width"), (["--timeout", "1"], "at least 5 s"),
        (["--on-failure", "pray"], "--on-failure must be"), (["--resume"], "--resume needs"),
        (["--model", "/no/such/folder/m"], "/no/such/folder"), (["--record", "/no/such/folder/r"], "/no/such/folder"),
        (["--checkpoint", "c", "--checkpoint-seconds", "-1"], "seconds between checkpoints"),
        (["--early-stopping", "speed"], "no metric 'speed'"), (["--test", "none.npz"], "none.npz"),
        (["--early-stopping", "f1", "--holdout", "0"], "needs held-out data"), (["--checkpoint", data, "--resume"], "a.npz"),
    ]
    pictures(tmp_path / "0.npz"), pictures(tmp_path / "1.npz", seed=1)
    apart = [["train", "mlp", *more] for more in (["{rank}.npz"], [data, "--seed", "{rank}"], [data, "--lr", "1{rank}"])]
    said = in_turn(2, *[["train", "mlp", data, "--width", "4", *more] for more, _ in cases], ["train", "lm"], *apart,
                   cwd=tmp_path)
    for (more, message), (_, wrong) in zip(cases, said):
        assert message in wrong and "\n" not in wrong, (more, wrong)
    assert "lm needs DATA" in said[-4][1]
    for (_, wrong), words in zip(said[-3:], ("data", "task.seed is 1 on rank 1, but 0 on rank 0", "training.lr")):
        assert "the ranks do not agree" in wrong and words in wrong
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "0.npz", "1.npz"}


def test_the_command_says_a_mistake_once_and_help_once(tmp_path):
    ended = mpirun(2, *COMMAND, "train", "mlp", "--keep", 7, cwd=tmp_path)
    lines = [line for line in ended.err.splitlines() if line.startswith("sparsecomm: ")]
    assert ended.code == 2 and lines == ["sparsecomm: keep must be a number in (0, 1], got 7.0"]
    assert "Traceback" not in ended.err
    ended = mpirun(2, *COMMAND, "train", "mlp", "--help", cwd=tmp_path)
    assert ended.code == 0 and ended.out.count("Examples:") == 1
