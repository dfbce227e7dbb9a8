"""The cost model: fits of synthetic times, predictions against closed forms, constants found again, and advice."""

import re

import numpy as np
import pytest

from hogwild.errors import UserError
from hogwild.experiments.cost import advise, cost_model, prediction
from hogwild.experiments.cost.cost_model import Way, buckets_of, entry_bytes, fit, step_seconds
from hogwild.experiments.run.results import Cell
from sparsecomm.exchange.alpha_beta import Link, Work

LINK = Link(80e-6, 8e-8)
WORK = Work(select=1e-9, encode=5e-9, decode=8e-9, add=0.2e-9, code=4e-9, entry=3.0, message=20e-6)
SIZES = [4**i for i in range(12)]


def test_fit_finds_latency_and_bandwidth_again():
    rng = np.random.default_rng(0)
    exact = [(x, LINK.alpha + LINK.beta * x) for x in SIZES]
    assert fit(exact) == pytest.approx(LINK, rel=1e-4)
    noisy = [(x, seconds * factor) for x, seconds in exact * 3 for factor in [np.exp(rng.normal(0, 0.05))]]
    assert fit(noisy) == pytest.approx(LINK, rel=0.05)
    noisy[-1] = (noisy[-1][0], 20 * noisy[-1][1])  # a longest message that took far too long
    assert fit(noisy) == pytest.approx(LINK, rel=0.15)
    fast = Link(2e-6, 8e-11)
    assert fit([(x, fast.alpha + fast.beta * x) for x in SIZES]) == pytest.approx(fast, rel=1e-3)


@pytest.mark.parametrize("points", [
    [], [(8, 1e-6)], [(8, 1e-6), (8, 2e-6)], [(8, 0.0), (16, 1e-6)], [(8, np.nan), (16, 1.0)]])
def test_a_link_cannot_be_fitted_to_that(points):
    with pytest.raises(ValueError, match="two sizes"):
        fit(points)


def test_steps_against_numbers_worked_out_by_hand():
    # float32 to all, 2 ranks: 3 buckets of 2 messages, 4 MB, 2 additions of n
    dense = step_seconds(Way("dense"), LINK, WORK, 2, 10**6, 3, compute=0.01, other=0.002)
    assert dense == pytest.approx(0.012 + 6 * 80e-6 + 0.32 + 2 * 0.2e-3)
    # 10,000 entries of 3 bytes to one other rank, and headers of 48 bytes
    sparse = step_seconds(Way("allgather", 0.01), LINK, WORK, 2, 10**6, 3, compute=0.01)
    assert sparse == pytest.approx(0.01 + 6 * 80e-6 + 2.4e-3 + 3 * 48 * 8e-8 + 4.5 * 20e-6 + 1e-3 + 5e-5 + 1.6e-4)


@pytest.mark.parametrize("compute", [0.0, 1e-3, 0.03, 3.0])
@pytest.mark.parametrize("buckets", [1, 2, 7])
def test_overlap_is_a_pipeline_of_equal_buckets(compute, buckets):
    bare, way = Work(entry=3.0), Way("balanced", 0.01)
    network = step_seconds(way, LINK, bare, 4, 10**6, buckets)
    forward, end = compute / 3, 0.0
    for b in range(buckets):  # each starts when the one before has gone, and it is ready itself
        end = max(end, forward + 2 / 3 * compute * (b + 1) / buckets) + network / buckets
    assert step_seconds(way, LINK, bare, 4, 10**6, buckets, compute, overlap=True) == pytest.approx(end)


@pytest.mark.parametrize("keep", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("code", ["float32", "float16", "int8", "1bit"])
def test_bytes_of_an_entry_are_those_of_a_message(keep, code):
    from sparsecomm.wire.message import HEADER, pack
    n, rng = 1 << 20, np.random.default_rng(1)
    indices = np.flatnonzero(rng.random(n) < keep).astype(np.uint32)
    raw = pack(0, n, indices, rng.standard_normal(indices.size).astype(np.float32), "auto", code)
    assert entry_bytes(keep, code) == pytest.approx((raw.size - HEADER.size) / indices.size, rel=0.02)
    assert buckets_of(1) == 1 and buckets_of(1 << 20) == 1 and buckets_of((1 << 20) + 1) == 2


def cell(way, ranks, phases, seconds, link=None, n=3_000_000, overlap=False, events=None, bytes_per_step=1.0,
         machine=""):
    """A finished cell of ten steps."""
    options = {"exchange": {"keep": way.keep, "value_code": way.code, "bucket_mb": 4.0, "overlap": overlap}}
    events = events or [
        {"event": "start", "task": "mlp", "options": options}, {"event": "epoch", "seconds": 10 * seconds},
        {"event": "end", "exchange": way.exchange, "ranks": ranks, "parameters": n, "steps": 10,
         "bytes_per_step": bytes_per_step, "phases": {name: [10 * each] * ranks for name, each in phases.items()}}]
    axes = {"ranks": ranks, **({"link": link} if link else {})}
    return Cell("x", axes, 0, "", {}, 0, "", "", None, events, machine, {}, "", "")


def pingpong(link):
    """What is recorded on a link that is faster while only one rank sends."""
    return [{"event": "pingpong", "bytes": x, "seconds": link.alpha + link.beta * x / 2, "both": link.alpha + link.beta * x}
            for x in SIZES]


def truth(way, ranks, link, n=3_000_000):
    """(phases, seconds of a step, bytes of a rank) of a machine whose constants are known."""
    B, k, entry = buckets_of(n), max(int(way.keep * n), 1), entry_bytes(way.keep, way.code)
    gather, rounds = way.exchange == "allgather", int(np.ceil(np.log2(ranks)))
    moved = k * (ranks - 1) * entry if gather else 2 * k * (ranks - 1) / ranks * entry
    heads = B * 48 * (ranks - 1) * (1 if gather else 2)
    sends = 2 * rounds if gather else 3 * rounds + ranks - 1
    phases = {
        "compute": 0.02, "apply": 0.003, "select": n * 1e-9,
        "encode": (B if gather else B * ranks) * 10e-6 + (k if gather else k * (1 + 1 / ranks)) * 5e-9,
        "decode": (B * ranks if gather else B * (2 * ranks - 1)) * 10e-6 + (k * ranks if gather else 2 * k) * 8e-9,
        "exchange": B * sends * link.alpha + (moved + heads) * link.beta + 0.001}
    return phases, sum(phases.values()) + 0.002, moved


def test_constants_and_steps_are_found_again():
    here, away = Link(5e-6, 1e-10), LINK
    ways = [Way(exchange, keep, "float16") for exchange in ("allgather", "balanced") for keep in (0.1, 0.01, 0.001)]
    cells = [cell(way, 2, *truth(way, 2, here)[:2], bytes_per_step=truth(way, 2, here)[2]) for way in ways]
    cells += [cell(way, 2, *truth(way, 2, away)[:2], link="slow") for way in ways]
    for name, link in (None, here), ("slow", away):
        told = pingpong(link)
        cells.append(cell(ways[0], 2, {}, 0, name, events=told))
    model = cost_model.model_of(cells)
    machine = model.machine
    assert machine.select == pytest.approx(1e-9) and machine.message == pytest.approx(20e-6, rel=1e-3)
    assert machine.encode["float16"] == pytest.approx(5e-9, rel=1e-3)
    assert machine.decode["float16"] == pytest.approx(8e-9, rel=1e-3)
    assert machine.rest["mlp", 2] == pytest.approx(0.002)
    assert machine.wait["mlp", 2] == pytest.approx(0.001, rel=1e-2) and machine.compute["mlp", 2] == pytest.approx(0.02)
    assert model.link("slow") == model.link("slow", 4) == pytest.approx(away, rel=1e-3)
    checked = model.check()
    assert len(checked) == len(ways)
    for run, seconds in checked:
        assert run.link == "slow" and seconds == pytest.approx(run.seconds, rel=0.01)
    errors = next(table for table in prediction.tables(cells) if table.name == "prediction-error")
    assert "6 of 6 cells within 20%" in errors.text and len(errors.rows) == 6
    figures = {figure.name: figure for figure in prediction.figures(cells)}
    assert set(figures) == {"predicted-mlp", "where-wins-mlp", "prediction-check"}
    drawn = [series for panel in figures["predicted-mlp"].panels for series in panel.series]
    assert all(series.predicted == (len(series.points) == 10) for series in drawn)  # measured points are few


def test_overlap_hides_nothing_without_cores_to_wait_on():
    way, told = Way("balanced", 0.1, "float16"), pingpong(Link(1e-4, 1e-7))
    phases, seconds, moved = truth(way, 2, Link(0.0, 0.0))
    cells = [cell(way, 2, phases, seconds, bytes_per_step=moved), cell(way, 2, {}, 0, "slow", events=told)]
    cells += [cell(way, 2, phases, 1.0, "slow", overlap=overlap, machine=f"a processor, {cores} cores, Linux")
              for overlap, cores in ((False, 2), (True, 3), (True, 4))]
    predicted = {(run.overlap, run.spare): seconds for run, seconds in cost_model.model_of(cells).check()}
    assert len(predicted) == 3 and predicted[True, False] == predicted[False, False]
    # 3 buckets, and less of the backward pass than the 60 ms that the network takes
    assert predicted[False, False] - predicted[True, True] == pytest.approx((1 - 1 / 3) * 2 / 3 * phases["compute"], rel=1e-3)


def test_without_results_there_is_nothing_to_show():
    assert prediction.figures([]) == [] and prediction.tables([]) == []
    failed = cell(Way("balanced", 0.01), 2, {"compute": 1.0}, 1.0)._replace(exit=1)
    assert prediction.figures([failed]) == [] and prediction.tables([failed]) == []


WORKS = {way: WORK._replace(entry=entry_bytes(way.keep, way.code), code=0.0 if way.code == "float32" else WORK.code)
         for way in [Way("dense"), Way("dense", code="float16"),
                     *(Way(exchange, keep, code) for exchange in ("allgather", "balanced") for keep in (0.1, 0.01, 0.001)
                       for code in ("float32", "float16"))]}


def test_compression_pays_less_and_less_on_faster_links():
    gains, pays = [], []
    for rate in 1e8, 1e9, 1e10, 1e11, 1e12:
        advice = advise.recommend(Link(5e-6, 8 / rate), WORKS, 4, 25_000_000, 24, compute=0.1)
        dense = min(advice.times[Way("dense")], advice.times[Way("dense", code="float16")])
        gains.append(dense / min(seconds for way, seconds in advice.times.items() if way.exchange != "dense"))
        pays.append(advice.pays)
        assert advice.pays == (advice.way.exchange != "dense") and advice.seconds == advice.times[advice.way]
        assert not advice.pays or dense > 1.05 * advice.seconds
    assert gains == sorted(gains, reverse=True) and pays == sorted(pays, reverse=True) and gains[0] > 10
    assert pays[0] and not pays[-1]
    slow = advise.recommend(Link(5e-6, 8e-6), WORKS, 4, 25_000_000, 24)
    assert slow.way.keep == 0.001 and slow.pays


def advised(capsys, *arguments):
    advise.main([*arguments, "--select-ns", "1", "--encode-ns", "5", "--decode-ns", "8", "--add-ns", "0.2", "--code-ns", "4"])
    return capsys.readouterr().out


def test_advice_is_printed(capsys):
    said = advised(capsys, "--model-size", "1M", "--ranks", "16", "--rate", "1gbit", "--step-ms", "5")
    assert "1,000,000 parameters, 16 ranks, 1 Gbit/s, 50 µs a message (assumed)" in said
    assert "recommended: --exchange" in said and "--keep" in said and "times faster than dense float16" in said
    assert "select 1 ns" in said and "as given" in said
    assert "low-rank (rank=4): 60 kB, 480 µs" in said and "none: 7.5 MB, 60 ms" in said
    said = advised(capsys, "--model-size", "1M", "--ranks", "4", "--rate", "400gbit", "--latency", "2us", "--step-ms", "500")
    assert "compression does not pay" in said and "recommended: --exchange dense" in said and "(given)" in said


def test_advice_says_why_it_is_not_the_fastest(capsys):
    options = "--model-size", "25M", "--ranks", "16", "--step-ms", "120", "--rate"
    said = advised(capsys, *options, "1Gbps")
    found = re.search(r"not the fastest: .* is predicted ([\d.]+)% faster, but it (drops|rounds) more", said)
    taken = float(re.search(r"predicted: ([\d.]+) ms a step", said)[1])
    least = min(map(float, re.findall(r"([\d.]+) ms at best", said)))
    assert float(found[1]) == pytest.approx(100 * (taken / least - 1), abs=1) and 0 < float(found[1]) < 25


@pytest.mark.parametrize("changed, words", [
    ({"--model-size": "25Q"}, "--model-size must be a positive number and a unit"),
    ({"--ranks": "1"}, "--ranks must be at least 2"), ({"--rate": "fast"}, "--rate must be"),
    ({"--rate": "0gbit"}, "--rate must be"), ({"--latency": "5"}, "--latency must be"),
    ({"--step-ms": "-1"}, "--step-ms must be a finite number"), ({"--bucket-mb": "0"}, "--bucket-mb must be"),
    ({"--select-ns": "nan"}, "--select-ns must be"), ({"--rank": "x"}, "--rank")])
def test_wrong_input_is_told_in_a_line(changed, words):
    given = {"--model-size": "25M", "--ranks": "16", "--rate": "1gbit"} | changed
    with pytest.raises(UserError) as told:
        advise.main([word for pair in given.items() for word in pair])
    assert words in str(told.value) and "\n" not in str(told.value)
