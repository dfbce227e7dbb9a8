"""Cores and memory that this process may use, by affinity and control groups."""

import math
import os
from pathlib import Path

from hogwild.errors import UserError
from hogwild.training.workers import cores

CPU = {"cgroup2": "", "cgroup": "cpu"}  # by the mount's type the controller, as /proc/self/cgroup names it
MEMORY = {"cgroup2": "", "cgroup": "memory"}
GIB = 2.0**30


def usable_cores(root="/") -> tuple[int, str]:
    """(cores this process can keep busy, at least 1; text that says what limits them).

    The smaller of its affinity and of its cgroup's limit on CPU time, rounded up: a limit of 1.5 feeds two threads.
    root: the folder with proc and sys.
    """
    available, machine = cores(), os.cpu_count() or 1
    limit = min(_limits(root, CPU, _cores_of), default=math.inf)
    if limit < available:
        count = max(math.ceil(limit), 1)
        return count, f"{_plural(count, 'core')} (cgroup limit {limit:.3g} of {available})"
    return available, _plural(available, "core") + (f" (affinity, of {machine})" if available < machine else "")


def memory(root="/") -> int:
    """Bytes of memory that this process may allocate: the machine's or, if that is less, its cgroup's."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(physical, min(_limits(root, MEMORY, _bytes_of), default=physical))


def demand_memory(needed, what, remedy):
    """Raise UserError where `what` needs more bytes than `memory()`; remedy: advice for the message."""
    if needed > memory():
        raise UserError(f"{what} would take {needed / GIB:,.1f} GiB, this machine has {memory() / GIB:,.1f} GiB; {remedy}")


def _limits(root, controllers, limit):
    """Yield limit(folder, kind) of this process's cgroups and their parents up to the mount, v1 and v2, that have one."""
    try:
        groups = [line.split(":", 2) for line in Path(root, "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.partition(" - ") for line in Path(root, "proc/self/mountinfo").read_text().splitlines()]
        paths = {controller: path for _, names, path in groups for controller in names.split(",")}  # v2 has the name ""
        for left, _, right in mounts:
            (_, _, _, base, point, *_), (kind, *_, options) = left.split(), right.split()
            controller = controllers.get(kind)
            if controller is None or controller not in paths or kind == "cgroup" and controller not in options.split(","):
                continue
            inner = os.path.relpath(paths[controller], base)  # in a container the mount may begin below the root
            top = Path(root, point.lstrip("/"))
            folder = top if inner.startswith("..") else top / inner
            for where in (folder, *folder.parents):
                try:
                    found = limit(where, kind)
                    if found > 0:
                        yield found
                except (OSError, ValueError, ZeroDivisionError):  # "max", or the root, which has no such file
                    pass
                if where == top:
                    break
    except (OSError, ValueError):  # not Linux, or a form unknown: no limit is known
        return


def _cores_of(folder, kind):
    if kind == "cgroup2":
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota) / int(period)


def _bytes_of(folder, kind):
    return int((folder / ("memory.max" if kind == "cgroup2" else "memory.limit_in_bytes")).read_text())


def _plural(count, noun) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
