"""The command of a cell: the text of an experiment with the values of its axes in the places of {AXIS}, and its words."""

import difflib
import itertools
import re
import shlex

from hogwild.errors import UserError

BUILT_IN = ("seed", "record", "data")  # what a command may hold besides axes
STARTED = ("ranks", "link")  # axes that say how the command is started
LONGEST = 100_000  # characters of a command
OF_A_SHELL = ("|", "||", "&", "&&", ";", ">", ">>", "<", "2>&1", "2>")
PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


def text(experiment, axes, seed, used=None) -> str:
    """The command of a cell; {record} and {data} stay. used: a set that the names in it join."""
    text, kept = experiment.command, {name: f"{{{name}}}" for name in ("record", "data")}
    known = {**kept, "seed": str(seed), **{axis: experiment.value(axis, value).text for axis, value in axes.items()}}

    def put(found):
        if used is not None:
            used.add(found[1])
        return known.get(found[1], found[0])
    for _ in range(5):  # the text of a value may hold other axes
        text = PLACE.sub(put, text)
        if len(text) > LONGEST:
            raise UserError(f"{experiment.name}: the command has more than {LONGEST:,} characters")
    return text


def filled(words, record, data) -> list[str]:
    """`words` with a file and a folder in the places of {record} and {data}."""
    return [word.replace("{record}", str(record)).replace("{data}", str(data)) for word in words]


def check(path, at, experiment, block):
    """Raise UserError for a command that cannot be made, or run, of the axes of `block`. at: that block, for messages."""
    used = set()
    for values in itertools.product(*block.values()):
        command = text(experiment, dict(zip(block, values)), 0, used)
        if left := set(PLACE.findall(command)) - set(BUILT_IN):
            raise UserError(f"{at}: the command needs {{{min(left)}}}, which is no axis of this block")
        if "{record}" not in command:
            raise UserError(f"{path}: command must hold {{record}}, the file to which the run writes")
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"{path}: command: {error}: {command}") from None
        if words[0] in ("mpiexec", "mpirun") and set(STARTED) & set(block):
            raise UserError(f"{path}: command: begins with {words[0]}, which the axes {' and '.join(STARTED)} put in front "
                            "themselves; leave it out")
        if shell := [word for word in words if word in OF_A_SHELL]:
            raise UserError(f"{path}: command: holds '{shell[0]}', but no shell runs it; write a program that does this")
    for axis in [axis for axis in block if axis not in used and axis not in STARTED]:
        close = difflib.get_close_matches(axis, STARTED, 1, 0.8)
        if close or len(block[axis]) > 1:  # a single value may be there for figures and tables
            raise UserError(f"{at}: {axis} changes nothing, as the command holds no {{{axis}}}"
                            + (f"; meant is perhaps '{close[0]}'" if close else ""))
