"""A network on one machine: hosts that are network namespaces, links of a stated rate, MPI over them, bytes counted.

    with Network(hosts=2, rate="100mbit") as network:
        result = network.mpiexec(2, ["sparsecomm", "train", "mlp"])
    result.traffic[0]["sent_bytes"]

The interface `data` of every host is connected to a bridge and shaped in both directions. mpiexec's own messages use a
second interface, `control`, neither shaped nor counted. All interfaces are in namespaces: the machine's own interfaces
and routes do not change, and two labs may have the same addresses. Needs root and iproute2 (see `available`).

A token bucket lets a message of up to `burst` bytes through at once. So the burst is what the link carries in BURST_SECONDS
or BURST, whichever is more: no message can be more than that too early, and timers still keep up with the rate.
"""

import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hogwild.cli.arguments import parsed
from hogwild.errors import Terminated, UserError
from hogwild.experiments.run.process import DYING, found, kill
from hogwild.training import units
from sparsecomm.wire.launch import POOLS, PR_SET_PDEATHSIG

MOST = 250  # hosts: as many as there are numbers in the last place of an address
DATA, CONTROL = "10.77.0", "10.78.0"  # the first three places of the addresses on each network; host i has i + 1
LAUNCHER = f"{CONTROL}.254"  # of mpiexec
BURST, BURST_SECONDS = 2048, 128e-6  # bytes: a frame and some room; what a timer misses by on a busy machine
QUEUE = 16 << 20  # bytes of a link's queue; a switch has less, but each packet that it drops costs TCP 0.2 s at random
WHOLE = 64 << 10  # bytes: largest packet that the kernel hands on in one piece
LEAST = 1000  # bytes on the wire that the shortest MPI job exceeds, and address resolution alone does not
GRACE = 10.0  # seconds a run has to end by itself after Ctrl-C or SIGTERM
TOOL_SECONDS = 60  # for ip, tc and mpiexec --version
TIMED_OUT = 124  # exit code, as that of coreutils' timeout
NAMESPACES = Path("/var/run/netns")
NAME = re.compile(r"(hogwild-(\d+)-(\d+)-\d+)-")  # lab, process that owns it, start of that process
OPEN_MPI = ("--allow-run-as-root --bind-to none --prtemca plm ssh --prtemca plm_ssh_no_tree_spawn 1 "
            "--prtemca prte_if_include control --mca pml ob1 --mca btl tcp,self,sm --mca btl_tcp_if_include data").split()

# mpiexec calls this as it would ssh: [-OPTION …] HOST COMMAND…. Host i's name is hosti. What a job that was killed leaves in
# /dev/shm goes with the host's own one.
AGENT = """while [ "${{1#-}}" != "$1" ]; do shift; done
n=${{1##*.}}; shift
export EXPERIMENTS_ADDRESS={data}.$n EXPERIMENTS_MASTER={data}.1 EXPERIMENTS_INTERFACE=data
exec ip netns exec {lab}-$((n - 1)) unshare --uts sh -c '
echo host'$((n - 1))' >/proc/sys/kernel/hostname
mount -t tmpfs shm /dev/shm
eval "$*"' agent "$@"
"""

_labs = itertools.count()


class Result(NamedTuple):
    """A run that has ended."""

    code: int  # exit code of mpiexec, negative for a signal; 124 where the time was up
    out: str  # "" where the output was live
    err: str
    seconds: float
    traffic: list  # a host: {"name", "sent_bytes", "received_bytes", "sent_packets", "received_packets", "dropped_packets"}


@functools.cache
def available() -> str | None:
    """Why there can be no network lab here; None where there can be one."""
    if sys.platform != "linux" or os.geteuid():
        return "the network lab needs Linux and root"
    for tool in ("ip", "tc", "unshare"):
        if not shutil.which(tool):
            return f"the network lab needs the command {tool}: install iproute2 and util-linux"
    try:
        with Network(hosts=1, rate="1mbit") as network:
            _do("ip", "netns", "exec", f"{network.lab}-0", "true")
    except UserError as error:
        return str(error)
    return None


class Network:
    """An emulated network. hosts: 1 to 250. rate: of each link and direction (100Mbit/s, 1Gbps); "": unshaped. delay:
    from each host to any other, as tc writes it (10ms); it needs netem in the kernel.

    A context manager, inside which SIGTERM and SIGHUP raise Terminated. Raises UserError if the lab cannot be made.
    """

    def __init__(self, hosts, rate="", delay=None):
        if not 1 <= hosts <= MOST:
            raise UserError(f"a network needs 1 to {MOST} hosts, got {hosts}")
        self.hosts, self.delay = hosts, delay
        self.rate = f"{units.rate('--rate', rate):.0f}bit" if rate else ""  # as tc wants it, to whom mbps are megabytes
        self.lab = f"hogwild-{os.getpid()}-{_start(os.getpid())}-{next(_labs)}"
        self.switch, self.folder, self.handlers = f"{self.lab}-switch", None, {}

    def __enter__(self):
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                with contextlib.suppress(ValueError):  # not the main thread
                    if signal.getsignal(number) == signal.SIG_DFL:
                        self.handlers[number] = signal.signal(number, _terminate)
            sweep()
            self.folder = Path(tempfile.mkdtemp(prefix=f"{self.lab}-"))
            (self.folder / "agent").write_text(AGENT.format(lab=self.lab, data=DATA))
            self._connect()
            self._shape()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            _remove(self.lab)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)  # a signal received meanwhile is raised here
            for number, handler in self.handlers.items():
                signal.signal(number, handler)

    def mpiexec(self, ranks, argv, per_host=None, env=None, timeout=None, expect=None, live=False, options=()) -> Result:
        """Run `argv` on `ranks` ranks, the first `per_host` of them on host 0; by default as few a host as will do.

        env: added to each rank's environment, which also has EXPERIMENTS_ADDRESS, _MASTER (the address of host 0) and
        _INTERFACE. timeout: seconds. expect: bytes that all hosts together must at least have sent, where the run has
        succeeded; by default any message at all, if ranks are on several hosts. live: the output goes where this
        process's goes. options: more of mpiexec's. Raises UserError when the interfaces did not see the traffic.
        """
        per_host = per_host or -(-ranks // self.hosts)
        if not 1 <= ranks <= self.hosts * per_host:
            raise UserError(f"{self.hosts} hosts with up to {per_host} ranks each have no place for {ranks} ranks")
        env = self._environment(ranks, env or {})
        if not shutil.which(argv[0], path=env["PATH"]):
            raise UserError(f"there is no command {argv[0]}")
        command = ["ip", "netns", "exec", self.switch, *self._launcher(ranks, per_host), *options, *argv]
        before = self._counted()
        with contextlib.ExitStack() as stack:
            files = [None if live else stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
            code, seconds = self._run([str(word) for word in command], env, timeout, files)
            out, err = ("" if live else (file.seek(0), file.read().decode(errors="replace"))[1] for file in files)
        traffic = [{"name": f"host{i}", **{key: after[key] - earlier[key] for key in after}}
                   for i, (earlier, after) in enumerate(zip(before, self._counted()))]
        if not code:
            demand(traffic, expect if expect is not None else LEAST if ranks > per_host else 0)
        return Result(code, out, err, seconds, traffic)

    def _environment(self, ranks, env):
        """Ranks share the cores: MPI believes that each host has all of them."""
        share = str(max(1, len(os.sched_getaffinity(0)) // ranks))
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        return (dict.fromkeys(POOLS, share) | {"UCX_LOG_LEVEL": "error"} | os.environ | {
            "PATH": path, "TMPDIR": str(self.folder), "HYDRA_LAUNCHER_EXTRA_ARGS": f"{self.folder}/agent",
            "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "data", "GLOO_SOCKET_IFNAME": "data"} | env)

    def _launcher(self, ranks, per_host):
        """mpiexec with its options; it runs the agent in place of ssh."""
        program, open_mpi = _mpiexec()
        hosts = ",".join(f"{CONTROL}.{i + 1}:{per_host}" for i in range(-(-ranks // per_host)))
        if open_mpi:
            crowded = int(ranks > len(os.sched_getaffinity(0)))
            return [program, *OPEN_MPI, "--mca", "mpi_yield_when_idle", crowded, "--host", hosts, "-n", ranks,
                    "--prtemca", "plm_ssh_agent", f"/bin/sh {self.folder}/agent"]
        return [program, "-launcher", "rsh", "-launcher-exec", "/bin/sh", "-iface", "control", "-hosts", hosts, "-n", ranks]

    def _run(self, command, env, timeout, files):
        """(exit code, seconds) of a run, all of whose processes have ended."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        began = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=files[0], stderr=files[1],
                                   start_new_session=True, preexec_fn=_die_with_parent)
        try:
            return process.wait(timeout), time.perf_counter() - began
        except subprocess.TimeoutExpired:
            return TIMED_OUT, time.perf_counter() - began
        except KeyboardInterrupt as stop:
            process.send_signal(signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            raise
        finally:
            _kill(self.lab)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that cannot die: `_kill` has named it
                process.wait(DYING)

    def _connect(self):
        """The namespaces, in them a bridge for each of the two networks, and the hosts' links to both."""
        _batch("ip", None, *(f"netns add {self.lab}-{name}" for name in ("switch", *range(self.hosts))))
        quiet = "for name in all default; do echo 1 >/proc/sys/net/ipv6/conf/$name/disable_ipv6; done; true"
        for name in ("switch", *range(self.hosts)):  # IPv6 would look for neighbours, which would be counted
            _do("ip", "netns", "exec", f"{self.lab}-{name}", "sh", "-c", quiet)
        _batch("ip", self.switch, "link set lo up",
               *(f"link add {name} type bridge mcast_snooping 0" for name in ("data", "control")),
               *(f"link add {name}{i} type veth peer name {name} netns {self.lab}-{i}"
                 for i in range(self.hosts) for name in ("data", "control")),
               *(f"link set {name}{i} master {name} up" for i in range(self.hosts) for name in ("data", "control")),
               f"addr add {LAUNCHER}/24 dev control", "link set data up", "link set control up")
        for i in range(self.hosts):
            _batch("ip", f"{self.lab}-{i}", f"addr add {DATA}.{i + 1}/24 dev data",
                   f"addr add {CONTROL}.{i + 1}/24 dev control", *(f"link set {x} up" for x in ("lo", "data", "control")))

    def _shape(self):
        """Both ends of every link get a queue that shapes what goes into it, or at least counts it."""
        burst = max(BURST, math.ceil(self._rate() * BURST_SECONDS)) if self.rate else 0
        queue = f"tbf rate {self.rate} burst {burst} limit {QUEUE + burst}" if self.rate else "pfifo limit 100000"
        # Packets of many frames pass as such where the burst has room for them: cutting them up costs a core at 1 Gbit/s.
        packet = int(burst * 7 / 8)
        piece = [f"link set dev data gso_max_size {packet}"] if 2 * BURST < packet < WHOLE else []
        _batch("tc", self.switch, *(f"qdisc replace dev data{i} root {queue}" for i in range(self.hosts)))
        for host in (f"{self.lab}-{i}" for i in range(self.hosts)):
            _batch("ip", host, *piece)
            _batch("tc", host, f"qdisc add dev data root handle 1: {queue}" if self.rate or not self.delay else "")
            if self.delay:
                self._slow(host)

    def _rate(self):
        """Bytes a second, as tc understands the rate."""
        probe = f"tbf rate {self.rate} burst {BURST} limit {QUEUE}"
        try:
            _batch("tc", self.switch, f"qdisc add dev data0 root {probe}")
        except UserError as error:
            raise _refusal("rate", self.rate, "100Mbit/s or 1Gbps", "tbf", error) from None
        return _queue(self.switch, "data0")["options"]["rate"]

    def _slow(self, host):
        where = "parent 1:1" if self.rate else "root"
        try:
            _batch("tc", host, f"qdisc add dev data {where} netem delay {self.delay} limit 100000")
        except UserError as error:
            raise _refusal("delay", self.delay, "10ms", "netem", error) from None

    def _counted(self):
        """What has passed so far, a host: the queue of its own end has seen what it sent, the bridge's what it received.

        Not the interface's counters: they count a packet of many frames as one, with one header.
        """
        ports = {queue["dev"]: queue for queue in _queues(self.switch)}
        counted = []
        for i in range(self.hosts):
            own, port = _queue(f"{self.lab}-{i}", "data"), ports[f"data{i}"]
            counted.append({"sent_bytes": own["bytes"], "received_bytes": port["bytes"],
                            "sent_packets": own["packets"], "received_packets": port["packets"],
                            "dropped_packets": own["drops"] + port["drops"]})
        return counted


def demand(traffic, expected):
    """Raise UserError unless all hosts together have sent `expected` bytes."""
    sent = sum(host["sent_bytes"] for host in traffic)
    if sent < expected:
        raise UserError(f"the interfaces did not see the traffic: {sent:,} bytes, at least {expected:,} were expected; "
                        "MPI went round them (UCX_TLS, UCX_NET_DEVICES, --mca btl), or nothing was sent")


def sweep():
    """Remove the labs of processes that no longer live."""
    found = {entry.name for folder in (NAMESPACES, Path(tempfile.gettempdir())) if folder.is_dir()
             for entry in folder.iterdir()}
    for lab, pid, start in {named.groups() for name in found if (named := NAME.match(name))}:
        if _start(pid) != start:
            _remove(lab)


def _start(pid) -> str | None:
    """When the process began, in ticks of the kernel; None where it does not live."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[18] if state not in "ZX" else None


def _remove(lab):
    """End the lab's processes, and remove its namespaces, with which the links go, and its folder."""
    _kill(lab)
    for namespace in NAMESPACES.glob(f"{lab}-*"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(["ip", "netns", "delete", namespace.name], timeout=TOOL_SECONDS,
                           stderr=subprocess.DEVNULL)  # or another process just did
    for folder in Path(tempfile.gettempdir()).glob(f"{lab}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _kill(lab):
    """Kill all processes in the lab's namespaces and see them gone, but for those that the kernel does not let die."""
    inside = {(at.st_dev, at.st_ino) for at in (path.stat() for path in NAMESPACES.glob(f"{lab}-*"))}
    kill(lambda: [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _network_of(pid) in inside],
         f"what runs in the namespaces {lab}-*")


def _network_of(pid):
    """What tells the network namespace of a process; None where it has ended."""
    with contextlib.suppress(OSError):
        at = Path(f"/proc/{pid}/ns/net").stat()
        return at.st_dev, at.st_ino


def _die_with_parent():
    """In a child, before it becomes mpiexec: a run does not outlive the process that made its network, even by kill -9."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _terminate(number, frame):
    raise Terminated


def _do(*command, text=None) -> str:
    """What the command prints. Raises UserError with the first line of its error."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, start_new_session=True,
                              timeout=TOOL_SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer within {TOOL_SECONDS} s") from None
    if done.returncode:
        raise UserError(f"{command[0]}: {(done.stderr or done.stdout or 'failed').strip().splitlines()[0]}")
    return done.stdout


def _batch(tool, namespace, *lines):
    """Commands of ip or tc, in a namespace."""
    _do(tool, *(["-n", namespace] if namespace else []), "-batch", "-", text="\n".join(lines) + "\n")


def _refusal(what, value, example, queue, error):
    if "unknown" in str(error):
        return UserError(f"this kernel has no {queue}, without which there is no {what}: leave it out")
    return UserError(f"tc does not understand the {what} '{value}' (say {example}): {error}")


def _queues(namespace):
    return [queue for queue in json.loads(_do("tc", "-n", namespace, "-s", "-j", "qdisc", "show")) if queue.get("root")]


def _queue(namespace, device):
    return next(queue for queue in _queues(namespace) if queue["dev"] == device)


@functools.cache
def _mpiexec() -> tuple[str, bool]:
    """mpiexec beside this Python, else that on PATH, and whether it is Open MPI's (else MPICH's)."""
    program = found("mpiexec")
    version = _do(program, "--version").lower()
    return program, "open mpi" in version or "prte" in version


@dataclass
class NetworkOptions:
    """Run a command on the hosts of an emulated network, then print what each of them has sent and received.

    Examples:
      python -m hogwild.experiments network --hosts 4 --rate 100Mbit/s -- sparsecomm train mlp --epochs 1
      python -m hogwild.experiments network --rate 1Gbps -- python -m hogwild.experiments.lab.pingpong
    """

    hosts: int = 2
    """Number of hosts."""
    rate: str = ""
    """Rate of each link and direction: 100Mbit/s, 1Gbps. Default: unshaped."""
    delay: str | None = None
    """Delay of each link, 10ms say; the kernel must have netem."""
    per_host: int = 1
    """Ranks on each host."""


def main(arguments) -> int:
    """`python -m hogwild.experiments network`: the exit code of the run. Raises UserError."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parsed("python -m hogwild.experiments network", NetworkOptions, arguments[:end], more="-- COMMAND …")
    command = arguments[end + 1:]
    if not command:
        raise UserError("what is to run is missing: python -m hogwild.experiments network [OPTION …] -- COMMAND …")
    if options.per_host < 1:
        raise UserError(f"--per-host must be at least 1, got {options.per_host}")
    lab = Network(options.hosts, options.rate, options.delay)
    if reason := available():
        raise UserError(reason)
    with lab as network:
        result = network.mpiexec(options.hosts * options.per_host, command, options.per_host, live=True)
    print(f"{options.hosts} hosts, links {options.rate or 'unshaped'}, {result.seconds:.1f} s")
    print(f"{'host':<8}{'sent bytes':>15}{'received':>15}{'sent packets':>15}{'received':>12}{'dropped':>10}")
    for name, sent, received, *packets in (host.values() for host in result.traffic):
        print(f"{name:<8}{sent:>15,}{received:>15,}{packets[0]:>15,}{packets[1]:>12,}{packets[2]:>10,}")
    return result.code if result.code >= 0 else 128 - result.code
