"""Figures as SVG and PDF by matplotlib: as files for a paper or a README, and panel by panel for the page."""

import html
import io
import math
import re
import textwrap
from pathlib import Path

import numpy as np

from hogwild.experiments.report import stats
from hogwild.experiments.report.figures import (
    MARKED,
    band,
    crowded,
    decades,
    error_bars,
    hover,
    lies,
    loose,
    named,
    number,
    places,
    short,
    styles,
    value_range,
    values,
    x_ticks,
)

INK, FAINT = "#737b85", "#737b8555"  # of text and grid: legible on white and on black
STRONG = "#737b84"  # of whiskers on bars
THEMED = {INK: "var(--soft)", STRONG: "var(--ink)"}  # in the page
WIDTH = 3.4  # inches of a panel
WORDS = 16  # letters in a line beside bars
COORDINATES = re.compile(r'\b(?:d|x|y)="[^"]*"')
UNUSED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>"
                    r"|<defs>\s*<style.*?</defs>|(?<=<g) id=\"[^\"]*\"|font-size: 9px; font-family: [^;]*; ", re.S)
POINTED = re.compile(r'<a xlink:href="#(\d+)"[^>]*>(.*?)</a>', re.S)  # how matplotlib writes what has a URL


def save(figure, folder, forms=("svg", "pdf")) -> list[Path]:
    """Write figure.name.svg and .pdf into `folder`, panels and legend together: text as text, transparent."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _settings(figure.name):
        sheet = _sheet(figure)
        sheet.draw_without_rendering()
        sheet.set_layout_engine("none")  # it is laid out: once is enough
        paths = [folder / f"{figure.name}.{form}" for form in forms]
        for path in paths:  # without a date, so that the same data give the same file
            dated = {"Date": None} if path.suffix == ".svg" else {"CreationDate": None}
            sheet.savefig(path, transparent=True, bbox_inches="tight", metadata={"Title": figure.title, **dated})
    for path in paths:
        if path.suffix == ".svg":
            path.write_text(COORDINATES.sub(_rounded, path.read_text(encoding="utf-8")), encoding="utf-8")
    return paths


def inline(figure, salt) -> tuple[list[str], dict[str, str]]:
    """(an SVG for each panel, a small one for each label of the legend), to be put into a page.

    salt: no other figure of the page may have it. Text and grid have the colours of the CSS variables --soft and --ink.
    """
    from matplotlib.figure import Figure as Sheet
    panels, handles, look = [], {}, styles(figure)
    for k, panel in enumerate(figure.panels):
        with _settings(f"{salt} {k}"):
            sheet, texts = Sheet(figsize=(WIDTH, _height(figure)), layout="constrained"), []
            ax = sheet.subplots()
            _draw(figure, panel, ax, look, texts)
            handles = dict(zip(*ax.get_legend_handles_labels()[::-1])) | handles
            panels.append(_markup(sheet, texts))
    legend = {}
    for label, handle in handles.items():
        with _settings(f"{salt} {label}"):
            sheet = Sheet(figsize=(0.45, 0.17))
            sheet.legend([handle], [""], loc="center", frameon=False, handlelength=3, handletextpad=0, borderpad=0)
            legend[label] = _markup(sheet, [])
    return panels, legend


def _settings(salt):
    """matplotlib's settings while it draws; salt: of the names within the SVG."""
    import matplotlib
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    return matplotlib.rc_context({
        **inks, "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": salt, "text.parse_math": False, "font.size": 9,
        "font.sans-serif": ["DejaVu Sans"], "axes.titlesize": 9, "hatch.linewidth": 0.6, "axes.formatter.useoffset": False})


def _markup(sheet, texts) -> str:
    """The SVG as part of a page: without what a page does not need, as wide as its place; texts: of what is pointed at."""
    file = io.StringIO()
    sheet.savefig(file, format="svg", transparent=True)
    svg = COORDINATES.sub(_rounded, UNUSED.sub("", file.getvalue()))
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1)
    svg = POINTED.sub(lambda found: f'<g class="point"><title>{html.escape(texts[int(found[1])])}</title>{found[2]}</g>', svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _rounded(attribute):
    """Hundredths of a point: a third of the file's size less."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute[0])


def _height(figure) -> float:
    """Inches of a panel."""
    if not lies(figure):
        return 3.2 if figure.equal else 2.7
    def lines(panel):
        words = [_wrapped(word).count("\n") + 1 for word in places(figure, panel)]
        return len(words) * max(1 if figure.stacked else len(panel.series), *words)
    return 0.8 + 0.17 * max(4, *map(lines, figure.panels))


def _wrapped(word):
    return "\n".join(textwrap.wrap(str(word), WORDS))


def _sheet(figure):
    from matplotlib.figure import Figure as Sheet
    columns = 2 if len(figure.panels) == 4 else max(1, min(len(figure.panels), 3))
    lines = max(1, math.ceil(len(figure.panels) / columns))
    sheet = Sheet(figsize=(WIDTH * columns, _height(figure) * lines), layout="constrained")
    axes = sheet.subplots(lines, columns, squeeze=False).ravel()
    look = styles(figure)
    for panel, ax in zip(figure.panels, axes):
        _draw(figure, panel, ax, look)
    for ax in axes[len(figure.panels):]:
        ax.set_axis_off()
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels()) if label}
    letters = 15 * WIDTH * columns / max([len(label) + 9 for label in handles], default=1)  # some 15 in an inch
    sheet.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, min(len(handles), int(letters))),
                 frameon=False, handlelength=3)
    return sheet


def _draw(figure, panel, ax, look, texts=None):
    """Draw a panel. To `texts` is added what is shown when a point is pointed at, whose URL is # and its index there."""
    words, lying = places(figure, panel), lies(figure)
    draw = {"bar": _bars, "dot": _dots}.get(figure.kind, _line)
    for k, series in enumerate(panel.series):
        draw(figure, panel, k, ax, look[named(series)], words, texts)
    for which, side in ("x", "y" if lying else "x"), ("y", "x" if lying else "y"):
        if which == "y" or not words:
            _scale(figure, ax, which, side)
    if figure.contour:
        _levels(figure, ax)
    names = [_wrapped(word) for word in words]
    if lying:
        ax.set_yticks(range(len(words)), names)
        ax.set_ylim(len(words) - 0.5, -0.5)
    elif words:
        ax.set_xticks(range(len(words)), names, **({"rotation": 30, "ha": "right"} if sum(map(len, names)) > 28 else {}))
    elif ticks := x_ticks(figure, panel):
        ax.set_xticks(ticks, [number(t) for t in ticks])
        ax.set_xticks([], minor=True)
    if limits := value_range(figure):
        getattr(ax, "set_xlim" if lying else "set_ylim")(*limits)
    if figure.equal:
        ax.set(xlim=limits, aspect="equal")
        ax.plot(limits, limits, color=INK, linewidth=1, linestyle="--", zorder=1)
    labels = (figure.y_label, figure.x_label) if lying else (figure.x_label, figure.y_label)
    ax.set(title=panel.title, xlabel=labels[0], ylabel=labels[1])
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _levels(figure, ax):
    """Level lines of a function of both axes, each at three times the value of the one before."""
    limits = ax.get_xlim(), ax.get_ylim()
    x, y = np.meshgrid(*(np.linspace(*ends, 120) for ends in limits))
    z = stats.evaluated(figure.contour, {"x": x, "y": y})
    ax.contour(x, y, z, levels=z.max() * 3.0 ** np.arange(-9, 0), colors=INK, linewidths=0.4, alpha=0.7, zorder=0.5)
    ax.set(xlim=limits[0], ylim=limits[1])


def _scale(figure, ax, which, side):
    """Scale and ticks of an axis of numbers: whole ones where all numbers are; side: where it is drawn."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
    axis, found = getattr(ax, f"{side}axis"), values(figure, which)
    locator = MaxNLocator(6, steps=[1, 2, 5, 10], integer=all(float(v).is_integer() for v in found))
    if which in figure.log:
        getattr(ax, f"set_{side}scale")("log", nonpositive="mask")
        axis.set_minor_formatter(NullFormatter())
        span = decades(figure, which)
        if span > 0.7:
            locator = LogLocator(subs=(1,) if span > 1.5 else (1, 2, 5))
    axis.set_major_locator(locator)
    if which in figure.log or max(found, default=0) >= 10_000:
        axis.set_major_formatter(lambda value, _: short(value))


def _urls(figure, series, points, texts) -> list:
    """URLs of the points for `_draw`'s texts; none where there is no such list."""
    start = len(texts or [])
    if texts is not None:
        texts += [hover(figure, series, p) for p in points]
    return [f"#{k}" for k in range(start, len(texts or []))]


def _targets(ax, at, urls):
    """Invisible squares to point at."""
    if urls:
        ax.scatter(*zip(*at), s=120, marker="s", color="none", clip_on=False, urls=urls)


def _line(figure, panel, k, ax, style, words, texts):
    """The k-th series as a line, or in a scatter as markers."""
    series, colour, alone = panel.series[k], style.colour, loose(figure, panel.series[k])
    points = [p._replace(x=words.index(p.x)) for p in series.points] if words else series.points
    many, step = crowded(figure, series), math.ceil(len(points) / MARKED) if crowded(figure, series) else 1
    marker = {"marker": style.marker, "markersize": 5} if alone or not series.predicted else {}
    if many:
        edge = np.array(band(series) or [(math.nan,) * 3])
        ax.fill_between(*edge.T, color=colour, alpha=0.25, linewidth=0)
        marker["markevery"] = step
    _marks(ax, points, points, style, marker, linestyle="none" if alone else style.dash, label=named(series))
    if not many:
        errors = {"yerr": error_bars(points, "low", "y", "high"), "xerr": error_bars(points, "left", "x", "right")}
        _whiskers(ax, [p.x for p in points], [p.y for p in points], colour, errors)
    _targets(ax, [(p.x, p.y) for p in points[::step]], _urls(figure, series, series.points[::step], texts))


def _marks(ax, points, at, style, marker, **line):
    """Points at the places `at`; those of a single run are hollow, and so is the legend where there is one."""
    hollow = any(p.runs == 1 for p in points)
    ax.plot([p.x for p in at], [p.y for p in at], color=style.colour, linewidth=1.6,
            markerfacecolor="none" if hollow else style.colour, **marker, **line)
    if hollow and "markevery" not in marker:
        solid = [q for p, q in zip(points, at) if p.runs > 1]
        ax.plot([q.x for q in solid], [q.y for q in solid], color=style.colour, linestyle="none", **marker)


def _whiskers(ax, xs, ys, colour, errors):
    errors = {side: lengths for side, lengths in errors.items() if any(lengths[0] + lengths[1])}
    if errors:
        ax.errorbar(xs, ys, **errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def _dots(figure, panel, k, ax, style, words, texts):
    """The k-th series as markers beside the words, below those of the series before it."""
    series, wide = panel.series[k], 0.8 / len(panel.series)
    points = [p for p in series.points if math.isfinite(p.y)]
    at = [p._replace(x=p.y, y=words.index(p.x) + (k + 0.5) * wide - 0.4) for p in points]
    _marks(ax, points, at, style, {"marker": style.marker, "markersize": 5}, linestyle="none", label=named(series))
    xs, ys = [q.x for q in at], [q.y for q in at]
    _whiskers(ax, xs, ys, style.colour, {"xerr": error_bars(points, "low", "y", "high")})
    _targets(ax, zip(xs, ys), _urls(figure, series, points, texts))


def _bars(figure, panel, k, ax, style, words, texts):
    """The bars of the k-th series: beside those of the others, or on top of those before it; of a single run hollow."""
    series = panel.series[k]
    points = [p for p in series.points if math.isfinite(p.y)]
    wide = 0.8 if figure.stacked else 0.8 / len(panel.series)
    at = [words.index(p.x) + (0 if figure.stacked else (k + 0.5) * wide - 0.4) for p in points]
    below = [sum(q.y for before in panel.series[:k] for q in before.points if q.x == p.x) for p in points]
    many = [p.runs > 1 for p in points]
    bars = ax.barh(at, [p.y for p in points], wide, left=below if figure.stacked else None, hatch=style.hatch,
                   facecolor=[style.colour if full else "none" for full in many], linewidth=[not full for full in many],
                   edgecolor=["#ffffffb0" if full else style.colour for full in many], label=named(series))
    for bar, url in zip(bars, _urls(figure, series, points, texts)):
        bar.set_url(url)
    if not figure.stacked:
        _whiskers(ax, [p.y for p in points], at, STRONG, {"xerr": error_bars(points, "low", "y", "high")})
