"""Cores and memory that this process may use, by made-up control groups."""

import os

import pytest

from hogwild.errors import UserError
from hogwild.training import machine as ours
from hogwild.training.machine import demand_memory, memory, usable_cores


def tree(root, cgroup, mounts, files):
    """A root folder with /proc/self and the given files."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "32 31 0:29 {base} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "24 23 0:21 {base} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def machine(monkeypatch):
    """A process that may use 8 of 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize("own, parent, expected", [
    ("max 100000", "max 100000", (8, "8 cores (affinity, of 64)")),
    ("50000 100000", "max 100000", (1, "1 core (cgroup limit 0.5 of 8)")),
    ("max 100000", "250000 100000", (3, "3 cores (cgroup limit 2.5 of 8)")),
    ("200000 100000", "100000 50000", (2, "2 cores (cgroup limit 2 of 8)")),
    ("300000 100000", "400000 100000", (3, "3 cores (cgroup limit 3 of 8)")),
    ("6400000 100000", "max 100000", (8, "8 cores (affinity, of 64)")),
    ("what is this", "", (8, "8 cores (affinity, of 64)")),
    ("100000 0", "", (8, "8 cores (affinity, of 64)"))])
def test_cgroup_v2(tmp_path, machine, own, parent, expected):
    tree(tmp_path, "0::/user.slice/run.scope\n", V2.format(base="/"),
         {"sys/fs/cgroup/user.slice/cpu.max": parent, "sys/fs/cgroup/user.slice/run.scope/cpu.max": own + "\n"})
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize("quota, expected", [(-1, 8), (10_000, 1), (150_000, 2), (10**7, 8)])
def test_cgroup_v1(tmp_path, machine, quota, expected):
    folder = "sys/fs/cgroup/cpu,cpuacct/job"
    tree(tmp_path, "4:memory:/other\n3:cpu,cpuacct:/job\n1:name=systemd:/\n", V1.format(base="/"),
         {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"})
    assert usable_cores(tmp_path)[0] == expected


def test_cgroup_of_a_container(tmp_path, machine):
    """The mount shows only the container's own part, under paths of the host."""
    limit = {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}
    for path in ("/docker/abc", "/docker/abc/inner", "/elsewhere"):
        tree(tmp_path, f"3:cpuacct,cpu:{path}\n", V1.format(base="/docker/abc"), limit)
        assert usable_cores(tmp_path)[0] == 3


def test_both_hierarchies(tmp_path, machine):
    """v1 keeps the CPU controller, v2 is mounted beside it and has no limits: what systemd calls hybrid."""
    mounts = V1.format(base="/") + V2.format(base="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    top = "sys/fs/cgroup/cpu,cpuacct"
    tree(tmp_path, "2:cpu,cpuacct:/\n0::/job\n", mounts,
         {f"{top}/cpu.cfs_quota_us": "400000", f"{top}/cpu.cfs_period_us": "100000", "sys/fs/cgroup/unified/job/x": ""})
    assert usable_cores(tmp_path) == (4, "4 cores (cgroup limit 4 of 8)")


def test_a_limit_above_the_mount_is_not_looked_for(tmp_path, machine):
    tree(tmp_path, "0::/job\n", V2.format(base="/"), {"sys/fs/cgroup/job/x": "", "sys/fs/cpu.max": "1000 100000"})
    assert usable_cores(tmp_path)[0] == 8


@pytest.mark.parametrize("files", [{}, {"cgroup": "", "mountinfo": ""}, {"cgroup": "nonsense", "mountinfo": "1 2 3"},
                                   {"cgroup": "0::/\n", "mountinfo": "no separator\n"}])
def test_without_cgroups(tmp_path, machine, files):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "proc" / "self" / name).write_text(text)
    assert usable_cores(tmp_path) == (8, "8 cores (affinity, of 64)")


def test_cores_of_this_machine():
    count, text = usable_cores()
    assert 1 <= count <= os.cpu_count() and text.startswith(f"{count} core")


@pytest.mark.parametrize("own, parent, expected", [
    ("max", "max", 1 << 36), ("1000000", "max", 10**6), ("max", "2000000", 2 * 10**6), ("3000", "2000", 2000),
    (str(1 << 60), "max", 1 << 36), ("nonsense", "", 1 << 36)])
@pytest.mark.parametrize("v1", [False, True])
def test_memory_is_that_of_the_cgroup(tmp_path, monkeypatch, own, parent, expected, v1):
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1 << 24, "SC_PAGE_SIZE": 1 << 12}[name])
    top, name = "sys/fs/cgroup/" + "memory" * v1, "memory.limit_in_bytes" if v1 else "memory.max"
    mount = V1.replace("cpu,cpuacct", "memory") if v1 else V2
    tree(tmp_path, "4:memory:/a/b\n0::/a/b\n", mount.format(base="/"), {f"{top}/a/{name}": parent, f"{top}/a/b/{name}": own})
    assert memory(tmp_path) == expected


def test_what_exceeds_memory_is_refused(monkeypatch):
    monkeypatch.setattr(ours, "memory", lambda: 3 << 29)
    demand_memory(3 << 29, "it", "take less")
    with pytest.raises(UserError, match=r"^it would take 2\.0 GiB, this machine has 1\.5 GiB; take less$"):
        demand_memory(1 << 31, "it", "take less")
