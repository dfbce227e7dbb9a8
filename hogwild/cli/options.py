"""The options of each command, one dataclass a command; their comments are the text of --help."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


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
    wild: plain loads and stores, no lock: no worker waits for another's step, and an update of a shared weight may be lost.
    atomic: compare-and-swap additions: no update is lost.
    locked: a row's weights change together (a lock each), and no update is lost.
    round-robin: updates in strict turn, step t after step t - 1, and none is lost.
    deterministic: for a seed the same bits, whatever the number of workers.
    """
    replicas: str = "auto"
    """What each worker has a replica of, merged every few hundred updates.
    auto: all in mode wild where parameters are few beside the data, else hot; none in the modes that lock or take turns.
    none: everything is shared; with mode wild, the Hogwild paper's lock-free algorithm to the letter.
    hot: the intercept and the commonest features (modes wild and atomic).
    all: all parameters, so that no update is lost (mode wild; not for --l1 with --average).
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
