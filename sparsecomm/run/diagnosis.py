"""What is wrong with the facts of the ranks (see `process_facts`) and the links between them, a line for each problem."""

from hogwild.training.units import rate_text
from sparsecomm.wire.handshake import difference

ODD = 5  # a link with so many times less bandwidth than the median between hosts is named
ROOM = 1 << 29  # bytes of memory that a rank needs, mostly for torch


def problems(everyone, links):
    """Yield a line for each: what is wrong, where, and what to do.

    everyone: the facts by rank; links: {pair of ranks: (latency in s, s a byte)}.
    """
    for name in everyone[0]["versions"]:
        if line := difference(name, [each["versions"].get(name, "nothing") for each in everyone]):
            yield f"{line}: install the same on every host"
    if (torch := everyone[0]["versions"]["torch"]).startswith("cannot"):
        yield f"torch {torch}: install it anew (pip install --force-reinstall torch)"
    for place, host in hosts(everyone).items():
        ranks = {rank: each for rank, each in enumerate(everyone) if each["place"] == place}
        yield from _cores(ranks, host)
        free = min(each["free"] for each in ranks.values())
        if free < ROOM * len(ranks):
            yield (f"{host} has {free / 2**30:.1f} GiB of memory free for {len(ranks)} rank{'s' * (len(ranks) > 1)}, which "
                   f"need {ROOM * len(ranks) / 2**30:.1f}: start fewer there, or end other programs")
        for folder in dict.fromkeys(each["cache"][0] for each in ranks.values() if not each["cache"][1]):
            yield (f"{host} compiles its kernels anew in each run, for the user's cache cannot be written ({folder} in its "
                   "place is removed at the end): set XDG_CACHE_HOME to a folder of your own")
    yield from _links(everyone, links)


def _cores(ranks, host):
    """Problems of cores and threads of the ranks {rank: facts} of one host."""
    cores = {rank: frozenset(each["cores"]) for rank, each in ranks.items()}
    every = frozenset().union(*cores.values())
    # A control group's limit on CPU time is that of all ranks together, where they may all use the same cores.
    count = min(len(every), *(each["usable"] for rank, each in ranks.items() if cores[rank] == every), len(every))
    if len(ranks) > count:
        yield (f"{len(ranks)} ranks share {count} core{'s' * (count > 1)} of {host}, and wait for each other: start at most "
               f"{count} there")
    else:
        for own in sorted(set(cores.values()), key=sorted):
            of = [rank for rank in ranks if cores[rank] <= own]
            if len(of) > len(own):
                yield (f"ranks {spans(of)} may only use core{'s' * (len(own) > 1)} {spans(own)} of {host}: mpiexec -bind-to "
                       "core (MPICH) or --map-by core --bind-to core (Open MPI) gives each rank its own")
    threads = {rank: int(each["omp"]) if each["omp"].isdigit() else 1 for rank, each in ranks.items()}
    many = max(threads.values())
    if many > 1 and (sum(threads.values()) > count or any(threads[rank] > len(cores[rank]) for rank in ranks)):
        yield (f"{len(ranks)} rank{'s' * (len(ranks) > 1)} of up to {many} threads have {count} core{'s' * (count > 1)} of "
               f"{host}: set OMP_NUM_THREADS={max(1, count // len(ranks))}")


def _links(everyone, links):
    """Links between hosts that are slow among their like."""
    seconds = {pair: link[1] for pair, link in links.items() if len({everyone[rank]["place"] for rank in pair}) > 1}
    usual = sorted(seconds.values())[len(seconds) // 2] if seconds else 0.0
    for (a, b), own in sorted(seconds.items()):
        if own > ODD * usual:
            yield (f"ranks {a} and {b} have {rate_text(own)} between them, most others {rate_text(usual)}: look at cable, "
                   "port and interface of their hosts")


def hosts(everyone) -> dict[int, str]:
    """Names of the hosts by place; numbered where several have one name (network namespaces of one machine)."""
    found = {}
    for each in everyone:
        if each["place"] not in found:
            alike = sum(name.split("#")[0] == each["host"] for name in found.values())
            found[each["place"]] = f"{each['host']}#{alike + 1}" if alike else each["host"]
    return found


def spans(numbers) -> str:
    """[0, 1, 2, 5] as 0-2,5."""
    runs = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)
