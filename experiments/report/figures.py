"""A figure as data, and its drawing by plotly for the page; print_figures.py draws it for print.

Both draw the same points in the same colours. Measured series are solid, with markers; predicted ones dashed, without
(in bars and scatters: pale); a point of a single run is hollow.
"""

import math
import textwrap
from html import escape
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
    kind: str  # line, bar or scatter
    panels: list[Panel]
    x_label: str  # with its unit
    y_label: str
    log: tuple = ()  # of "x", "y"
    text: str = ""
    stacked: bool = False
    order: tuple = ()  # of the x that are words; else as they appear


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
    """Colour, marker, dash and hatch of a series: it can be told from others without colour too."""

    colour: str
    marker: str
    dash: str  # "solid": with a marker, or a marker alone
    hatch: str
    pale: bool


# Okabe & Ito's colours that can be seen on white and on black; grey for the seventh.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "x": "X", "cross": "P",
           "star": "*"}
DASHES = {"dash": (0, (5, 3)), "dot": (0, (1.5, 2)), "dashdot": (0, (5, 2, 1.5, 2)), "longdash": (0, (9, 3)),
          "longdashdot": (0, (9, 3, 1.5, 3))}
HATCHES = {"": "", "/": "///", "\\": "\\\\\\", "x": "xxx", "-": "---", "|": "|||", "+": "+++", ".": "..."}
PALE = 0.45
MARKED = 12  # markers of a curve, at most
INK, FAINT = "#737b85", "#737b8555"  # legible on white and on black


def styles(figure) -> dict[str, Style]:
    """Of each label (as `named` gives it), in the order of appearance; a series with `like` has that one's colour."""
    found, colours = {}, {}
    for series in (s for panel in figure.panels for s in panel.series):
        label = named(series)
        if label not in found:
            k = len(found)
            same = colours.setdefault(series.like or series.label, len(colours))
            dash = _nth(DASHES, k) if series.predicted and not loose(figure, series) else "solid"
            found[label] = Style(_nth(COLOURS, same), _nth(MARKERS, k), dash, _nth(HATCHES, k), series.predicted)
    return found


def _nth(kinds, k):
    return list(kinds)[k % len(kinds)]


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
    """`number` for an axis: millions and more as 1M, 20G."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(x) >= size:
            return f"{x / size:.4g}{prefix}"
    return number(float(x))


def points_table(figure) -> Table:
    """All points of a figure, for its CSV."""
    columns = ["panel", "series", figure.x_label, f"{figure.y_label}: median", "first quartile", "third quartile",
               "runs (0: predicted)"]
    rows = [[panel.title, named(series), p.x, p.y, p.low, p.high, p.runs]
            for panel in figure.panels for series in panel.series for p in series.points]
    return Table(figure.name, figure.title, columns, rows)


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


def shared_range(figure):
    """Do the panels share their y axis? Yes, unless some would be flat then."""
    tops = [_heights(figure, panel)[-1] for panel in figure.panels]
    return len(tops) > 1 and ("y" in figure.log or max(tops) <= 5 * min(tops))


def _heights(figure, panel):
    """All y that occur, ascending: of bars on each other their sum, too."""
    heights = {}
    for p in (p for series in panel.series for p in series.points):
        heights.setdefault(p.x, []).extend(y for y in (p.y, p.low, p.high) if math.isfinite(y))
    sums = [sum(p.y for s in panel.series for p in s.points if p.x == x) for x in heights] if figure.stacked else []
    return sorted(sum(heights.values(), sums))


def decades(figure, which):
    """How many powers of ten the numbers of a logarithmic axis span."""
    values = [getattr(p, which) for panel in figure.panels for series in panel.series for p in series.points]
    values = [v for v in values if not isinstance(v, str) and v > 0]
    return math.log10(max(values) / min(values)) if values else 0


def value_range(figure):
    """Of the y axis, where it is not left to the renderer; logarithms of ten where it is logarithmic.

    Panels that share it have room for the markers. Logarithmic bars begin at a power of ten.
    """
    logarithmic = "y" in figure.log
    if not shared_range(figure) and not (logarithmic and figure.kind == "bar"):
        return None
    ys = sorted(y for panel in figure.panels for y in _heights(figure, panel) if y > 0 or not logarithmic)
    low, high = (math.log10(ys[0]), math.log10(ys[-1])) if logarithmic else (ys[0], ys[-1])
    room = (high - low or 1) * 0.06
    if figure.kind == "bar":
        return [math.floor(low) if logarithmic else min(low - room, 0), high + room]
    return [low - room, high + room]


def rows(figure) -> int:
    """How many bars lie below each other, at least four."""
    return max([4] + [len(places(figure, panel)) * (1 if figure.stacked else len(panel.series)) for panel in figure.panels])


def plotly(figure) -> list[dict]:
    """Of each panel, plotly's data and layout, without the colours of text and grid, which the page sets by its theme."""
    look = styles(figure)
    return [{"data": [_band(series, look[named(series)]) for series in panel.series if crowded(figure, series)]
             + [_trace(figure, series, look[named(series)]) for series in panel.series],
             "layout": _layout(figure, panel)} for panel in figure.panels]


def crowded(figure, series) -> bool:
    """A curve of so many points that a band shows its quartiles better than whiskers, and some markers are enough."""
    return figure.kind == "line" and not series.predicted and len(series.points) > MARKED


def band(series) -> list[tuple]:
    """(x, first quartile, third quartile) where both are there."""
    return [(p.x, p.low, p.high) for p in series.points if p.runs > 1 and math.isfinite(p.low + p.high)]


def _band(series, style):
    edge = band(series)
    return {"type": "scatter", "mode": "lines", "meta": named(series), "hoverinfo": "skip", "fill": "toself",
            "x": [x for x, _, _ in edge + edge[::-1]], "y": [low for _, low, _ in edge] + [high for _, _, high in edge[::-1]],
            "line": {"width": 0, "color": style.colour}, "opacity": 0.35}


def _trace(figure, series, style):
    points, errors = series.points, {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}
    across, up = ("y", "x") if figure.kind == "bar" else ("x", "y")  # bars lie, so that their names can be read
    trace = {"name": escape(named(series), quote=False), "meta": named(series), up: [p.y for p in points],
             across: [escape(p.x, quote=False) if isinstance(p.x, str) else p.x for p in points],
             "customdata": [_hover(figure, series, p) for p in points], "hovertemplate": "%{customdata}<extra></extra>"}
    if figure.kind == "bar":
        trace |= {"type": "bar", "orientation": "h", "marker": {
            "color": style.colour, "opacity": [1 if p.runs > 1 else PALE for p in points],
            "line": {"color": style.colour, "width": 1.5},
            "pattern": {"shape": style.hatch, "fillmode": "overlay", "solidity": 0.3}}}
    else:
        errors["color"] = style.colour
        mode = "markers" if loose(figure, series) else "lines" if series.predicted else "lines+markers"
        symbols = [style.marker + "-open" * (p.runs == 1) for p in points]
        trace |= {"type": "scatter", "mode": mode, "line": {"color": style.colour, "dash": style.dash, "width": 2},
                  "marker": {"color": style.colour, "size": 9, "symbol": symbols, "opacity": PALE if series.predicted else 1,
                             "maxdisplayed": MARKED if crowded(figure, series) else 0}}
    for axis, ends in ((up, ("low", "y", "high")), (across, ("left", "x", "right"))):
        below, above = error_bars(points, *ends)
        if any(below + above) and not figure.stacked and not crowded(figure, series):
            trace[f"error_{axis}"] = {**errors, "array": above, "arrayminus": below}
    return trace


def loose(figure, series):
    """Markers without a line?"""
    return figure.kind == "scatter" and not series.joined


def _hover(figure, series, p):
    """Text of a point: HTML for plotly, so all that comes from outside is escaped."""
    spread = f" [{number(p.low)}, {number(p.high)}]" if p.runs > 1 and math.isfinite(p.low) else ""
    source = {0: "predicted", 1: "1 run"}.get(p.runs, f"median [quartiles] of {p.runs} runs")
    lines = named(series), f"{figure.x_label}: {p.x if isinstance(p.x, str) else number(p.x)}", \
        f"{figure.y_label}: {number(p.y)}{spread}", source, p.note
    return "<br>".join(escape(line, quote=False) for line in lines if line)


def places(figure, panel) -> list:
    """The words on the x axis of a panel, or what bars stand on; [] where it is an axis of numbers."""
    found = dict.fromkeys(p.x for s in panel.series for p in s.points if isinstance(p.x, str) or figure.kind == "bar")
    return [place for place in figure.order if place in found] + [place for place in found if place not in figure.order]


def _layout(figure, panel):
    def axis(label, which):
        kind = {}
        if which in figure.log:  # powers of ten alone, where there are enough of them
            kind = {"type": "log", "exponentformat": "SI", "minexponent": 5, "separatethousands": True}
            kind |= {"dtick": 1} if decades(figure, which) > 1.5 else {}
        lines = textwrap.wrap(label, 22 if (which == "y") == (figure.kind == "bar") else 42)  # across a phone, and upwards
        text = "<br>".join(escape(line, quote=False) for line in lines)
        return {"title": {"text": text, "standoff": 8}, "automargin": True, "zeroline": False, **kind}
    x, y, ticks = axis(figure.x_label, "x"), axis(figure.y_label, "y"), x_ticks(figure, panel)
    if ticks:
        x |= {"tickvals": ticks, "ticktext": [number(t) for t in ticks]}
    if words := places(figure, panel):
        x |= {"type": "category", "categoryorder": "array", "categoryarray": [escape(str(w), quote=False) for w in words]}
    if value_range(figure):
        y["range"] = value_range(figure)
    layout = {"xaxis": x, "yaxis": y, "showlegend": False, "hovermode": "closest", "height": 340,
              "margin": {"l": 10, "r": 12, "t": 12, "b": 10}, "barmode": "stack" if figure.stacked else "group"}
    if figure.kind == "bar":
        layout |= {"xaxis": y, "yaxis": x | {"autorange": "reversed"}, "height": 90 + 22 * rows(figure)}
    return layout
