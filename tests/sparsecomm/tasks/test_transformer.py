"""The Transformer language model against one in NumPy, word by word; what its files hold; options that do not fit."""

import jobs
import numpy as np
import pytest
from scipy.special import erf, log_softmax, softmax

from hogwild.errors import UserError
from hogwild.training import model_files
from sparsecomm.run.evaluate import measured
from sparsecomm.tasks import torch_tasks
from sparsecomm.tasks.options import LmOptions
from sparsecomm.tasks.registry import build

pytestmark = pytest.mark.usefixtures("one_thread")


def log_chances(w, words, heads=2):
    """float64[words] of what follows `words`, by the pre-norm Transformer's equations (w: its tensors by name)."""
    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    x = w["embedding.weight"][words] + w["positions.weight"][:len(words)]
    for k in range(2):
        at = f"layers.{k}."
        qkv = norm(x, at + "norm1") @ w[at + "self_attn.in_proj_weight"].T + w[at + "self_attn.in_proj_bias"]
        q, k_, v = (np.stack(np.split(part, heads, -1)) for part in np.split(qkv, 3, -1))
        a = q @ k_.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        a[:, np.triu(np.ones(a.shape[1:], bool), 1)] = -np.inf
        x = x + linear(np.concatenate(softmax(a, -1) @ v, -1), at + "self_attn.out_proj")
        h = linear(norm(x, at + "norm2"), at + "linear1")
        x = x + linear(h * (1 + erf(h / np.sqrt(2))) / 2, at + "linear2")
    return log_softmax(norm(x, "norm")[-1] @ w.get("scores.weight", w["embedding.weight"]).T + w["scores.bias"])


def roughened(task):
    """The task with weights far from their start, where every word tells of the next."""
    rng = np.random.default_rng(0)
    for flat in task.tensors().values():
        flat += 0.5 * rng.standard_normal(flat.size).astype("f")
    return task, {name: x.astype(float) for name, x in task.export()[0].items()}


@pytest.mark.parametrize("tied", [False, True])
def test_training_loss_and_perplexity_are_the_equations(tmp_path, monkeypatch, tied):
    """A training step sees its own words alone; in evaluation all but the first words have half a context before them."""
    monkeypatch.setattr(torch_tasks, "LEAST", 30)
    made = {"network": "transformer", "hidden": 8, "heads": 2, "bptt": 5, "batch": 3, "dropout": 0.0}
    task, w = roughened(build("lm", LmOptions(jobs.story(tmp_path / "a"), holdout=0.2, tied=tied, **made)))
    assert ("scores.weight" in w) != tied
    task.begin(1)
    text = task.corpus.train
    windows = [text[(start + np.arange(5 * k, min(5 * k + 5, task.length) + 1)) % len(text)]
               for start in task.starts for k in range(task.steps)]
    want = -sum(log_chances(w, words[:j])[words[j]] for words in windows for j in range(1, len(words)))
    assert sum(jobs.taken(task, k)[0] for k in range(task.steps)) == pytest.approx(want, rel=1e-5)

    held = np.append(1, task.corpus.held)  # a text's beginning follows <eos>
    parts = len(held[1:]) // 30
    length, total = -(-len(held[1:]) // parts), 0.0
    assert parts > 1
    for part in range(0, len(held) - 1, length):
        for j in range(min(length, len(held) - 1 - part)):  # 2 words of context before the 3 that are scored together
            before = held[part + max(j // 3 * 3 - 2, 0):part + j + 1]
            total -= log_chances(w, before)[held[part + j + 1]]
    assert task.evaluate()["perplexity"] == pytest.approx(np.exp(total / (len(held) - 1)), rel=1e-5)


@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_from_its_file(tmp_path, network):
    """`sparsecomm evaluate` measures on the held-out text what training did, with layers and context of the file."""
    held = jobs.story(tmp_path / "held", 30, seed=1)
    options = LmOptions(jobs.story(tmp_path / "a"), test=held, network=network, layers=3, hidden=8, bptt=6, batch=2)
    task = roughened(build("lm", options))[0]
    model_files.save(tmp_path / "m", *task.export())
    assert measured(tmp_path / "m", held)[1] == pytest.approx(task.evaluate(), rel=1e-6)
    assert len({name.split(".")[1] if network == "transformer" else name[-1] for name in task.tensors()
                if name.startswith(("layers", "lstm"))}) == 3


def test_learns_what_follows(tmp_path):
    """Words mostly tell the next one."""
    task = build("lm", LmOptions(jobs.story(tmp_path / "a", 200), network="transformer", hidden=16, batch=8, bptt=8))
    assert 10 < task.evaluate()["perplexity"] < 15
    assert jobs.trained(task, 5, 0.03).evaluate()["perplexity"] < 4


@pytest.mark.parametrize("wrong, told", [
    ({"network": "rnn"}, "--network must be lstm or transformer, got 'rnn'"),
    ({"heads": 2}, "--heads 2 is of --network transformer"),
    ({"network": "transformer", "hidden": 10}, "--hidden must be a multiple of the 4 attention heads, got 10"),
    ({"layers": 0}, "--layers must be at least 1, got 0")])
def test_options_that_do_not_fit(wrong, told):
    with pytest.raises(UserError, match=told):
        build("lm", LmOptions("no-such-file", **wrong))
