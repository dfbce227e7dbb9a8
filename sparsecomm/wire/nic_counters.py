"""What the network interfaces counted, beside what the program meant to send."""

import os
import socket
import zlib
from pathlib import Path

COUNTERS = Path("/proc/net/dev")


def sent() -> int:
    """Bytes that the interfaces of this host, loopback left out, have sent since they came up; 0 if nothing tells."""
    try:
        lines = COUNTERS.read_text().splitlines()[2:]
    except OSError:
        return 0
    rows = (line.replace(":", " ", 1).split() for line in lines)  # the name, eight counts of what came, and of what went
    return sum(int(row[9]) for row in rows if row[0] != "lo")


def host() -> int:
    """A number that processes have in common just when they share these counters: a hash of host and network namespace."""
    try:
        namespace = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        namespace = 0
    return zlib.crc32(f"{socket.gethostname()} {namespace}".encode())
