"""What every task owes the trainer: shares that make a whole, gradients that are final, evaluation alike on all ranks."""

import dataclasses
import os
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
import tyro
from mpi import mpirun
from sklearn import metrics
from torch.nn import functional as F

from hogwild.errors import UserError
from hogwild.training import model_files as model_file
from sparsecomm.tasks import models
from sparsecomm.tasks.options import CnnOptions, LinearOptions, LmOptions, MlpOptions
from sparsecomm.tasks.registry import TASKS, build

shuffled = pytest.mark.parametrize("name", jobs.SHUFFLED)
every = pytest.mark.parametrize("name", jobs.NAMES)


pytestmark = pytest.mark.usefixtures("one_thread")


@every
@pytest.mark.parametrize("size", [2, 3])
def test_mean_over_the_ranks_is_that_of_the_batch(tmp_path, name, size):
    """Also where the last batch gives the ranks unequal parts, or none: all examples count alike."""
    alone = jobs.made(name, tmp_path)
    team = [jobs.made(name, tmp_path, rank, size, batch=6 // size) for rank in range(size)]
    assert {task.steps for task in team} == {alone.steps}
    for epoch in (1, 2):
        for task in (alone, *team):
            task.begin(epoch)
        for k in range(alone.steps):
            loss, count, whole = jobs.taken(alone, k)
            parts = [jobs.taken(task, k) for task in team]
            assert sum(part[1] for part in parts) == count > 0
            assert np.isclose(sum(part[0] for part in parts), loss, rtol=1e-5)
            for tensor, gradient in whole.items():
                mean = sum(part[2][tensor].astype(float) for part in parts) / size
                assert np.allclose(mean, gradient, rtol=1e-4, atol=1e-6)
    if not name.startswith("lm"):
        assert alone.examples == jobs.EXAMPLES
        assert size != 3 or [part[1] for part in parts] == [0, 1, 1]
    assert any(gradient.any() for gradient in whole.values())


@shuffled
def test_an_epoch_takes_every_example_once(tmp_path, name):
    team = [jobs.made(name, tmp_path, rank, 3, batch=2) for rank in range(3)]
    seen = []
    for epoch in (1, 2):
        for task in team:
            task.begin(epoch)
        seen.append(np.concatenate([task.own_share(k)[0] for k in range(team[0].steps) for task in team]))
    assert all(sorted(epoch) == list(range(jobs.EXAMPLES)) for epoch in seen)
    assert not np.array_equal(*seen)  # reshuffled


@pytest.mark.parametrize("name", ["mlp", "mlp-norm", "cnn"])
def test_gradients_of_images_are_autograds(tmp_path, name):
    task = jobs.made(name, tmp_path)
    task.begin(1)
    source, rows = task.split.train, task.split.rows
    pixels = source.x[rows].astype(float)
    x = (source.x.astype(float) - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    for k in range(task.steps):
        _, count, given = jobs.taken(task, k)
        own = rows[task.order[6 * k:6 * k + 6]]
        model = task.model.double()
        z = model(torch.tensor(x[own]).permute(0, 3, 1, 2))
        loss = F.cross_entropy(z, torch.tensor(source.y[own]))  # the mean
        want = torch.autograd.grad(loss, list(model.parameters()))
        task = jobs.made(name, tmp_path)
        task.begin(1)
        assert count == len(own)
        for (tensor, _), gradient in zip(model.named_parameters(), want):
            assert np.allclose(given[tensor], gradient.numpy().ravel(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name, outs", [("logistic", 1), ("one-against-rest", 4), ("softmax", 4), ("huber", 1)])
def test_gradients_of_linear_models_are_autograds(tmp_path, name, outs):
    of_rows = np.random.default_rng(0).random(55).round(3)
    (tmp_path / "w.txt").write_text("".join(f"{weight}\n" for weight in of_rows))
    more = {"sample_weight": tmp_path / "w.txt"} if name == "huber" else {"class_weight": "balanced"}
    task = jobs.made(name, tmp_path, **more)
    x, y = (torch.tensor(array, dtype=torch.float64) for array in jobs.dense(task))
    for flat in task.tensors().values():
        flat[:] = np.random.default_rng(0).standard_normal(flat.size)
    w, b = (torch.tensor(flat, dtype=torch.float64, requires_grad=True) for flat in task.tensors().values())
    weight = torch.tensor((of_rows if name == "huber" else task.weights)[task.rows])
    mean, scale, _ = task.units
    task.begin(1)
    for k in range(task.steps):
        loss, count, given = jobs.taken(task, k)
        own = task.order[6 * k:6 * k + 6]
        z, labels = mean + scale * (x[own] @ w.reshape(-1, outs) + b), mean + scale * y[own]
        each = {"logistic": lambda z, y: F.softplus(-y * z[:, 0]),
                "one-against-rest": lambda z, y: F.softplus(z * (1 - 2.0 * F.one_hot(y.long(), 4))).sum(1),
                "softmax": lambda z, y: F.cross_entropy(z, y.long(), reduction="none"),
                "huber": lambda z, y: F.huber_loss(z[:, 0], y, reduction="none", delta=1.35)}[name](z, labels)
        total = (each * weight[own]).sum()
        want = torch.autograd.grad(total / len(own) / task.units.of_loss, (w, b))
        assert np.isclose(loss, total.item(), rtol=1e-4) and count == len(own)
        for gradient, wanted in zip((given["weights"], given["intercept"]), want):
            assert np.allclose(gradient, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lm", "lm-tied"])
def test_ready_comes_while_backward_runs(tmp_path, name):
    """The last layer's gradient is handed over while the first one's is not begun; the memory stays where it is."""
    task = jobs.made(name, tmp_path)
    task.begin(1)
    first, last = (lambda names: (names[0], names[-1]))(list(task.tensors()))
    addresses = []
    for k in range(2):
        seen = []

        def ready(tensor, gradient, seen=seen):
            seen.append(tensor)
            addresses.append((tensor, gradient.ctypes.data))
            if tensor == last:
                assert gradient.any() and not task.gradients[first].any()
            p = dict(task.model.named_parameters())[tensor]
            assert np.shares_memory(p.grad.numpy(), gradient) and np.array_equal(p.grad.numpy().ravel(), gradient)
        task.step(k, ready)
        assert seen.index(last) < seen.index(first) and sorted(seen) == sorted(task.tensors())
    assert len(set(addresses)) == len(task.tensors())


@shuffled
def test_no_examples_give_zeros(tmp_path, name):
    """44 examples as 7 batches of 6 and one of 2, of which the first of three ranks has none."""
    task = jobs.made(name, tmp_path, 0, 3, batch=2)
    task.begin(1)
    jobs.taken(task, 0)
    loss, count, given = jobs.taken(task, 7)
    assert (loss, count) == (0, 0) and not any(gradient.any() for gradient in given.values())


@every
def test_same_seed_same_bits(tmp_path, name):
    def trained(seed, **more):
        task = jobs.made(name, tmp_path, seed=seed, **({"dropout": 0.3} if name.startswith("lm") else {}), **more)
        for epoch in (1, 2):
            task.begin(epoch)
            for k in range(3):
                for tensor, gradient in jobs.taken(task, k)[2].items():
                    task.tensors()[tensor] -= np.float32(0.1) * gradient
        return np.concatenate(list(task.tensors().values()))
    once = trained(3)
    torch.rand(5), np.random.default_rng().random(3)  # whatever others draw in between
    assert np.array_equal(once, trained(3)) and not np.array_equal(once, trained(4))


@every
def test_all_ranks_start_alike(tmp_path, name):
    first, second = (jobs.made(name, tmp_path, rank, 2).tensors() for rank in range(2))
    assert list(first) == list(second) and all(np.array_equal(first[tensor], second[tensor]) for tensor in first)
    assert all(flat.flags.c_contiguous and flat.dtype == np.float32 for flat in first.values())
    if name in ("mlp", "cnn", "lm", "lm-tied"):  # the others have tensors that always start as zeros or ones
        other = jobs.made(name, tmp_path, seed=1).tensors()
        assert not any(np.array_equal(first[tensor], other[tensor]) for tensor in first)


@every
def test_evaluation_is_the_same_for_any_number_of_ranks(tmp_path, name, monkeypatch):
    from sparsecomm.tasks import tagger, torch_tasks
    monkeypatch.setattr(torch_tasks, "BLOCK", 3), monkeypatch.setattr(tagger, "BLOCK", 3)
    monkeypatch.setattr(torch_tasks, "LEAST", 7), monkeypatch.setattr(torch_tasks, "GROUP", 2)
    alone = jobs.made(name, tmp_path)
    rng = np.random.default_rng(0)
    values = {tensor: flat + rng.normal(size=flat.size) for tensor, flat in alone.tensors().items()}

    def result(task, comm):
        for tensor, flat in task.tensors().items():
            flat[:] = values[tensor]
        return task.evaluate(comm)
    before, whole = alone.evaluate(), result(alone, None)
    assert next(iter(whole)) == alone.metric and all(np.isfinite(list(whole.values())))
    assert whole != before  # tensors() is what the model computes with
    for size in (2, 3, 7):
        comm = jobs.Together()
        assert [result(jobs.made(name, tmp_path, rank, size, batch=1), comm) for rank in range(size)][-1] == whole


@every
def test_nothing_held_out(tmp_path, name):
    task = jobs.made(name, tmp_path, holdout=0.0)
    assert task.evaluate() == {} and task.facts["held_out"] == 0


@every
def test_resharded(tmp_path, name):
    """A rank that takes the place of another one computes what that one would."""
    task, other = jobs.made(name, tmp_path, 0, 3, batch=2), jobs.made(name, tmp_path, 1, 2, batch=2)
    task.reshard(1, 2)
    task.begin(4), other.begin(4)
    assert task.steps == other.steps
    loss, count, given = jobs.taken(task, 0)
    want, number, wanted = jobs.taken(other, 0)
    assert (loss, count) == (want, number) and all(np.array_equal(given[tensor], wanted[tensor]) for tensor in wanted)


BAD_OPTIONS = {"batch": 0, "seed": -1, "width": 0, "channels": 0, "bptt": 0, "hidden": 0, "vocab_size": 2, "holdout": 1.0,
               "dropout": 1.0, "rows": 1, "features": 0}


@pytest.mark.parametrize("field", BAD_OPTIONS)
def test_bad_options(field):
    name, cls = next((name, task.options) for name, task in TASKS.items()
                     if field in {f.name for f in dataclasses.fields(task.options)})
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} must be"):
        build(name, cls(**{field: BAD_OPTIONS[field]}))


def test_bad_tasks(tmp_path):
    with pytest.raises(UserError, match="unknown task 'gan': choose from linear, mlp, cnn, lm, tagger"):
        build("gan", MlpOptions())
    with pytest.raises(UserError, match="lm needs DATA"):
        build("lm", LmOptions())
    with pytest.raises(UserError, match="has 432 words, fewer than the 500 streams of 5 x --batch 100; make --batch smaller"):
        build("lm", LmOptions(jobs.story(tmp_path / "a"), batch=100, holdout=0.2), 0, 5)
    with pytest.raises(UserError, match="holds images of 3 x 3, cnn needs at least 4 x 4"):
        build("cnn", CnnOptions(jobs.pictures(tmp_path / "a.npz", size=3)))
    x, y = jobs.rows(2)
    jobs.svmlight(tmp_path / "a.svm", x[:, :5], y), jobs.svmlight(tmp_path / "b.svm", x, y)
    wider = build("linear", LinearOptions(tmp_path / "a.svm", test=tmp_path / "b.svm", cache=False))
    assert any("b.svm" in note and "features" in note for note in wider.notes)  # ignored, and said
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "pipe"), (Path("-"), "standard input")):
        with pytest.raises(UserError, match=f"{what}: can be read once only, needed a file, as each of 2 ranks reads it"):
            build("linear", LinearOptions(path), 0, 2)
    with pytest.raises(UserError, match="needs rows of two classes"):
        build("linear", LinearOptions(jobs.svmlight(tmp_path / "c.svm", x, 0 * y), cache=False))


@pytest.mark.parametrize("cls", [task.options for task in TASKS.values()])
def test_every_option_is_explained(cls, capsys):
    with pytest.raises(SystemExit):
        tyro.cli(cls, args=["--help"], prog="x")
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(cls):
        if field.name != "data":
            assert f"--{field.name.replace('_', '-')}" in shown or f"--no-{field.name}" in shown
    assert tyro.cli(cls, args=["here", "--batch", "9"]).batch == 9


@pytest.mark.parametrize("n", [1, 3])
def test_between_processes(n, tmp_path):
    """Over MPI: the mean of the ranks' gradients and the metrics, which do not depend on how many there are."""
    program = tmp_path / "program.py"
    program.write_text("""
import sys, pathlib, numpy as np, jobs
from mpi4py import MPI
comm = MPI.COMM_WORLD
for name in ("softmax", "lm"):
    task = jobs.made(name, pathlib.Path(sys.argv[1]), comm.rank, comm.size, batch=60 // comm.size)
    task.begin(1)
    given = jobs.taken(task, 0)[2]
    flat, mean = np.concatenate([given[tensor] for tensor in sorted(given)]), np.empty(sum(map(np.size, given.values())), "f")
    comm.Allreduce(flat, mean)
    if comm.rank == 0:
        np.save(sys.argv[1] + f"/{name}-{comm.size}.npy", mean / comm.size)
    sys.stdout.write(f"{name} {task.evaluate(comm)}\\n")
""")
    for name in ("softmax", "lm"):
        jobs.options(name, tmp_path)  # writes the data before many would
    ended = mpirun(n, program, tmp_path)
    assert ended.code == 0, ended.err
    for name in ("softmax", "lm"):
        said = {line for line in ended.out.splitlines() if line.startswith(name)}
        task = jobs.made(name, tmp_path, batch=60)
        task.begin(1)
        given = jobs.taken(task, 0)[2]
        assert said == {f"{name} {task.evaluate()}"}
        want = np.concatenate([given[tensor] for tensor in sorted(given)])
        assert np.allclose(np.load(tmp_path / f"{name}-{n}.npy"), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "mlp-norm", "cnn"])
def test_image_models_from_their_files(tmp_path, name):
    """What is exported is enough to build the model again; its metrics are scikit-learn's."""
    task = jobs.trained(jobs.made(name, tmp_path), 8, 0.01)
    model_file.save(tmp_path / "model", *task.export())
    tensors, header = model_file.load(tmp_path / "model")
    assert header["family"] == task.name and (header["height"], header["width"], header["channels"]) == (8, 8, 2)
    mean, deviation = tensors.pop("pixel_mean"), tensors.pop("pixel_deviation")
    model = (models.mlp(128, header["layers"], header["classes"], header["layer_norm"]) if task.name == "mlp" else
             models.cnn(2, 8, 8, header["planes"], header["classes"]))
    model.load_state_dict({tensor: torch.from_numpy(x) for tensor, x in tensors.items()})
    rows = task.split.test_rows
    pixels, labels = task.split.test.x[rows], task.split.test.y[rows]
    x = torch.from_numpy((pixels - mean) / deviation).permute(0, 3, 1, 2)
    chance = model(x).detach().double().softmax(1).numpy()
    found = task.evaluate()
    assert found["accuracy"] == metrics.accuracy_score(labels, chance.argmax(1)) > 0.6
    assert found["f1"] == pytest.approx(metrics.f1_score(labels, chance.argmax(1), average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, chance), rel=1e-4)
    next(iter(task.tensors().values()))[:] = np.nan
    assert np.isnan(list(task.evaluate().values())).all()
