"""What a run says: JSON lines in a file, and a bar or plain lines on the console."""

import json
import math
import platform
import sys
import time
from dataclasses import asdict
from importlib.metadata import version

from tqdm import tqdm

from hogwild.errors import UserError


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "numba")}}


def _finite(value):
    """`value` with null where JSON has no number for it: NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


class Report:
    """Console and record of one run. The bar shows on a terminal only; elsewhere there is a line an epoch.

    path: file for the JSON lines, one event a line: start, epoch, end; None for none.
    """

    def __init__(self, path=None, quiet=False):
        self.quiet, self.started, self.bar, self.file = quiet, time.perf_counter(), None, None
        self.open(path)

    def open(self, path):
        """Begin the record: nothing is left behind by a run that failed before it."""
        try:
            self.file = open(path, "a", buffering=1) if path else None
        except OSError as error:
            raise UserError(f"{path}: cannot write the record: {error.strerror}; choose another --record") from None

    def event(self, name, **fields):
        """One JSON line."""
        if self.file:
            self.file.write(json.dumps(_finite({"event": name, "time": time.time(), **fields}), default=str) + "\n")

    def start(self, **configuration):
        """The whole configuration, before the first step."""
        self.event("start", versions=versions(), machine=platform.platform(), **configuration)

    def say(self, line):
        """A line on the console, above the bar."""
        if not self.quiet:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def progress(self, done, total, tally, lr):
        """Called while workers run: examples done of total, this epoch's tallies, the learning rate."""
        if self.quiet or not sys.stderr.isatty():
            return
        if self.bar is None:
            self.bar = tqdm(total=total, unit=" examples", unit_scale=True, leave=False, dynamic_ncols=True)
        self.bar.set_postfix_str(f"loss {tally[0] / max(tally[1], 1):.4f}, lr {lr:.3g}", refresh=False)
        self.bar.update(done - self.bar.n)

    def epoch(self, epoch, epochs):
        """End of an epoch: its line and its record."""
        self.event("epoch", **asdict(epoch))
        metrics = "".join(f"  {name} {_number(value)}" for name, value in epoch.metrics.items())
        self.say(f"epoch {epoch.epoch:>{len(str(epochs))}}/{epochs}  loss {_number(epoch.loss)}{metrics}  lr {epoch.lr:.3g}  "
                 f"{epoch.examples_per_s / 1e3:,.0f} k examples/s  {epoch.nonzeros_per_s / 1e6:,.0f} M non-zeros/s  "
                 f"ETA {epoch.seconds * (epochs - epoch.epoch):.0f} s")

    def close(self, **fields):
        """The end event; the bar and the file are closed."""
        if self.bar is not None:
            self.bar.close()
        if self.file:
            self.event("end", seconds=time.perf_counter() - self.started, **fields)
            self.file.close()
