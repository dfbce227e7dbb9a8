"""Byte counters of the network interfaces: a check of the bytes that the program counts itself."""

import os
import socket
import zlib
from pathlib import Path

COUNTERS = Path("/proc/net/dev")


def sent() -> int:
    """Bytes that the interfaces of this host but loopback have sent since they came up; 0 where /proc has no counters."""
    return sum(sent_by_name().values())


def sent_by_name() -> dict[str, int]:
    """The same, for each interface."""
    try:
        lines = COUNTERS.read_text().splitlines()[2:]
    except OSError:
        return {}
    rows = (line.replace(":", " ", 1).split() for line in lines)  # the name, eight counts of what came, and of what went
    return {row[0]: int(row[9]) for row in rows if row[0] != "lo"}


def host() -> int:
    """A hash of host and network namespace: equal for processes that share these counters."""
    try:
        namespace = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        namespace = 0
    return zlib.crc32(f"{socket.gethostname()} {namespace}".encode())
