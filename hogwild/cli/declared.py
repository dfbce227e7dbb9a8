"""Options as dataclasses declare them, nested ones too: walked, and filled from a TOML file or from values by name."""

import dataclasses
import re
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import tyro

from hogwild.errors import UserError, reason

BREAKS = re.compile(r"\n(?! *[a-z0-9-]+: )\s*")  # a line that explains a value, "wild: …", stays a line of its own
GROUPS = "options", "data", "model", "training", "sharing", "stopping", "exchange", "output", "failures"  # their order
WORDS = {int: "INT", float: "FLOAT", Path: "FILE"}  # for the value of an option; of a text, the last word of its name


class Option(NamedTuple):
    """An option of a command."""

    name: str  # on the command line and, with underscores, in a TOML file
    field: dataclasses.Field
    owner: type  # the dataclass
    group: str  # under which --help lists it
    default: Any  # dataclasses.MISSING: it must be given

    @property
    def kind(self) -> type:
        """Type of the value, of a list that of its items; None is no value that can be given."""
        kind = _bare(self.field.type)
        if get_origin(kind) in (types.UnionType, Union):
            kind = next(each for each in get_args(kind) if each is not type(None))
        return get_args(kind)[0] if get_origin(kind) in (list, tuple) else kind

    @property
    def many(self) -> bool:
        return get_origin(_bare(self.field.type)) in (list, tuple)

    @property
    def positional(self) -> bool:
        return any(mark is _POSITIONAL for mark in _marks(self.field))

    @property
    def shown(self) -> str:
        """How messages and --help call it: MODEL, --out."""
        name = self.name.replace("_", "-")
        if self.positional:
            return self._word() or name.upper()
        return f"--no-{name}" if self.default is True else f"--{name}"

    @property
    def call(self) -> str:
        """How --help writes it: "--out FILE", "--resume", "MODEL", "[DATA]"."""
        if self.positional:
            word = self.shown + " …" * self.many
            return word if self.default is dataclasses.MISSING else f"[{word}]"
        return self.shown if self.kind is bool else f"{self.shown} {self._value()}"

    def _value(self) -> str:
        if get_origin(self.kind) is Literal:
            return f"{{{','.join(get_args(self.kind))}}}"
        return self._word() or WORDS.get(self.kind) or self.name.rpartition("_")[2].upper()

    def _word(self) -> str | None:
        return next((mark.metavar for mark in _marks(self.field) if getattr(mark, "metavar", None)), None)

    def help(self) -> str:
        """The text below the field, in the first of the dataclass and its bases that has one, and the default."""
        import docstring_parser  # reads source files, for nothing but --help
        for cls in self.owner.__mro__[:-1]:
            for item in docstring_parser.parse_from_object(cls).params:
                if item.arg_name == self.field.name and item.description:
                    return BREAKS.sub(" ", item.description.strip()) + self._default()
        raise LookupError(f"{self.owner.__name__}.{self.field.name} has no text for --help")

    def _default(self) -> str:
        """Nothing where the text says it, and of a flag."""
        told = self.default is None or isinstance(self.default, bool) or self.default in ("", [], (), dataclasses.MISSING)
        return " (required)" * (self.default is dataclasses.MISSING and not self.positional) if told else (
            f" (default: {self.default:g})" if isinstance(self.default, float) else f" (default: {self.default})")


_POSITIONAL = tyro.conf.Positional[int].__metadata__[0]


def _marks(field) -> tuple:
    return getattr(field.type, "__metadata__", ())


def _bare(kind):
    return kind.__origin__ if hasattr(kind, "__metadata__") else kind


def options_of(cls, default=None, group="options"):
    """Yield the Options of a dataclass, of nested ones too. default: an instance whose values are the defaults.

    A field's group is the attribute `group` of the first class that declares it or, without one, the name of the field that
    holds its dataclass.
    """
    for field in dataclasses.fields(cls):
        value = getattr(default, field.name) if default is not None else (
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        if dataclasses.is_dataclass(field.type):
            yield from options_of(field.type, None if value is dataclasses.MISSING else value, field.name)
            continue
        first = next(base for base in reversed(cls.__mro__) if field.name in base.__dict__.get("__annotations__", {}))
        yield Option(_name(field), field, cls, getattr(first, "group", group), value)


def _name(field) -> str:
    renamed = (mark.name for mark in _marks(field) if getattr(mark, "name", None))
    return next(renamed, field.name).replace("-", "_")


def built(cls, values):
    """A `cls` of values by the options' names."""
    return cls(**{field.name: built(field.type, values) if dataclasses.is_dataclass(field.type) else values[_name(field)]
                  for field in dataclasses.fields(cls)})


def flat(options) -> dict:
    """Values of a dataclass by name, those of nested ones beside the others."""
    values = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def view(cls, default=None) -> type:
    """The options as one dataclass for tyro, each by the name that it has on the command line."""
    fields = []
    for option in options_of(cls, default):
        marks = [mark for mark in _marks(option.field) if not getattr(mark, "name", None)]
        value = {} if option.default is dataclasses.MISSING else {"default_factory": lambda value=option.default: value}
        kind = Annotated[_bare(option.field.type), *marks] if marks else option.field.type
        fields.append((option.name, kind, dataclasses.field(**value, kw_only=True)))
    return dataclasses.make_dataclass("Options", fields)


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
        raise UserError(f"{path}: cannot read the configuration: {reason(error, path)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    given = {key.replace("-", "_"): value for key, value in given.items()}
    options = {option.name: option for option in options_of(cls)}
    if unknown := [name for name in given if name not in options]:
        raise UserError(f"{path}: unknown option '{unknown[0]}'; known: {', '.join(options)}")
    return built(cls, {name: _typed(path, option, given[name]) if name in given else option.default
                       for name, option in options.items()})


def _typed(path, option, value):
    """A TOML value as the option's type."""
    kind, number = option.kind, isinstance(value, (int, float)) and not isinstance(value, bool)
    if (kind is Path and isinstance(value, str)) or (kind in (str, float) and number):
        return kind(value)
    if not isinstance(value, kind) or (kind is int and not number):
        raise UserError(f"{path}: {option.name} must be of type {kind.__name__}, got {value!r}")
    return value
