"""The report: numbers against NumPy's, figures against plotly's own checks, the page in a browser. All cells are made up."""

import csv
import html.parser
import json
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
go = pytest.importorskip("plotly.graph_objects")
from hogwild.experiments.report import build, figures, print_figures  # noqa: E402  they need what may be missing


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
        if tag not in ("meta", "link", "img", "br", "input", "path", "rect"):
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
                           f"python -m hogwild.experiments report {folder}/made-up.toml") == 5
    for said in ("a machine", "numpy 9.9", "c0ffee", "2026-01-02", "Is <b>this</b> a question?",
                 "6 failed: exit 3: RuntimeError", "it <broke>", "3 skipped: needs <root>"):
        assert said in tags.text
    assert "There are no results yet" in tags.text and f"python -m hogwild.experiments run {folder}/empty.toml" in tags.text


def test_page_is_well_formed_and_loads_nothing(tags):
    assert not tags.open
    for tag, attributes in tags.found:
        assert tag not in ("link", "img", "iframe", "object", "embed") and "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if tag == "a":
            assert not attributes["href"].startswith("javascript")
    assert [a["href"] for tag, a in tags.found if a.get("href", "").startswith("http")] == 2 * ["https://example.org/paper"]


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


def test_plotly_accepts_the_figures(tags):
    drawn = [json.loads(a["data-figure"]) for _, a in tags.found if "data-figure" in a]
    assert len(drawn) == 6  # what is predicted is there without results, too
    for panel in (panel for panels in drawn for panel in panels):
        go.Figure(panel)
    symbols = {trace["meta"]: trace["marker"]["symbol"] for trace in drawn[0][0]["data"]}
    assert symbols["once"] == ["diamond-open"] and not any("open" in symbol for symbol in symbols["dense"])
    lines = {trace["meta"]: trace for trace in drawn[0][0]["data"]}
    formula = lines["2 P (predicted)"]
    assert formula["line"]["dash"] != "solid" and formula["mode"] == "lines"
    assert formula["line"]["color"] == lines["dense"]["line"]["color"] != lines["once"]["line"]["color"]


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
    assert figures.plotly(figure)[0]["layout"]["xaxis"]["categoryarray"][0] == "dense"


def test_a_model_that_cannot_say_is_a_line_in_the_report(folder, tmp_path, monkeypatch):
    def say(cells):
        raise UserError("no ping-pong: run it")
    monkeypatch.setitem(sys.modules, MODEL, types.SimpleNamespace(figures=say))
    monkeypatch.setattr(print_figures, "save", lambda figure, place: [])  # which takes long, and is tested elsewhere
    assert build.section(folder / "made-up.toml", folder / "results", False, tmp_path)["faults"] == \
        [f"{MODEL}: no ping-pong: run it"]


def test_quick_results_stand_in_and_are_labelled(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(print_figures, "save", lambda figure, place: [])
    shutil.copytree(folder / "results/made-up/quick", tmp_path / "results/made-up/quick")
    found = build.section(folder / "made-up.toml", tmp_path / "results", False, tmp_path / "out")
    assert found["quick"] and len(found["figures"]) == 5 and all(build.QUICK in one["notes"] for one in found["figures"])
    assert "--quick" in found["command"]


def test_results_of_an_earlier_form_are_left_out_and_counted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(print_figures, "save", lambda figure, place: [])
    (tmp_path / "made-up.toml").write_text(TOML.replace("--seed {seed}", "--seed {seed} --other"))
    found = build.section(tmp_path / "made-up.toml", folder / "results", False, tmp_path / "out")
    assert (found["counts"], found["outdated"]) == ("no results yet", 22)
    assert [one["name"] for one in found["figures"]] == ["model"]  # what is predicted needs no results


def test_styles_differ_without_colour():
    series = [figures.Series(str(k), []) for k in range(8)] + [figures.Series(str(k), [], True) for k in range(5)]
    found = figures.styles(figures.Figure("x", "x", "line", [figures.Panel("", series)], "x", "y")).values()
    assert len({(style.dash, style.dash == "solid" and style.marker) for style in found}) == 13
    assert len({style.hatch for style in list(found)[:8]}) == 8


def test_long_curves_have_bands_and_stay_small(tmp_path):
    lines = [figures.Series(str(k), [figures.Point(x, x + k, x + k - 1, x + k + 2, 3) for x in range(100)]) for k in range(5)]
    figure = figures.Figure("long", "x", "line", [figures.Panel("", lines)], "x", "y")
    [panel] = figures.plotly(figure)
    go.Figure(panel)
    first = panel["data"][0]
    assert len(panel["data"]) == 10 and first["y"][:2] == [-1, 0] and first["y"][-1] == 2 and first["meta"] == "0"
    assert panel["data"][-1]["marker"]["maxdisplayed"] == figures.MARKED
    [loose] = figures.plotly(figure._replace(kind="scatter"))
    assert len(loose["data"]) == 5 and loose["data"][0]["marker"]["maxdisplayed"] == 0  # 0: all
    [svg] = print_figures.save(figure, tmp_path, ["svg"])
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
const colour = () => getComputedStyle(document.querySelector(".plot .xtitle")).fill;
(function look() {
  if (!document.body?.dataset.drawn) return setTimeout(look, 50);
  const root = document.documentElement, head = document.querySelector("#made-up-numbers thead th:nth-child(3) button");
  const column = () => [...document.querySelectorAll("#made-up-numbers tbody tr")].map(row => row.cells[2].dataset.sort);
  const sorted = [];
  for (let k = 0; k < 2; k++) { head.click(); sorted.push([column(), head.parentElement.ariaSort]); }
  const plot = document.querySelector("#made-up-loss .plot"), shown = () => plot.querySelectorAll(".trace").length;
  const before = shown();
  document.querySelector("#made-up-loss .legend button").click();
  setTimeout(() => parent.postMessage({ faults, sorted, drawn: document.querySelectorAll(".plot .main-svg").length,
    plots: document.querySelectorAll(".plot").length, wide: root.scrollWidth - root.clientWidth, width: innerWidth,
    traces: [before, shown()], dark: matchMedia("(prefers-color-scheme: dark)").matches, ink: colour(),
    paper: getComputedStyle(document.body).backgroundColor, hacked: typeof hacked !== "undefined",
    narrow: [...document.querySelectorAll(".plot")].filter(one => one.clientWidth < 200).length }, "*"), 200);
})();
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
        assert look["drawn"] >= look["plots"] == 7 and look["narrow"] == 0
        assert look["wide"] <= 0
        before, after = look["traces"]
        assert after == before - 1
        (up, first), (down, second) = look["sorted"]
        numbers = [float(text) for text in up if text.replace(".", "").isdigit()]
        assert (first, second) == ("ascending", "descending") and numbers == sorted(numbers) and len(numbers) == 5
        assert [float(text) for text in down if text.replace(".", "").isdigit()] == numbers[::-1]
    inks = {(look["dark"], look["ink"], look["paper"]) for look in looks}
    assert len(inks) == 2 and len({ink for _, ink, _ in inks}) == 2
