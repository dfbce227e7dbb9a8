"""Figures for a paper or a README: SVG and PDF by matplotlib, with the points and colours of the page."""

import math
import re
from pathlib import Path

import numpy as np

from hogwild.experiments.report.figures import (
    DASHES,
    FAINT,
    HATCHES,
    INK,
    MARKED,
    MARKERS,
    PALE,
    band,
    crowded,
    decades,
    error_bars,
    loose,
    named,
    number,
    places,
    rows,
    shared_range,
    short,
    styles,
    value_range,
    x_ticks,
)

PLACES = re.compile(r'\b(?:d|x|y)="[^"]*"')  # attributes of an SVG that hold coordinates


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
    for path in paths:
        if path.suffix == ".svg":
            path.write_text(PLACES.sub(_rounded, path.read_text(encoding="utf-8")), encoding="utf-8")
    return paths


def _rounded(attribute):
    """Hundredths of a point: a third of the file's size less."""
    return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute[0])


def _sheet(figure, width):
    from matplotlib.figure import Figure as Sheet
    columns = 2 if len(figure.panels) == 4 else max(1, min(len(figure.panels), 3))
    lines, bars = max(1, math.ceil(len(figure.panels) / columns)), figure.kind == "bar"
    if bars:  # whose names stand on the left
        width += 0.07 * max(len(str(word)) for panel in figure.panels for word in places(figure, panel))
    sheet = Sheet(figsize=(width * columns, (0.8 + 0.17 * rows(figure) if bars else 2.7) * lines), layout="constrained")
    axes = sheet.subplots(lines, columns, squeeze=False, sharex=bars and shared_range(figure),
                          sharey=not bars and shared_range(figure)).ravel()
    look = styles(figure)
    for panel, ax in zip(figure.panels, axes):
        _draw(figure, panel, ax, look)
    for ax in axes[len(figure.panels):]:
        ax.set_axis_off()
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels()) if label}
    letters = 15 * width * columns / max([len(label) + 9 for label in handles], default=1)  # some 15 in an inch
    sheet.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, min(len(handles), int(letters))),
                 frameon=False, handlelength=3)
    return sheet


def _draw(figure, panel, ax, look):
    words, ticks, bars = places(figure, panel), x_ticks(figure, panel), figure.kind == "bar"
    for k, series in enumerate(panel.series):
        if bars:
            _bars(figure, panel, k, ax, look[named(series)], words)
        else:
            _line(figure, series, ax, look[named(series)], words)
    for which in figure.log:
        _logarithmic(figure, ax, which)
    texts = [str(word) for word in words]
    if bars:
        ax.set_yticks(range(len(words)), texts)
        ax.set_ylim(len(words) - 0.5, -0.5)
    elif words:
        ax.set_xticks(range(len(words)), texts, **({"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 28 else {}))
    elif ticks:
        ax.set_xticks(ticks, [number(t) for t in ticks])
        ax.set_xticks([], minor=True)
    limits = value_range(figure) if bars else None
    if limits:
        ax.set_xlim(*(10**end if "y" in figure.log else end for end in limits))
    labels = (figure.y_label, figure.x_label) if bars else (figure.x_label, figure.y_label)
    ax.set(title=panel.title, xlabel=labels[0], ylabel=labels[1])
    if shared_range(figure) and not bars:
        ax.label_outer(remove_inner_ticks=False)
    ax.grid(color=FAINT, linewidth=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _logarithmic(figure, ax, which):
    from matplotlib.ticker import LogLocator, NullFormatter
    side = {"x": "y", "y": "x"}[which] if figure.kind == "bar" else which
    getattr(ax, f"set_{side}scale")("log")
    axis = getattr(ax, f"{side}axis")
    axis.set_major_locator(LogLocator(subs=(1,) if decades(figure, which) > 1.5 else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: short(value))
    axis.set_minor_formatter(NullFormatter())


def _line(figure, series, ax, style, words):
    points, colour = series.points, style.colour
    points = [p._replace(x=words.index(p.x)) for p in points] if words else points
    xs, ys = [p.x for p in points], [p.y for p in points]
    alone = loose(figure, series)
    marker = {"marker": MARKERS[style.marker], "markersize": 5} if alone or not series.predicted else {}
    hollow = any(p.runs == 1 for p in points)
    if crowded(figure, series):
        edge = np.array(band(series) or [(math.nan,) * 3])
        ax.fill_between(*edge.T, color=colour, alpha=0.25, linewidth=0)
        marker["markevery"] = math.ceil(len(points) / MARKED)
    ax.plot(xs, ys, color=colour, linewidth=1.6, linestyle="none" if alone else DASHES.get(style.dash, "-"),
            label=named(series), markerfacecolor="none" if hollow else colour,
            alpha=PALE if alone and series.predicted else None, **marker)
    if hollow and not crowded(figure, series):  # only the points of a single run are
        solid = [p for p in points if p.runs > 1]
        ax.plot([p.x for p in solid], [p.y for p in solid], color=colour, linestyle="none", **marker)
    errors = {"yerr": error_bars(points, "low", "y", "high"), "xerr": error_bars(points, "left", "x", "right")}
    errors = {side: lengths for side, lengths in errors.items() if any(lengths[0] + lengths[1])}
    if errors and not crowded(figure, series):
        ax.errorbar(xs, ys, **errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def _bars(figure, panel, k, ax, style, words):
    """The bars of the k-th series: beside those of the others, or on top of those before it."""
    points = [p for p in panel.series[k].points if math.isfinite(p.y)]
    wide = 0.8 if figure.stacked else 0.8 / len(panel.series)
    at = [words.index(p.x) + (0 if figure.stacked else (k + 0.5) * wide - 0.4) for p in points]
    below = [sum(q.y for before in panel.series[:k] for q in before.points if q.x == p.x) for p in points]
    many = [p.runs > 1 for p in points]
    ax.barh(at, [p.y for p in points], wide, left=below if figure.stacked else None, hatch=HATCHES[style.hatch],
            facecolor=[style.colour if full else "none" for full in many], linewidth=[0 if full else 1 for full in many],
            edgecolor=["#ffffffb0" if full else style.colour for full in many], label=named(panel.series[k]))
    errors = error_bars(points, "low", "y", "high")
    if any(errors[0] + errors[1]) and not figure.stacked:
        ax.errorbar([p.y for p in points], at, xerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
