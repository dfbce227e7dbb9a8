"""The code blocks of README.md and docs/, run as a reader runs them, and what the documentation says they print.

Languages: `bash` is run; of `console` the lines after "$ " are run and the others compared with what is printed, where
numbers may differ and "…" is any text; `python` with a title is a file for the commands beside it (those that no command
names run on two ranks together), without a title it runs with the others of its page, in order, as one module. A block
whose first line begins with one of `NOT_RUN` is left alone. Files that the pages take for granted are made by `furnish`.
"""

import lzma
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command import svm
from mpi import QUIET

from hogwild.experiments.plan import published

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "# not run here: ", "# not run by the tests: "
FENCE = re.compile(r"^( *)```(\w+)?(?: title=\"([^\"]*)\")?[^\n`]*\n(.*?)^ *```$", re.M | re.S)
RUN = "bash", "console", "python"
SHOWN = "diff", "text", "toml", "json"  # not run


class Block(NamedTuple):
    """A fenced block."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self):
        return f"{self.page.name}:{self.line}"


def blocks(page) -> list[Block]:
    """Of a page, in order."""
    text = page.read_text()
    return [Block(page, text.count("\n", 0, found.start()) + 1, found[2] or "", found[3] or "",
                  included(re.sub(f"^{found[1]}", "", found[4], flags=re.M))) for found in FENCE.finditer(text)]


def included(text) -> str:
    """The text with the files that it includes."""
    return re.sub(r'--8<-- "([^":]+)"', lambda found: (ROOT / found[1]).read_text().rstrip("\n"), text)


def is_run(block) -> bool:
    return block.language in RUN and not block.text.startswith(NOT_RUN)


def furnish(folder):
    """Make the files that the pages take for granted; those of imdb where the data set is there."""
    for path in (ROOT / "docs" / "examples").glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    for k, name in enumerate(("reviews", "held-out", "other")):
        (folder / f"{name}.svm.xz").write_bytes(lzma.compress(svm(folder / "rows", seed=k).read_bytes()))
    rng = np.random.default_rng(0)
    rows = [f"{age},{'city' if age % 3 else 'land'},{'high' if age > 40 else 'low'}" for age in rng.integers(18, 80, 300)]
    (folder / "people.csv").write_text("\n".join(["age,home,income", *rows]) + "\n")
    ratings = [f"u{u},film {i},{5 - 4 * ((u + i) % 2)}" for u in range(60) for i in rng.choice(40, 20, replace=False)]
    (folder / "ratings.csv").write_text("\n".join(["user,item,rating", *ratings]) + "\n")
    (folder / "mnist").mkdir()
    for part, n in ("train", 200), ("t10k", 50):
        for name, x in ("images-idx3", rng.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10):
            head = b"\0\0\x08" + bytes([x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
            (folder / "mnist" / f"{part}-{name}-ubyte").write_bytes(head + x.astype(np.uint8).tobytes())
    (folder / "ptb").mkdir()
    for part, n in ("train", 400), ("valid", 50):
        (folder / "ptb" / f"ptb.{part}.txt").write_text("the cat sat on the mat\n" * n)
    for path in (published.folder() / "imdb").glob("imdb-bow.*"):
        (folder / path.name).symlink_to(path)


def shell(command, folder) -> str:
    """Standard output of a command in bash; AssertionError with what it printed where it fails."""
    scripts = Path(sys.executable).parent
    env = {**os.environ, **QUIET, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    ended = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=env, capture_output=True, text=True,
                           timeout=300)
    assert ended.returncode == 0, f"{command}\nexit code {ended.returncode}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def sessions(text):
    """(command, what it prints) of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.M)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def same_words(said, printed) -> bool:
    """Whether two texts are alike but for numbers, blanks at the ends of lines and what "…" stands for."""
    pattern = ".*".join(re.escape(worded(part)) for part in said.strip().split("…"))
    return re.fullmatch(pattern, worded(printed.strip()), re.S) is not None


def worded(text) -> str:
    """A text with one sign for each number, and one blank for several."""
    return re.sub(r"[ \t]+", " ", re.sub(r"\d[\d,.]*(e[+-]?\d+)?", "#", text)).replace(" \n", "\n")
