"""What the commands do, from their options to their output."""

import sys
from dataclasses import asdict, replace

import numpy as np

from hogwild import cli, data, linear, model, synthetic, transforms
from hogwild.errors import UserError
from hogwild.record import Report, versions
from hogwild.spec import build
from hogwild.train import train
from hogwild.workers import cores
from kernels.csr import degrees
from kernels.losses import LOSSES
from kernels.rules import RULES
from kernels.schedules import SCHEDULES, Warmup
from kernels.steps import Clip, Decay


def run(options):
    """Do what the options, one of cli's dataclasses, ask for."""
    {cli.TrainLinear: train_linear, cli.Evaluate: evaluate, cli.Predict: predict, cli.Inspect: inspect}[type(options)](
        options)


def _read(options, path, n_features=None):
    return data.read(path, zero_based=options.zero_based, label=options.label, n_features=n_features,
                     cache=options.cache)


def _check(options):
    """Everything about the options that can be said before the data are read."""
    for name, low in (("epochs", 1), ("workers", 1), ("rows", 2), ("features", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name} must be at least {low}, got {value}")
    if not 0 <= options.holdout < 1:
        raise UserError(f"--holdout must be a share in [0, 1), got {options.holdout:g}")
    for name in ("lr", "warmup"):
        value = getattr(options, name)
        if value is not None and not (0 <= value < float("inf")):
            raise UserError(f"--{name} must be a finite number, not negative, got {value:g}")
    if options.model:
        model.check_writable(options.model)


def _datasets(options):
    """(data, rows to train on or None for all, held-out data or None, planted weights or None), untransformed."""
    if options.data is None:
        if options.test:
            raise UserError("--test needs DATA: the synthetic data have their own held-out part")
        whole, planted = synthetic.rcv1_like(options.rows + max(options.rows // 10, 1), seed=options.seed)
        return whole.subset(0, options.rows), None, whole.subset(options.rows, whole.rows), planted
    whole = _read(options, options.data, options.features)
    if options.test:
        return whole, None, _read(options, options.test), None
    held = int(options.holdout * whole.rows)
    if held == 0:
        return whole, None, None, None
    order = np.random.default_rng(options.seed).permutation(whole.rows)
    return whole, np.sort(order[held:]), data.take(whole, np.sort(order[:held])), None


def _rule_and_schedule(options, rows):
    """The rule, and the schedule of its learning rate with the warm-up in front."""
    rule = build(options.rule, RULES, "rule")
    name = type(rule).__name__
    lr = options.lr if options.lr is not None else linear.DEFAULT_LR.get(name, getattr(rule, "default_lr", 0.01))
    ahead, share = getattr(rule, "default_warmup", (0, 0.0)) if options.warmup is None else (options.warmup * rows, 0.0)
    total = max(options.epochs * rows - ahead, 1)
    half, kind = max(total // 2, 1), options.schedule.partition(":")[0]
    # Where a step is an example, a decay that people think of by the epoch is its root by the step.
    gamma = 0.8 ** (1 / rows) if kind in ("exponential", "exp-range") else 0.8
    schedule = build(options.schedule, SCHEDULES, "schedule", rows, lr=lr, steps=rows if kind == "cosine-restarts" else total,
                     warmup=max(rows // 10, 1), every=rows, decay=1 / rows, up=half, down=half, low=lr / 10, gamma=gamma,
                     milestones=(half,),
                     maximise=build(options.loss, LOSSES, "loss").task == "classification")
    return rule, Warmup(schedule, ahead, share) if ahead else schedule


def train_linear(options):
    """hogwild train linear."""
    _check(options)
    loss = build(options.loss, {k: v for k, v in LOSSES.items() if k != "softmax"}, "loss")
    names = transforms.parse(options.transform)
    _rule_and_schedule(options, 1)  # mistakes in them show before the data are read
    rule_decay = getattr(build(options.rule, RULES, "rule"), "default_wd", 0.0)
    wd = rule_decay if options.weight_decay is None else options.weight_decay
    decay = build("decay", {"decay": Decay}, "option", l2=options.l2, wd=wd) if options.l2 or wd else None
    clips = {k: v for k, v in (("norm", options.clip_norm), ("value", options.clip_value)) if v is not None}
    clip = build("clip", {"clip": Clip}, "option", **clips) if clips else None
    report = Report(options.record)
    whole, rows, held_out, planted = _datasets(options)
    rule, schedule = _rule_and_schedule(options, whole.rows if rows is None else len(rows))
    state = transforms.fit(names, whole)
    train_data = transforms.apply(names, state, whole)
    test_data = None
    if held_out is not None:
        if held_out.n_features > whole.n_features:
            raise UserError(f"{held_out.source}: has {held_out.n_features} features, the training data "
                            f"{whole.n_features}; pass --features {held_out.n_features}")
        test_data = transforms.apply(names, state, replace(held_out, n_features=whole.n_features))
    workers = options.workers or cores()
    problem = linear.Linear(train_data, test_data, loss, rule, schedule, decay, clip, options.intercept, workers, rows)
    report.say(f"{train_data.source}: {problem.examples:,} rows, {train_data.n_features:,} features, "
               f"{train_data.nnz:,} non-zeros" + (f"; held out: {test_data.rows:,} rows" if test_data else ""))
    report.say(f"{type(loss).__name__} loss, {_said(rule)}, {_said(schedule)}, {workers} lock-free "
               f"worker{'s' * (workers > 1)} (plain stores)")
    report.start(options={k: v for k, v in asdict(options).items()}, rule=_said(rule), schedule=_said(schedule),
                 data={"source": train_data.source, "rows": problem.examples, "features": train_data.n_features,
                       "nonzeros": train_data.nnz, "held_out": test_data.rows if test_data else 0})
    header = {"family": "linear", "loss": options.loss, "transform": list(names), "rule": _said(rule),
              "schedule": _said(schedule), "versions": versions(),
              "classes": None if problem.classes is None else [float(c) for c in problem.classes]}
    interrupted = False
    try:
        history = train(problem, rule, schedule, epochs=options.epochs, workers=workers, seed=options.seed, report=report)
    except KeyboardInterrupt:
        interrupted, history = True, []
    if planted is not None and test_data is not None:
        _best(report, problem, planted, test_data, history)
    if options.model:
        model.save(options.model, {"weights": np.ascontiguousarray(problem.w), **state}, header)
        report.say(f"model saved: {options.model}")
    report.close(interrupted=interrupted, metrics=history[-1].metrics if history else {})
    if interrupted:
        raise KeyboardInterrupt


def _said(value) -> str:
    """A hyper-parameter, or a NamedTuple of them, as people write it."""
    if hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(f'{k}={_said(v)}' for k, v in zip(value._fields, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _best(report, problem, planted, test_data, history):
    """The planted weights' accuracy: no model can be expected to do better on the synthetic data."""
    best = linear.measure(linear.scores(planted.astype(np.float32), test_data), problem.test_labels, problem.loss)
    if history and "accuracy" in best:
        report.say(f"held-out accuracy {history[-1].metrics['accuracy']:.4f}; best achievable on these synthetic data "
                   f"(the planted weights): {best['accuracy']:.4f}")


def _load(options):
    """(weights, loss, classes, data after the model's transforms) of a saved model and a data file."""
    tensors, header = model.load(options.model)
    if header.get("family") != "linear":
        raise UserError(f"{options.model}: is a model of family {header.get('family')!r}, this command knows linear")
    weights = tensors["weights"]
    raw = _read(options, options.data, len(weights) - 1)
    shaped = transforms.apply(header["transform"], tensors, replace(raw, n_features=len(weights) - 1))
    return weights, build(header["loss"], LOSSES, "loss"), header["classes"], shaped


def evaluate(options):
    """hogwild evaluate."""
    weights, loss, classes, shaped = _load(options)
    labels = shaped.labels if classes is None else linear.signs(shaped.labels, np.float32(classes), shaped.source)
    result = linear.measure(linear.scores(weights, shaped, cores()), labels, loss)
    print(f"{shaped.source}: {shaped.rows:,} rows")
    for name, value in result.items():
        print(f"{name:<10} {value:.6f}")


def predict(options):
    """hogwild predict."""
    weights, loss, classes, shaped = _load(options)
    z = linear.scores(weights, shaped, cores()).astype(np.float64)
    if classes is None:
        lines = (f"{value:.6g}" for value in z)
    else:
        second = np.exp(-np.logaddexp(0, -z)) if type(loss).__name__ == "Logistic" else z
        lines = (f"{classes[int(score > 0)]:g} {value:.6g}" for score, value in zip(z, second))
    text = "".join(line + "\n" for line in lines)
    if options.out is None:
        sys.stdout.write(text)
    else:
        model.write_atomically(options.out, text.encode())


def inspect(options):
    """hogwild inspect."""
    d = _read(options, options.data)
    count = np.zeros(d.n_features, np.int64)
    degrees(d.csr, count)
    lengths = np.diff(d.indptr)
    labels, number = np.unique(d.labels, return_counts=True)
    shown = ", ".join(f"{label:g}: {k:,}" for label, k in zip(labels[:6], number[:6], strict=True))
    more = f", … ({len(labels):,} values)" if len(labels) > 6 else ""
    print(f"{d.source}\n"
          f"rows        {d.rows:,} ({int((lengths == 0).sum()):,} without features)\n"
          f"features    {d.n_features:,} ({int((count > 0).sum()):,} occur)\n"
          f"non-zeros   {d.nnz:,} ({d.nnz / max(d.rows, 1):.1f} a row, at most {lengths.max(initial=0):,})\n"
          f"values      {d.values.min() if d.nnz else 0:g} to {d.values.max() if d.nnz else 0:g}\n"
          f"labels      {shown}{more}\n"
          f"the most common feature is in {100 * count.max(initial=0) / max(d.rows, 1):.1f}% of the rows")
