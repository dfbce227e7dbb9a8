"""torch's own ways to train the models of torch_tasks.py on one machine, with the record of `hogwild train torch`.

python -m hogwild.experiments.programs.torch_peers mlp --way threads|example --workers 2 --epochs 10 --record FILE

threads: one process, whose operators have so many threads. example: as pytorch/examples/mnist_hogwild, processes that share
the parameters, each with an optimizer of its own and all of the data; each makes epochs/workers passes, so that all make
`epochs` together.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.multiprocessing as mp
from tyro.conf import Positional

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.experiments.programs.torch_tasks import TASKS
from hogwild.families import torch_data
from hogwild.families.torch_problem import TorchEpoch
from hogwild.families.torch_worker import made_model, shuffled
from hogwild.training.record import Report


@dataclass
class PeerOptions:
    """Train a model of the experiments in one of torch's own ways."""

    task: Positional[Literal["mlp", "cnn", "bag"]]
    """The model."""
    way: Literal["threads", "example"] = "threads"
    """threads: one process with --workers threads; example: processes, as torch's example mnist_hogwild."""
    workers: int = 2
    """Threads, or processes with one thread each."""
    epochs: int = 10
    """Passes over the data, of all processes together."""
    lr: float = 1e-3
    """Learning rate of Adam (of embeddings SparseAdam)."""
    seed: int = 0
    """Seed of the first weights and of the batches."""
    record: Path | None = None
    """File to which the JSON lines are appended."""


def optimizers(model, lr, steps):
    """Adam, and SparseAdam for what has sparse gradients, with a scheduler each, by which the rate falls to 0 in `steps`."""
    sparse = {id(module.weight) for module in model.modules() if getattr(module, "sparse", False)}
    parts = [p for p in model.parameters() if id(p) in sparse], [p for p in model.parameters() if id(p) not in sparse]
    kinds = (lambda p: torch.optim.SparseAdam(p, lr)), (lambda p: torch.optim.Adam(p, lr, fused=True))
    made = [kind(part) for kind, part in zip(kinds, parts) if part]
    return [(each, torch.optim.lr_scheduler.LambdaLR(each, lambda t: max(1 - t / steps, 0))) for each in made]


def one_epoch(model, task, source, optimizers, seed, epoch):
    """The mean loss of a pass over all data. optimizers: with their schedulers."""
    order, total = shuffled(seed, epoch, source.examples), 0.0
    for batch in torch_data.Batches(source).of([source.rows(order, number) for number in range(source.batches)]):
        for optimizer, _ in optimizers:
            optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        for each in optimizers:
            for part in each:
                part.step()
        total += loss.item()
    return total / source.batches


@torch.no_grad()
def measured(model, task, test) -> dict:
    model.eval()
    rows = [test.rows(np.arange(test.examples), number) for number in range(test.batches)]
    found = [float(task.metrics(model, batch)["accuracy"]) for batch in torch_data.Batches(test).of(rows)]
    model.train()
    return {"accuracy": float(np.average(found, weights=[len(each) for each in rows]))}


def process(k, name, model, options, gate, losses):
    """A process of the example's way."""
    torch.set_num_threads(1)
    task = TASKS[name]()
    source, rounds = torch_data.sources(task.make_data(), task.batch)[0], options.epochs // options.workers
    mine = optimizers(model, options.lr, rounds * source.batches)
    gate.wait()  # ready
    for epoch in range(rounds):
        gate.wait()
        losses[k] = one_epoch(model, task, source, mine, options.seed + 1000 * k, epoch)
        gate.wait()


def main(arguments=None):
    """The command."""
    options = parsed("python -m hogwild.experiments.programs.torch_peers", PeerOptions, arguments or sys.argv[1:])
    rounds = options.epochs if options.way == "threads" else options.epochs // options.workers
    if rounds * (options.workers if options.way == "example" else 1) != options.epochs:
        raise UserError(f"--epochs must be a multiple of --workers, got {options.epochs} and {options.workers}")
    task = TASKS[options.task]()
    model, (source, test) = made_model(task, options.seed), torch_data.sources(task.make_data(), task.batch)
    report = Report(options.record, unit="steps")
    report.start(peer=options.way, workers=options.workers, task=options.task, torch=torch.__version__)
    torch.set_num_threads(options.workers)
    if options.way == "threads":
        mine = optimizers(model, options.lr, rounds * source.batches)
        step = lambda epoch: one_epoch(model, task, source, mine, options.seed, epoch)  # noqa: E731
        passes, processes = 1, []
    else:
        context = mp.get_context("spawn")
        gate, losses = context.Barrier(options.workers + 1), context.Array("d", options.workers)
        model.share_memory()
        processes = [context.Process(target=process, args=(k, options.task, model, options, gate, losses), daemon=True)
                     for k in range(options.workers)]
        [each.start() for each in processes]
        gate.wait()
        passes = options.workers

        def step(epoch):
            gate.wait(), gate.wait()
            return sum(losses) / options.workers
    metrics = {}
    for epoch in range(rounds):
        start = time.perf_counter()
        loss = step(epoch)
        done = loss, source.batches * passes, source.used * passes, time.perf_counter() - start
        metrics = measured(model, task, test)
        report.epoch(TorchEpoch.of((epoch + 1) * passes, loss, options.lr, done, metrics, {}), options.epochs)
    [each.join() for each in processes]
    report.close(metrics=metrics)


if __name__ == "__main__":
    main()
