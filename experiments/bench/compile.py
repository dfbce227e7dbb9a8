"""CPU seconds that the first run of some options compiles for: each command with kernels to compile, less the same again.

python -m hogwild.experiments.bench.compile [--repeats 3]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hogwild.experiments.run.machine import describe

TRAIN = ("train", "linear", "--epochs", "1")
# Each with the kernels that those before it in the list have compiled; the first with none.
SEQUENCES = {
    "two workers": {"default options": TRAIN, "then another rule": (*TRAIN, "--rule", "adam"),
                    "then another loss": (*TRAIN, "--loss", "hinge"),
                    "then all shared": (*TRAIN, "--replicas", "none"),
                    "then evaluate": ("evaluate", "model.safetensors", "rows.svm")},
    "one worker": {"default options": (*TRAIN, "--workers", "1"),
                   "then another rule": (*TRAIN, "--workers", "1", "--rule", "adam"),
                   "then another loss": (*TRAIN, "--workers", "1", "--loss", "hinge")},
}


def cpu_seconds(arguments, kernels, folder) -> float:
    """User and system time of a `hogwild` command that finds compiled kernels in one folder, and no data cached."""
    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    with tempfile.TemporaryDirectory() as data:
        env = os.environ | {"NUMBA_CACHE_DIR": str(kernels), "XDG_CACHE_HOME": data}
        before = used()
        subprocess.run([sys.executable, "-m", "hogwild", *arguments], check=True, cwd=folder, env=env, capture_output=True)
        return used() - before


def compile_seconds(sequence) -> list[float]:
    """What each command of a sequence compiles for, with the kernels of those before it."""
    with tempfile.TemporaryDirectory() as kernels, tempfile.TemporaryDirectory() as folder:
        seconds = []
        Path(folder, "rows.svm").write_text("+1 1:1 40000:1\n-1 2:1 40000:1\n")
        for arguments in sequence:
            out = ("--model", "model.safetensors") if arguments[0] == "train" else ()
            cold, warm = (cpu_seconds((*arguments, *out), kernels, Path(folder)) for _ in range(2))
            seconds.append(cold - warm)
        return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe())
    print(f"\nCPU seconds of compilation, medians of {options.repeats}\n")
    print("| workers | run | CPU seconds |\n|---|---|---|")
    for workers, sequence in SEQUENCES.items():
        repeats = [compile_seconds(sequence.values()) for _ in range(options.repeats)]
        for name, seconds in zip(sequence, zip(*repeats)):
            print(f"| {workers} | {name} | {statistics.median(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
