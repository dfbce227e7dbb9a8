"""`sparsecomm train`: from its options to what it prints and saves."""

import sys
from dataclasses import asdict, fields, replace

import numpy as np
from mpi4py import MPI

from hogwild.errors import UserError
from hogwild.kernels.optim.rules import RULES
from hogwild.training import checkpoint, model_files
from hogwild.training.options import FREE_ON_RESUME, Span, check_schedule, penalties, schedule_of
from hogwild.training.record import Report, versions
from hogwild.training.registry import build, text_of
from hogwild.training.units import steps_of
from sparsecomm import guard
from sparsecomm.config import Config
from sparsecomm.faults import shrink
from sparsecomm.run import loop, server_state
from sparsecomm.tasks import registry
from sparsecomm.wire import launch
from sparsecomm.wire.gather import broadcast_json, gathered, on_root
from sparsecomm.wire.handshake import handshake

# Options that may differ from rank to rank.
MAY_DIFFER = {"data", "test", "labels", "test_labels", "sample_weight", "model", "record", "logger", "config", "cache",
              "quiet"}
MAY_CHANGE = {*FREE_ON_RESUME, *MAY_DIFFER, "check_every", "evaluate_every", "timeout", "on_failure"}  # in a resumed run


def train(name, options):
    """sparsecomm train NAME, on every rank."""
    comm, running = launch.world(), options.running
    report = Report(quiet=comm.rank > 0 or running.quiet, unit="steps", warns=comm.rank == 0)
    if running.timeout is not None:
        guard.patience(running.timeout)
    on_root(comm, running.check)
    options.serving.check(options.exchange, comm.size)
    if running.on_failure == "shrink" and options.exchange.exchange == "server":
        raise UserError("--on-failure shrink is not there with --exchange server: the death of a rank ends the run; give "
                        "--checkpoint, and go on with --resume")
    if running.on_failure == "shrink":
        shrink.enable()
    seat = _seat(options, comm)
    make = _maker(name, options)
    job = _job(name, options, make, report.say)
    options.serving.rule_of(job.rule)
    task = make(*seat)
    job = job._replace(epochs=job.epochs or task.default_epochs)
    now = checkpoint.fingerprint(task.arrays(), _without(MAY_CHANGE, options))
    settings = {option: str(value) for option, value in _without(MAY_DIFFER, options).items()}
    handshake(comm, {"task": name, "data": now["data"], **settings})
    report.say(_introduced(task, job, seat[1]))
    saved = _resume(options, comm, report, job, now)
    with report:
        _run(options, report, comm, job, saved, task)


def _seat(options, comm) -> tuple[int, int]:
    """(rank, ranks) as the task sees them: a server reads what worker 0 reads."""
    if options.exchange.exchange != "server":
        return comm.rank, comm.size
    workers = comm.size - options.serving.servers
    return comm.rank if comm.rank < workers else 0, workers


def _without(names, options) -> dict:
    """Values of all options but `names`, by group and name."""
    return {f"{group}.{name}": value for group, values in asdict(options).items() for name, value in values.items()
            if name not in names}


def _maker(name, options):
    """A function of (rank, ranks) that gives the task: read once, and then dealt out anew."""
    made = []

    def make(rank, size):
        if not made:
            made.append(registry.build(name, options.task, rank, size))
        elif (made[0].rank, made[0].size) != (rank, size):
            made[0].reshard(rank, size)
        return made[0]
    make.forget = made.clear
    return make


def _job(name, options, make, say) -> loop.Job:
    """The job; mistakes in the options show before the data are read."""
    entry = registry.entry(name)
    chosen = replace(options.training, rule=options.training.rule or entry.rule)
    rule = build(chosen.rule, RULES, "rule")
    chosen.check()

    def schedule(task, steps=None):
        lr = chosen.lr if chosen.lr is not None else entry.lr_factor * task.default_lr(rule)
        watched = (stop.metric or task.metric) if task.facts["held_out"] else "loss"
        return schedule_of(chosen, rule, Span(chosen.epochs or task.default_epochs, steps or task.steps), lr, watched)

    def config(steps):
        values = {f.name: getattr(options.exchange, f.name) for f in fields(Config)}
        return Config(**{**values, "drop_warmup": round(steps_of("--drop-warmup", options.exchange.drop_warmup, steps))})
    stop, (decay, clip), running = chosen.criteria(), penalties(chosen), options.running
    check_schedule(chosen, rule, chosen.epochs), config(1)
    writer = checkpoint.Writer(running.checkpoint, running.checkpoint_seconds, say=say) if running.checkpoint else None
    return loop.Job(make, rule, schedule,
                        lambda task: config(task.steps), decay, clip, chosen.epochs, stop, options.task.seed, writer,
                        chosen.evaluate_every)


def _introduced(task, job, size) -> str:
    """What is trained, in a line. size: the ranks that compute gradients."""
    facts = task.facts
    numbers = ", ".join(f"{number:,} {name}" for name, number in facts.items()
                        if isinstance(number, int) and number and name != "held_out")
    held = f"; held out: {facts['held_out']:,}" if facts["held_out"] else ""
    notes = "".join(f"{note}\n" for note in task.notes)
    return (f"{notes}{facts['source']}: {numbers}{held}\n{task.name}, {text_of(job.rule)}, {text_of(job.schedule(task))}, "
            f"{job.epochs} epoch{'s' * (job.epochs > 1)}, "
            f"{size} rank{'s' * (size > 1)} x batch {task.options.batch}: {task.steps:,} steps an epoch")


def _resume(options, comm, report, job, now):
    """Where to go on from, or None. The checkpoints to come get the fingerprint `now` of data and options."""
    running, path = options.running, options.running.checkpoint
    if not path:
        return None
    job.writer.constant["fingerprint"] = now
    if not running.resume or not broadcast_json(comm, checkpoint.exists(path)):
        return None
    if options.exchange.exchange == "server":
        saved = server_state.load(comm, path, options.serving.servers, report.say)
        checkpoint.demand_same(saved[0]["fingerprint"], now)
        report.say(f"resumed from {path}: epoch {saved[0]['epoch']}, step {saved[0]['t']:,}")
        return saved
    saved = loop.load(comm, path, report.say)
    state, new = saved.state, comm.size
    checkpoint.demand_same(state["fingerprint"], now)
    ranks = "" if new == state["ranks"] else f"; {new} rank{'s' * (new > 1)} in place of {state['ranks']}, among which is " \
        "shared out what those had not sent: its sum stays the same"
    report.say(f"resumed from {path}: epoch {state['epoch']}, step {state['t']:,}{ranks}")
    return saved


def _run(options, report, comm, job, saved, task):
    """Train, save, and say how it ended."""
    if job.every and not task.facts["held_out"]:
        raise UserError("--evaluate-every needs held-out data: give --holdout or --test")
    running, interrupted, kept = options.running, None, None
    on_root(comm, lambda: report.open(running.record, running.logger))
    hosts = [bytes(x["host"]).decode() for x in gathered(comm, {"host": _bytes(MPI.Get_processor_name())})]
    report.start(task=task.name, options=asdict(options), versions=_versions(), ranks=comm.size, hosts=hosts,
                 rule=text_of(job.rule), schedule=text_of(job.schedule(task)), data=task.facts)
    try:
        run = _trained(options, report, comm, job, saved)
    except KeyboardInterrupt as stop:
        interrupted, run = stop, getattr(stop, "run", None)
        if run is None:
            raise
        if job.writer and not job.writer.wrong:
            report.say(f"checkpoint saved: {running.checkpoint}; go on with --resume")
    comm, metrics = run.comm, run.metrics
    if "best_accuracy" in task.facts and "accuracy" in metrics:
        report.say(f"held-out accuracy {metrics['accuracy']:.4f}; best achievable on these synthetic data (the planted "
                   f"weights): {task.facts['best_accuracy']:.4f}")
    _judge(run, task, report)
    table = run.collected()
    report.say(run.shown(table)) if table else None
    if running.model:
        tensors, header = task.export()
        header |= {"rule": text_of(job.rule), "schedule": text_of(run.schedule), "versions": _versions(), "ranks": comm.size}
        kept = on_root(comm, lambda: model_files.Rescue(running.model, tensors, header, running.checkpoint))
        report.say(f"model saved: {kept.where}") if kept and kept.where else None
    report.close(interrupted=interrupted is not None, metrics=metrics, **(table or {}))
    run.close()
    on_root(comm, lambda: [written.demand() for written in (kept, job.writer) if written])
    if interrupted is not None:
        raise interrupted


def _trained(options, report, comm, job, saved):
    """The run at its end: a DistributedRun or, with servers, this rank's WorkerRun or ServerRun."""
    serving, running = options.serving, options.running
    if options.exchange.exchange != "server":
        return loop.train(job, comm, report, saved, _recovery(report, running) if running.on_failure == "shrink" else None)
    from sparsecomm.run import server_run, server_side
    report.say(server_side.line(serving, comm.size))
    kind = server_run.WorkerRun if comm.rank < comm.size - serving.servers else server_side.ServerRun
    return server_run.train(kind(job, comm, report, serving, saved))


def _judge(run, task, report):
    """Warn of a run that has learnt nothing."""
    reference = task.reference() if run.history else None
    if reference:
        best = run.stopper.best_epoch if run.best and run.job.stop.restore_best else None
        last = run.history[(best or len(run.history)) - 1]
        if reference.worse(last.loss, last.examples < task.examples):
            line = reference.line(last.epoch, last.loss)
            report.say(f"warning: {line}")
            report.event("warning", text=line)


def _recovery(report, running):
    """What loop.train takes as `recover`: the ranks that are left go on, one of them now speaks."""
    def recover(run, failure):
        if not shrink.is_failure(failure):
            raise failure
        left = shrink.recover(run.comm, run.sync.comms())
        if left.comm.rank == 0 and not report.warns:
            sys.stdout, report.quiet, report.warns = sys.__stdout__, running.quiet, True
            report.open(running.record, running.logger)
        run = run.moved(left.comm)
        report.say(f"warning: rank {', '.join(map(str, left.names))} has died, and with it what it had not sent; number of "
                   f"ranks that go on, in epoch {run.epoch} after step {run.sync.t:,}: {left.comm.size}")
        report.event("shrink", died=left.names, ranks=left.comm.size, epoch=run.epoch, step=run.sync.t)
        return run
    return recover


def _bytes(text) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _versions() -> dict[str, str]:
    more = ("mpi4py", *(("torch",) if "torch" in sys.modules else ()))
    return {**versions(*more), "mpi": MPI.Get_library_version().partition("\n")[0].strip("\0 ")}
