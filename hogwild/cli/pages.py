"""The pages of --help and --version, as wide as the terminal."""

import contextlib
import importlib.util
import io
import itertools
import os
import platform
import re
import shutil
import textwrap
from importlib import metadata

from hogwild._version import attribute
from hogwild.cli.declared import GROUPS

LEFT = 24  # columns for the options
WIDEST = 100  # columns: longer lines are hard to read
VALUE = re.compile("( -[a-z-]+) (?!-)")  # an option and its value, which stay on one line
PACKAGES = "numpy", "numba", "scikit-learn", "torch", "mpi4py"


def width() -> int:
    """Columns of the terminal, at most 100; without a terminal COLUMNS or, where that is not set, 80."""
    return min(max(shutil.get_terminal_size().columns, 40), WIDEST)


def wrapped(text) -> str:
    """Paragraphs filled to the width; an indented line is a command, which a shell reads in several lines too."""
    lines = []
    for command, group in itertools.groupby(text.splitlines(), lambda line: line[:2] == "  " if line else None):
        if command:
            for line in group:
                parts = _filled(VALUE.sub("\\1\0", line.strip()), "  ", "      ", 2)
                lines.append(" \\\n".join(parts).replace("\0", " "))
        else:
            lines += _filled(" ".join(group)) or [""]
    return "\n".join(lines)


def _filled(text, first="", others="", less=0) -> list[str]:
    return textwrap.wrap(text, width() - less, initial_indent=first, subsequent_indent=others, break_on_hyphens=False,
                         break_long_words=False)


def _usage(text) -> str:
    return "\n".join(_filled(f"usage: {text}", others="    "))


def _rows(rows, left) -> str:
    """Pairs of what is typed and what it does, the second beside the first where there is room for that."""
    lines, left = [], left if width() >= 64 else 6
    for call, text in rows:
        what = [line for part in text.splitlines() for line in _filled(part.strip(), " " * left, " " * left)] or [""]
        if len(call) + 4 > left:
            lines.append(f"  {call}")
        else:
            what[0] = f"  {call:<{left - 2}}" + what[0][left:]
        lines += what
    return "\n".join(lines)


def overview(usage, about, commands, *notes) -> str:
    """What a command without a sub-command prints. commands: what each sub-command does, by how it is called."""
    rows = {**commands, "--version": "print versions of the package and of what it runs on"}
    return "\n\n".join([_usage(usage), wrapped(about), _rows(rows.items(), 34), *map(wrapped, notes)])


def page(command, about, options, more) -> str:
    """The --help of a sub-command with these Options (hogwild.cli.declared), in groups."""
    groups = {"arguments": [option for option in options if option.positional]}
    for option in sorted(options, key=lambda option: GROUPS.index(option.group) if option.group in GROUPS else len(GROUPS)):
        if not option.positional:
            groups.setdefault(option.group, []).append(option)
    words = [command, "[OPTION …]" if len(groups) > 1 else "", *(option.call for option in groups["arguments"]), more]
    usage = " ".join(filter(None, words))
    parts = [_usage(usage), wrapped(about)]
    for name, group in groups.items():
        if group:
            parts.append(f"{name}:\n" + _rows([(option.call, option.help()) for option in group], LEFT))
    return "\n\n".join(parts)


def versions() -> str:
    """What --version prints: the package, then a line each for Python and what is installed of what it may use."""
    lines = [f"hogwild-sparsecomm {attribute('hogwild', '__version__')}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{name} {metadata.version(name)}")
    return "\n".join([*lines, *_mpi()])


def _mpi() -> list[str]:
    """The MPI library that mpi4py finds, which needs no launcher."""
    if importlib.util.find_spec("mpi4py") is None:
        return []
    import mpi4py
    mpi4py.rc.initialize = mpi4py.rc.finalize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return ["MPI: " + " ".join(str(error).split())]
    library = MPI.Get_library_version().partition("\n")[0].partition(",")[0].strip("\0 ")
    return [" ".join(library.replace("Version:", "").split())]


def printed(main, command, columns=80) -> str:
    """The whole --help of a sub-command: what main(arguments) prints. command: its words, [] for the overview."""
    said, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({} if before is None else {"COLUMNS": before})
    return said.getvalue()
