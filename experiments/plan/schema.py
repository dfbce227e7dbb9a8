"""Tables of a TOML file as dataclasses; a mistake is a UserError that names the file and the key."""

import difflib
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hogwild.errors import UserError


def table(at, given):
    """`given`, which must be a table."""
    if not isinstance(given, dict):
        raise UserError(f"{at} must be a table, got {given!r}")
    return given


def unknown(at, what, name, among) -> UserError:
    """The error for a name that is none of `among`. what: of a key "key ", or empty."""
    close = difflib.get_close_matches(name, map(str, among), 1)
    meant = f", meant is perhaps '{close[0]}'" if close else ""
    return UserError(f"{at}: unknown {what}'{name}'{meant}; there are {', '.join(map(str, among)) or 'none'}")


def build(cls, at, given, own=None):
    """A `cls` from a TOML table, whose keys are its fields but for those in `own`, which have their values from there.

    at: file and key, for messages.
    """
    values = dict(own or {})
    known = {each.name: each for each in fields(cls) if each.name not in values}
    for key in table(at, given):
        if key not in known:
            raise unknown(at, "key ", key, known)
    for name, each in known.items():
        if name in given:
            values[name] = _typed(f"{at}: {name}", each.type, given[name])
        elif each.default is MISSING and each.default_factory is MISSING:
            raise UserError(f"{at}: {name} is missing")
    return cls(**values)


def _typed(at, kind, value):
    """`value` as `kind`, an annotation; a table becomes the dataclass that is asked for."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        made = _one(at, option, value)
        if made is not None:
            return made
    raise UserError(f"{at} must be {' or '.join(_said(option) for option in options)}, got {value!r}")


def _one(at, kind, value):
    """`value` as `kind`; None where it is of another."""
    origin = get_origin(kind) or kind
    if origin is Any:
        return value
    if origin is Literal:
        return value if value in get_args(kind) else None
    if origin is list and isinstance(value, list):
        return [_typed(f"{at}[{k}]", get_args(kind)[0], one) for k, one in enumerate(value, 1)]
    if is_dataclass(kind) and isinstance(value, dict):
        return build(kind, at, value)
    if origin is float and type(value) is int:
        return float(value)
    return value if isinstance(value, origin) and (origin is bool or type(value) is not bool) else None


def _said(kind) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(each) for each in get_args(kind))
    if get_origin(kind) is list:
        of = get_args(kind)[0]
        return "a list of texts" if of is str else "a list of tables (in TOML [[…]], with double brackets)"
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a table")
