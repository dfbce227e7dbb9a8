"""The report: numbers against NumPy's, colours against WCAG's formula, the page in a browser. All cells are made up."""

import csv
import html.parser
import json
import re
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_up import HOSTILE, LOSS, MODEL, TOML, model, write_cell

from hogwild.errors import UserError
from hogwild.experiments.plan import grid
from hogwild.experiments.report import aggregate
from hogwild.experiments.run import results

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from hogwild.experiments.report import build, drawing, figures  # noqa: E402  they need what may be missing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """made-up.toml and empty.toml, with results of the first, and its report."""
    place = tmp_path_factory.mktemp("report")
    (place / "made-up.toml").write_text(TOML)
    (place / "empty.toml").write_text(TOML.replace("Made up", "Nothing yet"))
    for quick in (False, True):
        experiment = grid.read(place / "made-up.toml", quick)
        for point in grid.cells(experiment):
            write_cell(experiment, point, place / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, MODEL, model())
        build.main([str(place / "made-up.toml"), str(place / "empty.toml"), "--results", str(place / "results")])
        yield place


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "results/report/index.html").read_text()


class Tags(html.parser.HTMLParser):
    """What a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def tags(page):
    return Tags(page)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_holds_every_figure_table_and_command(folder, tags):
    ids = {attributes.get("id") for _, attributes in tags.found}
    assert {"made-up-loss", "made-up-phases", "made-up-both", "made-up-course", "made-up-model", "made-up-numbers",
            "made-up-model-table"} <= ids
    experiment = grid.read(folder / "made-up.toml")
    for point in grid.cells(experiment):
        if point.axes["method"] != "once" or point.seed == 0:
            assert point.shown in tags.text
    assert tags.text.count(f"experiments run {folder}/made-up.toml; "
                           f"python -m hogwild.experiments report {folder}/made-up.toml") == 1
    for said in ("a machine", "numpy 9.9", "c0ffee", "2026-01-02", "Is <b>this</b> a question?",
                 "6 failed: exit 3: RuntimeError", "it <broke>", "3 skipped: needs <root>"):
        assert said in tags.text
    assert "made-up" in ids and "empty" not in ids and "Without results: 1 experiment" in tags.text
    assert "Nothing yet" in tags.text and f"python -m hogwild.experiments run {folder}/empty.toml" in tags.text


def test_page_is_well_formed_and_loads_nothing(page, tags):
    assert not tags.open and len(page) < 150_000
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags.found:
        assert tag not in ("link", "img", "iframe", "object", "embed") and "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag == "a":
            assert not attributes["href"].startswith("javascript")
    assert [a["href"] for tag, a in tags.found if a.get("href", "").startswith("http")] == ["https://example.org/paper"]


def test_page_escapes_labels(page, tags):
    assert HOSTILE in tags.text
    assert "<img src=x" not in page.replace("<script>", "")


def test_csv_has_numpys_quartiles(folder):
    found = rows(folder / "results/report/made-up/numbers.csv")
    for row in found:
        losses = LOSS.get((row["method"] if row["method"] != HOSTILE else "drop", int(row["ranks"])))
        if losses:
            heads = [f"test loss (nats): {what}" for what in ("median", "first quartile", "third quartile")]
            assert [float(row[head]) for head in heads] == pytest.approx(np.percentile(losses, (50, 25, 75)).tolist())
            assert int(row["test loss (nats): runs"]) == len(losses)
        else:
            assert row["test loss (nats): median"] in ("failed", "skipped")
    [drop] = [row for row in found if (row["method"], row["ranks"]) == (HOSTILE, "2")]
    paired = np.divide(LOSS["drop", 2], LOSS["dense", 2])
    assert float(drop["test loss: ratio to dense: median"]) == pytest.approx(np.median(paired))
    assert float(drop["late: median"]) == 4.25 and drop["late: runs"] == "2"


def test_csv_of_a_figure_has_its_points(folder):
    found = {(row["series"], float(row["ranks"])): float(row["test loss (nats): median"])
             for row in rows(folder / "results/report/made-up/loss.csv")}
    assert found["dense", 2] == 5 and found[HOSTILE, 4] == 2 and found["once", 2] == 6
    assert found["2 P (predicted)", 2] == 4 and found["2 P (predicted)", 4] == pytest.approx(8)


def test_page_marks_single_runs_and_what_was_not_reached(tags):
    assert "1 run" in tags.text and build.SINGLE in tags.text and build.PREDICTED in tags.text
    assert "[4.125, 4.375] 2 of 3 runs" in tags.text
    assert "half the loss" in tags.text and "ratio to dense: 0.5 [0.5, 0.65] (3 runs)" in tags.text


@pytest.fixture(scope="module")
def plots(page):
    """SVGs of the panels by figure, those of the legend by label."""
    found = {}
    for name, text in re.findall(r'<figure id="made-up-([\w-]+)">(.*?)</figure>', page, re.S):
        legend = re.findall(r'<li><span aria-hidden="true">(<svg.*?</svg>)</span>(.*?)</li>', text, re.S)
        panels = re.findall(r'<div class="plot".*?>(<svg.*?</svg>)</div>', text, re.S)
        found[name] = [ElementTree.fromstring(svg) for svg in panels], \
            {html.unescape(label): ElementTree.fromstring(svg) for svg, label in legend}
    return found


SVG = "{http://www.w3.org/2000/svg}"


def looks(element):
    """[{property: value}] of the shapes within, from their style; not of the hatches."""
    hatches = {path for pattern in element.iter(SVG + "pattern") for path in pattern.iter()}
    shapes = [one for one in element.iter() if one.tag in (SVG + "path", SVG + "use") and one.get("style")
              and one not in hatches]
    return [dict(part.split(": ") for part in one.get("style").split("; ")) for one in shapes]


def colours(element):
    return {value for look in looks(element) for key, value in look.items() if key in ("fill", "stroke") and value[0] == "#"}


def luminance(colour):
    """WCAG 2.2's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[k:k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def themes(page):
    """The page's variables, light and dark."""
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", page, re.S))
    return light, light | dark


def test_contrast_is_wcags(page, plots):
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known limit: #767676 is the last to pass
    for theme in themes(page):
        for panels, legend in plots.values():
            for svg in [*panels, *legend.values()]:
                for colour in colours(svg):
                    assert contrast(colour, theme["paper"]) >= 3, colour
        for colour in figures.COLOURS:
            assert contrast(colour, theme["paper"]) >= 3, colour
        for ink in ("ink", "soft", "link", "warn"):
            for ground in ("paper", "box", "warn-box"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


def test_a_bar_is_filled_or_outlined_whole(tmp_path):
    """Nothing that carries a number is drawn with less than full opacity, and the legend looks as the bars do."""
    for runs in (1, 3):
        bars = [figures.Series(str(k), [figures.Point("a", 2, 1, 3, runs)]) for k in range(8)]
        figure = figures.Figure("x", "x", "bar", [figures.Panel("", bars)], "x", "y")
        [panel], legend = drawing.inline(figure, "x")
        drawn = [one for one in ElementTree.fromstring(panel).iter(SVG + "g") if one.get("class") == "point"]
        assert [one.find(SVG + "title").text.splitlines()[0] for one in drawn] == [str(k) for k in range(8)]
        for k, (label, swatch) in enumerate(legend.items()):
            [bar], *mark = looks(drawn[k]), looks(ElementTree.fromstring(swatch))
            solid = {key: value for key, value in bar.items() if not value.startswith("url")}
            assert any(solid.items() <= look.items() for look in mark[0]), label
            outline = bar.get("stroke", "").lower() == figures.COLOURS[k].lower()
            assert "opacity" not in " ".join(bar) and (outline if runs == 1 else "fill" in bar)


def test_single_runs_are_hollow_and_predictions_dashed(plots):
    [panel], legend = plots["loss"]
    filled = {label for label, swatch in legend.items() if any(look.get("fill", "none")[0] == "#" for look in looks(swatch))}
    assert "dense" in filled and "once" not in filled
    dashed = {label for label, swatch in legend.items() if any("stroke-dasharray" in look for look in looks(swatch))}
    assert dashed == {"2 P (predicted)"}
    assert colours(legend["2 P (predicted)"]) == colours(legend["dense"]) != colours(legend["once"])
    titles = [title.text for title in panel.iter(SVG + "title")]
    assert f"{HOSTILE}\nranks: 4\ntest loss (nats): 2 [1.5, 4.5]\nmedian [quartiles] of 3 runs" in titles


def texts(svg):
    return [text.text for text in svg.iter(SVG + "text") if text.text]


def drawn_axis(figure):
    """(labels of x, of y) of the first panel, by matplotlib's axes themselves."""
    with drawing._settings("x"):
        ax = drawing._sheet(figure).axes[0]
        ax.figure.draw_without_rendering()
        return ax, *([tick.get_text() for tick in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis))


@pytest.mark.parametrize("workers", [[1, 2], [1, 2, 3], [1, 2, 4, 8, 16]])
@pytest.mark.parametrize("log", [(), ("x",)])
def test_whole_numbers_have_whole_ticks(workers, log):
    line = figures.Series("a", [figures.Point(w, w / 3, runs=3) for w in workers])
    _, labels, _ = drawn_axis(figures.Figure("x", "x", "line", [figures.Panel("", [line])], "workers", "y", log))
    assert len(labels) > 1 and all(float(label).is_integer() for label in labels if label)


def test_bars_begin_at_zero_or_are_dots(folder):
    """On a logarithmic axis the length of a bar says nothing: no bar is drawn there, and the dots stand at the numbers."""
    experiment = grid.read(folder / "made-up.toml")
    cells = results.load(folder / "results", experiment)
    for log in ([], ["y"]):
        spec = grid.Figure(x="method", y="loss", series="ranks", kind="bar", log=log)
        figure = aggregate.figure(experiment, spec, cells, "x")
        ax, _, words = drawn_axis(figure)
        assert words == ["dense", *[drawing._wrapped(HOSTILE)], "once"] and len(ax.patches) == (0 if log else 5)
        at = {x for line in ax.lines for x in line.get_xdata()} if log else {bar.get_width() for bar in ax.patches}
        assert {5, 3.5, 4, 2, 6} <= {float(x) for x in at}
        if not log:
            assert {bar.get_x() for bar in ax.patches} == {0} and ax.get_xlim()[0] <= 0


def test_predicted_and_measured_have_equal_axes_and_the_diagonal():
    points = [figures.Point(20, 70, runs=1), figures.Point(300, 290, runs=1)]
    for log in ((), ("x", "y")):
        ax, xs, ys = drawn_axis(figures.Figure("x", "x", "scatter", [figures.Panel("", [figures.Series("a", points)])],
                                               "measured", "predicted", log, equal=True))
        corners = ax.transData.transform([(20, 20), (300, 300)])
        wide, high = corners[1] - corners[0]
        assert wide == pytest.approx(high) and ax.get_xlim() == ax.get_ylim() and xs == ys
        assert ax.get_xlim()[0] < 20 and ax.get_xlim()[1] > 300
        assert any(list(line.get_xdata()) == list(line.get_ydata()) == list(ax.get_xlim()) for line in ax.lines)


def test_figures_for_paper_are_valid(folder):
    for name in ("loss", "phases", "both", "course", "model"):
        pdf = (folder / f"results/report/made-up/{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
        svg = ElementTree.parse(folder / f"results/report/made-up/{name}.svg")
        texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
        assert any(text and ("loss" in text or "ms" in text) for text in texts)
        assert not any(text and "\\mathdefault" in text for text in texts)


def test_curve_sums_the_seconds_of_epochs(folder):
    found = [row for row in rows(folder / "results/report/made-up/course.csv") if row["series"] == "dense"]
    assert [float(row["training (s)"]) for row in found] == [3, 6, 9]
    assert [float(row["loss: median"]) for row in found] == [7, 6, 5]


def test_unlike_cells_are_not_pooled(folder):
    experiment = grid.read(folder / "made-up.toml")
    cells = results.load(folder / "results", experiment)
    spec = grid.Figure(x="ranks", y="loss", where={"method": ["dense", "drop"]})
    assert [line.label for line in aggregate.figure(experiment, spec, cells, "x").panels[0].series] == ["dense", HOSTILE]
    table = grid.Table(rows=["ranks"], columns=["loss"], where={"method": "dense"})
    assert [row[-1].runs for row in aggregate.table(experiment, table, cells, "x").rows] == [3, 3]
    table = grid.Table(rows=["ranks"], columns=["loss"], where={"method": ["dense", "drop"]})
    assert len(aggregate.table(experiment, table, cells, "x").rows) == 4


def test_references_are_measured_on_every_kind_of_cell_that_fits(folder):
    experiment = grid.read(folder / "made-up.toml")
    cells = results.load(folder / "results", experiment)
    reference = grid.Reference("x", metric="loss", where={"method": ["drop", "broken"]}, baseline={"method": "dense"})
    said = aggregate.measured(experiment, reference, cells)
    assert said == [f"{HOSTILE}, ranks {ranks}: test loss (nats), ratio to dense: {ratio} (3 runs)"
                    for ranks, ratio in ((2, "0.5 [0.5, 0.65]"), (4, "0.5714 [0.4524, 0.7232]"))]


def test_categories_are_in_the_order_of_the_file(folder):
    experiment = grid.read(folder / "made-up.toml")
    cells = results.load(folder / "results", experiment)[::-1]
    figure = aggregate.figure(experiment, grid.Figure(x="method", y="loss", series="ranks"), cells, "x")
    assert figure.order == ("dense", HOSTILE, "once")
    assert drawn_axis(figure)[1][0] == "dense"


@pytest.fixture
def undrawn(monkeypatch):
    """A page without the drawings, which take long and are tested elsewhere."""
    monkeypatch.setattr(drawing, "save", lambda figure, place: [])
    monkeypatch.setattr(drawing, "inline", lambda figure, salt: ([], {}))
    return monkeypatch


def test_a_model_that_cannot_say_is_a_line_in_the_report(folder, tmp_path, undrawn):
    def say(cells):
        raise UserError("no ping-pong: run it")
    undrawn.setitem(sys.modules, MODEL, types.SimpleNamespace(figures=say))
    assert build.section(folder / "made-up.toml", folder / "results", False, tmp_path)["faults"] == \
        [f"{MODEL}: no ping-pong: run it"]


def test_quick_results_stand_in_and_are_labelled(folder, tmp_path, undrawn):
    shutil.copytree(folder / "results/made-up/quick", tmp_path / "results/made-up/quick")
    found = build.section(folder / "made-up.toml", tmp_path / "results", False, tmp_path / "out")
    assert found["quick"] and "--quick" in found["command"]
    assert len(found["figures"]) == 4 and len(found["tables"]) == 1  # without those of the model, which predicts


def test_results_of_an_earlier_form_are_left_out_and_counted(folder, tmp_path, undrawn):
    (tmp_path / "made-up.toml").write_text(TOML.replace("--seed {seed}", "--seed {seed} --other"))
    found = build.section(tmp_path / "made-up.toml", folder / "results", False, tmp_path / "out")
    assert (found["counts"], found["outdated"]) == ("no results yet", 22)
    assert found["figures"] == found["tables"] == []


def test_styles_differ_without_colour():
    series = [figures.Series(str(k), []) for k in range(8)] + [figures.Series(str(k), [], True) for k in range(5)]
    found = figures.styles(figures.Figure("x", "x", "line", [figures.Panel("", series)], "x", "y")).values()
    assert len({(style.dash, style.dash == "-" and style.marker) for style in found}) == 13
    assert len({style.hatch for style in list(found)[:8]}) == 8


def test_long_curves_have_bands_and_stay_small(tmp_path):
    lines = [figures.Series(str(k), [figures.Point(x, x + k, x + k - 1, x + k + 2, 3) for x in range(100)]) for k in range(5)]
    figure = figures.Figure("long", "x", "line", [figures.Panel("", lines)], "x", "y")
    ax, _, _ = drawn_axis(figure)
    edge = ax.collections[0].get_paths()[0].vertices
    assert edge[:, 1].min() == -1 and edge[:, 1].max() == 101 and len(ax.containers) == 0
    [panel], _ = drawing.inline(figure, "x")
    assert panel.count("<title>") <= 5 * figures.MARKED
    assert len(drawing.inline(figure._replace(kind="scatter"), "x")[0][0].split("<title>")) == 501  # all of them
    [svg] = drawing.save(figure, tmp_path, ["svg"])
    assert svg.stat().st_size < 60_000


def test_svg_for_the_readme(folder, tmp_path, capsys):
    build.main([f"{folder}/made-up.toml:loss", "--results", str(folder / "results"), "--svg", str(tmp_path)])
    path = tmp_path / "made-up-loss.svg"
    assert capsys.readouterr().out.strip() == str(path)
    ElementTree.parse(path)
    again = path.read_bytes()
    build.main([f"{folder}/made-up.toml:loss", "--results", str(folder / "results"), "--svg", str(tmp_path)])
    assert path.read_bytes() == again and len(again) < 60_000


@pytest.mark.parametrize("arguments, message", [
    (["no-such-experiment"], "no experiment 'no-such-experiment'"),
    (["--svg", "x"], "--svg needs figures"),
    (["{}/made-up.toml:nothing", "--svg", "x"], "no figure 'nothing'"),
    (["{}/empty.toml:loss", "--svg", "x"], "python -m hogwild.experiments run"),
    (["{}/empty.toml"], "no results in .*so no page was written; this makes some: python -m hogwild.experiments run"),
])
def test_mistakes_give_one_line(folder, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build.main([argument.format(folder) for argument in arguments] + ["--results", str(folder / "results")])
    assert "\n" not in str(caught.value)


# In the head of a copy of the page, before anything else runs.
WATCH = """<script>
const faults = [];
addEventListener("error", e => faults.push(String(e.message)));
addEventListener("securitypolicyviolation", e => faults.push(e.violatedDirective + " " + e.blockedURI));
console.error = console.warn = (...said) => faults.push(said.join(" "));
addEventListener("load", () => {
  const root = document.documentElement, box = one => one.getBoundingClientRect();
  const head = document.querySelector("#made-up-numbers thead th:nth-child(3) button");
  const column = () => [...document.querySelectorAll("#made-up-numbers tbody tr")].map(row => row.cells[2].dataset.sort);
  const sorted = [];
  for (const one of document.querySelectorAll("details")) one.open = true;
  for (let k = 0; k < 2; k++) { head.click(); sorted.push([column(), head.parentElement.ariaSort]); }
  const plots = [...document.querySelectorAll(".plot svg")], tables = [...document.querySelectorAll("table")];
  parent.postMessage({ faults, sorted, plots: plots.length, wide: root.scrollWidth - root.clientWidth, width: innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, hacked: typeof hacked !== "undefined",
    ink: getComputedStyle(document.querySelector(".plot text")).fill,
    paper: getComputedStyle(document.body).backgroundColor,
    small: plots.filter(one => box(one).width < 300 || box(one).width > 450 || box(one).height < 80).length,
    aligned: tables.flatMap(table => [...table.tHead.rows[0].cells].map((cell, k) => [
      getComputedStyle(cell.firstElementChild).textAlign, getComputedStyle(table.tBodies[0].rows[0].cells[k]).textAlign])),
    cut: tables.filter(table => {  // what is beyond the box can be reached by scrolling, and nothing spills over a field
      const scroll = table.parentElement;
      return scroll.scrollWidth < table.offsetWidth || box(scroll).right > root.clientWidth
        || getComputedStyle(scroll).overflowX !== "auto" || [...table.rows].some(row => [...row.cells].some(
          field => field.scrollWidth > field.clientWidth + 1));
    }).map(one => one.parentElement.ariaLabel) }, "*");
});
</script>"""
# One page in four frames: wide and narrow, light and dark. What they find is written into the outer page.
FRAMES = """<!doctype html><body><pre id="found"></pre><script>
const found = [];
addEventListener("message", e => {
  found.push(e.data);
  document.getElementById("found").textContent = JSON.stringify(found);
});
for (const width of [1280, 390]) for (const scheme of ["light", "dark"]) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0; color-scheme: ${scheme}`;
  frame.src = "watched.html";
  document.body.append(frame);
}
</script></body>"""


def test_page_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on PATH")
    (tmp_path / "watched.html").write_text(page.replace("<head>", "<head>" + WATCH, 1))
    (tmp_path / "frames.html").write_text(FRAMES)
    got = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
                          "--window-size=1400,1000", "--virtual-time-budget=60000", "--dump-dom",
                          f"file://{tmp_path}/frames.html"], capture_output=True, text=True, timeout=120)
    looks = json.loads(html.unescape(got.stdout.split('<pre id="found">')[1].split("</pre>")[0]) or "[]")
    assert sorted((look["width"], look["dark"]) for look in looks) == [(390, False), (390, True), (1280, False), (1280, True)]
    for look in looks:
        assert look["faults"] == [] and not look["hacked"]
        assert look["plots"] == 6 and look["small"] == 0
        assert look["wide"] <= 0 and look["cut"] == []
        assert look["aligned"].count(["right", "right"]) >= 8 and all(head == field for head, field in look["aligned"])
        (up, first), (down, second) = look["sorted"]
        numbers = [float(text) for text in up if text.replace(".", "").isdigit()]
        assert (first, second) == ("ascending", "descending") and numbers == sorted(numbers) and len(numbers) == 5
        assert [float(text) for text in down if text.replace(".", "").isdigit()] == numbers[::-1]
    inks = {(look["dark"], look["ink"], look["paper"]) for look in looks}
    assert len(inks) == 2 and len({ink for _, ink, _ in inks}) == 2
