"""A figure as data, and what its drawing needs to know; drawing.py draws it.

Measured series are solid, with markers; predicted ones dashed, without (in bars and scatters their label alone says so); a
point of a single run is hollow.
"""

import math
from typing import NamedTuple

NAN = math.nan


class Point(NamedTuple):
    """One point, or one bar."""

    x: float | str
    y: float  # median
    low: float = NAN  # first quartile
    high: float = NAN  # third
    runs: int = 0  # that were measured; 0: predicted
    note: str = ""  # shown when pointed at
    left: float = NAN  # quartiles of x, where x is measured too
    right: float = NAN


class Series(NamedTuple):
    """Points of one kind."""

    label: str
    points: list[Point]
    predicted: bool = False
    like: str = ""  # label of the series whose colour it shares
    joined: bool = False  # by a line, in a scatter too


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    series: list[Series]


class Figure(NamedTuple):
    """Panels beside each other that share labels and legend."""

    name: str
    title: str
    kind: str  # line, bar, dot (a bar's place on a logarithmic axis, which has no zero to begin at) or scatter
    panels: list[Panel]
    x_label: str  # with its unit
    y_label: str
    log: tuple = ()  # of "x", "y"
    text: str = ""
    stacked: bool = False
    order: tuple = ()  # of the x that are words; else as they appear
    equal: bool = False  # x and y are the same quantity: equal axes, and the diagonal
    contour: str = ""  # arithmetic of x and y, whose level lines lie behind the series


class Stat(NamedTuple):
    """A median with its quartiles; runs 0: predicted."""

    median: float
    low: float
    high: float
    runs: int
    of: int = 0  # that were tried; more than `runs` where some have no value


class Table(NamedTuple):
    """Columns with their units in the heading."""

    name: str
    title: str
    columns: list[str]
    rows: list[list]  # str, int, float, None or Stat
    text: str = ""


class Style(NamedTuple):
    """Colour, marker, dash and hatch of a series, as matplotlib's: it can be told from others without colour too."""

    colour: str
    marker: str
    dash: str | tuple  # "-": with a marker, or a marker alone
    hatch: str


# At least 3:1 against white and against the page's dark background; the first four are Okabe & Ito's.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A87C00", "#8A63D2", "#7F7F7F", "#B5305F"
MARKERS = "o", "s", "D", "^", "v", "X", "P", "*"
DASHES = (0, (5, 3)), (0, (1.5, 2)), (0, (5, 2, 1.5, 2)), (0, (9, 3)), (0, (9, 3, 1.5, 3))
HATCHES = "", "///", "\\\\\\", "xxx", "---", "|||", "+++", "..."
MARKED = 12  # markers of a curve, at most


def styles(figure) -> dict[str, Style]:
    """Of each label (as `named` gives it), in the order of appearance; a series with `like` has that one's colour."""
    found, colours = {}, {}
    for series in (s for panel in figure.panels for s in panel.series):
        label = named(series)
        if label not in found:
            k = len(found)
            same = colours.setdefault(series.like or series.label, len(colours))
            dash = _nth(DASHES, k) if series.predicted and not loose(figure, series) else "-"
            found[label] = Style(_nth(COLOURS, same), _nth(MARKERS, k), dash, _nth(HATCHES, k))
    return found


def _nth(kinds, k):
    return kinds[k % len(kinds)]


def named(series) -> str:
    return f"{series.label} (predicted)" if series.predicted else series.label


def number(x) -> str:
    """Four digits, thousands apart; "" for None, NaN and infinity."""
    if x is None or (isinstance(x, float) and not math.isfinite(x)):
        return ""
    if isinstance(x, int):
        return f"{x:,}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def short(x) -> str:
    """`number` for an axis: from ten thousand on as 50k, 1M, 20G."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= max(size, 10_000):
            return f"{x / size:.4g}{prefix}"
    return number(float(x))


def points_table(figure) -> Table:
    """All points of a figure, for its CSV."""
    columns = ["panel", "series", figure.x_label, f"{figure.y_label}: median", "first quartile", "third quartile",
               "runs (0: predicted)"]
    rows = [[panel.title, named(series), p.x, p.y, p.low, p.high, p.runs]
            for panel in figure.panels for series in panel.series for p in series.points]
    return Table(figure.name, figure.title, columns, rows)


def hover(figure, series, p) -> str:
    """What is shown when the point is pointed at, in lines."""
    spread = f" [{number(p.low)}, {number(p.high)}]" if p.runs > 1 and math.isfinite(p.low) else ""
    source = {0: "predicted", 1: "1 run"}.get(p.runs, f"median [quartiles] of {p.runs} runs")
    lines = named(series), f"{figure.x_label}: {p.x if isinstance(p.x, str) else number(p.x)}", \
        f"{figure.y_label}: {number(p.y)}{spread}", source, p.note
    return "\n".join(filter(None, lines))


def error_bars(points, low, middle, high):
    """Lengths of the error bars below and above; 0 where there are none."""
    def length(p, end):
        end = getattr(p, end)
        return abs(getattr(p, middle) - end) if math.isfinite(end) else 0
    return [length(p, low) for p in points], [length(p, high) for p in points]


def x_ticks(figure, panel):
    """The x that were measured, where they are few, the axis is logarithmic and no prediction goes beyond them: 2, 4, 8."""
    points = [p for series in panel.series for p in series.points if not isinstance(p.x, str)]
    values = sorted({p.x for p in points if p.runs})
    few = 1 < len(values) <= 7 and all(values[0] <= p.x <= values[-1] for p in points)
    return values if few and "x" in figure.log and figure.kind == "line" else None


def values(figure, which) -> list:
    """All numbers on an axis, "x" or "y", of all panels; of an axis with equal scales those of both."""
    axes = "xy" if figure.equal else which
    found = [getattr(p, axis) for axis in axes for panel in figure.panels for series in panel.series for p in series.points]
    return [v for v in found if not isinstance(v, str) and math.isfinite(v) and (v > 0 or which not in figure.log)]


def decades(figure, which) -> float:
    """How many powers of ten the numbers of a logarithmic axis span."""
    found = values(figure, which)
    return math.log10(max(found) / min(found)) if found else 0


def value_range(figure):
    """Of the y axis, with room for markers, where the panels share it: unless some would be flat then. Else None.

    An axis of equal scales has one too.
    """
    logarithmic = "y" in figure.log
    heights = [_heights(figure, panel) for panel in figure.panels]
    tops = [max(own, default=0) for own in heights]
    if not figure.equal and (len(tops) < 2 or not (logarithmic or max(tops) <= 5 * min(tops))):
        return None
    ys = [y for y in sum(heights, values(figure, "y")) if y > 0 or not logarithmic]
    if not ys:
        return None
    low, high = (math.log10(f(ys)) if logarithmic else f(ys) for f in (min, max))
    room = (high - low or 1) * 0.06
    ends = min(low - room, 0) if figure.kind == "bar" else low - room, high + room
    return [10**end for end in ends] if logarithmic else list(ends)


def _heights(figure, panel):
    """All y that occur: of bars on each other their sum, too."""
    heights = {}
    for p in (p for series in panel.series for p in series.points):
        heights.setdefault(p.x, []).extend(y for y in (p.y, p.low, p.high) if math.isfinite(y))
    sums = [sum(p.y for s in panel.series for p in s.points if p.x == x) for x in heights] if figure.stacked else []
    return sum(heights.values(), sums)


def loose(figure, series) -> bool:
    """Markers without a line?"""
    return figure.kind != "line" and not series.joined


def crowded(figure, series) -> bool:
    """A curve of so many points that a band shows its quartiles better than whiskers, and some markers are enough."""
    return figure.kind == "line" and not series.predicted and len(series.points) > MARKED


def band(series) -> list[tuple]:
    """(x, first quartile, third quartile) where both are there."""
    return [(p.x, p.low, p.high) for p in series.points if p.runs > 1 and math.isfinite(p.low + p.high)]


def lies(figure) -> bool:
    """Do its words stand on the left, so that they can be read, and its values run to the right?"""
    return figure.kind in ("bar", "dot")


def places(figure, panel) -> list:
    """The words on the x axis of a panel, or what bars stand on; [] where it is an axis of numbers."""
    found = dict.fromkeys(p.x for s in panel.series for p in s.points if isinstance(p.x, str) or lies(figure))
    return [place for place in figure.order if place in found] + [place for place in found if place not in figure.order]
