"""What `experiments run` shows while it runs: on a terminal a live table of the grid, elsewhere a line a cell."""

import contextlib
import statistics
import sys
import time
from collections import Counter

from hogwild.training import console

WAITING, RUNNING, DONE, KEPT, FAILED, SKIPPED = "waiting", "running", "done", "kept", "failed", "skipped"
STYLES = {WAITING: "dim", RUNNING: "bold yellow", DONE: "green", KEPT: "dim green", FAILED: "bold red", SKIPPED: "dim"}


class Board:
    """The cells of a grid and their states. A context manager: the table is live inside it."""

    def __init__(self, experiment, points, file=None):
        self.experiment, self.points, self.file = experiment, points, file or sys.stdout
        self.state = dict.fromkeys((point.slug for point in points), WAITING)
        self.seconds, self.current, self.since, self.live = {}, None, 0.0, None

    def __enter__(self):
        if self.file.isatty():
            from rich.console import Console
            from rich.live import Live
            self.live = Live(console=Console(file=self.file), get_renderable=self.table, refresh_per_second=2)
            self.live.start(refresh=True)
        return self

    def __exit__(self, *failure):
        self.current = None
        if self.live:
            self.live.stop()

    def set(self, point, state, seconds=None, note=""):
        """Set the state of a cell, after so many seconds; note: why it failed or is skipped."""
        self.state[point.slug] = state
        if state == RUNNING:
            self.current, self.since = point, time.monotonic()
            return
        self.current = None
        if seconds is not None and state in (DONE, KEPT):
            self.seconds[point.slug] = seconds
        if state == KEPT or (state == SKIPPED and self.live):
            return
        took = "" if seconds is None else f" {duration(seconds)}"
        line = f"{self._name(point)}, seed {point.seed}: {state}{took}{': ' + note if note else ''}"
        if self.live:
            if state == FAILED:
                self.live.console.print(line, markup=False, highlight=False)
        else:
            self.line(f"{self.summary()}  {line}")

    def line(self, text):
        """Print a line, where there is no live table."""
        with contextlib.suppress(OSError, ValueError):  # closed or full: the cells continue
            print(console.shown(text, self.file), file=self.file, flush=True)

    def summary(self) -> str:
        """Number of cells by state, and the estimated time to the end."""
        count = Counter(self.state.values())
        ended = len(self.points) - count[WAITING] - count[RUNNING]
        parts = [f"{ended}/{len(self.points)} cells"]
        parts += [f"{count[state]} {state}" for state in (FAILED, SKIPPED) if count[state]]
        left = self.left()
        return ", ".join(parts) + ("" if left is None else f", ETA {duration(left)}")

    def left(self) -> float | None:
        """Seconds that the rest will take: a cell as long as those of other seeds, else as the mean of all; None: unknown."""
        if not self.seconds:
            return None
        alike = {}
        for point in self.points:
            if point.slug in self.seconds:
                alike.setdefault(self._name(point), []).append(self.seconds[point.slug])
        mean, total = statistics.mean(self.seconds.values()), 0.0
        for point in self.points:
            if self.state[point.slug] in (WAITING, RUNNING):
                each = statistics.mean(alike.get(self._name(point), [mean]))
                spent = time.monotonic() - self.since if point is self.current else 0.0
                total += max(each - spent, 0.0)
        return total

    def _name(self, point) -> str:
        """The values of the axes that have several."""
        axes, words = self.experiment.axes, []
        for axis, value in point.axes.items():
            label = self.experiment.value(axis, value).label
            if len(axes[axis]) > 1:
                words.append(label if isinstance(value, str) else f"{axis} {label}")
        return ", ".join(words) or self.experiment.name

    def table(self):
        """The grid as rich draws it: a row for the axes, a column for each seed; the rows around the running cell."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
        rows = {}
        for point in self.points:
            rows.setdefault(self._name(point), {})[point.seed] = point
        names, seeds = list(rows), sorted({point.seed for point in self.points})
        room = max((self.live.console.height if self.live else 40) - 6, 3)
        at = names.index(self._name(self.current)) if self.current else 0
        first = max(min(at - room // 2, len(names) - room), 0)
        table = Table(box=None)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for seed in seeds:
            table.add_column(f"seed {seed}", justify="right", no_wrap=True)
        for name in names[first:first + room]:
            each = (rows[name].get(seed) for seed in seeds)
            table.add_row(Text(name), *(self._cell(point, Text) for point in each))
        hidden = f"  ({len(names) - room} rows more)" if len(names) > room else ""
        return Group(Text(self.experiment.title, "bold"), table, Text(self.summary() + hidden))

    def _cell(self, point, text):
        if point is None:
            return text("")
        state, seconds = self.state[point.slug], self.seconds.get(point.slug)
        if state == RUNNING:
            seconds = time.monotonic() - self.since
        shown = "." if state == WAITING else state if seconds is None else duration(seconds)
        return text(shown, STYLES[state])


def duration(seconds) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
