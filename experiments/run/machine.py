"""One line that says where and with what a benchmark ran."""

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path

PACKAGES = "numba", "numpy", "torch", "scikit-learn"


def describe() -> str:
    """Processor, cores this process may use, system, versions of what is compared, and today's date."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    model = named[1] if named else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return (f"{model}, {cores} cores, {platform.system()} {platform.machine()}; Python {platform.python_version()}, "
            f"{versions}; {datetime.date.today()}")


def cores_of(description) -> int:
    """The cores that a `describe` names; 0 where it names none."""
    named = re.search(r", (\d+) cores, ", description)
    return int(named[1]) if named else 0


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"
