"""Interface counters as Linux prints them."""

import subprocess
import sys

from sparsecomm.wire import nic_counters

TEXT = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9000       90    0    0    0     0          0         0     9000      90    0    0    0     0       0          0
  eth0:100 1 0 0 0 0 0 0 1234 5 0 0 0 0 0 0
  eth1: 7       1    0    0    0     0          0         0     4000000000001       5    0    0    0     0       0          0
"""


def test_sent_bytes_of_all_but_loopback(monkeypatch, tmp_path):
    monkeypatch.setattr(nic_counters, "COUNTERS", tmp_path / "dev")
    assert nic_counters.sent() == 0
    (tmp_path / "dev").write_text(TEXT)
    assert nic_counters.sent() == 1234 + 4000000000001


def test_processes_of_one_host_share_its_number():
    other = subprocess.run([sys.executable, "-c", "from sparsecomm.wire import nic_counters; print(nic_counters.host())"],
                           capture_output=True, text=True)
    assert int(other.stdout) == nic_counters.host()
