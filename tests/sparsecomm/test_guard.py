"""Whatever befalls a rank: one line names it and the cause, all ranks end, and nothing of theirs stays."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import mpi
import pytest
from mpi import SUPPORT

from hogwild.errors import Terminated, UserError
from sparsecomm import guard
from sparsecomm.faults import liveness, watch
from sparsecomm.wire import launch
from sparsecomm.wire.message import MessageError

PROGRAM = str(SUPPORT / "failing.py")
QUICK = {"env": {"SPARSECOMM_TIME_SCALE": "0.4"}}  # guards whose waits are so much shorter

pytestmark = pytest.mark.waits


def run(n, how, who, folder, *rest, **options):
    """(how the job ended, lines that are ours, shared memory that was in use) after the checks that hold for every job."""
    start = ("-m", "sparsecomm.guard") if not options.get("bare") else ()
    ended = mpi.mpirun(n, *start, PROGRAM, how, who, folder, *rest, timeout=60, **options)
    used = [path.split(" ")[0] for r in range(n) for path in (folder / str(r)).read_text().splitlines()[1:]]
    assert not ended.left
    assert not [path for path in used if os.path.exists(path)]
    return ended, [line for line in ended.err.splitlines() if line.startswith("sparsecomm: ")], used


def pids(folder, n):
    """Process ids of the ranks, once all have written theirs."""
    end = time.monotonic() + 60
    while not all((folder / str(r)).exists() for r in range(n)):
        assert time.monotonic() < end, "the ranks have not started"
        time.sleep(0.05)
    return [int((folder / str(r)).read_text().split()[0]) for r in range(n)]


CAUSES = [("user", 2, "no such file: x.svm"), ("bug", 1, "IndexError: pop from empty list"), ("SIGINT", 130, "interrupted"),
          ("SIGTERM", 143, "terminated"), ("words", 1, "that is all"), ("memory", 2, "not enough memory: 8 GiB for w")]


@pytest.mark.parametrize("n,how,code,cause", [(2, *CAUSES[0]), (3, *CAUSES[1]), (5, *CAUSES[0])])
def test_one_rank(tmp_path, n, how, code, cause):
    ended, lines, used = run(n, how, n - 1, tmp_path)
    assert ended.code == code and "end" not in ended.out.split()
    assert lines == [f"sparsecomm: rank {n - 1}: {cause}"]
    assert ended.err.count("Traceback") == (how == "bug")
    assert used, "this MPI uses no shared memory: the check that none stays checks nothing"


@pytest.mark.parametrize("how,code,cause", CAUSES[2:4])
def test_rank_zero(tmp_path, how, code, cause):
    ended, lines, _ = run(2, how, 0, tmp_path)
    assert ended.code == code and lines == [f"sparsecomm: rank 0: {cause}"]


@pytest.mark.parametrize("n,how,code,cause", [(2, *CAUSES[0]), (3, *CAUSES[1]), (5, "own", 2, "no gradient for w")])
def test_all_ranks_alike(tmp_path, n, how, code, cause):
    ended, lines, _ = run(n, how, "all", tmp_path)
    assert ended.code == code and lines == [f"sparsecomm: {cause}"]
    assert ended.err.count("Traceback") == (how == "bug")


def test_exit_code(tmp_path):
    ended, lines, _ = run(2, "exit", 1, tmp_path)
    assert ended.code == 7 and not lines


@pytest.mark.parametrize("n,name", [(2, "SIGKILL"), (3, "SIGSEGV"), (5, "SIGKILL")])
def test_killed(tmp_path, n, name):
    ended, lines, _ = run(n, name, n - 1, tmp_path)
    pid = pids(tmp_path, n)[n - 1]
    assert ended.code != 0 and len(lines) == 1
    assert lines[0].startswith(f"sparsecomm: rank {n - 1}: process {pid} was killed by {name}")


@pytest.mark.parametrize("n,how,who", [(3, "SIGSTOP", 0), (2, "hang", 1)])
def test_no_answer(tmp_path, n, how, who):
    ended, lines, _ = run(n, how, who, tmp_path, **QUICK)
    pid = pids(tmp_path, n)[who]
    lines = [line for line in lines if "goes on waiting" not in line]
    assert ended.code != 0 and len(lines) == 1
    assert lines[0].startswith(f"sparsecomm: rank {who} has not answered for 2 s (process {pid} on ")


@pytest.mark.parametrize("how", ["user", "bug"])
def test_a_script_that_installs_the_guard(tmp_path, how):
    """Started as any other, by mpiexec -n N python script.py."""
    _, code, cause = CAUSES[how == "bug"]
    ended, lines, used = run(3, how, 2, tmp_path, "5", "install", bare=True)
    assert ended.code == code and lines == [f"sparsecomm: rank 2: {cause}"]
    assert ended.err.count("Traceback") == (how == "bug") and used


@pytest.mark.parametrize("how, code", [("library", 3), ("quiet", 1)])
def test_exit_in_the_middle(tmp_path, how, code):
    """As by a library that calls exit."""
    ended, lines, _ = run(2, how, 1, tmp_path)
    pid, asked = pids(tmp_path, 2)[1], 3 if how == "library" else 0
    assert ended.code == code and len(lines) == 1
    assert lines[0].startswith(f"sparsecomm: rank 1: process {pid} has ended with exit code {asked} in the middle")


@pytest.mark.parametrize("options", [{}, {"bare": True}])
def test_others_wait_for_a_rank_that_has_ended(tmp_path, options):
    ended, lines, _ = run(3, "leave", 1, tmp_path, "5", *(["install"] if options else []), **options, **QUICK)
    assert ended.code == 2 and len(lines) == 1 and ended.seconds < 20
    assert lines[0].startswith("sparsecomm: rank 1 has ended, but rank ")
    assert "waits for it in step 8; the last that rank 1 took part in is step 7" in lines[0] and "join()" in lines[0]


def test_a_rank_that_fails_before_it_starts_mpi(tmp_path):
    """The others wait for it in MPI_Init."""
    ended = mpi.mpirun(2, PROGRAM, "early", 1, tmp_path, timeout=60, bare=True)
    assert ended.code and not ended.left
    assert "sparsecomm: rank 1: no such file: x.svm\n" in ended.err or mpi.open_mpi() and "no such file" in ended.err


def test_messages_that_cannot_be_read(tmp_path):
    """The guard goes on, and still hears the next one."""
    ended, lines, _ = run(2, "junk", 1, tmp_path)
    assert ended.code == 0 and ended.out.split() == ["end"] * 2
    assert lines and all("rank 1 sent its guard a message that cannot be read" in line for line in lines)


def test_children_are_no_ranks(tmp_path):
    """Workers of a Pool inherit neither the guard nor what it does about SIGTERM."""
    ended, lines, _ = run(2, "pool", "all", tmp_path)
    assert ended.code == 0 and not lines and "Traceback" not in ended.err, ended.err


def test_a_module(tmp_path):
    ended = mpi.mpirun(2, "-m", "sparsecomm.guard", "-m", "failing", "user", 1, tmp_path, bare=True)
    assert ended.code == 2 and "sparsecomm: rank 1: no such file: x.svm\n" in ended.err


def test_rank_zero_does_not_listen(tmp_path):
    """A rank that fails says so itself, then, before anybody's patience is over."""
    ended, lines, _ = run(3, "deaf", 2, tmp_path, **QUICK)
    assert ended.code != 0
    assert any(line.startswith(("sparsecomm: rank 2: no such file", "sparsecomm: rank 0 has not answered")) for line in lines)


@pytest.mark.parametrize("how", ["busy", "late", "lock"])
def test_long_work_is_no_silence(tmp_path, how):
    """One rank computes for longer than the patience; the others wait for it in MPI, or at their end."""
    ended, lines, _ = run(3, how, 1, tmp_path, **QUICK)
    assert ended.code == 0 and ended.out.split() == ["end"] * 3
    assert all(" s in step 8 for rank 1, and goes on waiting" in line for line in lines)
    assert len(lines) == (how != "late")


def test_suspended_job(tmp_path):
    """A job that a batch system stops and continues goes on."""
    def suspend(started):
        ranks = pids(tmp_path, 2)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in ranks:
                os.kill(pid, number)
            time.sleep(3 * (number == signal.SIGSTOP))  # longer than the patience

    ended, lines, _ = run(2, "busy", "all", tmp_path, during=suspend, **QUICK)
    assert ended.code == 0 and not lines


def test_launcher_is_killed(tmp_path):
    """Then nobody is left who could end the ranks: they see to it themselves."""
    def kill(started):
        pids(tmp_path, 2)
        for pid, line in started().items():
            if "guard" in line and "python" not in line.split()[0]:
                os.kill(pid, signal.SIGKILL)

    ended, _, _ = run(2, "SIGSTOP", "1", tmp_path, during=kill, **QUICK)
    assert ended.code == -signal.SIGKILL


def alone(how, folder, env):
    """The program without mpiexec; with Ctrl-C as in the foreground, which the background jobs of a shell ignore."""
    path = os.pathsep.join(filter(None, (str(mpi.ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, "-m", "sparsecomm.guard", PROGRAM, how, "0", str(folder)], timeout=60,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **env},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def test_without_mpiexec(tmp_path):
    """An ordinary exit code, and no word from MPI."""
    for how, code, cause in CAUSES:
        ended = alone(how, tmp_path, {})
        assert ended.returncode == code
        line, *more = ended.stderr.splitlines()
        assert line == f"sparsecomm: {cause}" and bool(more) == (how == "bug")


def test_another_launcher(tmp_path):
    """mpiexec of one MPI, mpi4py of another: N runs of one rank each, if nobody noticed; or each ends in MPI_Init."""
    said = []
    for rank in ("0", "1"):
        ended = alone("user", tmp_path, mpi.other_launcher(rank, 2))
        assert ended.returncode == 2
        said.append(ended.stderr)
    assert said[0].startswith("sparsecomm: 2 processes were started, but MPI (") and said[0].count("\n") == 1
    assert "/mpiexec" in said[0] and not said[1]


def test_no_mpi(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"pip install '\.\[mpich\]'"):
        launch.world()


def test_patience():
    assert watch.patience("7.5") == (7.5, 7.5) and watch.patience(None) == (20, 600)
    for wrong in 3, float("nan"), "soon", "-1":
        with pytest.raises(UserError, match=f"at least 5 s to answer, got {wrong}"):
            guard.patience(wrong)


def test_what_a_silent_process_is_at(monkeypatch):
    """Only one that neither computes nor answers is on its way to be given up."""
    sights = iter([("S", 1.0), ("R", 1.01), ("S", 1.05), ("S", 1.5), ("T", 1.5), ("D", 1.5), ("D", 1.6), None, ("Z", 9.0)])
    monkeypatch.setattr(liveness, "look", lambda pid: (sight := next(sights)) and liveness.Sight(*sight))
    seen = liveness.Watch(liveness.Process(1, 7, "host", "place"), near=True)
    states, alive = [], []
    for second in range(1, 10):
        states.append(seen.look(float(second)))
        alive.append(seen.alive)
    assert states == ["busy", "busy", "idle", "busy", "stopped", "idle", "idle", "gone", "gone"]
    assert alive == [1, 2, 2, 4, 4, 4, 4, 4, 4]
    seen.answered(11.0)
    assert seen.alive == 11 and liveness.Watch(seen.process, near=False).look(5.0) == "far"


def test_own_process_is_seen():
    before = liveness.look(os.getpid())
    sum(range(10**7))
    assert before.cpu < liveness.look(os.getpid()).cpu and before.state == "R"
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.send_signal(signal.SIGSTOP)
    while liveness.look(child.pid).state != "T":
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert liveness.look(child.pid) is None


def test_a_bad_message_is_its_senders_fault():
    failed = guard._failure(MessageError("step 3: rank 1 sent a message that cannot be used"))
    guards = SimpleNamespace(size=3, processes=[liveness.Process(r, 0, "", "") for r in range(3)])
    assert watch.Guard._failure_lines(guards, {0: failed, 2: failed}) == f"sparsecomm: {failed.cause}\n"


@pytest.mark.parametrize("arguments, line", [
    (["no.py"], "there is no script no.py; usage:"), (["-m", "no.module"], "there is no module no.module; usage:"),
    (["-m"], "usage: mpiexec"), ([], "usage: mpiexec")])
def test_no_script(arguments, line):
    ended = subprocess.run([sys.executable, "-m", "sparsecomm.guard", *arguments], capture_output=True, text=True,
                           cwd=mpi.ROOT)
    assert ended.returncode == 2 and ended.stderr.removeprefix("sparsecomm: ").startswith(line)
    assert ended.stderr.count("\n") == 1


class Node:
    """A communicator of the ranks of one host, whose other ranks may use `others`, a set of cores each."""

    def __init__(self, *others):
        self.others = others

    def Split_type(self, kind):
        return self

    def Free(self):
        pass

    def Allreduce(self, place, buffer):
        for cores in self.others:
            for core in cores:
                buffer[0][core] += 1


@pytest.mark.parametrize("own,others,share", [
    (range(16), [], 16), (range(16), [range(16)] * 3, 4), (range(16), [range(16)] * 4, 3), (range(2), [range(2)] * 4, 1),
    ((4, 5), [(0, 1), (2, 3)], 2), (range(4), [(0,), (1,), (2,)], 2), ((3,), [(3,)] * 7, 1)])
def test_threads(monkeypatch, own, others, share):
    """As many threads as there are cores for each rank, however the ranks are bound."""
    pytest.importorskip("mpi4py")
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    for pool in launch.POOLS:
        monkeypatch.delenv(pool, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(own))
    try:
        assert launch.limit_threads(Node(*others)) == share == torch.get_num_threads()
        assert [os.environ[pool] for pool in launch.POOLS] == [str(share)] * len(launch.POOLS)
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        torch.set_num_threads(5)
        launch.limit_threads(Node(*others))
        assert os.environ["OMP_NUM_THREADS"] == "7" and torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


@mpi.ranks
def test_shared_memory_has_no_name(n):
    """So that no file stays when ranks are killed in whatever way."""
    code = ("from sparsecomm.wire import launch; launch.world(); "
            "print(*sorted({line.split(None, 5)[-1].strip() for line in open('/proc/self/maps') if '/dev/shm/' in line}), "
            "sep='; ')")
    ended = mpi.mpirun(n, "-c", code)
    assert ended.code == 0 and len(ended.out.splitlines()) == n
    for line in ended.out.splitlines():
        assert all(path.endswith(" (deleted)") for path in line.split("; ")) if line else n == 1


def test_threads_of_ranks():
    """Real ranks: their shares are no more than the cores, but one thread each."""
    code = ("from sparsecomm.wire import launch; comm = launch.world(); import os; "
            "print(launch.limit_threads(comm), len(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])")
    ended = mpi.mpirun(3, "-c", code)
    assert ended.code == 0
    for line in ended.out.splitlines():
        share, cores, kept = map(int, line.split())
        assert share == max(1, cores // 3) and kept == 1


def test_terminated_is_an_interrupt():
    assert issubclass(Terminated, KeyboardInterrupt)
