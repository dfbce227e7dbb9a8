"""The `sparsecomm` command: train on many processes, evaluate. Mistakes give one line and exit code 2."""

import os
import sys
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.cli import pages
from hogwild.cli.arguments import meant, parsed
from hogwild.cli.declared import defaults
from hogwild.errors import UserError
from hogwild.kernels.compiler.cache import announce, silence
from hogwild.training import console
from hogwild.training.options import Optimization, Output, Stopping, at_least, not_negative
from sparsecomm import guard
from sparsecomm.config import Config
from sparsecomm.run.server_options import Serving
from sparsecomm.tasks.registry import TASKS
from sparsecomm.wire import launch


@dataclass(frozen=True)
class Training(Stopping, Optimization):
    """How the model is trained: as by `hogwild train`, but a step is one for the batches of all ranks."""

    group = "training"  # in --help

    rule: str | None = None
    """sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, nadam, radam, adabelief, apollo; or module.Class of your
    own. Hyper-parameters follow: adam:b1=0.95,eps=1e-6. Default: adagrad; lm and tagger: adam."""
    lr: float | None = None
    """Learning rate; default: what suits the rule and the task (linear: and the rows' length)."""
    clip_norm: float | None = None
    """Clip the mean gradient of all ranks to this L2 norm."""
    epochs: int | None = None
    """Passes over the training data; default: 5; linear: those over 50,000 examples, at least 5, at most 200."""
    evaluate_every: int | None = None
    """Evaluate after every so many steps too, for the record and for --target."""
    early_stopping: Annotated[str | None, arg(metavar="METRIC")] = None
    """Metric whose best epoch is the result, and training stopped --patience epochs after it: accuracy, f1, log_loss, …,
    of lm perplexity."""
    max_steps: int | None = None
    """Stop after so many steps."""

    def check(self):
        """Raises UserError for a value outside its range."""
        at_least(self, epochs=1, evaluate_every=1)
        not_negative(self, "lr")


@dataclass(frozen=True)
class Exchange(Config):
    """What of the gradient is sent at each step, and how."""

    momentum: Annotated[float, arg(name="momentum-correction")] = 0.0
    """Factor of each rank's velocity, accumulated in place of its gradient (Lin et al. 2018). The rule is then best sgd."""
    masking: bool = True
    """With momentum correction: keep the velocity of what was sent."""
    drop_warmup: Annotated[str, arg(metavar="DURATION")] = "0"
    """Duration in which the kept share falls in four stages from 25% to --keep: 1epoch, 500steps; a number alone: epochs."""
    residual: bool = True
    """Lose what is not sent, instead of keeping it for later steps."""
    overlap: bool = True
    """Exchange only after the whole backward pass; else a finished bucket is exchanged in a thread while it goes on."""

    def __post_init__(self):
        """Config itself is made once the steps of an epoch are known, and checks then."""


@dataclass(frozen=True)
class Running(Output):
    """Where the run's results are written, and what happens when it is cut short."""

    group = "failures"

    checkpoint: Path | None = None
    """File for checkpoints, with each rank's residual: written while it runs, and on Ctrl-C and SIGTERM."""
    resume: bool = False
    """Resume from --checkpoint, where there is one; with the same number of ranks as if never interrupted."""
    timeout: float | None = None
    """End the job when a rank has neither answered nor computed for so many seconds; default: SPARSECOMM_PATIENCE, else 20
    for a process that is stopped or gone, 600 for another."""
    on_failure: Annotated[str, arg(metavar="stop|shrink")] = "stop"
    """What the death of a rank does: stop ends the job; shrink: the others continue (Open MPI, mpiexec --with-ft ulfm)."""

    def check(self):
        if self.on_failure not in ("stop", "shrink"):
            raise UserError(f"--on-failure must be stop or shrink, got '{self.on_failure}'")
        super().check()


def command_options(task) -> type:
    """The dataclass of `sparsecomm train TASK`: its groups of options in the order of --help."""
    groups = {"task": TASKS[task].options, "training": Training, "exchange": Exchange, "serving": Serving, "running": Running}
    return make_dataclass(f"Train_{task}", [(name, kind, field(default_factory=kind)) for name, kind in groups.items()],
                          frozen=True)


@dataclass(frozen=True)
class Evaluate:
    """Measure a saved mlp, cnn, lm or tagger: accuracy, F1 and log-loss on images, perplexity on a text, F1 of chunks on
    tagged sentences.

    Examples:
      sparsecomm evaluate digits.safetensors mnist/
      mpiexec -n 4 sparsecomm evaluate lm.safetensors ptb.test.txt.xz
    """

    model: Positional[Path]
    """A model saved by `sparsecomm train`."""
    data: Positional[Path]
    """Images, text or tagged sentences, in the form of training data; of a folder or .npz with two parts, the test part."""
    labels: Path | None = None
    """idx file of the labels of DATA; default: the one beside it that MNIST's naming tells."""


@dataclass(frozen=True)
class Doctor:
    """Examine what the ranks run on: MPI, hosts, messages between ranks, cores, threads, versions, memory, cache. One table,
    then a line for each problem and what to do. Exit code 0: no problem, 1: problems.

    Examples:
      mpiexec -n 4 sparsecomm doctor
    """


COMMANDS = {"evaluate": Evaluate, "doctor": Doctor}
NOTES = ("mpiexec starts as many ranks as -n says, on the hosts of -hosts or of a host file; there may be more ranks than "
         "cores. Under Slurm: srun -n RANKS --mpi=pmi2 sparsecomm train …. Without a launcher there is one rank.",
         "sparsecomm COMMAND --help lists the options: sparsecomm train mlp --help.")


def overview() -> str:
    """What `sparsecomm --help` prints."""
    training = {f"sparsecomm train {name} {task.data}": task.summary for name, task in TASKS.items()}
    *evaluated, last = [name for name, task in TASKS.items() if task.evaluated_by == "sparsecomm"]
    return pages.overview(
        "[mpiexec -n RANKS] sparsecomm COMMAND …",
        "Data-parallel training on many processes that send each other about 1% of the gradient (Aji & Heafield 2017).",
        {**training, "sparsecomm evaluate MODEL DATA": f"measure a saved {', '.join(evaluated)} or {last}",
         "sparsecomm doctor": "what is wrong with MPI, hosts, cores or versions of the ranks"}, *NOTES)


def help_pages(columns=80) -> dict[str, str]:
    """The whole --help of the command and of each sub-command, by how it is called."""
    commands = [[], *(["train", name] for name in TASKS), *([name] for name in COMMANDS)]
    return {" ".join(["sparsecomm", *words]): pages.printed(parse, words, columns) for words in commands}


def parse(arguments):
    """(command, options) of `arguments`, options being one of the dataclasses; --help and --version end here. Raises
    UserError."""
    command = arguments[0] if arguments else "--help"
    if command == "--version":
        print(pages.versions())
        sys.exit(0)
    if command in ("-h", "--help") or (command == "train" and arguments[1:2] in (["-h"], ["--help"])):
        print(overview())
        sys.exit(0 if arguments else 2)
    if command == "train":
        name = arguments[1] if len(arguments) > 1 else ""
        if name not in TASKS:
            raise UserError(f"train needs a task, one of {', '.join(TASKS)}, got '{name}'{meant(name, TASKS)}: sparsecomm "
                            "train mlp [DATA]")
        cls = command_options(name)
        return name, parsed(f"sparsecomm train {name}", cls, arguments[2:], defaults(cls, arguments[2:]), TASKS[name].help)
    if command in COMMANDS:
        return command, parsed(f"sparsecomm {command}", COMMANDS[command], arguments[1:])
    known = ["train", *COMMANDS]
    raise UserError(f"unknown command '{command}': use {', '.join(known[:-1])} or {known[-1]}"
                    f"{meant(command, known)} (sparsecomm --help)")


def command():
    """The `sparsecomm` command."""
    codes = []
    guard.run(lambda: codes.append(main()), lambda apart: codes.append(main(None, apart)))
    sys.exit(*codes)


def main(arguments=None, apart=None):
    """What the command does with `arguments`, by default those of the process, on this rank; its exit code, or None.

    apart: the UserError where the processes that were started do not see each other, which only `doctor` examines.
    """
    if launch.rank():  # only rank 0 speaks
        sys.stdout = open(os.devnull, "w")
    try:
        with console.output():
            return _do(list(sys.argv[1:] if arguments is None else arguments), apart)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.exit(1)


def _do(arguments, apart):
    name, options = parse(arguments)
    if name == "doctor":
        from sparsecomm.run import doctor
        return doctor.examine(apart)
    if apart:
        raise apart
    if name == "evaluate":
        from sparsecomm.run import evaluate
        return evaluate.evaluate(options)
    launch.world()  # says it where there is no MPI
    if options.running.quiet:
        silence()
    elif not launch.rank():
        announce()
    from sparsecomm.run import train
    return train.train(name, options)
