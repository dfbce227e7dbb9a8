"""The language model's task: its streams, the state that they carry, and its perplexity against a loop word by word."""

import jobs
import numpy as np
import pytest
import torch

from sparsecomm.tasks import torch_tasks
from sparsecomm.tasks.options import LmOptions
from sparsecomm.tasks.registry import build

pytestmark = pytest.mark.usefixtures("one_thread")


def streams(team, epoch, monkeypatch):
    """(inputs, targets) of all ranks' streams, [stream, word], as an epoch's steps present them."""
    seen = []
    entropy = torch_tasks.F.cross_entropy

    def spy(z, targets, **more):
        seen[-1][1].append(targets.reshape(-1, task.options.batch).numpy())
        return entropy(z, targets, **more)
    monkeypatch.setattr(torch_tasks.F, "cross_entropy", spy)
    for task in team:
        seen.append(([], []))
        hook = task.model.register_forward_pre_hook(lambda model, given: seen[-1][0].append(given[0].numpy()))
        task.begin(epoch)
        for k in range(task.steps):
            task.step(k, lambda tensor, gradient: None)
        hook.remove()
    monkeypatch.setattr(torch_tasks.F, "cross_entropy", entropy)
    return [np.concatenate([np.concatenate(parts).T for parts in side]) for side in zip(*seen)]


@pytest.mark.parametrize("size", [1, 3])
def test_an_epoch_reads_the_text_once(tmp_path, monkeypatch, size):
    """Streams side by side are the text from some place on, but for what does not fill them; each target follows."""
    team = [jobs.made("lm", tmp_path, rank, size, batch=5) for rank in range(size)]
    text, starts = team[0].corpus.train, []
    for epoch in (1, 2):
        inputs, targets = streams(team, epoch, monkeypatch)
        length = len(text) // (5 * size)
        assert inputs.shape == targets.shape == (5 * size, length)
        twice = np.concatenate((text, text))
        start = next(s for s in range(len(text)) if np.array_equal(twice[s:s + inputs.size], inputs.ravel()))
        assert np.array_equal(twice[start + 1:start + 1 + inputs.size], targets.ravel())
        starts.append(start)
    assert starts[0] != starts[1]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def nll(tensors, before, words, tied=False):
    """Negative log-likelihood of `words` after the word `before`, one at a time (LSTM of Gers et al. 2000, float64)."""
    w = {name: x.astype(float) for name, x in tensors.items()}
    hidden = w["embedding.weight"].shape[1]
    h, c, total = np.zeros(hidden), np.zeros(hidden), 0.0
    for word in words:
        gates = (w["lstm.weight_ih_l0"] @ w["embedding.weight"][before] + w["lstm.bias_ih_l0"] +
                 w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"])
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        z = w["embedding.weight" if tied else "scores.weight"] @ h + w["scores.bias"]
        total += np.log(np.exp(z).sum()) - z[word]
        before = word
    return total


@pytest.mark.parametrize("name", ["lm", "lm-tied"])
@pytest.mark.parametrize("least", [7, 1000])
def test_perplexity_is_that_of_a_loop(tmp_path, monkeypatch, name, least):
    """Of every word; where the text is cut into parts, the first word of each follows the one before, but no state does."""
    monkeypatch.setattr(torch_tasks, "LEAST", least)
    task = jobs.made(name, tmp_path, dropout=0.5)  # which evaluation leaves out
    for flat in task.tensors().values():
        flat *= 10
    tensors, header = task.export()
    assert ("scores.weight" in tensors) == (name == "lm") and header["vocabulary"] == task.corpus.words
    held = task.corpus.held
    parts = min(max(len(held) // least, 1), torch_tasks.STREAMS)
    length = -(-len(held) // parts)
    assert parts == 1 or len(held) % parts  # the last part is shorter
    total = sum(nll(tensors, held[start - 1] if start else 1, held[start:start + length], name == "lm-tied")
                for start in range(0, len(held), length))
    assert np.isclose(task.evaluate()["perplexity"], np.exp(total / len(held)), rtol=1e-5)


def test_training_loss_carries_the_state(tmp_path):
    """All steps of an epoch, with the weights as they are, add up to the loop's loss of each stream as one piece."""
    task = jobs.made("lm", tmp_path, batch=3)
    task.begin(1)
    total = sum(jobs.taken(task, k)[0] for k in range(task.steps))
    text, tensors = task.corpus.train, task.export()[0]
    want = 0.0
    for start in task.starts:
        words = text[(start + np.arange(task.length + 1)) % len(text)]
        want += nll(tensors, words[0], words[1:])
    assert np.isclose(total, want, rtol=1e-5)


@pytest.mark.parametrize("name", ["lm", "lm-tied"])
def test_gradient_is_the_slope_of_the_mean_loss(tmp_path, name):
    """Along a random direction, by differences of the loop's loss of the first step, over its words."""
    task = jobs.made(name, tmp_path, batch=3)
    tensors = {tensor: x.astype(float) for tensor, x in task.export()[0].items()}
    rng = np.random.default_rng(0)
    way = {tensor: rng.standard_normal(x.shape) for tensor, x in tensors.items()}
    task.begin(1)
    text, at = task.corpus.train, task.starts[:, None] + np.arange(5)

    def loss(step):
        moved = {tensor: x + step * way[tensor] for tensor, x in tensors.items()}
        return sum(nll(moved, words[0], words[1:], name == "lm-tied") for words in text[at % len(text)])
    _, count, given = jobs.taken(task, 0)
    slope = sum(given[tensor].astype(float) @ way[tensor].ravel() for tensor in given)
    assert count == 12 and np.isclose(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5 / count, rtol=1e-3)


def test_goes_on_from_a_state(tmp_path):
    """Epoch, step and state are all that a step depends on, dropout included."""
    task, other = (jobs.made("lm", tmp_path, 1, 2, batch=3, dropout=0.4) for _ in range(2))
    task.begin(3)
    for k in range(4):
        jobs.taken(task, k)
    state = {name: x.copy() for name, x in task.state().items()}
    want = [jobs.taken(task, k) for k in (4, 5)]
    other.begin(3)
    other.load(state)
    for (loss, _, given), k in zip(want, (4, 5)):
        again, _, gradients = jobs.taken(other, k)
        assert again == loss and all(np.array_equal(given[tensor], gradients[tensor]) for tensor in given)
    other.begin(3)  # from zeros it is another
    assert jobs.taken(other, 4)[0] != want[0][0]


def test_dropout_differs_by_rank_and_step(tmp_path):
    """The same words on two ranks, and in two steps, but never the same dropout."""
    losses = set()
    for rank, k in ((0, 0), (1, 0), (0, 1)):
        task = jobs.made("lm", tmp_path, rank, 2, batch=3, dropout=0.4)
        task.begin(1)
        task.starts = np.arange(3) - k * task.options.bptt
        losses.add(jobs.taken(task, k)[0])
    assert len(losses) == 3


def test_dropout_in_front_of_the_lstm_and_behind(tmp_path):
    """The share that is asked for is zero, the rest is scaled up; in evaluation there is none."""
    task, seen = jobs.made("lm", tmp_path, dropout=0.4, hidden=50), []
    for module in (task.model.lstm, task.model.scores):
        module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    words = torch.randint(13, (20, 10))
    task.model(words, task.model.start(10))
    assert all((x == 0).float().mean().item() == pytest.approx(0.4, abs=0.03) for x in seen)
    dropped = seen[0]
    task.model.eval()
    task.model(words, task.model.start(10))
    assert all(x.all() for x in seen[2:]) and torch.allclose(dropped, torch.where(dropped == 0, 0.0, seen[2] / 0.6))


def test_learns_what_follows(tmp_path):
    """Plain steps bring the perplexity of words that mostly tell the next one far below their number."""
    task = build("lm", LmOptions(jobs.story(tmp_path / "a", 200), batch=8, bptt=8, hidden=20))
    before = task.evaluate()["perplexity"]
    assert len(task.corpus.words) == 13 and 10 < before < 15
    assert jobs.trained(task, 6, 0.1).evaluate()["perplexity"] < 4


def test_facts(tmp_path):
    task = jobs.made("lm", tmp_path)
    assert task.facts == {"source": str(tmp_path / "a.txt"), "examples": 432, "held_out": 108, "vocabulary": 13,
                          "unknown": 0.0, "parameters": 13 * 7 + 4 * 7 * (7 + 7 + 2) + 13 * 7 + 13}
    assert jobs.made("lm-tied", tmp_path).facts["parameters"] == task.facts["parameters"] - 13 * 7
