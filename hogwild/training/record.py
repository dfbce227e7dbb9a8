"""Record and console of a run: JSON lines in a file, a bar or plain lines on the terminal."""

import contextlib
import errno
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
from tqdm import tqdm

from hogwild.errors import UserError, reason
from hogwild.training import console
from hogwild.training.loggers import Logger

LINE_SECONDS = 20.0  # without a terminal, at most so long between two lines
MANY, APART = 50, 0.1  # of more epochs, a line is printed only so many seconds after the last one, and for the last epoch
WARNINGS = "warning: ", "rollback: "  # how lines begin that are shown under --quiet too


def versions(*more) -> dict[str, str]:
    """Versions of Python and the packages that a result depends on; more: further packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "numba", *more)}}


def _finite(value):
    """`value` with null where JSON has no number for it: NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _finite(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def listed(metrics) -> str:
    return "".join(f"  {name} {_number(value)}" for name, value in metrics.items())


class Report:
    """Console and record of one run. The bar shows on a terminal only; elsewhere there is a line an epoch, and now and then.

    path: file for the JSON lines, one event a line: start, epoch, end; None for none. quiet: print nothing but, with `warns`,
    warnings on stderr. unit: what the bar counts.
    """

    def __init__(self, path=None, quiet=False, unit="examples", warns=False):
        self.quiet, self.warns = quiet, warns
        self.started, self.file, self.unit = time.perf_counter(), None, unit
        self.bar, self.barred = None, sys.stderr is None  # barred: there is no terminal for it
        self.begun, self.told = None, self.started  # time and units at the first progress; time of the last line
        self.held = None  # the line of the last epoch, where it was not shown
        self.logger = None
        self.open(path)

    def open(self, path, logger=None):
        """Open the record and the logger (a name of hogwild.training.loggers.BACKENDS, or None), late: a run that fails
        before it leaves no file."""
        if logger:
            self.logger = Logger(logger)
            self.say(f"logged to {logger}, {self.logger.backend.place}")
        try:
            self.file = open(path, "ab", buffering=0) if path else None
        except OSError as error:
            raise UserError(f"{path}: cannot write the record: {reason(error, path)}; choose another --record") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """After an exception, which has kept `close` from being called, the logger hears that the run has failed."""
        if self.logger:
            self.logger.close("failed")

    def event(self, name, **fields):
        """One JSON line, and one event for the logger."""
        if self.logger:
            self.logger.event(name, fields)
        if not self.file:
            return
        line = json.dumps(_finite({"event": name, "time": time.time(), **fields}), default=str).encode() + b"\n"
        size = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # the run continues without its record
            with contextlib.suppress(OSError):
                self.file.truncate(size)  # no half a line
            console.note(f"warning: {self.file.name}: the record ends here, it cannot be written: {error.strerror}")
            self.file.close()
            self.file = None

    def start(self, **configuration):
        """The whole configuration, before the first step."""
        self.event("start", **{"versions": versions(), "machine": platform.platform(), **configuration})

    def say(self, line):
        """A line on the console, above the bar."""
        if self.quiet:
            for warning in (part for part in line.splitlines() if self.warns and part.startswith(WARNINGS)):
                console.note(warning)
            return
        if self.held:
            line, self.held = f"{self.held}\n{line}", None
        self.told = time.perf_counter()
        try:
            tqdm.write(console.fitted(console.shown(line, sys.stdout), sys.stdout), file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError) as error:  # full or broken; closed in this process; closed before it
            self.quiet = True  # the run continues without its output
            console.drop(sys.stdout)
            console.note(f"warning: standard output cannot be written ({error}); the run goes on without it")

    def progress(self, done, total, tally, lr):
        """Called while it trains: units done of total, this epoch's tallies (loss, examples), the learning rate."""
        if self.quiet:
            return
        if self.barred or not sys.stderr.isatty():
            now = time.perf_counter()
            self.begun = self.begun or (now, done)
            if now - max(self.told, self.begun[0]) > LINE_SECONDS and done > self.begun[1]:
                left = (now - self.begun[0]) * (total - done) / (done - self.begun[1])
                self.say(f"{done:,} of {total:,} {self.unit}  loss {_number(tally[0] / max(tally[1], 1))}  lr {lr:.3g}  "
                         f"ETA {left:.0f} s")
            return
        try:
            if self.bar is None:
                self.bar = tqdm(total=total, unit=f" {self.unit}", unit_scale=True, leave=False, dynamic_ncols=True)
            self.bar.set_postfix_str(f"loss {tally[0] / max(tally[1], 1):.4f}, lr {lr:.3g}", refresh=False)
            self.bar.update(done - self.bar.n)
        except (OSError, ValueError):  # the terminal is closed
            self.barred, self.bar = True, None

    def evaluation(self, step, seconds, metrics):
        """Metrics within an epoch, after so many steps and seconds of training."""
        self.event("evaluation", step=step, seconds=seconds, metrics=metrics)
        self.say(f"step {step:,}{listed(metrics)}  {seconds:.1f} s")

    def epoch(self, epoch, epochs):
        """End of an epoch: its line and its record."""
        self.event("epoch", **asdict(epoch))
        line = (f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}  loss {_number(epoch.loss)}{listed(epoch.metrics)}  "
                f"lr {epoch.lr:.3g}  {epoch.rates()}  ETA {epoch.seconds * (epochs - epoch.epoch):.0f} s")
        self.held = None
        if epochs > MANY and 1 < epoch.epoch < epochs and time.perf_counter() - self.told < APART:
            self.held = line
        else:
            self.say(line)

    def close(self, **fields):
        """The end event; the bar and the file are closed."""
        if self.held:
            held, self.held = self.held, None
            self.say(held)
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()
        fields = {"seconds": time.perf_counter() - self.started, **fields}
        self.event("end", **fields)
        if self.logger:
            self.logger.close("interrupted" if fields.get("interrupted") else "finished", fields)
            self.logger = None
        if self.file:
            self.file.close()
