"""`hogwild train FAMILY`: the family prepares the run; here it is carried out, recorded, resumed and saved."""

from hogwild.cli.declared import flat
from hogwild.errors import sound
from hogwild.kernels.compiler.cache import silence
from hogwild.training import checkpoint, model_files
from hogwild.training.closing import close
from hogwild.training.loop import train
from hogwild.training.options import FREE_ON_RESUME
from hogwild.training.record import Report, versions
from hogwild.training.registry import text_of
from hogwild.training.signals import stop_on_signals
from hogwild.training.stopping import Stopper


def train_family(family, options):
    """hogwild train, of a hogwild.families.family.Family and its options."""
    return train_job(lambda: family.prepare(options), options)


def train_job(prepare, options):
    """Train the hogwild.families.family.Job that `prepare` makes, of such options; (its problem, the epochs)."""
    training, quiet = options.training, options.output.quiet
    report = Report(quiet=quiet, warns=True)
    if quiet:
        silence()
    training.check(), options.output.check()
    stop = training.criteria()
    job = prepare()
    if stop.metric:
        Stopper(stop, list(job.problem.evaluate()))  # raises where it will not be measured
    for line in job.lines:
        report.say(line)
    report.unit = job.problem.unit
    report.say(f"{job.title}, {text_of(job.rule)}, {text_of(job.schedule)}, {job.epochs} epoch{'s' * (job.epochs > 1)}, "
               f"{job.workers} worker{'s' * (job.workers > 1)}, {job.problem.said()}")
    with report:
        return job.problem, _run(options, job, stop, report, *_checkpoints(options, job, report))


def _checkpoints(options, job, report):
    """(writer of checkpoints or None, what to resume from or None)."""
    output = options.output
    if not output.checkpoint:
        return None, None
    settings = {name: value for name, value in flat(options).items() if name not in FREE_ON_RESUME}
    now = checkpoint.fingerprint(job.content, {**settings, "lr": job.lr, "schedule": text_of(job.schedule)})
    writer = checkpoint.Writer(output.checkpoint, output.checkpoint_seconds, {"fingerprint": now}, say=report.say)
    if not (output.resume and checkpoint.exists(output.checkpoint)):
        return writer, None
    saved = checkpoint.load(output.checkpoint, report.say)
    checkpoint.demand_same(saved[1].get("fingerprint"), now)
    with sound(output.checkpoint, "checkpoint", "start again with another --checkpoint"):
        report.say(f"resumed from {output.checkpoint}: epoch {saved[1]['epoch']}, step {saved[1]['t']:,}")
    return writer, saved


def _run(options, job, stop, report, checkpoints, saved):
    """Train, save, and say how it ended; the epochs."""
    training, output = options.training, options.output
    report.open(output.record, output.logger)
    report.start(options=flat(options), rule=text_of(job.rule), schedule=text_of(job.schedule), mode=training.mode,
                 workers=job.workers, **job.facts)
    interrupted, history, metrics, model = None, [], {}, None
    with stop_on_signals():
        try:
            history = train(job.problem, job.rule, job.schedule, epochs=job.epochs, workers=job.workers, seed=training.seed,
                            report=report, stop=stop, retries=training.retries, checkpoint=checkpoints, resume=saved)
        except KeyboardInterrupt as error:
            interrupted = error
            if checkpoints and not checkpoints.wrong:
                report.say(f"checkpoint saved: {output.checkpoint}; go on with --resume")
            metrics = history[-1].metrics if history else {}
        else:
            metrics = close(job.problem, stop.metric, report)
        if history and (line := job.remark(metrics)):
            report.say(line)
        model = _saved(output, job, training.mode, report)
    report.close(interrupted=interrupted is not None, metrics=metrics)
    for written in filter(None, (model, checkpoints)):
        written.demand()
    if interrupted is not None:
        raise interrupted
    return history


def _saved(output, job, mode, report):
    """The model's Rescue, or None where none is asked for."""
    if not output.model:
        return None
    tensors, header = job.export()
    how = {"rule": text_of(job.rule), "schedule": text_of(job.schedule), "mode": mode, "versions": versions()}
    model = model_files.Rescue(output.model, tensors, header | how, output.checkpoint)
    report.say(f"model saved: {model.where}") if model.where else None
    return model
