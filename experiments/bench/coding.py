"""Bits and time of every index and value code, beside zlib on the gaps, interleaved with `np.add` over all n floats.

Selecting the values takes about 1.3 times `np.add(r, g, out=r)`; encode and decode should take a fifth of that, 0.26.
The time to encode holds a copy of the values too, since encode consumes them.
"""

import argparse
import math
import zlib

import numpy as np

from hogwild.experiments.bench.dense import medians
from hogwild.experiments.run.machine import describe
from hogwild.kernels.compression.index_codes import VALUE_CODES, decode, encode, most_bytes
from hogwild.kernels.compression.value_codes import VALUES

CODES = [("raw", "float32"), ("bitmap", "float32"), *(("rice", code) for code in VALUE_CODES)]
HEADINGS = ["kept", "indices", "values", "message bytes", "bits/index", "over entropy", "bits/value",
            "encode ms", "decode ms", "both, of np.add"]


def entropy(p):
    """Bits an index of random positions with density p."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) / p


class Message:
    """One pair of codes on one selection: `encode` and `decode` to time, and what they wrote."""

    def __init__(self, indices, values, n, codes):
        self.indices, self.values, self.n, self.codes = indices, values, n, codes
        self.lost, self.got = values.copy(), (np.empty_like(indices), np.empty_like(values))
        self.out = np.empty(most_bytes(values.size, n, *codes), np.uint8)
        self.encode()
        self.decode()
        assert np.array_equal(self.got[0], indices)

    def encode(self):
        np.copyto(self.lost, self.values)
        self.size, _ = encode(self.indices, self.lost, self.n, *self.codes, self.out)

    def decode(self):
        decode(self.out[:self.size], self.values.size, self.n, *self.codes, *self.got)


class Zlib:
    """The foreign yardstick: level 1 on uint32 gaps, no values."""

    codes = "zlib -1", "-"

    def __init__(self, indices):
        self.indices = indices
        self.encode()

    def encode(self):
        self.data = zlib.compress(np.diff(self.indices, prepend=np.uint32(0)).tobytes(), 1)
        self.size = len(self.data)

    def decode(self):
        return np.cumsum(np.frombuffer(zlib.decompress(self.data), np.uint32), dtype=np.uint32)


def rows(density, r, g, rng, repeats):
    """The table's rows at one density."""
    indices = np.flatnonzero(rng.random(r.size, dtype=np.float32) < density).astype(np.uint32)
    values, count = rng.standard_normal(indices.size, dtype=np.float32), indices.size
    messages = [*(Message(indices, values, r.size, codes) for codes in CODES), Zlib(indices)]
    calls = {(message, kind): getattr(message, kind) for message in messages for kind in ("encode", "decode")}
    took = medians({"add": lambda: np.add(r, g, out=r), **calls}, repeats)
    for message in messages:
        least, encoding, decoding = entropy(count / r.size), took[message, "encode"], took[message, "decode"]
        of_values = VALUES[message.codes[1]].nbytes(count) if isinstance(message, Message) else 0
        bits = (message.size - of_values) * 8 / count
        yield [f"{density:.1%}", *message.codes, f"{message.size:,}", f"{bits:.3f}", f"{bits / least - 1:+.1%}",
               f"{of_values * 8 / count:.2f}", f"{encoding * 1e3:.2f}", f"{decoding * 1e3:.2f}",
               f"{(encoding + decoding) / took['add']:.2f}"]
    yield [f"{density:.1%}", "entropy", "-", f"{math.ceil(least * count / 8):,}", f"{least:.3f}", "-", "-", "-", "-",
           f"np.add {took['add'] * 1e3:.1f} ms"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=lambda text: int(float(text)), default=25_000_000, help="float32 elements")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts")
    options = parser.parse_args()
    print(f"{describe()}\n")
    print(f"random positions among {options.n:,}, one thread, medians of {options.repeats} interleaved rounds; aim: within "
          "3% of the entropy, both within 0.26 of np.add at 1%\n")
    print(f"| {' | '.join(HEADINGS)} |\n|---:|---|---|{'---:|' * 7}")
    rng = np.random.default_rng(0)
    r, g = (rng.standard_normal(options.n, dtype=np.float32) for _ in range(2))
    for density in 0.1, 0.01, 0.001:
        for row in rows(density, r, g, rng, options.repeats):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
