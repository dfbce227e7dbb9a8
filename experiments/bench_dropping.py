"""What gradient dropping costs in accuracy and saves in bytes: `mpiexec -n P sparsecomm train …` on real data.

python -m experiments.bench_dropping [--only mnist,ptb,imdb] [--ranks 2,4] [--seeds 1] [--epochs N] [--data FOLDER]

Every row is a run of its own, with the options that the row shows; where several seeds are run it is their median. Ranks
share this machine's cores: the bytes are those of any machine, the seconds are not. The bytes are what a rank meant to
send, headers included; dense is what an Allreduce of float32 moves, 2 n (P - 1) / P numbers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.datasets import DATA
from experiments.machine import describe

HALF = "--value-code float16 --exchange balanced"
DROPPED = {"90% dropped": "--keep 0.1", "99% dropped": "--keep 0.01", "99.9% dropped": "--keep 0.001"}
MNIST = {
    "dense": "--exchange dense",
    **{name: f"{keep} {HALF}" for name, keep in DROPPED.items()},
    **{f"{name}, global threshold": f"{keep} {HALF} --scope global" for name, keep in DROPPED.items() if "99" in name},
    **{f"{name}, warm-up": f"{keep} {HALF} --drop-warmup 1" for name, keep in DROPPED.items() if "99" in name},
    "99% dropped, no residual": f"--keep 0.01 {HALF} --no-residual",
}
PTB = {
    "dense": "--exchange dense",
    "99% dropped": f"--keep 0.01 {HALF}",
    "99% dropped, warm-up": f"--keep 0.01 {HALF} --drop-warmup 1",
    "dense, momentum": "--exchange dense --rule momentum --lr 0.5",
    "99% dropped, momentum": f"--keep 0.01 {HALF} --rule momentum --lr 0.5",
    "99% dropped, momentum correction": f"--keep 0.01 {HALF} --rule sgd --lr 0.5 --momentum-correction 0.9",
}
IMDB = {"dense": "--exchange dense", "99% dropped": f"--keep 0.01 {HALF}"}
# name: (task and data, epochs, metric, runs, ranks)
SETS = {
    "mnist": ("mlp {data}/mnist", 3, "accuracy", MNIST, None),
    "ptb": ("lm {data}/ptb --clip-norm 5", 2, "perplexity", PTB, (2,)),
    "imdb": ("linear {data}/imdb/imdb-bow.train.svm.xz --test {data}/imdb/imdb-bow.test.svm.xz --transform log,l2", 5,
             "accuracy", IMDB, None),
}


def run(ranks, command, seed):
    """Epoch events of one run. Raises SystemExit with what it said, where it failed."""
    here = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.jsonl"
        launcher = [str(here / "mpiexec"), "-n", str(ranks)] if ranks > 1 else []
        ended = subprocess.run([*launcher, str(here / "sparsecomm"), "train", *command.split(), "--seed", str(seed),
                                "--record", str(record)], capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"sparsecomm train {command}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")
        events = [json.loads(line) for line in record.read_text().splitlines()]
    return [event for event in events if event["event"] == "epoch"]


def row(name, ranks, task, options, epochs, metric, seeds, dense):
    """Print a row of the table; the bytes of a step and rank."""
    last = [run(ranks, f"{task} --epochs {epochs} {options}", seed)[-1] for seed in range(seeds)]
    values, size = [event["metrics"][metric] for event in last], statistics.median(event["bytes_per_step"] for event in last)
    spread = f" ({min(values):.4f} to {max(values):.4f})" if seeds > 1 else ""
    fewer = f"{dense / size:,.0f}" if dense and size else "1" if ranks > 1 else "-"
    kept, seconds = (statistics.median(event[key] for event in last) for key in ("kept", "seconds"))
    print(f"| {ranks} | {name} | {statistics.median(values):.4f}{spread} | {kept:.2%} | {size:,.0f} | {fewer} | "
          f"{seconds:.1f} | `{options}` |", flush=True)
    return size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    print(describe())
    for name in options.only.split(","):
        task, epochs, metric, runs, only = SETS[name]
        if not (options.data / name).exists():
            print(f"\n{name}: skipped, no {options.data / name}")
            continue
        epochs, task = options.epochs or epochs, task.format(data=options.data)
        shown = task.replace(str(options.data), "DATA")
        print(f"\n{name}: {metric} after {epochs} epochs, `sparsecomm train {shown} --epochs {epochs} …`\n\n"
              f"| ranks | | {metric} | kept in the last epoch | bytes a step and rank | times fewer than dense | "
              "s the last epoch | options |\n|---:|---|---:|---:|---:|---:|---:|---|")
        for ranks in only or [int(number) for number in options.ranks.split(",")]:
            dense = None
            for label, more in runs.items():
                size = row(label, ranks, task, more, epochs, metric, options.seeds, dense)
                dense = dense or size


if __name__ == "__main__":
    main()
