"""Interface counters as Linux prints them."""

import subprocess
import sys

from sparsecomm import interfaces

TEXT = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9000       90    0    0    0     0          0         0     9000      90    0    0    0     0       0          0
  eth0:100 1 0 0 0 0 0 0 1234 5 0 0 0 0 0 0
  eth1: 7       1    0    0    0     0          0         0     4000000000001       5    0    0    0     0       0          0
"""


def test_sent_bytes_of_all_but_loopback(monkeypatch, tmp_path):
    monkeypatch.setattr(interfaces, "COUNTERS", tmp_path / "dev")
    assert interfaces.sent() == 0
    (tmp_path / "dev").write_text(TEXT)
    assert interfaces.sent() == 1234 + 4000000000001


def test_processes_of_one_host_share_its_number():
    other = subprocess.run([sys.executable, "-c", "from sparsecomm import interfaces; print(interfaces.host())"],
                           capture_output=True, text=True)
    assert int(other.stdout) == interfaces.host()
