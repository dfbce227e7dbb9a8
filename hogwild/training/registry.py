"""Rules, schedules and losses by name, as people type them: "adam", "adam:b1=0.95,eps=1e-6", "my_rules.Lion:beta=0.9"."""

import difflib
import functools

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import HyperParameterError, checked


def build(text: str, table: dict, what: str, steps_per_epoch: int = 1, tried=None, **defaults):
    """The NamedTuple that `text` names, from `table` or, with a dot in it, imported from a module of the user's own.

    Values are numbers, lists `a;b`, true/false, or durations such as `2epochs`, counted in steps. defaults: values for
    fields that the class has and the text does not give. tried(value, name, what): tests a value of a class of the user's
    own; None: `user_objects.tried`. Raises UserError, with the known names.
    """
    name, _, rest = text.partition(":")
    own = "." in name
    cls = _imported(name, what) if own else table.get(name)
    if cls is None:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown {what} '{name}': choose from {', '.join(table)}{hint}")
    fields = fields_of(cls)
    values = {field: value for field, value in defaults.items() if field in fields}
    for part in filter(None, rest.split(",")):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or field not in fields:
            raise UserError(f"{what} {name}: '{part}' is not NAME=VALUE with NAME one of {', '.join(fields) or '(none)'}")
        values[field] = _number(value, f"{what} {name}: {field}", steps_per_epoch)
        if isinstance(defaults.get(field), tuple) and not isinstance(values[field], tuple):
            values[field] = (values[field],)  # a list of one
    try:
        value = checked(cls(**values))
    except (HyperParameterError, TypeError) as error:
        raise UserError(f"{what} {error}".replace(".__new__()", "")) from None
    except Exception as error:  # of a class of the user's, whose `ranges` are none, say
        raise UserError(f"{what} {name}: {type(error).__name__}: {error}; its fields must be numbers, each in its `ranges`"
                        ) from None
    return (tried or _tried)(value, name, what) if own else value


def text_of(value) -> str:
    """A NamedTuple of hyper-parameters, or one of these, as people write it."""
    if hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(f'{k}={text_of(v)}' for k, v in zip(value._fields, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _imported(name, what):
    from hogwild.training import user_objects  # with it comes all of the kernels
    return user_objects.imported(name, what)


@functools.cache
def _tried(value, name, what):
    from hogwild.training import user_objects
    return user_objects.tried(value, name, what)


def fields_of(cls) -> tuple[str, ...]:
    """Hyper-parameter names of a class, or of a factory that makes one."""
    return getattr(cls, "_fields", None) or getattr(getattr(cls, "func", cls), "_fields", ())


def _number(text, where, steps_per_epoch):
    if ";" in text:
        return tuple(_number(item, where, steps_per_epoch) for item in text.split(";"))
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    stem = text.removesuffix("epochs").removesuffix("epoch")
    try:
        return float(stem) * (1 if stem == text else steps_per_epoch)
    except ValueError:
        raise UserError(f"{where} must be a number, true, false or a duration such as 2epochs, got '{text}'") from None
