"""Command lines and TOML files read into dataclasses of options, by tyro; every mistake is one line."""

import contextlib
import io
import itertools
import re
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import tyro

from hogwild.errors import UserError

Flag = tyro.conf.FlagCreatePairsOff
# What tyro says of a value that is no number, for each way an option may ask for one.
NO_NUMBER = re.compile(r"Error parsing (\S+): (?:no type matching \S*\b|invalid literal for |could not convert string to )"
                       r"(int|float)\b.*?\[?(['\"].*['\"])\]?\.?", re.IGNORECASE)


def flat(options) -> dict:
    """Values of a dataclass by name, those of nested ones beside the others."""
    values = {}
    for field in fields(options):
        value = getattr(options, field.name)
        values |= flat(value) if is_dataclass(value) else {field.name: value}
    return values


def defaults(cls, arguments):
    """A `cls` with what the TOML file of --config says, where options of nested dataclasses stand beside the others."""
    path = None
    for i, word in enumerate(arguments):
        if word == "--config" and i + 1 < len(arguments):
            path = arguments[i + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    if path is None:
        return cls()
    try:
        given = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    given = {key.replace("-", "_"): value for key, value in given.items()}
    known = []
    filled = _filled(cls, path, given, known)
    if given:
        raise UserError(f"{path}: unknown option '{next(iter(given))}'; known: {', '.join(known)}")
    return filled


def _filled(cls, path, given, known):
    """`cls` with the options that are its own, which are taken out of `given`; all their names join `known`."""
    values = {}
    for field in fields(cls):
        if is_dataclass(field.type):
            values[field.name] = _filled(field.type, path, given, known)
            continue
        # The name on the command line, where tyro.conf.arg gives another.
        renamed = (mark.name for mark in getattr(field.type, "__metadata__", ()) if getattr(mark, "name", None))
        known.append(next(renamed, field.name).replace("-", "_"))
        if known[-1] in given:
            values[field.name] = _typed(path, known[-1], field.type, given.pop(known[-1]))
    return cls(**values)


def _typed(path, name, kinds, value):
    """A TOML value as the option's type."""
    if hasattr(kinds, "__metadata__"):  # Annotated
        kinds = kinds.__origin__
    kind = next(k for k in (bool, Path, float, int, str) if k in getattr(kinds, "__args__", (kinds,)))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path}: {name} must be of type {kind.__name__}, got {value!r}")
    return value


def parsed(command, options, arguments, **more):
    """tyro's parse, with its framed error messages made one line; --help as it is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, prog=command, args=arguments, config=(Flag, tyro.conf.OmitArgPrefixes), **more)
    except SystemExit as stop:
        if not stop.code:
            raise
        # A title, then blocks between rules; drawn with ASCII where the terminal knows no better.
        rows = [line.strip("│|╭╮╰╯─+ ") for line in said.getvalue().splitlines()]
        content = itertools.dropwhile(_is_rule, rows[1:])
        message = " ".join(" ".join(itertools.takewhile(lambda row: not _is_rule(row), content)).split())
        near = next((row.split()[0] for row in rows if row.startswith("--") and not _is_rule(row)), None)
        meant = f"; did you mean {near}?" if near and any("Perhaps" in row for row in rows) else ""
        raise UserError(f"{_plain(message)}{meant} (see {command} --help)") from None


def _plain(message) -> str:
    """tyro's message, where it tells of its types, in words that say what was needed."""
    if not (found := NO_NUMBER.fullmatch(message)):
        return message
    name, kind, got = found.groups()
    return f"{name} needs a {'whole ' * (kind.lower() == 'int')}number, got {got}"


def _is_rule(row) -> bool:
    return not row.strip("-")
