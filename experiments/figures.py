"""A figure as data, and its two renderers: plotly for the page, matplotlib for a paper.

Both draw the same points in the same colours. What is measured is solid, with markers; what is predicted is dashed, without
(in bars and scatters: pale); what comes from a single run is hollow.
"""

import math
from html import escape
from pathlib import Path
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
    """How a series is told from the others, without colour too."""

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
INK, FAINT = "#737b85", "#737b8555"  # legible on white and on black


def styles(figure) -> dict[str, Style]:
    """Of each label (as `named` gives it), in the order of appearance; a series with `like` has that one's colour."""
    found, colours = {}, {}
    for series in (s for panel in figure.panels for s in panel.series):
        label = named(series)
        if label not in found:
            k = len(found)
            same = colours.setdefault(series.like or series.label, len(colours))
            dash = _nth(DASHES, k) if series.predicted and not _loose(figure, series) else "solid"
            found[label] = Style(_nth(COLOURS, same), _nth(MARKERS, k), dash, _nth(HATCHES, k), series.predicted)
    return found


def _nth(kinds, k):
    return list(kinds)[k % len(kinds)]


def named(series) -> str:
    return f"{series.label} (predicted)" if series.predicted else series.label


def number(x) -> str:
    """Four digits, thousands apart; "" for what is not there."""
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
    """All that a figure shows, for its CSV."""
    columns = ["panel", "series", figure.x_label, f"{figure.y_label}: median", "first quartile", "third quartile",
               "runs (0: predicted)"]
    rows = [[panel.title, named(series), p.x, p.y, p.low, p.high, p.runs]
            for panel in figure.panels for series in panel.series for p in series.points]
    return Table(figure.name, figure.title, columns, rows)


def _errors(points, low, middle, high):
    """Lengths of the error bars below and above; 0 where there are none."""
    def length(p, end):
        end = getattr(p, end)
        return abs(getattr(p, middle) - end) if math.isfinite(end) else 0
    return [length(p, low) for p in points], [length(p, high) for p in points]


def _ticks(figure, panel):
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


def _decades(figure, which):
    """How many powers of ten the numbers of a logarithmic axis span."""
    values = [getattr(p, which) for panel in figure.panels for series in panel.series for p in series.points]
    values = [v for v in values if not isinstance(v, str) and v > 0]
    return math.log10(max(values) / min(values)) if values else 0


def _range(figure):
    """Of the y axis of all panels, with room for the markers; logarithms of ten where it is logarithmic."""
    ys = sorted(y for panel in figure.panels for y in _heights(figure, panel) if y > 0 or "y" not in figure.log)
    low, high = (math.log10(ys[0]), math.log10(ys[-1])) if "y" in figure.log else (ys[0], ys[-1])
    room = (high - low or 1) * 0.06
    return [0 if figure.kind == "bar" and low >= 0 and "y" not in figure.log else low - room, high + room]


def plotly(figure) -> list[dict]:
    """Of each panel, plotly's data and layout, without the colours of text and grid, which the page sets by its theme."""
    look = styles(figure)
    return [{"data": [_trace(figure, series, look[named(series)]) for series in panel.series],
             "layout": _layout(figure, panel)} for panel in figure.panels]


def _trace(figure, series, style):
    points, errors = series.points, {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3}
    trace = {"name": escape(named(series), quote=False), "meta": named(series), "y": [p.y for p in points],
             "x": [escape(p.x, quote=False) if isinstance(p.x, str) else p.x for p in points],
             "customdata": [_hover(figure, series, p) for p in points], "hovertemplate": "%{customdata}<extra></extra>"}
    if figure.kind == "bar":
        trace |= {"type": "bar", "marker": {
            "color": style.colour, "opacity": [1 if p.runs > 1 else PALE for p in points],
            "line": {"color": style.colour, "width": 1.5},
            "pattern": {"shape": style.hatch, "fillmode": "overlay", "solidity": 0.3}}}
    else:
        errors["color"] = style.colour
        mode = "markers" if _loose(figure, series) else "lines" if series.predicted else "lines+markers"
        symbols = [style.marker + "-open" * (p.runs == 1) for p in points]
        trace |= {"type": "scatter", "mode": mode, "line": {"color": style.colour, "dash": style.dash, "width": 2},
                  "marker": {"color": style.colour, "size": 9, "symbol": symbols, "opacity": PALE if series.predicted else 1}}
    for axis, ends in (("y", ("low", "y", "high")), ("x", ("left", "x", "right"))):
        below, above = _errors(points, *ends)
        if any(below + above) and not figure.stacked:
            trace[f"error_{axis}"] = {**errors, "array": above, "arrayminus": below}
    return trace


def _loose(figure, series):
    """Markers without a line?"""
    return figure.kind == "scatter" and not series.joined


def _hover(figure, series, p):
    """Text of a point: HTML for plotly, so all that comes from outside is escaped."""
    spread = f" [{number(p.low)}, {number(p.high)}]" if p.runs > 1 and math.isfinite(p.low) else ""
    source = {0: "predicted", 1: "1 run"}.get(p.runs, f"median [quartiles] of {p.runs} runs")
    lines = named(series), f"{figure.x_label}: {p.x if isinstance(p.x, str) else number(p.x)}", \
        f"{figure.y_label}: {number(p.y)}{spread}", source, p.note
    return "<br>".join(escape(line, quote=False) for line in lines if line)


def _places(figure, panel) -> list:
    """The words on the x axis of a panel, or what bars stand on; [] where it is an axis of numbers."""
    found = dict.fromkeys(p.x for s in panel.series for p in s.points if isinstance(p.x, str) or figure.kind == "bar")
    return [place for place in figure.order if place in found] + [place for place in found if place not in figure.order]


def _layout(figure, panel):
    def axis(label, which):
        kind = {}
        if which in figure.log:  # powers of ten alone, where there are enough of them
            kind = {"type": "log", "exponentformat": "SI", "minexponent": 5, "separatethousands": True}
            kind |= {"dtick": 1} if _decades(figure, which) > 1.5 else {}
        return {"title": {"text": escape(label, quote=False), "standoff": 8}, "automargin": True, "zeroline": False, **kind}
    x, ticks = axis(figure.x_label, "x"), _ticks(figure, panel)
    if ticks:
        x |= {"tickvals": ticks, "ticktext": [number(t) for t in ticks]}
    if places := _places(figure, panel):
        x |= {"type": "category", "categoryorder": "array"}
        x["categoryarray"] = [escape(str(place), quote=False) for place in places]
    y = axis(figure.y_label, "y") | ({"range": _range(figure)} if shared_range(figure) else {})
    return {"xaxis": x, "yaxis": y, "showlegend": False, "hovermode": "closest", "height": 340,
            "margin": {"l": 10, "r": 12, "t": 12, "b": 10}, "barmode": "stack" if figure.stacked else "group"}


def save(figure, folder, forms=("svg", "pdf"), width=3.4) -> list[Path]:
    """Write figure.name.svg and .pdf into `folder`: text as text, transparent, a panel `width` inches wide."""
    import matplotlib
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    settings = {**inks, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": figure.name, "text.parse_math": False,
                "font.size": 9, "font.family": "sans-serif", "axes.titlesize": 9, "hatch.linewidth": 0.6}
    with matplotlib.rc_context(settings):
        sheet = _sheet(figure, width)
        paths = [folder / f"{figure.name}.{form}" for form in forms]
        for path in paths:  # without a date, so that the same data give the same file
            dated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
            sheet.savefig(path, transparent=True, bbox_inches="tight", metadata={"Title": figure.title, **dated})
    return paths


def _sheet(figure, width):
    from matplotlib.figure import Figure as Sheet
    columns = 2 if len(figure.panels) == 4 else max(1, min(len(figure.panels), 3))
    rows = max(1, math.ceil(len(figure.panels) / columns))
    sheet = Sheet(figsize=(width * columns, 2.7 * rows), layout="constrained")
    axes = sheet.subplots(rows, columns, squeeze=False, sharey=shared_range(figure)).ravel()
    look = styles(figure)
    for panel, ax in zip(figure.panels, axes):
        _draw(figure, panel, ax, look)
    for ax in axes[len(figure.panels):]:
        ax.set_axis_off()
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    letters = 15 * width * columns / max([len(label) + 9 for label in handles], default=1)  # some 15 in an inch
    sheet.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, min(len(handles), int(letters))),
                 frameon=False, handlelength=3)
    return sheet


def _draw(figure, panel, ax, look):
    places = _places(figure, panel)
    if figure.kind == "bar":
        _bars(figure, panel, ax, look, places)
    for series in panel.series if figure.kind != "bar" else []:
        _line(figure, series, ax, look[named(series)], places)
    if places:
        texts = [str(place) for place in places]
        ax.set_xticks(range(len(places)), texts, **({"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 28 else {}))
    for which in figure.log:
        _logarithmic(figure, ax, which)
    ticks = _ticks(figure, panel)
    if ticks:
        ax.set_xticks(ticks, [number(t) for t in ticks])
        ax.set_xticks([], minor=True)
    ax.set(title=panel.title, xlabel=figure.x_label, ylabel=figure.y_label)
    if shared_range(figure):
        ax.label_outer(remove_inner_ticks=False)
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _logarithmic(figure, ax, which):
    from matplotlib.ticker import LogLocator, NullFormatter
    getattr(ax, f"set_{which}scale")("log")
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1,) if _decades(figure, which) > 1.5 else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: short(value))
    axis.set_minor_formatter(NullFormatter())


def _line(figure, series, ax, style, places):
    points, colour = series.points, style.colour
    points = [p._replace(x=places.index(p.x)) for p in points] if places else points
    xs, ys = [p.x for p in points], [p.y for p in points]
    loose = _loose(figure, series)
    marker = {"marker": MARKERS[style.marker], "markersize": 5} if loose or not series.predicted else {}
    hollow = any(p.runs == 1 for p in points)
    ax.plot(xs, ys, color=colour, linewidth=1.6, linestyle="none" if loose else DASHES.get(style.dash, "-"),
            label=named(series), markerfacecolor="none" if hollow else colour,
            alpha=PALE if loose and series.predicted else None, **marker)
    if hollow:  # only the points of a single run are
        solid = [p for p in points if p.runs > 1]
        ax.plot([p.x for p in solid], [p.y for p in solid], color=colour, linestyle="none", **marker)
    errors = {"yerr": _errors(points, "low", "y", "high"), "xerr": _errors(points, "left", "x", "right")}
    errors = {side: lengths for side, lengths in errors.items() if any(lengths[0] + lengths[1])}
    if errors:
        ax.errorbar(xs, ys, **errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def _bars(figure, panel, ax, look, places):
    wide = 0.8 if figure.stacked else 0.8 / max(len(panel.series), 1)
    floor = dict.fromkeys(places, 0.0)
    for k, series in enumerate(panel.series):
        style, points = look[named(series)], [p for p in series.points if math.isfinite(p.y)]
        at = [places.index(p.x) + (0 if figure.stacked else (k + 0.5) * wide - 0.4) for p in points]
        bars = ax.bar(at, [p.y for p in points], wide, bottom=[floor[p.x] for p in points] if figure.stacked else None,
                      hatch=HATCHES[style.hatch], color=style.colour, edgecolor="#ffffffb0", linewidth=0, label=named(series))
        for bar, p in zip(bars, points):
            floor[p.x] += p.y
            if p.runs < 2:
                bar.set(facecolor=(style.colour, 0.2), edgecolor=style.colour, linewidth=1)
        errors = _errors(points, "low", "y", "high")
        if any(errors[0] + errors[1]) and not figure.stacked:
            ax.errorbar(at, [p.y for p in points], errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
