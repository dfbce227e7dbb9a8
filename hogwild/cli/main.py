"""The `hogwild` command: train, evaluate, predict, inspect. Mistakes give one line and exit code 2."""

import contextlib
import inspect
import io
import itertools
import re
import sys
import tomllib
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from hogwild.errors import UserError
from hogwild.training import console

Flag = tyro.conf.FlagCreatePairsOff
# What tyro says of a value that is no number, for each way an option may ask for one.
NO_NUMBER = re.compile(r"Error parsing (\S+): (?:no type matching \S*\b|invalid literal for |could not convert string to )"
                       r"(int|float)\b.*?\[?(['\"].*['\"])\]?\.?", re.IGNORECASE)


@dataclass
class TrainLinear:
    """Train a sparse linear model with lock-free workers. Without DATA: on synthetic data of RCV1's shape.

    Examples:
      hogwild train linear
      hogwild train linear reviews.svm.xz --transform log,l2 --test held-out.svm.xz --model reviews.safetensors
      hogwild train linear prices.csv --loss squared --rule adam:b1=0.95 --schedule cosine --epochs 10

    Ctrl-C and SIGTERM end the training early: what was learnt is saved (--checkpoint, --model), and the exit code is 130 or
    143. A second one ends it at once, and saves nothing more.
    """

    data: Positional[Path | None] = None
    """svmlight/libsvm text or .csv (plain, .gz, .bz2, .xz), .parquet, .npz, - (standard input); nothing: synthetic data."""
    test: Path | None = None
    """Held-out file; without one, the share --holdout of DATA is held out."""
    holdout: float = 0.1
    """Share of DATA held out where there is no --test; 0 trains on everything."""
    transform: str = "none"
    """Transforms in order: log (log(1+x)), binary, tfidf, l2 (unit rows), scale (by each feature's largest |x|), none. For
    raw counts: log,l2; for columns of different units: scale."""
    loss: str = "logistic"
    """logistic, hinge, squared-hinge, modified-huber, perceptron, softmax (classes; more than two: each against the rest,
    or softmax); squared, huber[:delta=1.35], epsilon-insensitive[:epsilon=0.1] and squared-epsilon-insensitive (real
    targets, of any size: they are scaled for training, and the model's weights are not)."""
    rule: str = "adagrad"
    """sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, nadam, radam, adabelief, apollo;
    or module.Class of your own. Hyper-parameters follow: adam:b1=0.95,eps=1e-6."""
    lr: str | None = None
    """Learning rate; auto: the best of some tried on a sample; default: what suits the rule on rows as long as these.
    For real targets: of targets scaled to a standard deviation of 1."""
    schedule: str = "constant"
    """constant, inverse-time, inverse-sqrt, exponential, step, multistep, polynomial, noam, cosine, cosine-restarts,
    triangular, triangular2, exp-range, onecycle, plateau (of the held-out metric, or of the training loss).
    Parameters follow, durations in steps or epochs: step:gamma=0.8,every=1epoch."""
    warmup: float | None = None
    """Epochs of linear warm-up in front of the schedule; default 0 (Apollo: its 500 steps)."""
    l1: float = 0.0
    """L1 penalty l1 |w|_1 on the mean loss: weights that do not help become 0, at the end of training those that its last
    steps left near 0. With --l2: elastic net."""
    l2: float = 0.0
    """L2 penalty l2/2 |w|^2 on the mean loss, added to the gradient (coupled)."""
    weight_decay: float | None = None
    """Decoupled weight decay; default 0 (AdamW: 0.01)."""
    clip_norm: float | None = None
    """Clip each example's gradient to this L2 norm."""
    clip_value: float | None = None
    """Clip each component of the gradient to this size."""
    intercept: bool = True
    """Train without an intercept."""
    epochs: int | None = None
    """Passes over the training data; default: those that make 50,000 steps, at least 5, at most 200."""
    average: float | None = None
    """Average the weights over all steps from this epoch on (ASGD); 0: from the start."""
    class_weight: str | None = None
    """Factors of the classes' losses: balanced, or LABEL=WEIGHT,… (spam=2,ham=1)."""
    sample_weight: Path | None = None
    """Text file with a factor of each row's loss, one a line in the order of DATA's rows (plain, .gz, .bz2, .xz)."""
    workers: int | None = None
    """Threads; default: as many as are advised for the data, see hogwild inspect."""
    mode: str = "wild"
    """How workers share the parameters.
    wild: none waits for another's step; each trains a copy, and no update is lost as they are merged; where the parameters
    are too many, or for --l1 with --average, a copy of the hottest, and plain stores to the others, which may lose some.
    atomic: no update is lost; of the hottest there are copies, too.
    locked: a row's weights change together (a lock each), and no update is lost.
    round-robin: updates in strict turn, step t after step t - 1, and none is lost.
    deterministic: for a seed the same bits, whatever the number of workers.
    """
    early_stopping: str | None = None
    """Metric whose best epoch is kept, and training stopped --patience epochs after it: accuracy, f1, log_loss (of logistic
    and softmax), auc (of two classes, not with softmax); for real targets rmse, mae, r2."""
    patience: int = 3
    """Epochs in a row without improvement before --early-stopping or --tol ends the run."""
    min_delta: float = 0.0
    """What counts as an improvement of the metric."""
    target: float | None = None
    """Stop once the metric of --early-stopping has reached this."""
    tol: float | None = None
    """Stop when the training loss has not fallen by this for --patience epochs."""
    max_steps: int | None = None
    """Stop after so many examples."""
    max_seconds: float | None = None
    """Stop after so many seconds of training."""
    checkpoint: Path | None = None
    """File for checkpoints: written while it runs, and on Ctrl-C and SIGTERM."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints."""
    resume: bool = False
    """Go on from --checkpoint, where there is one."""
    retries: int = 5
    """How often a loss that is not finite may send the run back to its last good state, with half the learning rate."""
    seed: int = 0
    """Seed of the permutations (and of the synthetic data)."""
    model: Path | None = None
    """Where the model is saved (safetensors)."""
    record: Path | None = None
    """File to which the run's JSON lines are appended."""
    features: int | None = None
    """Number of features: a larger index in DATA is a mistake; default: the largest index in DATA."""
    zero_based: bool = False
    """svmlight indices start at 0."""
    label: str | None = None
    """Label column of a table (CSV, Parquet), by name or number from 0; default: the last."""
    header: str = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    categorical: str | None = None
    """Columns of a table, by name or number, each of whose values becomes a feature: COLUMN,…; text is taken so by itself."""
    cache: bool = True
    """Do not keep the parsed file, with which the next run starts at once."""
    rows: int = 200_000
    """Rows of the synthetic training data."""
    config: Path | None = None
    """TOML file with any of these options; the command line goes on top."""


@dataclass
class Evaluate:
    """Measure a saved model on a file: accuracy, F1, AUC (two classes), log-loss (logistic, softmax); RMSE, MAE and R²
    for real targets."""

    model: Positional[Path]
    """A model saved by `hogwild train`."""
    data: Positional[Path]
    """Data file, read as the training file was; the model's row transforms are applied."""
    zero_based: bool = False
    """svmlight indices start at 0."""
    label: str | None = None
    """Label column of a table; default: the model's."""
    header: str = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    cache: bool = True
    """Do not keep the parsed file."""


@dataclass
class Predict:
    """Print one prediction a row: the class and that class's probability, or the predicted value.

    Of the hinge losses, in place of a probability: the class's score; of two classes the score of the second, which is
    predicted where it is above 0. Numbers have all their digits. Lines on how DATA was read go to standard error.
    """

    model: Positional[Path]
    """A model saved by `hogwild train`."""
    data: Positional[Path]
    """Data file, read as the training file was; its labels are ignored (svmlight wants one: any number)."""
    out: Path | None = None
    """File (or pipe) for the predictions; default: standard output."""
    probabilities: bool = False
    """Print a header line of the classes, then of each row their probabilities."""
    zero_based: bool = False
    """svmlight indices start at 0."""
    label: str | None = None
    """Label column of a table; default: the model's."""
    header: str = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    cache: bool = True
    """Do not keep the parsed file."""


@dataclass
class Inspect:
    """Describe a data file and what it means for lock-free workers.

    Prints rows, features, non-zeros, values and labels; the paper's Ω, Δ and ρ (exact, a lower bound, or from a
    sample); the predicted share of lost updates; the advised number of workers, and how many cores there really are.
    """

    data: Positional[Path]
    """Data file."""
    workers: int | None = None
    """Threads to predict lost updates for; default: as many as advised."""
    zero_based: bool = False
    """svmlight indices start at 0."""
    label: str | None = None
    """Label column of a table; default: the last."""
    header: str = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    categorical: str | None = None
    """Columns of a table, by name or number, each of whose values becomes a feature: COLUMN,…; text is taken so by itself."""
    cache: bool = True
    """Do not keep the parsed file."""


def defaults(cls, arguments):
    """A `cls` with what the TOML file of --config says, where options of nested dataclasses stand beside the others."""
    path = None
    for i, word in enumerate(arguments):
        if word == "--config" and i + 1 < len(arguments):
            path = arguments[i + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    if path is None:
        return cls()
    try:
        given = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    given = {key.replace("-", "_"): value for key, value in given.items()}
    known = []
    filled = _filled(cls, path, given, known)
    if given:
        raise UserError(f"{path}: unknown option '{next(iter(given))}'; known: {', '.join(known)}")
    return filled


def _filled(cls, path, given, known):
    """`cls` with the options that are its own, which are taken out of `given`; all their names join `known`."""
    values = {}
    for field in fields(cls):
        if is_dataclass(field.type):
            values[field.name] = _filled(field.type, path, given, known)
            continue
        # The name on the command line, where tyro.conf.arg gives another.
        renamed = (mark.name for mark in getattr(field.type, "__metadata__", ()) if getattr(mark, "name", None))
        known.append(next(renamed, field.name).replace("-", "_"))
        if known[-1] in given:
            values[field.name] = _typed(path, known[-1], field.type, given.pop(known[-1]))
    return cls(**values)


def _typed(path, name, kinds, value):
    """A TOML value as the option's type."""
    kind = next(k for k in (bool, Path, float, int, str) if k in getattr(kinds, "__args__", (kinds,)))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path}: {name} must be of type {kind.__name__}, got {value!r}")
    return value


def parsed(command, options, arguments, **more):
    """tyro's parse, with its framed error messages made one line; --help as it is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, prog=command, args=arguments, config=(Flag, tyro.conf.OmitArgPrefixes), **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A title, then blocks between rules; drawn with ASCII where the terminal knows no better.
        rows = [line.strip("│|╭╮╰╯─+ ") for line in said.getvalue().splitlines()]
        content = itertools.dropwhile(_is_rule, rows[1:])
        message = " ".join(" ".join(itertools.takewhile(lambda row: not _is_rule(row), content)).split())
        near = next((row.split()[0] for row in rows if row.startswith("--") and not _is_rule(row)), None)
        meant = f"; did you mean {near}?" if near and any("Perhaps" in row for row in rows) else ""
        raise UserError(f"{_plain(message)}{meant} (see {command} --help)") from None


def _plain(message) -> str:
    """tyro's message, where it tells of its types, in words that say what was needed."""
    if not (found := NO_NUMBER.fullmatch(message)):
        return message
    name, kind, got = found.groups()
    return f"{name} needs a {'whole ' * (kind.lower() == 'int')}number, got {got}"


def _is_rule(row) -> bool:
    return not row.strip("-")


def _parse(arguments):
    """The options as one of the dataclasses above; --help and unknown options end here."""
    app = {"evaluate": Evaluate, "predict": Predict, "inspect": Inspect}
    command = arguments[0] if arguments else "--help"
    if command in app:
        return parsed(f"hogwild {command}", app[command], arguments[1:])
    if command == "train" and arguments[1:2] == ["linear"]:
        return parsed("hogwild train linear", TrainLinear, arguments[2:], default=defaults(TrainLinear, arguments[2:]),
                      description=inspect.getdoc(TrainLinear))
    if command in ("-h", "--help") or (command == "train" and set(arguments[1:]) & {"-h", "--help"}):
        print(OVERVIEW)
        sys.exit(0 if arguments else 2)
    if command == "train":
        family = arguments[1] if len(arguments) > 1 else ""
        raise UserError(f"train needs a problem family, got '{family}': hogwild train linear [DATA]")
    raise UserError(f"unknown command '{command}': use train, evaluate, predict or inspect (hogwild --help)")


OVERVIEW = """usage: hogwild COMMAND …

Lock-free (Hogwild) training of sparse models.

  hogwild train linear [DATA]      train a sparse linear model (no DATA: on synthetic data)
  hogwild evaluate MODEL DATA      measure a saved model
  hogwild predict MODEL DATA       print predictions
  hogwild inspect DATA             describe a data file

hogwild COMMAND --help lists the options; for training: hogwild train linear --help.
Exit codes: 2 after a mistake, 130 after Ctrl-C, 143 after SIGTERM (training first saves what was learnt)."""


def command():
    """The `hogwild` command in a process of its own, ready 0.3 s sooner than `main` would be."""
    # Numba's first call imports scipy.linalg for its BLAS. No kernel here uses it: let that one import fail.
    from numba.core.registry import cpu_target
    blas = "scipy.linalg.cython_blas"
    sys.modules[blas] = None
    cpu_target.target_context.refresh()
    del sys.modules[blas]
    from hogwild.training.record import tell_of_compiling
    tell_of_compiling()
    main()


def main(arguments=None):
    """What the command does with `arguments`, by default those of the process."""
    from hogwild.cli import commands
    try:
        with console.output():
            options = _parse(list(sys.argv[1:] if arguments is None else arguments))
            commands.run(options)
    except UserError as error:
        sys.exit(_fail(error))
    except MemoryError as error:
        sys.exit(_fail(f"not enough memory: {error}; a smaller --features, or fewer features in DATA, would do"))
    except KeyboardInterrupt as stop:
        terminated = type(stop).__name__ == "Terminated"
        console.note(f"hogwild: {'terminated' if terminated else 'interrupted'}")
        sys.exit(143 if terminated else 130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        sys.exit(1)
    except Exception as error:
        if not type(error).__module__.startswith("numba."):
            raise
        from hogwild.training import user_objects  # of a rule or loss of the user's, in what it was not tried in
        sys.exit(_fail(user_objects.said(error)))


def _fail(message) -> int:
    console.note("hogwild: " + " ".join(str(message).split("\n")))
    return 2
