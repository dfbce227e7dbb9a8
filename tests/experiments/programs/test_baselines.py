"""torch's DistributedDataParallel as a peer: trains as one process does, its hooks run, its record is as sparsecomm's."""

import json

import numpy as np
import pytest
from mpi import mpirun

torch = pytest.importorskip("torch")

from hogwild.errors import UserError  # noqa: E402
from hogwild.experiments.programs import baselines  # noqa: E402
from sparsecomm.tasks.options import LmOptions, MlpOptions  # noqa: E402
from sparsecomm.tasks.registry import build  # noqa: E402

# Its runs, one after the other in the same ranks: to start them takes the longest.
RUNS = ("import json, sys; from sparsecomm import guard; from hogwild.experiments.programs import baselines\n"
        "guard.run(lambda: [baselines.main(run) for run in json.loads(sys.argv[1])])")
SMALL = ("mlp", "--width", "32", "--batch", "20", "--max-steps", "30", "--evaluate-every", "10")


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(the folder of the records, what rank 0 printed) of runs on two ranks; the language model's text is t.txt."""
    folder = tmp_path_factory.mktemp("peers")
    words = np.random.default_rng(0).choice(["a", "b", "c", "d", "e"], 3000, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    (folder / "t.txt").write_text("\n".join(map(" ".join, words.reshape(100, 30))))
    runs = {"none": SMALL, "fp16": (*SMALL, "--hook", "fp16"),
            # Wide enough for several of DDP's default buckets, between which PowerSGD's callbacks would get mixed up.
            "powersgd": (*SMALL, "--hook", "powersgd", "--width", "600", "--rank-approximation", "2"),
            "target": (*SMALL, "--early-stopping", "accuracy", "--target", "0.1"),
            "lm": ("lm", "t.txt", "--hidden", "8", "--batch", "2", "--max-steps", "5", "--clip-norm", "0.5")}
    ended = mpirun(2, "-c", RUNS, json.dumps([[*run, "--record", name] for name, run in runs.items()]), cwd=folder,
                   timeout=300)
    assert ended.code == 0 and not ended.left, ended.err
    return folder, ended.out


def alone(options, steps, make):
    """Mean losses of a plain torch loop in this process, over steps of the first epoch, and its metrics at the end."""
    task = build("mlp", options, 0, 1)
    rule, losses = make(task.model.parameters()), 0.0
    task.begin(1)
    for k in range(steps):
        rows = task.split.rows[task.order[k * options.batch:(k + 1) * options.batch]]
        x, y = task._batch(task.split.train, rows)
        loss = torch.nn.functional.cross_entropy(task.model(x), y)
        task.model.zero_grad(set_to_none=False)
        task.waiting, task.ready = list(task.gradients), lambda name, gradient: None
        loss.backward()
        rule.step()
        losses += float(loss.detach())
    return losses / steps, task.evaluate()


def test_two_ranks_train_as_one_process_on_the_same_batches(ran):
    told = events(ran[0] / "none")
    assert [event["event"] for event in told] == ["start", "evaluation", "evaluation", "evaluation", "epoch", "end"]
    loss, metrics = alone(MlpOptions(width=32, batch=40), 30, lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-10))
    assert told[-2]["loss"] == pytest.approx(loss, rel=1e-4) and told[-2]["examples"] == 30 * 40
    assert told[-1]["metrics"]["log_loss"] == pytest.approx(metrics["log_loss"], rel=1e-4)
    assert [event["step"] for event in told[1:4]] == [10, 20, 30]
    assert 0 < told[1]["seconds"] < told[2]["seconds"] < told[3]["seconds"] <= told[4]["seconds"] + 1e-9
    end, n = told[-1], 64 * 32 + 32 + 2 * (32 * 32 + 32) + 32 * 10 + 10
    assert end["steps"] == 30 and end["parameters"] == n and end["exchange"] == "ddp none" and end["ranks"] == 2
    assert end["bytes_per_step"] == 4 * n == end["dense_bytes_per_step"] and end["sent"] == [120 * n] * 2
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in end["phases"].values())
    assert told[0]["ranks"] == 2 and told[0]["options"]["training"]["hook"] == "none"


def test_hooks_run_and_learn(ran):
    whole, low = (events(ran[0] / hook) for hook in ("fp16", "powersgd"))
    n = whole[-1]["parameters"]
    assert whole[-1]["bytes_per_step"] == 2 * n and whole[-1]["metrics"]["accuracy"] > 0.6
    end, every = low[-1], (64 + 600, 1200, 1200, 610)
    assert end["metrics"]["accuracy"] > 0.6
    assert 30 * end["bytes_per_step"] == 4 * (2 * end["parameters"] + 28 * (2 * sum(every) + 3 * 600 + 10))


def test_a_target_ends_the_run(ran):
    assert "stopped: accuracy has reached" in ran[1] and events(ran[0] / "target")[-1]["steps"] == 10


def test_language_model_in_two_ranks_has_the_perplexity_of_torch_alone(ran):
    ranks = [build("lm", LmOptions(ran[0] / "t.txt", hidden=8, batch=2), r, 2) for r in range(2)]
    model = ranks[0].model
    rule = torch.optim.Adam(model.parameters(), 0.004)
    for task in ranks:
        task.begin(1)
    for k in range(5):
        total = {}
        for task in ranks:
            task.model.load_state_dict(model.state_dict())
            task.step(k, lambda name, gradient: total.__setitem__(name, total.get(name, 0) + gradient / 2))  # noqa: B023
        for name, p in model.named_parameters():
            p.grad.copy_(torch.from_numpy(total[name]).view_as(p))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        rule.step()
    assert events(ran[0] / "lm")[-1]["metrics"]["perplexity"] == pytest.approx(ranks[0].evaluate()["perplexity"], rel=1e-4)


@pytest.mark.parametrize("arguments, words", [
    (["cnn"], "needs a task, one of mlp, lm, got 'cnn'"), ([], "got ''"), (["mlp", "--hook", "int8"], "--hook"),
    (["mlp", "--evaluate-every", "0"], "--evaluate-every must be at least 1, got 0"),
    (["mlp", "--powersgd-start", "1"], "--powersgd-start must be at least 2, got 1")])
def test_wrong_input_is_told_in_a_line(arguments, words):
    with pytest.raises(UserError) as told:
        baselines.parse(arguments)
    assert words in str(told.value) and "\n" not in str(told.value)
