"""Quantities with units, as people type and read them."""

import pytest

from hogwild.errors import UserError
from hogwild.training import units


@pytest.mark.parametrize("bits, texts", [
    (1e9, ["1Gbps", "1gbit", "1 Gbit/s", "1000Mbit/s", "1000mbps", "125MB/s", "0.125GB/s", "1Gb/s", "125 MBps"]),
    (1e8, ["100mbit", "100Mbps", "100 Mbit/s", ".1Gbps", "100Mbits/s"]), (25e9, ["25gbit", "25Gbps"]), (64e3, ["64kbit"]),
    (8e3, ["8000bit", "8000bps", "1kB/s"])])
def test_a_bandwidth_as_people_write_it(bits, texts):
    for text in texts:
        assert units.rate("--rate", text) == pytest.approx(bits), text
        assert units.rate("--rate", units.rate_text(8 / units.rate("--rate", text))) == pytest.approx(bits, rel=5e-3)


@pytest.mark.parametrize("text", ["", "1", "fast", "1G", "0gbit", "-1Gbps", "1Gbit/h", "1e3Gbps", "nanGbps", "1 2 Gbps",
                                  "9" * 30 + "Gbps"])
def test_no_bandwidth(text):
    with pytest.raises(UserError, match="--rate must be a bandwidth such as 100Mbit/s, 1Gbps or 125MB/s, got"):
        units.rate("--rate", text)


def test_what_is_printed_is_short():
    assert [units.rate_text(8 / bits) for bits in (1e11, 1e9, 9.41e8, 1e5)] == [
        "100 Gbit/s", "1 Gbit/s", "941 Mbit/s", "100 kbit/s"]
    assert [units.time_text(seconds) for seconds in (2.5, 0.143, 5e-5, 1.26e-6)] == ["2.5 s", "143 ms", "50 µs", "1.26 µs"]
    assert [units.bytes_text(number) for number in (0, 812, 2_356_705, 187_500_000)] == ["0 B", "812 B", "2.36 MB", "188 MB"]


@pytest.mark.parametrize("text, steps", [("1", 40), ("0.5epochs", 20), ("1epoch", 40), ("500steps", 500), ("1step", 1),
                                         (2.0, 80), ("0", 0), ("0.25 epochs", 10)])
def test_durations(text, steps):
    assert units.steps_of("--warmup", text, 40) == steps


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "5min", "epochs", "1e", "9" * 40])
def test_no_duration(text):
    with pytest.raises(UserError, match="--warmup must be a duration such as 1epoch or 500steps .*, got"):
        units.steps_of("--warmup", text, 40)
