"""Family "mf" as the commands find it: factorizations of ratings trained, loaded and described."""

from dataclasses import asdict
from functools import partial

import numpy as np

from hogwild.data import rating_splits, ratings
from hogwild.families import mf_fitting, mf_model, mf_ranking
from hogwild.families.family import Job
from hogwild.families.mf_estimator import MatrixFactorization
from hogwild.families.mf_model import MFModel
from hogwild.families.mf_options import TrainMF
from hogwild.training import metrics


class SavedModel(MFModel):
    """See hogwild.families.family.FittedModel."""

    def for_python(self):
        """A fitted MatrixFactorization."""
        return MatrixFactorization.of_model(self)


class MFFamily:
    """See hogwild.families.family.Family."""

    options = TrainMF

    def prepare(self, options) -> Job:
        options.data.check()
        training, made = options.training, mf_fitting.recipe(options.model, options.training)
        split = rating_splits.read(options.data, training.seed, made.fitted.implicit)
        train, workers = split.train, mf_fitting.workers_of(training, split.train.rows)
        lines = split.notes()
        if workers < (training.workers or 1):
            lines.append(f"{workers} workers: there are not more ratings")
        measured = None
        if split.held_out is not None:
            masked = mf_ranking.pairs(train.users, train.items, len(train.user_ids))
            measured = mf_fitting.Measured(made.fitted.loss, (train.user_ids, train.item_ids), masked, split.held_out,
                                           mf_fitting.most_users(made, train), training.seed)
            lines += measured.lines
        problem = mf_fitting.problem(made, training, train, workers, measured)
        held = f"; held out: {split.held_out.rows:,}" if split.held_out else ""
        what = "positives" if made.fitted.implicit else "ratings"
        lines.append(f"{train.source}: {train.rows:,} {what} of {len(train.user_ids):,} users and {len(train.item_ids):,} "
                     f"items{held}")
        watched = training.early_stopping or next(iter(problem.evaluate()), "loss")
        schedule = mf_fitting.schedule(made, training, train.rows, made.epochs, watched)
        l2 = mf_fitting.l2_of(made, training, mf_fitting.as_pairs(train))
        settings = {**asdict(options.model), **{name: getattr(training, name) for name in mf_model.TRAINED}}
        title = f"{type(made.fitted.loss).__name__} loss, rank {made.fitted.rank}, l2 {l2:.3g} a {options.model.decay_per}"
        return Job(problem, title, made.rule, schedule, made.epochs, workers, made.lr, lines, _facts(split), train.content(),
                   lambda: mf_model.of_problem(problem, train, l2, settings, options.data.columns).contents(),
                   partial(_remark, split))

    def load(self, path, tensors, header):
        return mf_model.load(path, tensors, header, SavedModel)

    def describe(self, options):
        reading = options.reading
        mf_model.demand_none({"--label": reading.label, "--zero-based": reading.zero_based,
                              "--categorical": reading.categorical})
        data = ratings.read(options.data, header=reading.header)
        return list(data.notes), _described(data)


def _facts(split):
    train = split.train
    return {"replicas": "none", "data": {
        "source": train.source, "rows": train.rows, "users": len(train.user_ids), "items": len(train.item_ids),
        "held_out": split.held_out.rows if split.held_out else 0}}


def _remark(split, measured):
    if split.planted is None or "rmse" not in measured:
        return None
    best = metrics.rmse(split.planted, split.held_out.values)
    return f"held-out rmse {measured['rmse']:.4f}; best achievable on these synthetic data (the planted scores): {best:.4f}"


def _described(data):
    users, items = np.bincount(data.users), np.bincount(data.items)
    shown = ", ".join(f"{value:g}: {count:,}" for value, count in zip(*np.unique(data.values, return_counts=True)))
    different = len(np.unique(data.values))
    values = shown if different <= 12 else f"{data.values.min():g} to {data.values.max():g}, {different:,} different"
    share = data.rows / (len(users) * len(items))
    lines = [data.source, f"ratings     {data.rows:,} ({100 * share:.3g}% of all pairs)",
             f"values      {values}", f"mean        {data.values.mean(dtype=np.float64):.4g}, standard deviation "
             f"{data.values.std(dtype=np.float64):.4g}"]
    for what, counts in ("users", users), ("items", items):
        lines.append(f"{what:<11} {len(counts):,}; ratings of each: {counts.min():,} to {counts.max():,}, median "
                     f"{np.median(counts):g}; {int((counts == 1).sum()):,} with one alone")
    times = "none" if data.times is None else "yes: --leave-last-out holds out each user's latest"
    return [*lines, f"times       {times}"]


FAMILY = MFFamily()
