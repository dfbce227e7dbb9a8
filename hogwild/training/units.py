"""Quantities with a unit, as people type and read them."""

import re

from hogwild.errors import UserError

COUNTS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
PREFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
BITS, BYTES = ("bit/s", "bits/s", "bit", "bits", "bps", "b/s"), ("B/s", "Bps", "byte/s", "bytes/s")
DURATIONS = {"": True, "epoch": True, "epochs": True, "step": False, "steps": False}  # whether in epochs
NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(\S*)\s*")
MOST = 1e18


def quantity(option, text, units) -> float:
    """The value of `text`, a positive number with one of `units` (factors by name, in small letters). Raises UserError."""
    found = NUMBER.fullmatch(text)
    if not found or (unit := found[2].lower()) not in units or not 0 < float(found[1]) * units[unit] < MOST:
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{option} must be a positive number and a unit ({known}), got '{text}'")
    return float(found[1]) * units[unit]


def rate(option, text) -> float:
    """Bits a second of a bandwidth: 100Mbit/s, 1Gbps, 25gbit; with a large B bytes: 125MB/s. Raises UserError."""
    found = NUMBER.fullmatch(text)
    prefix, unit = (found[2][:1], found[2][1:]) if found and found[2][:1].lower() in ("k", "m", "g", "t") else (
        "", found[2] if found else "")
    bits = 8 if unit in BYTES else 1 if unit.lower() in BITS else 0
    value = bits * PREFIXES[prefix.lower()] * float(found[1]) if found else 0
    if not 0 < value < MOST:
        raise UserError(f"{option} must be a bandwidth such as 100Mbit/s, 1Gbps or 125MB/s, got '{text}'")
    return value


def steps_of(option, duration, steps) -> float:
    """Steps of a duration: 500steps, 2epochs, or a number of epochs. steps: of an epoch. Raises UserError."""
    found = re.fullmatch(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*", str(duration))
    unit = found[2] if found else "none"
    if unit not in DURATIONS or not (value := float(found[1]) * (steps if DURATIONS[unit] else 1)) < MOST:
        raise UserError(f"{option} must be a duration such as 1epoch or 500steps (a number alone: epochs), got '{duration}'")
    return value


def time_text(seconds) -> str:
    """Seconds as a person writes them: 1.3 µs, 2 ms, 1.5 s."""
    return _scaled(seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "µs")))


def rate_text(seconds_a_byte) -> str:
    """Seconds a byte as a bandwidth: 941 Mbit/s, 10.2 Gbit/s."""
    return _scaled(8 / max(seconds_a_byte, 1e-15), ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s")))


def bytes_text(number) -> str:
    """Bytes in the unit in which they are short: 812 B, 2.36 MB."""
    return f"{number:,.0f} B" if number < 1000 else _scaled(number, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")))


def _scaled(x, units) -> str:
    """x with 3 digits in the first unit of which it is at least 1, but for rounding."""
    factor, unit = next((unit for unit in units if x >= 0.9995 * unit[0]), units[-1])
    return f"{x / factor:{'.3g' if x < 999.5 * factor else ',.0f'}} {unit}"
