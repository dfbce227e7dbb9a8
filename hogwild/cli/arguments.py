"""Command lines parsed into dataclasses of options, by tyro; every mistake is one line."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import sys

import tyro

from hogwild.cli import pages
from hogwild.cli.declared import built, options_of, view
from hogwild.errors import UserError

CONFIG = tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName, tyro.conf.DisallowNone
# What tyro says of a value that is no number, for each way an option may ask for one.
NO_NUMBER = re.compile(r"Error parsing (\S+): (?:no type matching \S*\b|invalid literal for |could not convert string to )"
                       r"(int|float)\b.*?\[?(['\"].*['\"])\]?\.?", re.IGNORECASE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NO_VALUE = re.compile(r"Missing value for argument '(\S+)'.*")


def parsed(command, options, arguments, default=None, description=None, more=""):
    """An `options` of the command line, parsed by tyro, whose framed error messages become one line; --help ends here.

    default: an `options` whose values are the defaults. description: the text of --help; None: the docstring.
    more: what follows the options, for the usage.
    """
    if "-h" in arguments or "--help" in arguments:
        print(pages.page(command, description or inspect.getdoc(options), list(options_of(options, default)), more))
        sys.exit(0)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = tyro.cli(view(options, default), prog=command, args=arguments, config=CONFIG, add_help=False)
    except SystemExit:
        raise UserError(f"{_line(said.getvalue(), options, default)} (see {command} --help)") from None
    return built(options, vars(given))


def _line(said, options, default) -> str:
    """tyro's message in a line."""
    # A title, then blocks between rules; drawn with ASCII where the terminal knows no better.
    said = COLOUR.sub("", said)
    rows = [line.strip("│|╭╮╰╯─+ ") for line in said.splitlines()]
    content = itertools.dropwhile(_is_rule, rows[1:])
    message = " ".join(" ".join(itertools.takewhile(lambda row: not _is_rule(row), content)).split())
    if message.startswith("Unrecognized options: "):
        words = message.partition(": ")[2].split(", ")
        unknown = [word for word in words if word.startswith("-")]
        if not unknown:
            return f"surplus argument '{words[0]}'"
        near = next((row.split()[0] for row in rows if row.startswith("--") and not _is_rule(row)), None)
        return f"unknown option {unknown[0]}" + (f"; did you mean {near}?" if near and "Perhaps you meant" in said else "")
    if message.startswith(("Missing from", "The following arguments are required")):
        needed = [option.shown for option in options_of(options, default) if option.default is dataclasses.MISSING]
        return f"missing: {', '.join(each for each in needed if each in message)}"
    if found := NO_VALUE.fullmatch(message):
        return f"{found[1]} needs a value" if found[1].startswith("-") else f"missing: {found[1].upper()}"
    if found := NO_NUMBER.fullmatch(message):
        name, kind, got = found.groups()
        return f"{name} needs a {'whole ' * (kind.lower() == 'int')}number, got {got}"
    return message


def meant(word, known) -> str:
    """What is said of a word that is like one of those known, else ""."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_rule(row) -> bool:
    return not row.strip("-")
