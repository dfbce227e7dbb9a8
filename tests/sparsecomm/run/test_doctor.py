"""`sparsecomm doctor`: its table against what the system and the packages say themselves, and every problem as one line."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import mpi
import numpy
import pytest
from mpi import mpirun

from hogwild.experiments.lab import network
from sparsecomm.run import diagnosis, process_facts
from sparsecomm.wire import pingpong

pytestmark = [pytest.mark.openmpi, pytest.mark.waits]
CORES = sorted(os.sched_getaffinity(0))
QUICK = """
from sparsecomm.run import process_facts
process_facts._torch = lambda: ("not imported", 0)  # which takes seconds
"""
DOCTOR = QUICK + """
from sparsecomm.cli import command
command()
"""
# The last of the ranks has another NumPy, and may use only one core.
ODD = QUICK + """
import os
from sparsecomm.cli import command, launch
if launch.rank() == launch.size() - 1:
    import numpy
    numpy.__version__ = "0.1"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
command()
"""
LATE = QUICK + """
import time
from sparsecomm.cli import command, launch
from sparsecomm.run import doctor
doctor.FACTS_SECONDS = 1
process_facts.facts = lambda: time.sleep(600 * launch.rank()) or {}
command()
"""


def read(out) -> tuple[dict, list[str]]:
    """({fact: [(mark, ranks, value)]}, lines of problems) of what the doctor has printed."""
    assert all(len(line) <= 100 for line in out.splitlines() if not line.startswith(("problem", "this is one")))
    rows, problems, fact = {}, [], ""
    for line in out.splitlines():
        if line.startswith("problem: "):
            problems.append(line)
        elif line[:2] in ("  ", "! "):
            fact = line[2:22].strip() or fact
            rows.setdefault(fact, []).append((line[0].strip(), line[22:32].strip(), line[32:].strip()))
    return rows, problems


def test_two_ranks():
    ended = mpirun(2, "-c", DOCTOR, "doctor", bare=True)
    rows, problems = read(ended.out)
    assert ended.out.startswith("2 ranks on 1 host:\n") and ended.err == ""
    versions = {name: importlib.metadata.version(name) for name in ("hogwild-sparsecomm", "numpy", "numba", "mpi4py")}
    for fact, value in {"host": platform.node(), "python": platform.python_version(), "thread level": "multiple",
                        **versions}.items():
        assert rows[fact] == [("", "all", value)]
    assert rows["cores"] == [("", "all", f"{diagnosis.spans(CORES)}, shared by 2 ranks")]
    assert rows["threads"][0][2].startswith("OMP_NUM_THREADS 1;")
    assert rows["MPI"][0][2].startswith("Open MPI" if mpi.open_mpi() else "MPICH")
    assert [rows[fact][0][1] for fact in ("latency", "bandwidth")] == ["0 and 1"] * 2
    crowded = len(CORES) < 2
    assert (ended.code, len(problems)) == (int(crowded), int(crowded))


def test_ranks_that_differ():
    ended = mpirun(3, "-c", ODD, "doctor", bare=True)
    rows, problems = read(ended.out)
    assert ended.code == 1 and "Traceback" not in ended.err
    assert rows["numpy"] == [("!", "0-1", numpy.__version__), ("!", "2", "0.1")]
    assert rows["numba"][0][:2] == ("", "all")
    assert rows["cores"][-1] == ("", "2" if len(CORES) > 1 else "all", f"{CORES[0]}, shared by 3 ranks")
    assert rows["latency"][0][1] == "3 pairs" and rows["latency"][0][2].endswith(f"within {platform.node()}")
    assert problems[0] == (f"problem: numpy is 0.1 on rank 2, but {numpy.__version__} on ranks 0, 1: install the same on "
                           "every host")
    assert [f"3 ranks share {len(CORES)} core" in line for line in problems[1:]] == [True] * (len(CORES) < 3)


def alone(env, *arguments, program=("-c", DOCTOR)):
    path = os.pathsep.join(filter(None, (str(mpi.ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, *program, "doctor", *arguments], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": path, **env})


def test_one_process():
    ended = alone({}, program=("-m", "sparsecomm"))
    rows, problems = read(ended.stdout)
    assert rows["torch"][0][2].startswith(importlib.metadata.version("torch"))
    assert ended.returncode == 0 and not problems and "mpiexec -n 2 sparsecomm doctor" in ended.stdout
    assert "latency" not in rows and rows["cores"] == [("", "0", diagnosis.spans(CORES))]
    wrong = alone({}, "--fast")
    assert wrong.returncode == 2 and wrong.stderr.startswith("sparsecomm: ") and wrong.stderr.count("\n") == 1


def test_processes_that_do_not_see_each_other():
    """mpiexec of one MPI, mpi4py of another: a table and a problem on rank 0, not only an error."""
    first, second = (alone(mpi.other_launcher(rank, 2)) for rank in ("0", "1"))
    rows, problems = read(first.stdout)
    assert first.returncode == 1 and rows["MPI"] and "2 processes were started, but MPI (" in problems[0]
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_a_rank_that_does_not_answer_ends_the_job():
    ended = mpirun(2, "-c", LATE, "doctor", bare=True, timeout=60)
    assert ended.code == 1 and not ended.left
    assert "sparsecomm: rank 0: the exchange of what the ranks run on has not ended within 1 s: is there a fire" in ended.err


def test_two_hosts():
    if reason := network.available():
        pytest.skip(reason)
    mpi.mpiexec()
    with network.Network(2, "20mbit") as lab:
        ended = lab.mpiexec(2, [sys.executable, "-c", DOCTOR, "doctor"], env={"PYTHONPATH": str(mpi.ROOT)}, timeout=60)
    rows, problems = read(ended.out)
    assert ended.code == 0 and not problems, ended
    assert ended.out.startswith("2 ranks on 2 hosts:")
    assert rows["host"] == [("", "0", "host0"), ("", "1", "host1")]
    assert rows["interface"] == [("", "all", "probably data, whose counter of sent bytes grew by the messages")]
    number, unit, *where = rows["bandwidth"][0][2].split()
    # The token bucket passes its first bytes at once.
    assert float(number) < 20 * 1.3 and unit in ("Mbit/s", "kbit/s") and where == "between host0 and host1".split()


def one(**more):
    """Facts of a rank without problems."""
    return {"host": "a", "place": 1, "cores": [0, 1, 2, 3], "usable": 4, "omp": "1", "free": 8 << 30, "cache": ("c", True),
            "versions": {"torch": "2.13"}, **more}


@pytest.mark.parametrize("ranks, line", [
    ([one()] * 4, None),
    ([one()] * 5, "5 ranks share 4 cores of a, and wait for each other: start at most 4 there"),
    ([one(usable=2)] * 3, "3 ranks share 2 cores of a"),
    ([one(cores=[r], usable=1) for r in range(3)], None),
    ([one(cores=[0], usable=1)] * 2 + [one(cores=[2], usable=1), one()], "ranks 0-1 may only use core 0 of a: mpiexec -bind"),
    ([one(omp="4")], None),
    ([one(omp="3")] * 2, "2 ranks of up to 3 threads have 4 cores of a: set OMP_NUM_THREADS=2"),
    ([one(cores=[0], usable=1, omp="2")], "1 rank of up to 2 threads have 1 core of a: set OMP_NUM_THREADS=1"),
    ([one(free=3 << 28)] * 2, "a has 0.8 GiB of memory free for 2 ranks, which need 1.0"),
    ([one(), one(place=2, host="b", cache=("/tmp/x", False))], "b compiles its kernels anew in each run"),
    ([one(versions={"torch": "cannot be imported: no libgomp"})] * 2, "torch cannot be imported: no libgomp: install it"),
    ([one(), one(versions={"torch": "2.12"})], "torch is 2.12 on rank 1, but 2.13 on rank 0: install the same on every host"),
])
def test_problems(ranks, line):
    found = list(diagnosis.problems(ranks, {}))
    assert len(found) == (line is not None) and all(each.startswith(line) for each in found)


def test_a_slow_link_between_hosts():
    ranks = [one(place=place, host=str(place)) for place in (0, 0, 1, 2)]
    links = {pair: (1e-4, 8e-9) for [pair] in pingpong.rounds(4)} | {(0, 1): (1e-3, 1e-6), (2, 3): (1e-4, 8e-8)}
    [line] = diagnosis.problems(ranks, links)
    assert line.startswith("ranks 2 and 3 have 100 Mbit/s between them, most others 1 Gbit/s: look at cable")


def test_rounds_of_pairs():
    assert pingpong.rounds(1) == [] and pingpong.rounds(3) == [[(0, 1)], [(0, 2)], [(1, 2)]]
    for size in 7, 8, 33:
        every = [pair for pairs in pingpong.rounds(size) for pair in pairs]
        assert sorted(every) == [(rank, (rank + 1) % size) for rank in range(size)]
        assert all(len({rank for pair in pairs for rank in pair}) == 2 * len(pairs) for pairs in pingpong.rounds(size))


def test_route(monkeypatch, tmp_path):
    monkeypatch.setattr(process_facts, "ROUTES", tmp_path / "route")
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    (tmp_path / "route").write_text(head + "eth1 0000000A 00000000 0001 0 0 0 000000FF 0 0 0\n")  # 10.0.0.0/8
    assert process_facts.route("10.1.2.3") == "eth1"
    assert process_facts.route("11.1.2.3") == "an unknown one (no route to 11.1.2.3)"
    with open(tmp_path / "route", "a") as file:
        file.write("eth0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n")
    assert process_facts.route("10.1.2.3") == "eth1" and process_facts.route("11.1.2.3") == "eth0"


def test_sources_tell_checkouts_apart(monkeypatch, tmp_path):
    now = process_facts.sources()
    assert process_facts.sources() == now
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(process_facts.sparsecomm, "__file__", str(tmp_path / "__init__.py"))
    other = process_facts.sources()
    (tmp_path / "x.py").write_text("")
    assert len({now, other, process_facts.sources()}) == 3
