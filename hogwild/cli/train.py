"""`hogwild train linear`: from its options to a trained, saved model."""

import contextlib
import signal
from dataclasses import asdict, replace

import numpy as np

from hogwild.data import dataset, features, synthetic, transforms
from hogwild.data.sample_weights import example_weights
from hogwild.errors import Terminated, UserError, sound
from hogwild.families import constant, linear, linear_model, predictions
from hogwild.families.targets import AS_GIVEN, Units, moments, units_of
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import SCHEDULES, Warmup
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import checkpoint, default_rates, lr_search, model_files, preflight
from hogwild.training.loop import train
from hogwild.training.metrics import MAXIMISED
from hogwild.training.record import Report, listed, versions
from hogwild.training.registry import build
from hogwild.training.replication import check_sharing
from hogwild.training.stopping import Stop, Stopper

# Options that a resumed run may change: they say where and how long, not what is computed.
FREE = ("data", "test", "sample_weight", "model", "record", "config", "checkpoint", "checkpoint_seconds", "resume", "cache",
        "epochs", "max_steps", "max_seconds", "retries", "workers", "replicas")


def reading(options) -> dict:
    """How the options say that a file is read, for data.read; None is what they leave open."""
    return {"zero_based": options.zero_based or None, "label": options.label, "header": options.header,
            "categorical": getattr(options, "categorical", None), "cache": options.cache}


def check(options):
    """Everything about the options that can be said before the data are read."""
    for name, low in (("epochs", 1), ("workers", 1), ("rows", 2), ("features", 1), ("seed", 0), ("retries", 0)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name} must be at least {low}, got {value}")
    if not 0 <= options.holdout < 1:
        raise UserError(f"--holdout must be a share in [0, 1), got {options.holdout:g}")
    for name in ("warmup", "average", "l1"):
        value = getattr(options, name)
        if value is not None and not (0 <= value < float("inf")):
            raise UserError(f"--{name} must be a finite number, not negative, got {value:g}")
    check_sharing(options.mode, options.replicas)
    if options.resume and not options.checkpoint:
        raise UserError("--resume needs --checkpoint FILE: what to resume from")
    for path in (options.model, options.checkpoint):
        if path:
            model_files.check_writable(path)


def learning_rate(options):
    """The learning rate as a number, "auto", or None for the rule's default."""
    if options.lr is None or options.lr == "auto":
        return options.lr
    with contextlib.suppress(ValueError):
        if 0 <= float(options.lr) < float("inf"):
            return float(options.lr)
    raise UserError(f"--lr must be auto or a finite number, not negative, got {options.lr}")


def stop_of(options) -> Stop:
    """The stopping criteria."""
    return Stop(metric=options.early_stopping, patience=options.patience, min_delta=options.min_delta,
                max_steps=options.max_steps, max_seconds=options.max_seconds, target=options.target, tol=options.tol)


def datasets(options):
    """(data, rows to train on or None for all, held-out data or None, planted weights or None), untransformed."""
    if options.data is None:
        if options.test:
            raise UserError("--test needs DATA: the synthetic data have their own held-out part")
        whole, planted = synthetic.rcv1_like(options.rows + max(options.rows // 10, 1), seed=options.seed)
        return whole.subset(0, options.rows), None, whole.subset(options.rows, whole.rows), planted
    whole = dataset.read(options.data, n_features=options.features, **reading(options))
    if options.test:
        alike = {**reading(options), "schema": whole.schema, "label": None if whole.schema.label else options.label}
        test, line = features.onto(dataset.read(options.test, **alike), whole)
        return whole, None, replace(test, notes=(*test.notes, *([line] if line else []))), None
    held = int(options.holdout * whole.rows)
    if held == 0:
        return whole, None, None, None
    order = np.random.default_rng(options.seed).permutation(whole.rows)
    return whole, np.sort(order[held:]), dataset.take(whole, np.sort(order[:held])), None


def notes(whole, held_out, classes) -> list[str]:
    """What is to be said of how the data were read, and of labels that only the held-out ones have."""
    lines = dict.fromkeys((*whole.notes, *(held_out.notes if held_out else ())))
    unknown = predictions.unknown_line(held_out, classes) if held_out else None
    few = f"{whole.source}: of {whole.width:,} features {whole.n_features:,} occur, and these alone take memory"
    return [*lines, *([few] if whole.ids is not None else []), *([unknown] if unknown else [])]


def schedule_of(options, rule, rows, lr, watched=None):
    """The schedule of the learning rate, the warm-up in front. rows: steps of an epoch; watched: a plateau's metric, or
    "loss" where nothing is held out and it watches that of training."""
    ahead, share = getattr(rule, "default_warmup", (0, 0.0)) if options.warmup is None else (options.warmup * rows, 0.0)
    total = max(options.epochs * rows - ahead, 1)
    half, kind = max(total // 2, 1), options.schedule.partition(":")[0]
    # Where a step is an example, a decay that people think of by the epoch is its root by the step.
    gamma = 0.8 ** (1 / rows) if kind in ("exponential", "exp-range") else 0.8
    if watched is None:
        task = build(options.loss, LOSSES, "loss").task
        watched = options.early_stopping or ("accuracy" if task == "classification" else "rmse")
    schedule = build(options.schedule, SCHEDULES, "schedule", rows, lr=lr, steps=rows if kind == "cosine-restarts" else total,
                     warmup=max(rows // 10, 1), every=rows, decay=1 / rows, up=half, down=half, low=lr / 10, gamma=gamma,
                     milestones=(half,), maximise=watched in MAXIMISED)
    return Warmup(schedule, ahead, share) if ahead else schedule


def penalties(options):
    """(Decay or None, Clip or None)."""
    rule_decay = getattr(build(options.rule, RULES, "rule"), "default_wd", 0.0)
    wd = rule_decay if options.weight_decay is None else options.weight_decay
    decay = build("decay", {"decay": Decay}, "option", l2=options.l2, wd=wd) if options.l2 or wd else None
    clips = {k: v for k, v in (("norm", options.clip_norm), ("value", options.clip_value)) if v is not None}
    return decay, build("clip", {"clip": Clip}, "option", **clips) if clips else None


def units(loss, dataset, rows, weights, intercept) -> Units:
    """The unit in which real targets of the training rows are counted."""
    if loss.task != "regression":
        return AS_GIVEN
    y = predictions.targets(dataset, None, 1)
    y = y if rows is None else y[rows]
    return units_of(loss, moments(y, weights if weights is None or rows is None else weights[rows]), intercept)


def interrupt(number):
    """What Ctrl-C or, by its number, SIGTERM raises."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def signals(first=interrupt):
    """The first Ctrl-C or SIGTERM raises, between two chunks, or calls `first`; the second one ends the process at once."""
    def stop(number, frame):
        for each in old:
            signal.signal(each, signal.SIG_DFL)
        first(number)
    old = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as in a background job
                old[each] = signal.signal(each, stop)
    except ValueError:  # not the main thread: no signals come here
        pass
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


def train_linear(options):
    """hogwild train linear."""
    check(options)
    loss, names, stop = build(options.loss, LOSSES, "loss"), transforms.parse(options.transform), stop_of(options)
    lr, rule, (decay, clip) = learning_rate(options), build(options.rule, RULES, "rule"), penalties(options)
    schedule_of(replace(options, epochs=options.epochs or 1), rule, 1 << 30, 1.0)  # mistakes show before the data are read
    whole, rows, held_out, planted = datasets(options)
    weights = example_weights(options, whole, rows)
    state = transforms.fit(names, whole, rows)
    train_data = transforms.apply(names, state, whole)
    test_data = None if held_out is None else transforms.apply(names, state, held_out)
    examples = train_data.rows if rows is None else len(rows)
    workers = min(options.workers or preflight.usable_cores()[0], max(examples, 1))
    options = replace(options, epochs=options.epochs or default_rates.default_epochs(examples))

    # The classes of all rows that are ours to look at: a sample or a random hold-out may lack a rare one.
    classes = predictions.classes_of(whole) if loss.task == "classification" else None
    unit = units(loss, train_data, rows, weights, options.intercept)

    def make(rows, workers, mode, replicas="auto"):
        average = None if options.average is None else options.average * examples
        return constant.start(linear.Linear(train_data, test_data, loss, rule, decay, clip, options.intercept, workers, rows,
                                            mode, options.l1, average, weights, classes, replicas, units=unit))
    sizes = default_rates.sizes_of(train_data, rows, weights)
    default, report = default_rates.default_lr(rule, loss, sizes), Report()
    tried = [unit.said()] if unit != AS_GIVEN else []
    if lr == "auto":
        every = np.arange(train_data.rows) if rows is None else rows
        lr, losses = lr_search.best_rate(lambda some: make(some, 1, "wild"), rule, default, every, workers, options.seed)
        tried += [f"learning rate {lr:g}, the best of {len(losses)} tried on a sample"]
    lr = default if lr is None else lr
    schedule = schedule_of(options, rule, examples, lr, None if test_data else "loss")
    problem = make(rows, workers, options.mode, options.replicas)
    loses = options.mode == "wild" and problem.replicas != "all"
    flight = preflight.examine(train_data, options.workers and workers, options.seed, rows, loses,
                               loses or options.mode in ("atomic", "locked"),
                               problem.size if loses and options.replicas != "none" else None)
    if workers != flight.workers:
        workers = flight.workers
        problem = make(rows, workers, options.mode, options.replicas)
    Stopper(stop, list(problem.evaluate()))  # tells a metric that will not be measured now
    held = f"; held out: {test_data.rows:,} rows" if test_data else ""
    warnings = [f"warning: {warning}" for warning in flight.warnings]
    warnings += [f"hint: {hint}"] if (hint := default_rates.hint(rule, loss, sizes, lr)) else []
    for line in (*notes(whole, held_out, classes), f"{train_data.source}: {flight.line(loses)}{held}", *warnings, *tried):
        report.say(line)
    report.say(f"{type(loss).__name__} loss, {said(rule)}, {said(schedule)}, "
               f"{options.epochs} epoch{'s' * (options.epochs > 1)}, "
               f"{workers} worker{'s' * (workers > 1)}, {problem.said()}")
    checkpoints = resume = None
    if options.checkpoint:
        kept = {k: v for k, v in asdict(options).items() if k not in FREE}
        arrays = train_data.content()
        arrays["rows"] = np.zeros(0, np.int64) if rows is None else rows
        if options.sample_weight:
            arrays["weights"] = weights
        now = checkpoint.fingerprint(arrays, {**kept, "lr": lr, "schedule": said(schedule)})
        checkpoints = checkpoint.Writer(options.checkpoint, options.checkpoint_seconds, {"fingerprint": now},
                                        say=report.say)
        if options.resume and checkpoint.exists(options.checkpoint):
            resume = checkpoint.load(options.checkpoint, report.say)
            checkpoint.demand_same(resume[1].get("fingerprint"), now)
            with sound(options.checkpoint, "checkpoint", "start again with another --checkpoint"):
                report.say(f"resumed from {options.checkpoint}: epoch {resume[1]['epoch']}, step {resume[1]['t']:,}")
    _run(options, report, problem, rule, schedule, workers, stop, checkpoints, resume, names, state, planted, flight)


def _run(options, report, problem, rule, schedule, workers, stop, checkpoints, resume, names, state, planted,
         flight):
    """Train, save, and say how it ended."""
    report.open(options.record)
    report.start(options=asdict(options), preflight=asdict(flight), rule=said(rule), schedule=said(schedule),
                 mode=options.mode, replicas=problem.replicas, workers=workers,
                 data={"source": problem.data.source, "rows": problem.examples, "features": problem.data.n_features,
                       "nonzeros": flight.nonzeros, "held_out": problem.test.rows if problem.test else 0})
    interrupted, history, metrics, kept = None, [], {}, None
    with signals():
        try:
            history = train(problem, rule, schedule, epochs=options.epochs, workers=workers, seed=options.seed, report=report,
                            stop=stop, retries=options.retries, checkpoint=checkpoints, resume=resume)
        except KeyboardInterrupt as error:
            interrupted = error
            if checkpoints and not checkpoints.wrong:
                report.say(f"checkpoint saved: {options.checkpoint}; go on with --resume")
            metrics = history[-1].metrics if history else {}
        else:
            metrics = close(problem, stop.metric, report)
        if planted is not None and problem.test is not None and history:
            _best(report, problem, planted, metrics)
        if options.model:
            kept = model_files.Rescue(options.model, *linear_model.contents(
                problem.w, problem.data, options.loss, names, state, problem.classes, rule=said(rule),
                schedule=said(schedule), mode=options.mode, versions=versions()), options.checkpoint)
            report.say(f"model saved: {kept.where}") if kept.where else None
    report.close(interrupted=interrupted is not None, metrics=metrics)
    for written in filter(None, (kept, checkpoints)):
        written.demand()
    if interrupted is not None:
        raise interrupted


def close(problem, metric, report):
    """End a run as its L1 penalty wants it; after early stopping by `metric` only where that does not get worse. Metrics."""
    before, counts = problem.evaluate(), problem.close()
    if counts is None:
        return before
    metrics, line = problem.evaluate(), f"l1: of {counts[0]:,} weights that were not 0, {counts[1]:,} help"
    if metric and metric in metrics and (metrics[metric] < before[metric]) == (metric in MAXIMISED):
        problem.closed, line = None, f"{line}; all are kept, for without them {metric} gets worse"
    if report:
        report.say(line + listed(metrics))
    return before if problem.closed is None else metrics


def said(value) -> str:
    """A hyper-parameter, or a NamedTuple of them, as people write it."""
    if hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(f'{k}={said(v)}' for k, v in zip(value._fields, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _best(report, problem, planted, metrics):
    """The planted weights' accuracy: no model can be expected to do better on the synthetic data."""
    z = predictions.scores(planted.astype(np.float32), problem.test)
    labels = predictions.signs(problem.test, problem.classes)
    if "accuracy" in metrics:
        report.say(f"held-out accuracy {metrics['accuracy']:.4f}; best achievable on these synthetic data "
                   f"(the planted weights): {np.mean((z > 0) == (labels > 0)):.4f}")
