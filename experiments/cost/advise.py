"""`python -m hogwild.experiments advise`: exchange, drop rate and code for a network, and whether compression pays.

    python -m hogwild.experiments advise --model-size 25M --ranks 16 --rate 1Gbps --step-ms 120
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.experiments.cost.cost_model import PRESETS, Way, buckets_of, step_seconds
from hogwild.training import console
from hogwild.training.units import COUNTS, TIMES, bytes_text, quantity, rate, rate_text, time_text
from sparsecomm.config import Config
from sparsecomm.exchange.alpha_beta import Link, Work, rehearse
from sparsecomm.wire import launch

KEEPS, CODES = (0.1, 0.01, 0.001), ("float32", "float16", "int8", "1bit")
GAIN = 1.05  # what compression must gain at least
NEAR = 1.25  # within this factor of the fastest, the mildest compression is advised: a harsher one needs more steps to learn
PROCESSED = ("select", "encode", "decode", "add", "code")


@dataclass
class AdviseOptions:
    """Recommend how to exchange gradients, by the α-β model of sparsecomm/exchange/alpha_beta.py.

    Examples:
      python -m hogwild.experiments advise --model-size 25M --ranks 16 --rate 1Gbps --step-ms 120
    """

    model_size: str
    """Parameters of the model: 25M, 1.5G, 300k."""
    ranks: int
    """Processes that train together."""
    rate: str
    """Bandwidth of each rank's link: 100Mbit/s, 1Gbps, 25gbit."""
    latency: str | None = None
    """Seconds of a small message, one way: 50us, 1ms; default: assumed from the rate."""
    step_ms: float | None = None
    """Milliseconds in which a rank computes a step; default: only the exchange is compared."""
    bucket_mb: float = 4.0
    """Megabytes of a bucket of tensors."""
    select_ns: float | None = None
    """Nanoseconds to select, an element; this and those below are measured on this machine where they are not given."""
    encode_ns: float | None = None
    """Nanoseconds to encode an entry."""
    decode_ns: float | None = None
    """Nanoseconds to decode an entry."""
    add_ns: float | None = None
    """Nanoseconds to copy and add an element of a dense array."""
    code_ns: float | None = None
    """Nanoseconds to round an element of a dense array, write and read it."""


class Advice(NamedTuple):
    """A recommendation and the predictions behind it."""

    way: Way
    seconds: float  # predicted, of a step
    pays: bool  # compression
    times: dict[Way, float]


def main(arguments):
    """python -m hogwild.experiments advise …"""
    options = parsed("python -m hogwild.experiments advise", AdviseOptions, arguments)
    n, link = int(quantity("--model-size", options.model_size, COUNTS)), _link(options)
    _check(options, n)
    works = measured(options, n)
    advice = recommend(link, works, options.ranks, n, buckets_of(n, options.bucket_mb), (options.step_ms or 0.0) / 1e3)
    for line in _said(advice, options, n, link, works):
        console.out(line)


def _check(options, n):
    if n < 1:
        raise UserError(f"--model-size must be at least one parameter, got {options.model_size}")
    if options.ranks < 2:
        raise UserError(f"--ranks must be at least 2, got {options.ranks}: one rank exchanges nothing")
    for name in ("step_ms", "bucket_mb", *(f"{each}_ns" for each in PROCESSED)):
        value = getattr(options, name)
        if value is not None and not (0 <= value < float("inf") and (value or name != "bucket_mb")):
            raise UserError(f"--{name.replace('_', '-')} must be a finite number, not negative, got {value:g}")


def _link(options) -> Link:
    bits = rate("--rate", options.rate)
    if options.latency is not None:
        return Link(quantity("--latency", options.latency, TIMES), 8 / bits)
    slower = [link.alpha for link in PRESETS.values() if 8 / link.beta <= bits * 1.001]
    return Link(slower[-1] if slower else next(iter(PRESETS.values())).alpha, 8 / bits)


def measured(options, n) -> dict[Way, Work]:
    """The Work of each way on this machine, measured, or as the options state it."""
    comm = launch.mpi().COMM_SELF
    given = {name: getattr(options, f"{name}_ns") for name in PROCESSED}
    given = {name: value * 1e-9 for name, value in given.items() if value is not None}
    works = {}
    for keep in KEEPS:
        for code in CODES:
            work = rehearse(comm, Config(keep=keep, value_code=code), n)._replace(**given)
            for exchange in ("allgather", "balanced"):
                works[Way(exchange, keep, code)] = work if code != "float32" else work._replace(code=0.0)
            if keep == KEEPS[0] and code in ("float32", "float16"):
                works[Way("dense", code=code)] = work if code != "float32" else work._replace(code=0.0)
    return works


def recommend(link, works, ranks, n, buckets, compute=0.0) -> Advice:
    """The mildest sparse way within NEAR of the fastest; a dense one unless that is GAIN times faster."""
    times = {way: step_seconds(way, link, work, ranks, n, buckets, compute) for way, work in works.items()}
    dense = min((way for way in times if way.exchange == "dense"), key=times.get)
    sparse = [way for way in times if way.exchange != "dense"]
    fastest = min(times[way] for way in sparse)
    near = [way for way in sparse if times[way] <= min(fastest * NEAR, times[dense] / GAIN)]
    if not near:
        return Advice(dense, times[dense], False, times)
    mildest = max(near, key=lambda way: (way.keep, -CODES.index(way.code), -times[way]))
    return Advice(mildest, times[mildest], True, times)


def _said(advice, options, n, link, works):
    """The lines to print."""
    way, times, what = advice.way, advice.times, "a step" if options.step_ms is not None else "an exchange"
    latency = "given" if options.latency else "assumed"
    yield (f"{n:,} parameters, {options.ranks} ranks, {rate_text(link.beta)}, {time_text(link.alpha)} a message ({latency}); "
           "predicted by the α-β model, not measured")
    half, full = Way("dense", code="float16"), Way("dense")
    sparse = [each for each in times if each.exchange != "dense"]
    best = min(sparse, key=times.get)
    if advice.pays:
        yield f"recommended: --exchange {way.exchange} --keep {way.keep:g} --value-code {way.code}"
        if (gain := times[way] / times[best] - 1) > 0:
            more = "drops" if best.keep < way.keep else "rounds"
            yield (f"not the fastest: {best} is predicted {gain:.1%} faster, but it {more} more of the gradient, which takes "
                   f"more steps to learn; of what is within {NEAR - 1:.0%} of the fastest, the mildest is recommended")
        yield (f"predicted: {time_text(times[way])} {what}, {times[half] / times[way]:.3g} times faster than dense float16 "
               f"({time_text(times[half])}), {times[full] / times[way]:.3g} times than dense float32 "
               f"({time_text(times[full])})")
    else:
        yield f"compression does not pay: {time_text(times[way])} {what} for {way}, {time_text(times[best])} for {best}"
        yield f"recommended: --exchange dense{'' if way == full else f' --value-code {way.code}'}"
        if (gain := times[way] / times[best] - 1) > 0:
            yield (f"not the fastest: {best} is predicted {gain:.1%} faster; less than {GAIN - 1:.0%} is not worth that "
                   "gradients are altered")
    for keep in KEEPS:
        each = min((each for each in sparse if each.keep == keep), key=times.get)
        yield f"  {1 - keep:.1%} dropped: {time_text(times[each])} at best ({each.exchange}, {each.code})"
    yield from _sizes(n, options.ranks, link)
    yield from _assumed(way, options, works)


def _sizes(n, ranks, link):
    """What each compressor sends of a model that is one square matrix."""
    from hogwild.experiments.cost.message_sizes import bytes_per_step
    from sparsecomm.compress.registry import COMPRESSORS
    side = max(math.isqrt(n), 1)
    yield f"bytes a step and rank, float32 values, and their time on the link, of a matrix of {side:,} by {side:,}:"
    for name, options in COMPRESSORS.items():
        sent = bytes_per_step(options(), [(side, side)], ranks)
        given = ", ".join(f"{field}={value:g}" for field, value in zip(options._fields, options()))
        yield f"  {name}{f' ({given})' if given else ''}: {bytes_text(sent)}, {time_text(sent * link.beta)}"


def _assumed(way, options, works):
    """The assumptions of the prediction."""
    work = works[way]
    told = [name for name in PROCESSED if getattr(options, f"{name}_ns") is not None]
    given = f", but for {', '.join(told)}, as given" if told else ""
    costs = [f"{name} {getattr(work, name) * 1e9:.3g} ns an {'entry' if name in ('encode', 'decode') else 'element'}"
             for name in PROCESSED if name != "code" or way.code != "float32"]
    yield (f"assumed: no overlap with the backward pass; buckets of {options.bucket_mb:g} MB; measured on one core "
           f"here{given}: {', '.join(costs)}, {time_text(work.message)} a message")
    if options.step_ms is None:
        yield "assumed: nothing else in a step; with --step-ms the speed-up of the whole step is predicted"
    if way.keep < 0.01:
        yield "99.9% dropped learns more slowly at first: use --drop-warmup 1"
