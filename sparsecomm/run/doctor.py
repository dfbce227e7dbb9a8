"""`sparsecomm doctor`: what the ranks run on, in one table, and what is wrong with it."""

import contextlib
import json
import os
import shutil
import sys
import textwrap
import threading
from pathlib import Path

from hogwild.errors import UserError
from hogwild.training.units import rate_text, time_text
from sparsecomm import guard
from sparsecomm.faults.watch import Failure
from sparsecomm.run import process_facts
from sparsecomm.run.diagnosis import hosts, problems, spans
from sparsecomm.wire import launch, nic_counters

MEASURED_SECONDS = 2.0  # for all messages between ranks together, where no link is slow
FACTS_SECONDS, ROUND_SECONDS = 120.0, 30.0  # after which the job ends
GREW = 1 << 16  # bytes: an interface whose counter grew by less has not sent the messages
SAME = ("protocol", "byte order")  # shown only where they differ
REMEDY = (": is there a firewall between the hosts, or an interface that does not connect them? Name the right one: "
          "UCX_NET_DEVICES=eth0 (MPICH), --mca btl_tcp_if_include eth0 (Open MPI)")
WIDTH, FACT, RANKS = 96, 20, 10  # columns


def examine(apart=None) -> int:
    """Print the table and the problems on rank 0; 1 there if there are problems, else 0. Collective.

    apart: the UserError by which the processes that were started do not see each other: each one is then alone.
    """
    if launch.rank() and apart:
        return 0
    wrong, comm = [str(apart)] if apart else [], None
    if not apart:
        try:
            comm = launch.world()
        except UserError as error:  # a single process without MPI
            wrong.append(str(error))
    own = process_facts.facts()
    everyone, links = _measured(comm, own) if comm and comm.size > 1 else ([own], {})
    if launch.rank():
        return 0
    names = hosts(everyone)
    print("the first of the processes:" if apart else f"{_count(len(everyone), 'rank')} on {_count(len(names), 'host')}:")
    for row in _rows(everyone, links):
        print(*_lines(*row), sep="\n")
    wrong += problems(everyone, links)
    for line in wrong:
        print(f"problem: {line}")
    if len(everyone) == 1 and not apart:
        print(f"this is one process alone: {_mpiexec()} -n 2 sparsecomm doctor examines ranks and messages")
    print(f"{_count(len(wrong), 'problem')} found")
    return int(bool(wrong))


def _measured(comm, own) -> tuple[list[dict], dict]:
    """(facts of every rank with their interfaces, {pair: (latency in s, s a byte)}). Collective."""
    from sparsecomm.wire import pingpong
    from sparsecomm.wire.handshake import gather

    def all_have(what):
        return [json.loads(text) for text in gather(comm, json.dumps(what).encode())]

    with _within(FACTS_SECONDS, "the exchange of what the ranks run on"):
        everyone = all_have(own)
    before, links, rounds = nic_counters.sent_by_name(), {}, pingpong.rounds(comm.size)
    for pairs in rounds:
        own_pair = next((f"ranks {a} and {b}" for a, b in pairs if comm.rank in (a, b)), "other ranks")
        with _within(ROUND_SECONDS, f"the exchange of messages of up to 1 MB between {own_pair}"):
            links |= pingpong.time_round(comm, pairs, MEASURED_SECONDS / len(rounds))
    other = next((each["host"] for each in everyone if each["place"] != own["place"]), None)
    with _within(FACTS_SECONDS, "the exchange of what was measured"):
        found = all_have([_interface(before, other), [[*pair, *link] for pair, link in links.items()]])
    everyone = [{**each, "interface": interface} for each, (interface, _) in zip(everyone, found)]
    return everyone, {(a, b): tuple(link) for _, rows in found for a, b, *link in rows}


@contextlib.contextmanager
def _within(seconds, what):
    """End the job where what is inside takes longer."""
    def late():
        guard.active.fail(Failure(1, f"{what} has not ended within {seconds:g} s{REMEDY}"))

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _interface(before, other) -> str:
    """What carries this rank's messages to the host `other` (None: there is none), as far as can be told."""
    if other is None:
        return "none: one host, messages go through its memory"
    grew = {name: count - before.get(name, 0) for name, count in nic_counters.sent_by_name().items()}
    most = max(grew, key=grew.get, default="")
    if most and grew[most] > GREW:
        return f"probably {most}, whose counter of sent bytes grew by the messages"
    return f"perhaps {process_facts.route(other)}, by the route to {other}; no counter grew by the messages"


def _rows(everyone, links):
    """Yield (mark, fact, ranks, value); the mark is ! where what should be the same differs."""
    names = hosts(everyone)
    least = {place: min(each["free"] for each in everyone if each["place"] == place) for place in names}
    versions = [each["versions"] for each in everyone]
    facts = {"host": [names[each["place"]] for each in everyone],
             **{name: [str(own.get(name, "nothing")) for own in versions] for name in versions[0]},
             "MPI settings": [" ".join(f"{name}={value}" for name, value in each["transport"].items()) for each in everyone],
             "cores": [_cores(each, everyone) for each in everyone],
             "threads": [f"OMP_NUM_THREADS {each['omp'] or 'unset'}; torch: {each['torch threads'] or 'none'}"
                         for each in everyone],
             "memory": [f"{least[each['place']] / 2**30:.1f} GiB free" for each in everyone],
             "cache": [each["cache"][0] for each in everyone],
             "interface": [each.get("interface", "") for each in everyone]}
    yield " ", "fact", "ranks", "value"
    for fact, values in facts.items():
        mark = "!" if fact in versions[0] and len(set(values)) > 1 else " "
        if fact in SAME and mark == " ":
            continue
        for value in dict.fromkeys(filter(None, values)):
            of = [rank for rank, own in enumerate(values) if own == value]
            yield mark, fact, "all" if len(of) == len(values) > 1 else spans(of), value
            fact = ""
    for where, pairs in _kinds(everyone, links).items():
        for fact, of, text in (("latency", 0, time_text), ("bandwidth", 1, rate_text)):
            order = sorted(pairs, key=lambda pair: links[pair][of])
            value = " to ".join(text(links[pair][of]) + f" ({pair[0]} and {pair[1]})" * (len(pairs) > 1)
                                for pair in dict.fromkeys((order[0], order[-1])))
            yield " ", fact, f"{len(pairs)} pairs" if len(pairs) > 1 else "{} and {}".format(*order[0]), f"{value} {where}"


def _lines(mark, fact, ranks, value) -> list[str]:
    """A row of the table; a long value, or one beside many ranks, takes several lines."""
    head = f"{mark} {fact:<{FACT}}{ranks:<{RANKS}}"
    if len(ranks) >= RANKS:
        return [head, *_lines(" ", "", "", value)]
    return textwrap.wrap(head + value, WIDTH, subsequent_indent=" " * (2 + FACT + RANKS), break_on_hyphens=False)


def _cores(own, everyone) -> str:
    """The cores on which this rank may run, and the number of ranks that may run on some of them."""
    number = sum(not set(own["cores"]).isdisjoint(each["cores"]) for each in everyone if each["place"] == own["place"])
    limited = f" (limited to the time of {own['usable']})" if own["usable"] < len(own["cores"]) else ""
    return f"{spans(own['cores'])}{limited}{f', shared by {number} ranks' * (number > 1)}"


def _kinds(everyone, links) -> dict[str, list]:
    """Pairs of ranks by where they are."""
    names, kinds = hosts(everyone), {}
    for pair in sorted(links):
        at = sorted({names[everyone[rank]["place"]] for rank in pair})
        kinds.setdefault(f"within {at[0]}" if len(at) == 1 else f"between {at[0]} and {at[1]}", []).append(pair)
    return kinds


def _count(number, noun) -> str:
    return f"{number or 'no'} {noun}{'s' * (number > 1)}"


def _mpiexec() -> str:
    """mpiexec of this environment, with its folder where PATH leads to another."""
    beside, found = Path(sys.executable).with_name("mpiexec"), shutil.which("mpiexec")
    return "mpiexec" if not beside.exists() or (found and os.path.samefile(found, beside)) else str(beside)
