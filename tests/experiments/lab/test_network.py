"""The network lab: what the interfaces count and how fast they are, and that nothing of a lab remains, however it ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import mpi
import pytest

from hogwild.errors import UserError
from hogwild.experiments.lab import network
from hogwild.experiments.lab.network import DATA, NAMESPACES, Network

# Rank 0 prints how long each of 3 allreduces of argv[1] float32 took, after one that makes the connections.
ALLREDUCE = """
import sys, time
import numpy as np
from mpi4py import MPI
comm, mine, total = MPI.COMM_WORLD, np.ones(int(sys.argv[1]), np.float32), np.empty(int(sys.argv[1]), np.float32)
for _ in range(int(sys.argv[2])):
    comm.Barrier()
    start = time.perf_counter()
    comm.Allreduce(mine, total)
    if comm.rank == 0:
        print(time.perf_counter() - start)
assert (total == comm.size).all()
"""
PLACE = """
import json, os, socket
from mpi4py import MPI
comm = MPI.COMM_WORLD
told = {key: os.environ[f"EXPERIMENTS_{key}"] for key in ("ADDRESS", "MASTER", "INTERFACE")}
told |= {"rank": comm.rank, "host": socket.gethostname(), "beside": comm.Split_type(MPI.COMM_TYPE_SHARED).size}
told = comm.gather(told)
if comm.rank == 0:
    print(json.dumps(told))
"""
SILENT = ["sleep", "0.5"]  # Open MPI 5.0.11 waits for ever now and then for what ends at once
SLEEP = ("import time; from mpi4py import MPI; comm = MPI.COMM_WORLD; comm.Barrier()\n"
         "if comm.rank == 0: print('running', flush=True)  # lines of two ranks could mix\ntime.sleep(600)")
COMMAND = "-c", ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                 "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # as if no nohup had started the tests
                 "from hogwild.experiments.lab.network import main; main(sys.argv[1:])")


pytestmark = [pytest.mark.openmpi, pytest.mark.waits]


@pytest.fixture(scope="module")
def lab():
    """Skips where there can be no lab."""
    if reason := network.available():
        pytest.skip(reason)
    mpi.mpiexec()


def run(net, ranks, argv, timeout=90, **more):
    return net.mpiexec(ranks, argv, timeout=timeout, **more)


def code(text, *arguments):
    return [sys.executable, "-c", text, *map(str, arguments)]


def left(pid) -> list:
    """What there is of the labs of a process."""
    folders = NAMESPACES, Path(tempfile.gettempdir())
    return [path for folder in folders if folder.is_dir() for path in folder.glob(f"hogwild-{pid}-*")]


def inside(namespaces) -> list:
    """Processes in them, as ip sees it."""
    found = []
    for path in namespaces:
        found += subprocess.run(["ip", "netns", "pids", path.name], capture_output=True, text=True).stdout.split()
    return found


def gone(pids, seconds=10) -> bool:
    """Whether the processes end; what nobody has reaped yet counts as ended."""
    end = time.monotonic() + seconds
    while alive := [pid for pid in pids if network._start(pid)]:
        if time.monotonic() > end:
            return False
        time.sleep(0.01 * len(alive))
    return True


def started(*options):
    """A process that has a lab, in which two ranks sleep."""
    process = subprocess.Popen([sys.executable, *COMMAND, *options, "--", *code(SLEEP)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL, cwd=mpi.ROOT)
    killer = threading.Timer(120, process.kill)  # or readline could wait for ever
    killer.start()
    line = process.stdout.readline()
    killer.cancel()
    if line != "running\n":
        process.terminate()
        pytest.fail(f"the run said {line!r}")
    return process


def test_bytes_of_a_known_transfer_are_counted(lab):
    n, hosts = 1_000_000, 2
    with Network(hosts) as net:
        ended = run(net, hosts, code(ALLREDUCE, n, 1))
    assert ended.code == 0, ended.err
    least = 2 * n * (hosts - 1) / hosts * 4
    for host in ended.traffic:
        # A frame of 1514 bytes carries 1448 bytes of data; a confirmation of 66 bytes goes back for every frame or two.
        assert least * 1514 / 1448 < host["sent_bytes"] < least * 1.12
        assert least / 1448 < host["sent_packets"] < 2.5 * least / 1448
        assert host["dropped_packets"] == 0
    first, second = ended.traffic
    assert first["sent_bytes"] == pytest.approx(second["received_bytes"], abs=2000)
    assert second["sent_bytes"] == pytest.approx(first["received_bytes"], abs=2000)
    assert [first["name"], second["name"]] == ["host0", "host1"]


@pytest.mark.parametrize("rate, bits", [("20mbit", 20e6), ("10Mbps", 10e6)])
def test_no_transfer_is_faster_than_the_link(lab, rate, bits):
    n = int(bits / 8 / 4 * 0.2)  # 0.2 s
    with Network(2, rate) as net:
        ended = run(net, 2, code(ALLREDUCE, n, 3))
    assert ended.code == 0, ended.err
    burst = max(network.BURST, bits / 8 * network.BURST_SECONDS)
    least = (n * 4 * 1514 / 1448 - 4 * burst) * 8 / bits
    assert len(ended.out.split()) == 3
    assert all(float(seconds) > least for seconds in ended.out.split()), (ended.out, least)


def test_delay_is_added_or_refused(lab):
    try:
        with Network(2, "100mbit", "20ms") as net:
            ended = run(net, 2, code(ALLREDUCE, 10, 3))
    except UserError as error:
        assert str(error) == "this kernel has no netem, without which there is no delay: leave it out"
    else:
        assert all(float(seconds) > 0.02 for seconds in ended.out.split())


def test_more_ranks_than_hosts(lab):
    with Network(2) as net:
        ended = run(net, 4, code(PLACE))
    assert ended.code == 0, ended.err
    places = json.loads(ended.out)
    assert [place["rank"] for place in places] == [0, 1, 2, 3]
    assert [place["host"] for place in places] == ["host0", "host0", "host1", "host1"]
    assert [place["ADDRESS"] for place in places] == [f"{DATA}.1"] * 2 + [f"{DATA}.2"] * 2
    assert {(place["beside"], place["MASTER"], place["INTERFACE"]) for place in places} == {(2, f"{DATA}.1", "data")}


def test_traffic_that_the_interfaces_did_not_see_is_refused(lab):
    with Network(2) as net:
        with pytest.raises(UserError, match="the interfaces did not see the traffic: 0 bytes"):
            run(net, 2, SILENT)
        assert run(net, 2, SILENT, expect=0).code == 0
        assert run(net, 2, SILENT, per_host=2).code == 0  # both on one host: there is nothing to see
        with pytest.raises(UserError, match="did not see the traffic: .* at least 1,000,000 were expected"):
            run(net, 2, code(ALLREDUCE, 1000, 1), expect=1_000_000)
        if not mpi.open_mpi():
            with pytest.raises(UserError, match="the interfaces did not see the traffic"):
                run(net, 2, code(ALLREDUCE, 1_000_000, 1), env={"UCX_TLS": "posix,self"})


def test_two_labs_at_once_count_their_own(lab):
    sent = {}

    def both(net, n):
        sent[n] = [host["sent_bytes"] for host in run(net, 2, code(ALLREDUCE, n, 1)).traffic]

    with Network(2) as one, Network(2, "200mbit") as other:
        threads = [threading.Thread(target=both, args=pair) for pair in ((one, 200_000), (other, 600_000))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n in (200_000, 600_000):
        assert all(4 * n < each < 4 * n * 1.12 + 20_000 for each in sent[n]), (n, sent)


def test_nothing_is_left_after_an_error(lab):
    with pytest.raises(ZeroDivisionError), Network(2):
        assert len(left(os.getpid())) == 4  # three namespaces and a folder
        _ = 1 / 0
    assert left(os.getpid()) == []


def test_a_run_that_takes_too_long_is_ended(lab):
    with Network(2) as net:
        ended = run(net, 2, code(SLEEP), timeout=3)
        assert ended.code == 124 and 3 <= ended.seconds
        assert inside(NAMESPACES.glob(f"{net.lab}-*")) == []
        assert run(net, 2, code("import sys; sys.exit(7)")).code == 7
    assert left(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_after(lab, number):
    process = started()
    ranks = inside(left(process.pid))
    assert len(ranks) >= 3
    with Network(1):  # does not touch the lab of a process that lives
        assert len(left(process.pid)) == 4
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert left(process.pid) == []
    assert gone(ranks)


def test_a_new_lab_removes_what_a_killed_process_left(lab):
    process = started("--rate", "10mbit")
    ranks = inside(left(process.pid))
    process.kill()
    process.communicate(timeout=60)
    assert len(left(process.pid)) == 4
    with Network(1):
        assert left(process.pid) == []
        assert gone(ranks)


def test_output_is_live_then_the_bytes_of_each_host(lab, tmp_path):
    signal_file = tmp_path / "go on"
    text = ("import os, sys, time; from mpi4py import MPI; MPI.COMM_WORLD.Barrier()\n"
            "if MPI.COMM_WORLD.rank == 0: print('first', flush=True)\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.05)\n"
            "MPI.COMM_WORLD.Barrier()")
    process = subprocess.Popen([sys.executable, "-m", "hogwild.experiments", "network", "--hosts", "3", "--rate", "100mbit",
                                "--", *code(text, signal_file)], stdout=subprocess.PIPE, text=True, cwd=mpi.ROOT)
    assert process.stdout.readline() == "first\n"
    signal_file.touch()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows[-3:]] == ["host0", "host1", "host2"]
    assert all(int(row[1].replace(",", "")) > 100 for row in rows[-3:])
    assert left(process.pid) == []


def test_exit_code_is_that_of_the_run(lab):
    assert network.main(["--hosts", "1", "--", *code("import sys; sys.exit(5)")]) == 5


def test_pingpong(lab, tmp_path):
    record = tmp_path / "pingpong.jsonl"
    words = [sys.executable, "-m", "hogwild.experiments.lab.pingpong", "--largest", "20000", "--seconds", "0.01",
             "--record", record]
    with Network(2, "10mbit") as net:
        ended = run(net, 2, words)
        assert ended.code == 0, ended.err
        wrong = run(net, 1, words)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["bytes"] for line in lines] == [1, 4, 16, 64, 256, 1024, 4096, 16384, 20000]
    assert all(line["lower"] <= line["seconds"] <= line["upper"] for line in lines)
    assert min(lines[-1]["seconds"], lines[-1]["both"]) > (20000 - 2 * network.BURST) * 8 / 10e6
    assert wrong.code == 2 and "need ranks in pairs, got 1" in wrong.err


@pytest.mark.parametrize("arguments, message", [
    ([], "what is to run is missing"),
    (["--hosts", "2"], "what is to run is missing"),
    (["--hosts", "0", "--", "true"], "1 to 250 hosts, got 0"),
    (["--hosts", "two", "--", "true"], "--hosts"),
    (["--per-host", "0", "--", "true"], "at least 1, got 0")])
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        network.main(arguments)


@pytest.mark.parametrize("arguments, message", [
    (["--rate", "fast", "--", "true"], "a bandwidth such as 100Mbit/s, .* got 'fast'"),
    (["--rate", "0", "--", "true"], "a bandwidth such as 100Mbit/s, .* got '0'"),
    (["--delay", "soon", "--", "true"], "delay"),
    (["--", "no-such-command"], "there is no command no-such-command")])
def test_mistakes_that_the_lab_finds(lab, arguments, message):
    with pytest.raises(UserError, match=message):
        network.main(arguments)
    assert left(os.getpid()) == []


def test_says_what_is_missing(monkeypatch):
    unwrapped = network.available.__wrapped__
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unwrapped() == "the network lab needs Linux and root"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "needs the command ip: install iproute2" in unwrapped()


def test_a_process_is_known_by_its_start():
    assert network._start(os.getpid()) == network._start(os.getpid())
    ended = subprocess.Popen(["true"])
    while network._start(ended.pid):  # until it is a zombie, which no longer counts
        time.sleep(0.01)
    ended.wait()
